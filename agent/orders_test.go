package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
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
	// The operation went to another agent, which has written this event.
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

// retryWithoutAgent lets operation k fail and its agent end. The caller gets the order to
// retry, which no agent has received.
func (r *rig) retryWithoutAgent() (failed events.Operation, order jetstream.Msg) {
	r.t.Helper()
	r.fault("server_stop:fail_subtask,subtask=Stop server")
	stop := r.agent()
	r.stop("k", 1, 2)
	failed = r.awaitEnd("k", events.Failed)
	r.awaitNoOpenRequests()
	stop()
	consumer, err := r.js.Consumer(r.t.Context(), events.RequestStream, events.Consumer)
	if err != nil {
		r.t.Fatal(err)
	}
	r.order(events.Retry, "k", 2)
	if order, err = consumer.Next(); err != nil {
		r.t.Fatal(err)
	}
	return failed, order
}

// An agent refused a retry while the operation still ran, and its acknowledgement is late:
// the operation has failed meanwhile, and another agent obeys the same message. The late
// acknowledgement must not leave the operation without an agent (found by the chaos run).
func TestALateAcknowledgementOfARetryDoesNotOrphanItsOperation(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 20})
	failed, late := r.retryWithoutAgent()
	if err := late.Nak(); err != nil { // another agent gets it, as after the ack wait
		t.Fatal(err)
	}
	stop := r.agent()
	r.await("OCP to go on", func(e events.Event) bool { return e.N > failed.N && e.State == events.Running && len(e.Changes) > 0 })
	if err := r.nc.Publish(late.Reply(), []byte("+ACK")); err != nil {
		t.Fatal(err)
	}
	stop()
	r.agent()
	r.awaitToken("k", events.Succeeded)
	r.awaitNoOpenRequests()
	r.wantPosts(1)
}

// An agent that stood still may obey a retry after another agent has replaced its message:
// then the new message owns the operation, whichever agent gets it.
func TestARenewedRetryOwnsWhatTheFirstHasBegun(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 200})
	op, first := r.retryWithoutAgent()
	meta, err := first.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := events.OrderTo(events.Retry, op).Message()
	if err != nil {
		t.Fatal(err)
	}
	renewed.Header.Set(renewsHeader, messageID(meta.Sequence.Stream, meta.Timestamp))
	obeyed, err := events.Event{Token: events.Running, Operation: r.machine.Step(op, operation.Ordered{
		Order: events.OrderTo(events.Retry, op), Sequence: meta.Sequence.Stream, At: meta.Timestamp.UTC(),
	}, time.Now()).Append[0].Operation}.Message()
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range []*nats.Msg{renewed, obeyed} {
		if _, err := r.js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.agent()
	r.await("another end", func(e events.Event) bool { return e.N > op.N+1 && e.State.Final() })
	r.awaitNoOpenRequests()
}

// Of two agents that get the same retry again, or of one that gets it twice, one puts a
// message in its place.
func TestARetryIsRenewedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 200})
	r.fault("server_stop:fail_subtask,subtask=Stop server")
	r.agent()
	r.stop("k", 1, 2)
	op := r.awaitEnd("k", events.Failed)
	r.awaitNoOpenRequests()
	msg, err := events.OrderTo(events.Retry, op).Message()
	if err != nil {
		t.Fatal(err)
	}
	a := r.latest
	// As message 1, which is not there any more, and as one that is not the last.
	taken, err := r.js.PublishMsg(t.Context(), msg)
	if err != nil {
		t.Fatal(err)
	}
	r.awaitToken("k", events.Succeeded)
	r.awaitNoOpenRequests()
	said, err := r.nc.SubscribeSync("nobody")
	if err != nil {
		t.Fatal(err)
	}
	for _, sequence := range []uint64{1, taken.Sequence} {
		h := &held{id: op.OperationID, hand: hand{entry: &journal.Entry{Operation: op}}}
		gone := delivery{ack: ack{r.nc, "nobody"}, order: &operation.Ordered{Order: events.OrderTo(events.Retry, op), Sequence: sequence, At: time.Now()}}
		if err := a.renew(t.Context(), h, gone); err != nil {
			t.Fatal(err)
		}
		// Another agent may obey the message, so that it owns the operation: it must not be acknowledged.
		if msg, err := said.NextMsg(testPatience); err != nil || !strings.HasPrefix(string(msg.Data), "-NAK") {
			t.Errorf("message %d: got %v, %v, want it handed back", sequence, msg, err)
		}
	}
	stream, err := r.js.Stream(t.Context(), events.RequestStream)
	if err != nil {
		t.Fatal(err)
	}
	if last := stream.CachedInfo().State.LastSeq; last != taken.Sequence+1 {
		t.Errorf("the request stream has come to message %d, want %d, the one in the order's place", last, taken.Sequence+1)
	}
}

