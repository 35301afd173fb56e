package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// natsProcess is a NATS server in a process of its own, beside the agents.
func (s site) natsProcess(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveNATS+"="+t.TempDir(), serveNATSOn+"="+s.environ["OBWARDEN_NATS_LISTEN"])
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT) // a test that failed may have left it stopped
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil { // its URL: it is up
		t.Fatal(err)
	}
	s.environ["OBWARDEN_NATS_URL"] = "nats://" + s.environ["OBWARDEN_NATS_LISTEN"]
	return cmd
}

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
	awaitState(t, js, "k0", events.Running)

	signal := func(p *os.Process, s syscall.Signal) {
		t.Helper()
		if err := p.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(server.Process, syscall.SIGSTOP)
	began := time.Now()
	signal(agent.cmd.Process, syscall.SIGTERM)
	if code := agent.wait(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	took := time.Since(began)
	t.Logf("ended after %s", took)
	if took > 4*time.Second {
		t.Errorf("ended after %s", took)
	}

	signal(server.Process, syscall.SIGCONT)
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

func TestWhatHangsIsNotWaitedForLongerThanTold(t *testing.T) {
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
