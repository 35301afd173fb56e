package agent

import (
	"testing"
	"time"

	"obwarden/agent/ocp/ocpsim"
	"obwarden/events"
)

// An agent whose operation went to another remembers an old state until its next
// append: an order must not be refused because of it (found by the chaos run).
func TestAnOrderIsJudgedByTheJournalNotByMemory(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1})
	r.agent()
	r.stop("long", 1, 2)
	r.awaitToken("long", events.Running)
	r.stop("k", 1, 3)
	waits := r.awaitToken("k", events.Waiting)
	// What another agent, to which the operation went, has written meanwhile.
	op := waits[len(waits)-1].Operation
	op.N, op.Steps, op.Agent, op.State, op.EndedAt = op.N+1, op.Steps+1, "another", events.Failed, time.Now().UTC()
	op.Task = &events.Task{ID: 1, Status: "FAILED"}
	msg, err := events.Event{Operation: op, Token: events.Failed}.Message()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	r.order(events.Retry, "k", 3)
	r.awaitToken("k", events.Running)
}

// A retry's message that comes again although a later one has taken its place must
// not be obeyed a second time (found by the chaos run).
func TestAnOvertakenRetryIsNotObeyedAgain(t *testing.T) {
	t.Parallel()
	now := time.Now()
	op := events.Operation{N: 3, Kind: events.Stop, State: events.Failed, ClusterID: 1, ServerID: 2, Task: &events.Task{ID: 1}, RequestSequence: 7, RequestedAt: now}
	for _, test := range []struct {
		sequence uint64
		at       time.Time
		refused  bool
	}{
		{6, now.Add(-time.Second), true},
		{8, now.Add(time.Second), false},
		{1, now.Add(time.Second), false}, // the stream was made anew
	} {
		o := Ordered{Order: events.OrderTo(events.Retry, op), Sequence: test.sequence, At: test.at}
		if err := refuseOrder(op, o); (err != nil) != test.refused {
			t.Errorf("order %d after order 7: %v, want refused: %v", test.sequence, err, test.refused)
		}
	}
}