// An agent that stood still has received a retry that another agent has refused and
// acknowledged meanwhile. If it obeyed the retry now, no agent would take up the operation
// after it ends (found by the chaos run).
func TestARetryThatIsGoneIsNotObeyed(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 20})
	_, order := r.retryWithoutAgent()
	if err := order.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wantNotObeyed(order, nil)
}

// The message in its place is for one event of the operation: not for a later failure that
// the agent has not seen yet, and that others have refused it for.
func TestARetryIsObeyedOnlyAfterTheEventThatItWasGivenFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 20})
	failed, order := r.retryWithoutAgent()
	known, err := r.latest.journal.Last(t.Context(), failed.OperationID)
	if err != nil {
		t.Fatal(err)
	}
	op := failed
	for _, token := range []events.State{events.Running, events.Failed} { // another order's
		msg, err := nextEvent(&op, token).Message()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	if err := order.DoubleAck(t.Context()); err != nil { // nobody else gets it meanwhile
		t.Fatal(err)
	}
	r.wantNotObeyed(order, &known)
}

// wantNotObeyed gives an order to an agent that knows the operation as it was at known, by
// a message for that event; known nil: as it is, by the message itself.
func (r *rig) wantNotObeyed(order jetstream.Msg, known *journal.Entry) {
	r.t.Helper()
	o, err := events.DecodeOrder(order.Subject(), order.Data())
	if err != nil {
		r.t.Fatal(err)
	}
	meta, err := order.Metadata()
	if err != nil {
		r.t.Fatal(err)
	}
	r.agent()
	a := r.latest
	before, err := a.journal.Last(r.t.Context(), o.OperationID)
	if err != nil {
		r.t.Fatal(err)
	}
	d := delivery{ack: a.ackOf(order), order: &operation.Ordered{Order: o, Sequence: meta.Sequence.Stream, At: meta.Timestamp.UTC()}}
	h := &held{id: o.OperationID, hand: hand{entry: &before}}
	if known != nil {
		h.hand.entry, d.after = known, known.Sequence
	}
	if err := a.obey(r.t.Context(), h, d); err != nil && !errors.Is(err, journal.ErrConflict) {
		r.t.Fatal(err)
	}
	if after, err := a.journal.Last(r.t.Context(), o.OperationID); err != nil || after.Sequence != before.Sequence {
		r.t.Errorf("it is obeyed: event %d, %s (%v)", after.Operation.N, after.Operation.State, err)
	}
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
		{1, now.Add(time.Second), false}, // the stream was created anew
	} {
		o := operation.Ordered{Order: events.OrderTo(events.Retry, op), Sequence: test.sequence, At: test.at}
		if err := operation.RefuseOrder(op, o); (err != nil) != test.refused {
			t.Errorf("order %d after order 7: %v, want refused: %v", test.sequence, err, test.refused)
		}
	}
}

// A retry may take effect until the settle time after the call is over, however late the
// call was made after the order, and however old the answer of a look is.
func TestTheOldFailureEndsARetryOnlyWhenItsCallHasSettled(t *testing.T) {
	t.Parallel()
	const settle = 10 * time.Second
	m, now := operation.Machine{Settle: settle, PollMin: time.Second, PollMax: time.Second, StallAfter: time.Hour}, time.Now()
	op := events.Operation{N: 5, State: events.Running, RetriedAt: now.Add(-2 * settle), Task: &events.Task{ID: 1, Status: ocp.StatusFailed, MovedAt: now}}
	for _, test := range []struct {
		since time.Time
		age   time.Duration
		want  operation.Action
	}{
		{time.Time{}, 0, operation.Finish},
		{now.Add(-settle), 0, operation.Finish},
		{now.Add(-settle), time.Second, operation.Look},
		{now.Add(-settle / 2), 0, operation.Look},
	} {
		in := operation.Looked{Task: ocp.Task{ID: 1, Status: ocp.StatusFailed}, Since: test.since, Age: test.age}
		if got := m.Step(op, in, now); got.Do != test.want {
			t.Errorf("called %s ago, looked %s ago: %s, want %s", now.Sub(test.since), test.age, got.Do, test.want)
		}
	}
}

