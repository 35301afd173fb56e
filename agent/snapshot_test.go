package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

// atRest calls look with an operation of the agent started last while no worker has it, again and again until look
// returns true.
func (r *rig) atRest(key, what string, look func(h *held) bool) {
	r.t.Helper()
	id, q := events.OperationID(key), r.latest.queue
	eventually(r.t, key+" "+what, func() bool {
		q.mu.Lock() // no worker starts meanwhile
		defer q.mu.Unlock()
		it, h := q.items[id], r.latest.roster.get(id)
		return it != nil && h != nil && it.state == resting && look(h)
	})
}

// awaitSnapshot waits until the document of an operation is replaced by a snapshot.
func (r *rig) awaitSnapshot(key string) {
	r.t.Helper()
	r.atRest(key, "has a snapshot", func(h *held) bool { return h.hand.snapshot != nil && h.hand.entry == nil })
}

// hanging is an OCP in which each of so many operations, one a cluster, comes to a
// subtask that does not end.
func hanging(t *testing.T, clusters int, stallAfter time.Duration) *counted {
	t.Helper()
	c := newCounted(t, clusters, "*:hang_subtask,subtask=Stop server")
	c.machine.PollMin, c.machine.PollMax, c.machine.StallAfter = 20*time.Millisecond, 20*time.Millisecond, stallAfter
	c.agent()
	c.stopEach(clusters)
	for i := range clusters {
		id := events.OperationID(fmt.Sprint("k", i))
		c.await("the subtask that hangs", func(e events.Event) bool {
			return e.OperationID == id && len(e.Changes) > 0 && e.Changes[0].Name == "Stop server" && e.Changes[0].To == ocp.StatusRunning
		})
	}
	return c
}

// behindAnother has an operation with a snapshot, "second": it waits for one that hangs.
func behindAnother(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, ocpsim.Config{})
	r.fault("*:hang_subtask,subtask=Stop server")
	r.agent()
	r.stop("first", 1, 1)
	r.awaitToken("first", events.Running)
	r.stop("second", 1, 2)
	r.awaitToken("second", events.Waiting)
	r.awaitSnapshot("second")
	return r
}

func TestAnOperationWithASnapshotGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	const clusters = 6
	c := hanging(t, clusters, time.Second)
	for i := range clusters {
		c.awaitSnapshot(fmt.Sprint("k", i))
	}
	for i := range clusters { // that nothing happened is news, after a while
		all := c.awaitToken(fmt.Sprint("k", i), events.Stalled)
		if last, before := all[len(all)-1], all[len(all)-2]; last.N != before.N+1 || len(last.Task.Subtasks) != len(before.Task.Subtasks) {
			t.Errorf("event %d with %d subtasks follows event %d with %d", last.N, len(last.Task.Subtasks), before.N, len(before.Task.Subtasks))
		}
	}
	c.awaitSnapshot("k0")
	c.stop("k0", 1, 1)
	if all := c.awaitToken("k0", events.Duplicate); all[len(all)-1].Duplicates != 1 || all[len(all)-1].Task == nil {
		t.Errorf("got %s", show(all[len(all)-1]))
	}
	c.awaitSnapshot("k0")
	c.wantPosts(clusters)
}

func TestAnOperationThatAnotherAgentWroteMeanwhileIsLetGo(t *testing.T) {
	t.Parallel()
	c := hanging(t, 4, 2*time.Second)
	c.awaitSnapshot("k1")
	last, err := c.latest.journal.Last(t.Context(), events.OperationID("k1"))
	if err != nil {
		t.Fatal(err)
	}
	op := last.Operation
	if _, err := c.latest.journal.Append(t.Context(), last, []events.Event{nextEvent(&op, events.Progress)}); err != nil {
		t.Fatal(err)
	}
	c.logged.await(t, "another agent holds the operation")
}

