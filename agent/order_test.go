package agent

import (
	"testing"
	"time"

	"obwarden/agent/ocp"
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
		{7, now, true},
		{8, now.Add(time.Second), false},
		{1, now.Add(time.Second), false}, // the stream was made anew
	} {
		o := Ordered{Order: events.OrderTo(events.Retry, op), Sequence: test.sequence, At: test.at}
		if err := refuseOrder(op, o); (err != nil) != test.refused {
			t.Errorf("order %d after order 7: %v, want refused: %v", test.sequence, err, test.refused)
		}
	}
}

// A retry may take effect until the settle time after the call is over, however long
// after the order the call was made, and however old what a look shows has become.
func TestTheOldFailureEndsARetryOnlyWhenItsCallHasSettled(t *testing.T) {
	t.Parallel()
	const settle = 10 * time.Second
	m, now := Machine{Settle: settle, PollMin: time.Second, PollMax: time.Second, StallAfter: time.Hour}, time.Now()
	op := events.Operation{N: 5, State: events.Running, RetriedAt: now.Add(-2 * settle), Task: &events.Task{ID: 1, Status: ocp.StatusFailed, MovedAt: now}}
	for _, test := range []struct {
		since time.Time
		age   time.Duration
		want  Action
	}{
		{time.Time{}, 0, Finish},
		{now.Add(-settle), 0, Finish},
		{now.Add(-settle), time.Second, Look},
		{now.Add(-settle / 2), 0, Look},
	} {
		in := Looked{Task: ocp.Task{ID: 1, Status: ocp.StatusFailed}, Since: test.since, Age: test.age}
		if got := m.Step(op, in, now); got.Do != test.want {
			t.Errorf("called %s ago, looked %s ago: %s, want %s", now.Sub(test.since), test.age, got.Do, test.want)
		}
	}
}