func (r *rig) order(verb events.Verb, key string, server int64) {
	r.t.Helper()
	o := events.OrderTo(verb, events.Operation{Kind: events.Stop, OperationID: events.OperationID(key), ClusterID: 1, ServerID: server})
	o.Reason, o.RequestedBy = "because", "me"
	if _, err := o.Publish(r.t.Context(), r.js); err != nil {
		r.t.Fatal(err)
	}
}

func TestAWaitingOperationCanBeCancelledAndARunningOneCannot(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 40})
	for i := range 3 { // the order may reach another agent than the one that holds the operation
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	r.stop("runs", 1, 2)
	r.awaitToken("runs", events.Running)
	r.stop("waits", 1, 3)
	r.awaitToken("waits", events.Waiting)
	r.order(events.Cancel, "waits", 4) // another target: refused
	r.order(events.Cancel, "waits", 3)
	r.order(events.Cancel, "runs", 2)
	r.order(events.Cancel, "nothing", 2)
	if op := r.awaitEnd("waits", events.Cancelled); op.Reason.Code != events.CodeCancelled || !strings.Contains(op.Reason.Message, "me: because") {
		t.Errorf("reason %+v", op.Reason)
	}
	r.awaitEnd("runs", events.Succeeded)
	r.awaitNoOpenRequests()
	r.wantPosts(1)
}

func TestAFailedTaskIsRetriedInTheSameOperation(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 200})
	r.fault("server_stop:fail_subtask,subtask=Stop server")
	r.agent()
	r.stop("k", 1, 2)
	failed := r.awaitEnd("k", events.Failed)
	r.awaitNoOpenRequests()
	r.order(events.Retry, "k", 2)
	all := r.awaitToken("k", events.Succeeded)
	for i, e := range all {
		if e.N != i+1 {
			t.Errorf("event %d has number %d", i+1, e.N)
		}
	}
	op := all[len(all)-1].Operation
	if op.Task.ID != failed.Task.ID || op.Error != nil || op.Task.Subtasks[1].Runs != 2 {
		t.Errorf("task %d, error %+v, %d runs; want task %d, no error, 2 runs", op.Task.ID, op.Error, op.Task.Subtasks[1].Runs, failed.Task.ID)
	}
	r.awaitNoOpenRequests()
	r.wantPosts(1)
}

func TestARetryHoldsItsSlotWhateverItsRequestSays(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 50})
	r.fault("server_stop:fail_subtask,subtask=Stop server,server=2")
	r.agent()
	expires := time.Now().Add(4 * time.Second)
	r.publish("ob.server.stop.request", fmt.Sprintf(`{"idempotency_key":"k","cluster_id":1,"server_id":2,"expires_at":%q}`, expires.Format(time.RFC3339Nano)))
	r.awaitEnd("k", events.Failed)
	r.awaitNoOpenRequests()
	time.Sleep(time.Until(expires)) // what is expired is what this test is about
	r.order(events.Retry, "k", 2)
	r.await("the retry", func(e events.Event) bool { return !e.RetriedAt.IsZero() && e.Token == events.Progress })
	r.stop("other", 1, 3)
	r.awaitToken("other", events.Waiting)
	r.awaitToken("k", events.Succeeded)
	r.awaitEnd("other", events.Succeeded)
}

func TestACancelRightBehindItsRequestIsNotLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1})
	for i := range 2 {
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	r.stop("long", 1, 2)
	r.awaitToken("long", events.Running)
	for i := range 10 {
		key := fmt.Sprint("k", i)
		r.stop(key, 1, 3)
		r.order(events.Cancel, key, 3)
	}
	for i := range 10 {
		r.awaitEnd(fmt.Sprint("k", i), events.Cancelled)
	}
	r.awaitOpenRequests(1) // the long one: whoever held the others has let them go
}
