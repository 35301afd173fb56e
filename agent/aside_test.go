package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// awaitAside waits until the document of an operation is set aside.
func (r *rig) awaitAside(key string) *held {
	r.t.Helper()
	deadline := time.Now().Add(testPatience)
	for a := r.latest; ; time.Sleep(time.Millisecond) { // nobody is told
		a.mu.Lock()
		h := a.held[events.OperationID(key)]
		aside := h != nil && !h.busy && h.aside != nil && h.entry == nil
		a.mu.Unlock()
		if aside {
			return h
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is not set aside", key)
		}
	}
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

// behindAnother is an operation that is set aside, "second": it waits for one that hangs.
func behindAnother(t *testing.T) (*rig, *held) {
	t.Helper()
	r := newRig(t, ocpsim.Config{})
	r.fault("*:hang_subtask,subtask=Stop server")
	r.agent()
	r.stop("first", 1, 1)
	r.awaitToken("first", events.Running)
	r.stop("second", 1, 2)
	r.awaitToken("second", events.Waiting)
	return r, r.awaitAside("second")
}

func TestWhatIsSetAsideGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	const clusters = 6
	c := hanging(t, clusters, time.Second)
	for i := range clusters {
		c.awaitAside(fmt.Sprint("k", i))
	}
	for i := range clusters { // that nothing happened is news, after a while
		all := c.awaitToken(fmt.Sprint("k", i), events.Stalled)
		if last, before := all[len(all)-1], all[len(all)-2]; last.N != before.N+1 || len(last.Task.Subtasks) != len(before.Task.Subtasks) {
			t.Errorf("event %d with %d subtasks follows event %d with %d", last.N, len(last.Task.Subtasks), before.N, len(before.Task.Subtasks))
		}
	}
	c.awaitAside("k0")
	c.stop("k0", 1, 1)
	if all := c.awaitToken("k0", events.Duplicate); all[len(all)-1].Duplicates != 1 || all[len(all)-1].Task == nil {
		t.Errorf("got %s", show(all[len(all)-1]))
	}
	c.awaitAside("k0")
	c.wantPosts(clusters)
}

func TestWhatAnotherAgentWroteMeanwhileIsItsOwn(t *testing.T) {
	t.Parallel()
	c := hanging(t, listFrom, 2*time.Second)
	h := c.awaitAside("k1")
	last, err := c.latest.journal.Last(t.Context(), h.id)
	if err != nil {
		t.Fatal(err)
	}
	other := c.machine
	other.Agent = "other"
	op := last.Operation
	if _, err := c.latest.journal.Append(t.Context(), last, other.event(&op, events.Progress, time.Now())); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(testPatience)
	for !strings.Contains(c.logged.String(), "another agent holds the operation") {
		if time.Now().After(deadline) {
			t.Fatal("the agent does not let go")
		}
		time.Sleep(time.Millisecond) // the log tells nobody
	}
}

func TestWhoWaitsIsNotDecidedOnWhileNothingIsNew(t *testing.T) {
	t.Parallel()
	r, h := behindAnother(t)
	a := r.latest
	nothingNew := func(change func()) bool { // it is parked: nobody is at it while the lock is held
		a.mu.Lock()
		defer a.mu.Unlock()
		at, kept, grounds, news := h.at, *h.aside, *h.grounds, h.news
		defer func() { h.at, *h.aside, *h.grounds, h.news = at, kept, grounds, news }()
		h.grounds.record, h.grounds.facts = a.slots.revision(1), a.facts.readAt(1) // those of a second decision
		change()
		return a.nothingNew(t.Context(), h)
	}
	for name, tt := range map[string]struct {
		change func()
		want   bool
	}{
		"nothing":                     {func() {}, true},
		"somebody woke it":            {func() { h.at = time.Time{} }, false},
		"its time is over":            {func() { h.aside.until = time.Now() }, false},
		"its time is not over":        {func() { h.aside.until = time.Now().Add(time.Minute) }, true},
		"people changed something":    {func() { h.news-- }, false},
		"others wrote the record":     {func() { h.grounds.record-- }, false},
		"facts were read since":       {func() { h.grounds.facts = h.grounds.facts.Add(-1) }, false},
		"there are no facts to go by": {func() { h.grounds.facts = time.Time{} }, false},
	} {
		if got := nothingNew(tt.change); got != tt.want {
			t.Errorf("%s: nothing is new is %v", name, got)
		}
	}
	r.publish(fmt.Sprintf("ob.server.stop.cancel.%s.1.2", h.id), "{}")
	r.awaitEnd("second", events.Cancelled)
}

