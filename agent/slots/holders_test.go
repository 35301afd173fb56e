package slots

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

// TestAnAgentThatHasHeardNothingAsksTheJournal: its watch of events is cut off.
func TestAnAgentThatHasHeardNothingAsksTheJournal(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	a, deaf := newAgent(t, server), newDeafAgent(t, server)
	holder, waits := a.accept(1, "holder"), a.accept(1, "waits")
	if taken, _ := a.take(holder); !taken {
		t.Fatal("slot not taken")
	}
	if taken, _ := deaf.take(waits); taken {
		t.Fatal("the slot of an operation that has not ended was taken")
	}
	a.append(1, "holder", events.Submitting, nil)
	a.append(1, "holder", events.Succeeded, nil)
	deaf.age(1, holder.OperationID)
	if taken, _ := deaf.take(waits); !taken {
		t.Error("the slot of an operation that has ended was not taken")
	}
}

// age has the agent have read an operation long ago.
func (a *agent) age(cluster int64, id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.holders[cluster].of(id)
	h.readAt = h.readAt.Add(-verifyEvery)
	a.hold(cluster, h)
}

// TestAnOperationThatTheJournalHasForgottenHoldsNothing: its events were purged by hand, or it has ended long ago.
func TestAnOperationThatTheJournalHasForgottenHoldsNothing(t *testing.T) {
	t.Parallel()
	a := newDeafAgent(t, eventstest.Start(t))
	waits := a.accept(1, "waits")
	take := func(since time.Time) {
		a.change(waits, func(r *guard.Record) bool {
			return r.Take(guard.Slot{OperationID: events.OperationID("holder"), ServerID: 1, Since: since})
		})
	}
	take(time.Now()) // as an agent of the version before, which appends the first event meanwhile
	if taken, _ := a.take(waits); taken {
		t.Fatal("the slot of an operation whose first event may be on its way was taken")
	}
	take(time.Now().Add(-firstEventGrace))
	if taken, _ := a.take(waits); !taken {
		t.Error("the slot of an operation that the journal has forgotten was not taken")
	}
}

// TestAnEndThatWasAnnouncedIsReadWhateverIsReadBefore: an answer of the journal from before the event comes after the
// announcement of the event.
func TestAnEndThatWasAnnouncedIsReadWhateverIsReadBefore(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	a, other := newDeafAgent(t, server), newDeafAgent(t, server)
	holder, waits := a.accept(1, "holder"), a.accept(1, "waits")
	a.take(holder)
	older, err := a.journal.Last(t.Context(), holder.OperationID)
	if err != nil {
		t.Fatal(err)
	}
	end, _ := other.append(1, "holder", events.Cancelled, nil)
	last, err := a.journal.Last(t.Context(), holder.OperationID)
	if err != nil {
		t.Fatal(err)
	}
	announced := announcement{cluster: 1, id: holder.OperationID, holder: guard.Holder{State: end.State, Steps: end.N}, sequence: last.Sequence}
	if !a.noteEvent(announced) {
		t.Error("nobody was told of the end")
	}
	a.store(1, holder.OperationID, older)
	if taken, _ := a.take(waits); !taken {
		t.Error("the holder counts as holding although its end was announced")
	}
	if a.noteEvent(announced) {
		t.Error("somebody was told of the end once more")
	}
	a.store(1, holder.OperationID, older)
	if got := a.holders[1].of(holder.OperationID).State; got != events.Cancelled {
		t.Errorf("got state %s after an older answer, want cancelled", got)
	}
}

