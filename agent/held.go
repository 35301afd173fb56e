package agent

import (
	"time"

	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

// held is an operation that this agent has heard of. Only its worker touches hand: the queue gives an operation to one
// worker at a time, so hand needs no lock. The roster's lock guards all other fields; the worker alone changes summary,
// and so reads it without the lock.
type held struct {
	id         string
	inbox      []delivery
	collecting time.Time // until then the inbox only collects duplicates
	summary    summary
	byProgress int // index in the roster's heaps, from 1; 0: not in it
	byArrival  int

	hand hand
}

// hand is everything that a worker knows of the operation in hand. release drops it as a whole once another agent has
// written the operation, or its request is settled: nothing of it survives into the next owner's time.
type hand struct {
	ack      ack            // of the message that owns the operation; zero: this agent does not hold the operation
	entry    *journal.Entry // its last event; nil: not read from the journal yet, or there is a snapshot
	snapshot *snapshot      // in place of entry while nothing happens
	plan     plan

	intended time.Time // when the step was taken that made the plan: the deadline of a call counts from here
	since    time.Time // the settle time of the latest call counts from here
	cause    error     // why the outcome of the latest call is not known
	full     time.Time // when the task was last seen in full
	failures int       // looks in a row that failed
	refusals int       // looks in a row that OCP refused
	refused  time.Time // when the first of these began
	unmoved  bool      // the latest look found no change

	decided    *operation.Decided // the latest decision; nil: none, or there is a snapshot
	generation uint64             // of policy and pauses in it
	version    uint64             // of the cluster's slots in it
}

// plan is the next action, as the step function has said.
type plan struct {
	do     operation.Action
	at     time.Time
	ifLost operation.Action
}

// urgent reports whether the action is a call that must follow its event at once: no message is admitted in between.
func (p plan) urgent() bool { return p.do == operation.Submit || p.do == operation.RetryTask }

// lane returns the lane whose workers carry out the plan.
func (p plan) lane() lane {
	if p.do == operation.Look {
		return looking
	}
	return acting
}

// needsOCP reports whether the operation waits for an answer of OCP. An operation that reconciles always does.
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
	arrived    time.Time // when its request arrived
	progressed time.Time // when it last progressed
	reason     string    // code of the reason, while it waits
	queued     bool      // it waits for a slot, or is about to
	stalled    bool      // its task in OCP has stalled
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

// undecided reports whether the operation waits, or is about to.
func (s summary) undecided() bool { return s.state == events.Accepted || s.state == events.Waiting }

// waitsForResume reports whether the operation waits until a person resumes its cluster.
func (s summary) waitsForResume() bool {
	return s.reason == events.CodePaused || s.reason == events.CodeFailing
}

// underWay reports whether the operation neither waits nor has ended.
func (s summary) underWay() bool {
	return s.state != "" && s.state != events.Waiting && !s.state.Final()
}