func TestWhatIsSetAsideRestsWhileNATSIsAway(t *testing.T) {
	t.Parallel()
	r, h := behindAnother(t)
	address := strings.TrimPrefix(r.nats.URL(), "nats://")
	r.stopNATS()
	for r.nc.IsConnected() {
		time.Sleep(time.Millisecond) // the client tells nobody here
	}
	func() {
		a := r.latest
		a.mu.Lock()
		defer a.mu.Unlock()
		if h.busy { // the record told it of something a moment ago
			return
		}
		at := h.at
		defer func() { h.at = at }()
		h.at = time.Time{} // somebody woke it
		if !a.nothingNew(t.Context(), h) || h.at.Before(time.Now()) {
			t.Errorf("it does not wait for NATS, but is looked at %s", h.at)
		}
	}()
	r.latest.SetPolicy(r.latest.policy.Load()) // is news, but cannot be decided by
	deadline := time.Now().Add(testPatience)
	for busy := true; busy; time.Sleep(time.Millisecond) {
		r.latest.mu.Lock()
		busy = h.busy || h.at.Before(time.Now())
		r.latest.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("it is tried again and again")
		}
	}
	r.startNATS(address)
	for !r.nc.IsConnected() {
		time.Sleep(time.Millisecond)
	}
	r.publish(fmt.Sprintf("ob.server.stop.cancel.%s.1.2", h.id), "{}")
	r.awaitEnd("second", events.Cancelled)
}

func TestGroundsAreThoseOfWhatWasSaid(t *testing.T) {
	t.Parallel()
	now := time.Now()
	expires := now.Add(time.Hour)
	reason := events.Reason{Code: events.CodeClusterBusy, Message: "cluster 1 has 1 of 1", Position: 2, Until: now.Add(5 * time.Second)}
	said := reason
	said.Until = now
	op := events.Operation{State: events.Waiting, Policy: "p", Reason: &said, Request: events.Request{ExpiresAt: expires}}
	decided := func(change func(*Decided)) Decided {
		d := Decided{Decision: guard.Decision{Verdict: guard.Wait, Rule: "cluster_slots", Reason: reason}, Policy: "p", GiveUp: expires.Add(time.Hour), FactsAt: now}
		change(&d)
		return d
	}
	if g := groundsOf(op, decided(func(*Decided) {}), 7); g == nil || g.record != 7 || !g.facts.Equal(now) || !g.until.Equal(expires) {
		t.Errorf("got %+v", g)
	}
	for name, change := range map[string]func(*Decided){
		"another place in the queue": func(d *Decided) { d.Reason.Position = 1 },
		"another message":            func(d *Decided) { d.Reason.Message = "cluster 1 has 2 of 1" },
		"another code":               func(d *Decided) { d.Reason.Code = events.CodeServerBusy },
		"another policy":             func(d *Decided) { d.Policy = "q" },
		"what OCP shows":             func(d *Decided) { d.Rule = "cluster_in_ocp" },
		"the time":                   func(d *Decided) { d.Rule = "cooldown" },
		"the record of all clusters": func(d *Decided) { d.Rule = "budget" },
		"no rule of the guard":       func(d *Decided) { d.Rule = "" },
		"no wait":                    func(d *Decided) { d.Verdict = guard.Allow },
	} {
		if g := groundsOf(op, decided(change), 7); g != nil {
			t.Errorf("%s: got %+v, want no grounds", name, g)
		}
	}
}

func TestAnEventThatIsGoneFromTheJournalIsAConflict(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.stop("k", 1, 1)
	r.awaitEnd("k", events.Succeeded)
	journal := r.latest.journal
	last, err := journal.Last(t.Context(), events.OperationID("k"))
	if err != nil {
		t.Fatal(err)
	}
	at, err := journal.At(t.Context(), last.Operation.OperationID, last.Sequence)
	if err != nil || at.Operation.N != last.Operation.N || at.Sequence != last.Sequence {
		t.Fatalf("got event %d at %d (%v), want %d at %d", at.Operation.N, at.Sequence, err, last.Operation.N, last.Sequence)
	}
	for _, gone := range []struct {
		id       string
		sequence uint64
	}{{last.Operation.OperationID, last.Sequence + 1}, {"another", last.Sequence}} {
		if _, err := journal.At(t.Context(), gone.id, gone.sequence); !errors.Is(err, ErrConflict) {
			t.Errorf("operation %s at %d: got %v, want a conflict", gone.id, gone.sequence, err)
		}
	}
}
