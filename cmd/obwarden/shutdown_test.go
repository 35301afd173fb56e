package main

import (
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// TestAnAgentEndsInTimeWhileNATSStandsStill freezes NATS, whose connections stay
// open and dead, while operations run, wait and come in. The promise is two seconds;
// a machine under load gets twice as long.
func TestAnAgentEndsInTimeWhileNATSStandsStill(t *testing.T) {
	t.Parallel()
	const operations = 18
	clusters, err := ocpsim.Grid(6, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, ocpsim.Config{Clusters: clusters, Speed: 60}).lax(t)
	server := s.natsProcess(t)
	agent := startProcess(t, s.environ, "run")
	s.ready(t)
	js := s.connect(t)
	for i := range operations {
		c := clusters[i%len(clusters)]
		servers := c.Zones[i/len(clusters)%3].Servers
		publish(t, js, events.Request{IdempotencyKey: fmt.Sprint("k", i), ClusterID: c.ID, ServerID: servers[i/len(clusters)/3].ID})
	}
	awaitState(t, js, events.OperationID("k0"), events.Running)

	server.Signal(syscall.SIGSTOP)
	began := time.Now()
	agent.Signal(syscall.SIGTERM)
	if code := agent.Wait(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	took := time.Since(began)
	t.Logf("ended after %s", took)
	if took > 4*time.Second {
		t.Errorf("ended after %s", took)
	}

	server.Signal(syscall.SIGCONT)
	startProcess(t, s.environ, "run")
	for i := range operations {
		if o := awaitEnd(t, js, fmt.Sprint("k", i)); o.State != events.Succeeded {
			t.Errorf("k%d ended %s: %+v", i, o.State, o.Reason)
		}
	}
	if posts := s.sim.Posts(ocpsim.ServerStop); posts != operations {
		t.Errorf("%d calls for %d operations", posts, operations)
	}
}

func TestAtMostWaitsNoLongerThanItMay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		hang := make(chan struct{})
		if atMost(time.Second, func() { <-hang }) || time.Since(began) != time.Second {
			t.Errorf("it hangs: got word after %s, want that it has not ended after 1s", time.Since(began))
		}
		close(hang)
		if !atMost(time.Second, func() { time.Sleep(time.Second / 2) }) || time.Since(began) != time.Second*3/2 {
			t.Errorf("it ends in time: got word after %s, want that it has after 1.5s", time.Since(began))
		}
	})
}