// TestOperationsThatWaitAreToldOfEveryPlaceThatComesFree counts what an agent is told while another one works. It may be
// told of any record that the other has written: the holders in there may be over. Events that free nothing are silent.
func TestOperationsThatWaitAreToldOfEveryPlaceThatComesFree(t *testing.T) {
	t.Parallel()
	agents := newAgents(t, 2)
	works, listens := agents[0], agents[1]
	ops := map[string]events.Operation{}
	for _, key := range []string{"x", "w", "v"} {
		ops[key] = works.accept(1, key)
	}
	append := func(key string, state events.State) func() bool {
		return func() (free bool) { ops[key], free = works.append(1, key, state, nil); return free }
	}
	write := func(change func()) func() bool { return func() bool { change(); return false } }
	for i, step := range []struct {
		name      string
		do        func() (free bool) // as Saw tells this agent's own operations
		told, saw bool
		written   bool // a record
	}{
		{"x takes the slot", write(func() { works.take(ops["x"]) }), false, false, true},
		{"x is submitted", append("x", events.Submitting), false, false, false},
		{"w is queued", write(func() { works.enqueue(ops["w"], 1) }), false, false, true},
		{"w says that it waits", append("w", events.Waiting), false, false, false},
		{"v is queued", write(func() { works.enqueue(ops["v"], 2) }), false, false, true},
		{"x ends", append("x", events.Succeeded), true, true, false},
		{"w takes the slot", write(func() { works.take(ops["w"]) }), false, false, true},
		{"v says that it waits", append("v", events.Waiting), false, false, false},
		{"w waits again", append("w", events.Waiting), true, true, false},
		{"w is queued again", write(func() { works.enqueue(ops["w"], 1) }), false, false, true},
		{"w leaves the queue", write(func() { works.dequeue(ops["w"]) }), true, false, true},
		{"v is cancelled in the queue", append("v", events.Cancelled), true, true, false},
		{"w is queued, and v is gone", write(func() { works.enqueue(ops["w"], 1) }), false, false, true},
		{"w takes the slot once more", write(func() { works.take(ops["w"]) }), false, false, true},
		{"w fails", append("w", events.Failed), true, true, false},
	} {
		if saw := step.do(); saw != step.saw {
			t.Errorf("%s: the agent itself saw that something came free: %v, want %v", step.name, saw, step.saw)
		}
		got := told(listens, works, fmt.Sprint("fence", i))
		switch {
		case step.told && got == 0:
			t.Errorf("%s: nobody is told", step.name)
		case !step.told && !step.written && got > 0:
			t.Errorf("%s: told %d times that something came free", step.name, got)
		}
	}
}

// told is how often an agent was told of cluster 1 until now. Another agent marks the present in both streams: by what
// comes free in cluster 2, and by a value in cluster 3 that is no record, of which agents are always told.
func told(listens, works *agent, key string) (n int) {
	listens.t.Helper()
	op := works.accept(2, key)
	works.take(op)
	works.append(2, key, events.Cancelled, nil)
	if _, err := works.streams.Clusters.PutString(works.t.Context(), "3", key); err != nil {
		works.t.Fatal(err)
	}
	deadline := time.After(eventstest.Patience)
	for awaited := map[int64]bool{2: true, 3: true}; len(awaited) > 0; {
		select {
		case cluster := <-listens.free:
			if delete(awaited, cluster); cluster == 1 {
				n++
			}
		case <-deadline:
			listens.t.Fatal("never told of the other clusters")
		}
	}
	return n
}

// TestAnEndThatIsWatchedBeforeItsSlotIsReadOnceTheSlotIsThere: records and events are watched apart.
func TestAnEndThatIsWatchedBeforeItsSlotIsReadOnceTheSlotIsThere(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	a, other := newDeafAgent(t, server), newDeafAgent(t, server)
	holder, waits := other.accept(1, "holder"), other.accept(1, "waits")
	other.take(holder)
	end, _ := other.append(1, "holder", events.Cancelled, nil)
	if a.noteEvent(announcement{cluster: 1, id: holder.OperationID, holder: guard.HolderOf(end), sequence: 100}) {
		t.Error("told of an operation that no record names")
	}
	if err := a.read(t.Context(), clusterKey(1)); err != nil {
		t.Fatal(err)
	}
	if !a.named(1, holder.OperationID) {
		t.Fatal("the record does not name the holder: the test tests nothing")
	}
	if taken, _ := a.take(waits); !taken {
		t.Error("the slot of an operation that has ended was not taken")
	}
}

func (a *agent) named(cluster int64, id string) bool {
	record, _, err := knownAs[guard.Record](a.Slots, clusterKey(cluster))
	return err == nil && record.Names(id)
}

