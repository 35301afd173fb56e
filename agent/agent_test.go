package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

func TestARequestIsKeptAliveForAsLongAsItTakes(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 20})
	r.ackWait = time.Second
	r.agent()
	r.stop("k", 1, 2)
	op := r.awaitEnd("k", events.Succeeded)
	if took := op.EndedAt.Sub(op.RequestedAt); took < 3*r.ackWait {
		t.Fatalf("took %s, less than three times the ack wait: this proves nothing", took)
	}
	if strings.Contains(r.logged.String(), "operation taken up") {
		t.Error("the request was delivered again")
	}
}

func TestAnAgentThatShutsDownHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 50})
	r.ackWait = time.Minute // nobody waits for that
	first := r.agent()
	r.stop("k", 1, 2)
	r.awaitToken("k", events.Running)
	began := time.Now()
	first()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("shutdown took %s, want less than 2 s", took)
	}
	r.machine.Agent = "second"
	r.agent()
	if op := r.awaitEnd("k", events.Succeeded); op.Agent != "second" {
		t.Errorf("ended by %q", op.Agent)
	}
	r.wantPosts(1)
}

func TestAgentsShareTheWork(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(6, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, ocpsim.Config{Clusters: clusters, Speed: 100})
	r.ackWait = time.Minute // none is delivered again and counts twice, however slow the machine is
	for i := range 3 {
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	for i := range 300 { // 50 copies of each of 6 requests
		c := clusters[i%6]
		r.stop(fmt.Sprint("k", i%6), c.ID, c.Zones[0].Servers[0].ID)
	}
	for i := range 6 {
		r.awaitEndAmongDuplicates(fmt.Sprint("k", i))
	}
	r.awaitNoOpenRequests()
	r.wantPosts(6)
	for i := range 6 {
		all := r.await("all duplicates", func(e events.Event) bool {
			return e.OperationID == events.OperationID(fmt.Sprint("k", i)) && e.Duplicates == 49
		})
		for j, e := range all {
			if e.N != j+1 {
				t.Fatalf("k%d: event %d has number %d", i, j+1, e.N)
			}
		}
	}
}

// OCP leaves so many requests unanswered that the breaker opens, and then answers again:
// the operations go on at once and do not wait for their timers.
func TestOperationsGoOnAsSoonAsOCPAnswers(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(12, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, ocpsim.Config{Clusters: clusters})
	r.fault("*:status,status=503")
	r.agent()
	for i, c := range clusters {
		r.stop(fmt.Sprint("k", i), c.ID, c.Zones[0].Servers[0].ID)
	}
	r.awaitToken("k0", events.Waiting)
	r.sim.ClearFaults()
	waited, early := 0, 0
	for i := range clusters {
		all := r.await("the end", func(e events.Event) bool {
			return e.OperationID == events.OperationID(fmt.Sprint("k", i)) && e.State.Final()
		})
		end := all[len(all)-1]
		for _, e := range all {
			if e.Token != events.Waiting {
				continue
			}
			if code := e.Reason.Code; code != events.CodeStaleTopology && code != events.CodeOCPUnreachable {
				t.Errorf("k%d waits for %+v", i, e.Reason)
			}
			waited++
			if end.EndedAt.Before(e.Reason.Until) {
				early++
			}
		}
	}
	// Only few operations try OCP while the breaker is open; a busy machine may delay some.
	if waited == 0 || early <= waited/2 {
		t.Errorf("%d of %d operations that waited for OCP went on before their timers ended", early, waited)
	}
	r.wantPosts(len(clusters))
}

func TestTheAgentStandsStillWhileNATSIsAwayAndThenGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 30})
	r.agent()
	r.stop("before", 1, 2)
	r.awaitToken("before", events.Running)
	r.server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	request := events.Request{IdempotencyKey: "during", ClusterID: 1, ServerID: 3}
	if _, err := request.Publish(ctx, r.js, events.Stop, "cli"); err == nil {
		t.Error("a request was acknowledged while NATS was away")
	}
	posts := r.sim.Posts(ocpsim.ServerStop)
	r.server.Restart()
	if err := r.nc.ForceReconnect(); err != nil {
		t.Logf("reconnects by itself: %v", err)
	}
	r.awaitEnd("before", events.Succeeded)
	if got := r.sim.Posts(ocpsim.ServerStop); got != posts {
		t.Errorf("%d calls, want %d", got, posts)
	}
	r.stop("after", 1, 4)
	r.awaitEnd("after", events.Succeeded)
}

func TestADeletedStreamEndsTheAgentLoudly(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := r.agentRunning(ctx)
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	if err := r.js.DeleteStream(t.Context(), events.RequestStream); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), events.RequestStream) {
			t.Errorf("ended with %v, want an error that names %s", err, events.RequestStream)
		}
	case <-time.After(testPatience):
		t.Fatal("goes on as if nothing had happened")
	}
}

func TestAnAgentEndsWhileNATSIsAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 5})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := r.agentRunning(ctx)
	r.stop("k", 1, 2)
	r.awaitToken("k", events.Running)
	for range 50 {
		r.stop("k", 1, 2)
	}
	r.server.Stop()
	began := time.Now()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(testPatience):
		t.Fatal("goes on")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s to end, want less than 3 s", took)
	}
	r.server.Restart()
}

// The journal's stream is gone, and the watch of it tries to begin anew, with pauses.
func TestAnAgentWhoseJournalIsGoneEndsInTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	stop := r.agent()
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	r.awaitNoOpenRequests()
	if err := r.js.DeleteStream(t.Context(), events.OperationStream); err != nil {
		t.Fatal(err)
	}
	r.logged.await(t, "watch of events")
	began := time.Now()
	stop()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %s to end, want less than 2 s", took)
	}
	r.setUpBuckets() // so that the watch ends, too
}
