package agent

import (
	"time"

	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

// held is an operation that this agent has heard of. Its worker, of which there is one at a time, owns the hand; all other
// fields belong to the roster's lock.
type held struct {
	id         string
	inbox      []delivery
	collecting time.Time // until then duplicates are only collected
	summary    summary
	byProgress int // index in the roster's heaps, from 1; 0: not in it
	byArrival  int

	hand hand
}

// hand is everything that a worker has of an operation in hand. It is dropped as a whole once another agent has written
// the operation, or its request is acknowledged: nothing of it survives into the time of the next owner.
type hand struct {
	ack      ack            // of the request that owns the operation; zero: this agent does not hold the operation
	entry    *journal.Entry // the operation as it stands; nil: the journal is still to be asked, or there is a snapshot
	snapshot *snapshot      // stands in for entry while nothing happens
	plan     plan

	intended time.Time // when the latest call was intended, before the journal had it
	since    time.Time // from when the settle time of the latest call counts
	cause    error     // why the outcome of the latest call is not known
	full     time.Time // when the task was last seen in full
	failures int       // looks in a row that failed
	refusals int       // looks in a row that OCP refused
	refused  time.Time // the first of these
	unmoved  bool      // the latest look found no change

	decided    *operation.Decided // the latest decision; nil: none, or there is a snapshot
	generation uint64             // of policy and pauses in it
	version    uint64             // of the cluster's slots in it
}

// plan is what the step function wants done next.
type plan struct {
	do     operation.Action
	at     time.Time
	ifLost operation.Action
}

// urgent reports an action that is started at most once: nothing comes between its event and the action.
func (p plan) urgent() bool { return p.do == operation.Submit || p.do == operation.RetryTask }

// lane is where the plan is carried out.
func (p plan) lane() lane {
	if p.do == operation.Look {
		return looking
	}
	return acting
}

// needsOCP reports whether the operation waits because OCP does not answer; it does also while a call may take effect.
func (h *held) needsOCP() bool {
	switch h.hand.plan.do {
	case operation.Decide:
		return h.summary.reason == events.CodeOCPUnreachable || h.summary.reason == events.CodeStaleTopology
	case operation.Reconcile:
		return true
	case operation.Look:
		return h.hand.failures > 0
	}
	return false
}

// owned reports whether this agent holds the operation.
func (h *held) owned() bool { return !h.hand.ack.isZero() }

// summary is what others may read of an operation while a worker has it. Its worker publishes it by value.
type summary struct {
	ack        ack
	state      events.State
	kind       events.Kind
	cluster    int64
	server     int64
	sequence   uint64    // of its request: the lower came first
	arrived    time.Time // when its request came
	progressed time.Time // when it last progressed
	reason     string    // code, while it waits
	queued     bool      // it waits for a slot, or is about to
	stalled    bool      // its task in OCP
	running    []string  // labels of the subtasks that run
	needsOCP   bool      // it waits because OCP does not answer
}

func summaryOf(op events.Operation) summary {
	s := summary{
		state: op.State, kind: op.Kind, cluster: op.ClusterID, server: op.ServerID,
		sequence: op.RequestSequence, arrived: op.RequestedAt, progressed: op.UpdatedAt,
	}
	switch {
	case op.State == events.Accepted:
		s.queued = true
	case op.State == events.Waiting && op.Reason != nil:
		s.reason, s.queued = op.Reason.Code, op.Reason.Position > 0
	case op.State == events.Running && op.Task != nil:
		s.progressed, s.stalled = op.Task.MovedAt, !op.Task.StalledAt.IsZero()
	}
	return s
}

// undecided reports that the operation waits, or is about to.
func (s summary) undecided() bool { return s.state == events.Accepted || s.state == events.Waiting }

// heldBack reports that the operation waits for a person to let it go.
func (s summary) heldBack() bool {
	return s.reason == events.CodePaused || s.reason == events.CodeFailing
}

// underWay reports that the operation has been decided on and has not ended.
func (s summary) underWay() bool {
	return s.state != "" && s.state != events.Waiting && !s.state.Final()
}