func TestAnEventIsAnnouncedWhereItFreesSomething(t *testing.T) {
	t.Parallel()
	value, err := json.Marshal(guard.Record{
		Active: []guard.Slot{{OperationID: "x", Steps: 3}}, Queue: []guard.Ticket{{OperationID: "q"}}, Newest: map[int64]guard.Ticket{1: {OperationID: "n"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		cluster int64
		id      string
		state   events.State
		steps   int
		frees   bool
	}{
		{"end", 1, "x", events.Failed, 4, true},
		{"end without a step in between", 1, "x", events.Cancelled, 3, true},
		{"end from before the taking", 1, "x", events.Failed, 2, false},
		{"wait", 1, "x", events.Waiting, 4, true},
		{"wait from before the taking", 1, "x", events.Waiting, 3, false},
		{"end in the queue", 1, "q", events.Expired, 4, true},
		{"wait in the queue", 1, "q", events.Waiting, 4, false},
		{"end of the newest request", 1, "n", events.Rejected, 2, true},
		{"wait of the newest request", 1, "n", events.Waiting, 2, false},
		{"another operation", 1, "y", events.Failed, 4, false},
		{"another cluster", 2, "x", events.Failed, 4, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for name, tell := range map[string]func(*Slots) bool{
				"own event": func(s *Slots) bool {
					op := events.Operation{OperationID: test.id, ClusterID: test.cluster, N: 9, Steps: test.steps, State: test.state}
					return s.Saw(journal.Entry{Operation: op, Sequence: 10})
				},
				"another's event": func(s *Slots) bool {
					return s.noteEvent(announcement{cluster: test.cluster, id: test.id, holder: guard.Holder{State: test.state, Steps: test.steps}, sequence: 10})
				},
			} {
				s := New(nil, nil, nil, NewPauses(nil, nil), nil)
				s.learn("1", versioned{value: value, revision: 1})
				before := s.Version(1)
				if got := tell(s); got != test.frees {
					t.Errorf("%s: frees something: %v, want %v", name, got, test.frees)
				}
				if grew := s.Version(1) > before; grew != test.frees {
					t.Errorf("%s: the version grew: %v, want %v", name, grew, test.frees)
				}
				if tell(s) {
					t.Errorf("%s: it frees something twice", name)
				}
			}
		})
	}
}

// TestHistoryIsFoldedInOnceWhoeverTakesNext: a failure counts once, and cool-downs start at the end.
func TestHistoryIsFoldedInOnceWhoeverTakesNext(t *testing.T) {
	t.Parallel()
	agents := newAgents(t, 3)
	var ended []events.Operation
	for i := range 6 {
		a, key := agents[i%len(agents)], fmt.Sprint("op", i)
		op := a.accept(1, key)
		// Whether this agent has heard already of the end before does not matter: another one looks, which may write nothing.
		agents[(i+1)%len(agents)].change(op, func(*guard.Record) bool { return false })
		a.await("the slot of the operation before is free", func() bool { taken, _ := a.take(op); return taken })
		got := a.Record(1)
		if got.Failures != i || len(got.Recent) != i {
			t.Fatalf("operation %d: got %d failures and %d in the history, want %d of both", i, got.Failures, len(got.Recent), i)
		}
		for j, e := range got.Recent {
			if e.OperationID != ended[j].OperationID || !e.At.Equal(ended[j].EndedAt) || e.Zone != "zone1" || e.Succeeded {
				t.Errorf("operation %d: got %+v in the history, want %s, failed at %s", i, e, ended[j].OperationID, ended[j].EndedAt)
			}
		}
		submitted := func(op *events.Operation) { op.Attempt = 1 }
		agents[(i+2)%len(agents)].append(1, key, events.Submitting, submitted)
		op, _ = agents[(i+2)%len(agents)].append(1, key, events.Failed, nil)
		ended = append(ended, op)
	}
	// Each agent sees the last failure, whoever has written what.
	for i, a := range agents {
		a.await("told of the last end", func() bool { return a.heardOf(1, ended[5].OperationID) })
		a.change(events.Operation{ClusterID: 1}, func(r *guard.Record) bool {
			if r.Failures != 6 || len(r.Recent) != 6 {
				t.Errorf("agent %d: got %d failures and %d in the history, want 6 of both", i, r.Failures, len(r.Recent))
			}
			return false
		})
	}
}

// TestOperationsThatNoRecordNamesAreForgotten: an agent runs for months.
func TestOperationsThatNoRecordNamesAreForgotten(t *testing.T) {
	t.Parallel()
	agents := newAgents(t, 2)
	for i := range 20 {
		op := agents[i%2].accept(1, fmt.Sprint("op", i))
		agents[i%2].await("the slot of the operation before is free", func() bool { taken, _ := agents[i%2].take(op); return taken })
		agents[i%2].append(1, fmt.Sprint("op", i), events.Cancelled, nil)
	}
	for _, a := range agents {
		a.await("all but the last operation are forgotten", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return len(a.holders[1]) <= 1
		})
	}
}

// onLog calls itself for each record of a log.
type onLog func()

func (onLog) Enabled(context.Context, slog.Level) bool    { return true }
func (f onLog) Handle(context.Context, slog.Record) error { f(); return nil }
func (f onLog) WithAttrs([]slog.Attr) slog.Handler        { return f }
func (f onLog) WithGroup(string) slog.Handler             { return f }

// TestARecordThatComesDuringALookIsLookedAtToo: no decision rests on a record whose operations were not read.
func TestARecordThatComesDuringALookIsLookedAtToo(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	a, other := newDeafAgent(t, server), newDeafAgent(t, server)
	unreadable, ended, waits := a.accept(1, "unreadable"), a.accept(1, "ended"), a.accept(1, "waits")
	other.append(1, "ended", events.Cancelled, nil)
	a.take(unreadable)
	subject := events.EventSubject(events.Stop, unreadable.OperationID, 1, 1, events.Waiting)
	if _, err := a.js.Publish(t.Context(), subject, []byte("{")); err != nil {
		t.Fatal(err)
	}
	// While the unreadable one is read, another agent's record comes.
	a.log = slog.New(onLog(func() {
		if a.Version(1) < 1000 {
			a.learn("1", versioned{value: fmt.Appendf(nil, `{"generation":2,"active":[{"operation_id":%q,"steps":1}]}`, ended.OperationID), revision: 1000})
		}
	}))
	a.change(waits, func(r *guard.Record) bool {
		if len(r.Active) > 0 {
			t.Errorf("got slots %+v, want none: their operation has ended", r.Active)
		}
		return false
	})
	if a.Version(1) < 1000 {
		t.Error("no record came during the look: the test tests nothing")
	}
}

// TestASlotWhoseHolderCannotBeReadIsHeld: that can only make others wait.
func TestASlotWhoseHolderCannotBeReadIsHeld(t *testing.T) {
	t.Parallel()
	a := newDeafAgent(t, eventstest.Start(t))
	holder, waits := a.accept(1, "holder"), a.accept(1, "waits")
	a.take(holder)
	subject := events.EventSubject(events.Stop, holder.OperationID, 1, 1, events.Cancelled)
	if _, err := a.js.Publish(t.Context(), subject, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if taken, _ := a.take(waits); taken {
		t.Error("the slot of an operation that cannot be read was taken")
	}
}

// A request may name any cluster, and each is looked up before it turns out not to exist.
func TestAClusterWithoutARecordLeavesNothing(t *testing.T) {
	t.Parallel()
	a := newAgents(t, 1)[0]
	for cluster := range int64(100) {
		if record := a.Record(1000 + cluster); record.Generation != 0 {
			t.Errorf("got %+v, want nothing", record)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.generations) + len(a.holders) + len(a.changes) + len(a.known); n > 0 {
		t.Errorf("%d entries are kept of clusters that have no record", n)
	}
}

// An operation may come to the journal after all: its key is used again once the journal has forgotten it, or an agent of
// the version before took its slot before its first event was written.
func TestAHolderThatTheJournalDidNotHaveIsAskedForAgain(t *testing.T) {
	t.Parallel()
	a := newAgents(t, 1)[0]
	other := a.accept(1, "other")
	id := events.OperationID("k")
	look := func(take bool) (held bool) {
		if _, err := a.Update(t.Context(), other, func(record *guard.Record) bool {
			held = record.Holds(id, 0)
			return take && record.Take(guard.Slot{OperationID: id, Kind: events.Stop, ServerID: 1, Steps: 1})
		}); err != nil {
			t.Fatal(err)
		}
		return held
	}
	look(true)
	if look(false) {
		t.Fatal("an operation that is not in the journal holds a slot")
	}
	a.accept(1, "k")
	a.append(1, "k", events.Submitting, nil)
	if !look(false) {
		t.Error("the slot of an operation that calls OCP is free")
	}
}

// A key is used again after the journal has forgotten its operation, while nothing else happened in the cluster: what was
// known of the first says nothing of the second.
func TestASlotThatWasTakenSinceIsAskedFor(t *testing.T) {
	t.Parallel()
	all := newAgents(t, 2)
	a := all[0]
	take := func(op events.Operation) {
		t.Helper()
		if _, err := a.Update(t.Context(), op, func(record *guard.Record) bool {
			return record.Take(guard.Slot{OperationID: op.OperationID, Kind: events.Stop, ServerID: 1, Steps: op.Steps, Since: time.Now()})
		}); err != nil {
			t.Fatal(err)
		}
	}
	held := func(agent *agent, by events.Operation) (held bool) {
		t.Helper()
		if _, err := agent.Update(t.Context(), by, func(record *guard.Record) bool {
			held = record.Holds(events.OperationID("k"), 0)
			return false
		}); err != nil {
			t.Fatal(err)
		}
		return held
	}
	other := a.accept(1, "other")
	first := a.accept(1, "k")
	take(first)
	a.append(1, "k", events.Submitting, nil)
	a.append(1, "k", events.Failed, nil)
	for _, agent := range all {
		if held(agent, other) {
			t.Fatal("an operation that has ended holds a slot")
		}
	}
	if err := a.streams.Operations.Purge(t.Context(), jetstream.WithPurgeSubject(events.OperationSubjects(first.OperationID))); err != nil {
		t.Fatal(err)
	}
	second, _ := a.append(1, "k", events.Accepted, func(op *events.Operation) { op.N = 100 }) // the stream knows the first ids for 2 min
	take(second)
	a.append(1, "k", events.Submitting, nil)
	if !held(a, other) {
		t.Error("the slot of an operation that calls OCP is free")
	}
	for !held(all[1], other) { // once its watch has shown the slot
		if time.Since(second.UpdatedAt) > 5*time.Second {
			t.Fatal("the slot of an operation that calls OCP is free for another agent")
		}
		time.Sleep(time.Millisecond)
	}
}