func TestAnOperationThatWaitsIsNotDecidedOnWhileNothingIsNew(t *testing.T) {
	t.Parallel()
	r := behindAnother(t)
	a := r.latest
	unchanged := func(change func(*hand)) (same bool) {
		r.atRest("second", "has a snapshot", func(h *held) bool {
			if h.hand.snapshot == nil {
				return false
			}
			before, kept := h.hand, *h.hand.snapshot
			defer func() { h.hand, *h.hand.snapshot = before, kept }()
			basis := &h.hand.snapshot.basis // as if it had been decided on just now
			basis.version, basis.facts, basis.generation = a.slots.Version(1), a.clusters.ReadAt(1), a.generation.Load()
			change(&h.hand)
			same = a.unchanged(t.Context(), h)
			return true
		})
		return same
	}
	for name, tt := range map[string]struct {
		change func(*hand)
		want   bool
	}{
		"nothing":                     {func(*hand) {}, true},
		"somebody woke it":            {func(h *hand) { h.plan.at = time.Time{} }, false},
		"its time is over":            {func(h *hand) { h.snapshot.until = time.Now() }, false},
		"its time is not over":        {func(h *hand) { h.snapshot.until = time.Now().Add(time.Minute) }, true},
		"people changed something":    {func(h *hand) { h.snapshot.basis.generation-- }, false},
		"others took or freed a slot": {func(h *hand) { h.snapshot.basis.version-- }, false},
		"facts were read since":       {func(h *hand) { h.snapshot.basis.facts = h.snapshot.basis.facts.Add(-1) }, false},
		"there are no facts to go by": {func(h *hand) { h.snapshot.basis.facts = time.Time{} }, false},
	} {
		if got := unchanged(tt.change); got != tt.want {
			t.Errorf("%s: unchanged is %v", name, got)
		}
	}
	r.publish(fmt.Sprintf("ob.server.stop.cancel.%s.1.2", events.OperationID("second")), "{}")
	r.awaitEnd("second", events.Cancelled)
}

func TestAnOperationWithASnapshotRestsWhileNATSIsAway(t *testing.T) {
	t.Parallel()
	r := behindAnother(t)
	r.server.Stop()
	eventually(t, "the client is disconnected", func() bool { return !r.nc.IsConnected() })
	r.latest.Policy.Set(laxPolicy()) // is news, but cannot be decided by
	r.atRest("second", "rests until NATS is tried again", func(h *held) bool { return h.hand.snapshot != nil && h.hand.plan.at.After(time.Now()) })
	r.server.Restart()
	eventually(t, "the client is connected again", r.nc.IsConnected)
	r.publish(fmt.Sprintf("ob.server.stop.cancel.%s.1.2", events.OperationID("second")), "{}")
	r.awaitEnd("second", events.Cancelled)
}

func TestADecisionRestsOnItsBasisWhereItSaidSo(t *testing.T) {
	t.Parallel()
	now := time.Now()
	reason := events.Reason{Code: events.CodeClusterBusy, Message: "cluster 1 has 1 of 1", Position: 2, Until: now.Add(5 * time.Second)}
	said := reason
	said.Until = now
	op := events.Operation{State: events.Waiting, Policy: "p", Reason: &said}
	decided := func(change func(*operation.Decided)) operation.Decided {
		d := operation.Decided{Decision: guard.Decision{Verdict: guard.Wait, Rule: "cluster_slots", Reason: reason}, Policy: "p", FactsAt: now}
		change(&d)
		return d
	}
	if !restsOnBasis(op, decided(func(*operation.Decided) {})) {
		t.Error("it rests on no basis although it says all of it")
	}
	for name, change := range map[string]func(*operation.Decided){
		"another place in the queue": func(d *operation.Decided) { d.Reason.Position = 1 },
		"another message":            func(d *operation.Decided) { d.Reason.Message = "cluster 1 has 2 of 1" },
		"another code":               func(d *operation.Decided) { d.Reason.Code = events.CodeServerBusy },
		"another policy":             func(d *operation.Decided) { d.Policy = "q" },
		"facts of OCP":               func(d *operation.Decided) { d.Rule = "cluster_in_ocp" },
		"the time":                   func(d *operation.Decided) { d.Rule = "cooldown" },
		"the record of all clusters": func(d *operation.Decided) { d.Rule = "budget" },
		"no rule of the guard":       func(d *operation.Decided) { d.Rule = "" },
		"no wait":                    func(d *operation.Decided) { d.Verdict = guard.Allow },
	} {
		if restsOnBasis(op, decided(change)) {
			t.Errorf("%s: it rests on its basis, want none", name)
		}
	}
}
