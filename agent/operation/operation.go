// Package operation is the life of one operation as a pure function: Machine.Step takes what has happened and returns
// which events to append and what to do after that. It does no I/O, has no clock and starts no goroutine.
//
// Read operation.go first. request.go holds the steps up to the intent to call OCP, call.go the steps from the call to
// a task, task.go the steps that follow the task, trace.go what OCP shows of a call whose answer was lost. The
// scenarios in testdata/operation read as conversations. The package imports events, agent/guard and agent/ocp.
package operation

import (
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// Limits of the machine. Durations that a person may want to change are fields of Machine.
const (
	// RetryAfter is the pause before OCP is asked again after it did not answer.
	RetryAfter = 5 * time.Second

	maxAttempts         = 5           // calls that may have arrived, until the operation fails
	refusalsUntilFailed = 5           // looks in a row that OCP refuses, until the operation fails
	maxEventsALook      = 32          // if a look finds more changes than that, they share one event
	reconcileAfter      = time.Second // until OCP is asked what became of an unanswered call
	unsettledSettles    = 10          // settle times that a server may be moving without a visible task
	maxWarnings         = 16          // kept in the document, the latest
	maxApprovals        = 16          // kept in the document, the latest
	logExcerptBytes     = 4 << 10     // of a failed subtask's log in the document

	// minRepeat is the least time between two events that differ only in the place in the queue. The time grows to a
	// third of the time that the operation has waited.
	minRepeat = 10 * time.Second
)

// Action is the next thing to do for an operation, once every event of the step is in the journal.
type Action string

// The actions. Each leads to one input of the next step.
const (
	Decide    Action = "decide"    // ask the guard → Decided
	Submit    Action = "submit"    // call OCP once → Answered
	Reconcile Action = "reconcile" // look in OCP for the outcome of a call → Reconciled
	Look      Action = "look"      // at OCP's task → Looked
	Readmit   Action = "readmit"   // ask the guard whether OCP may run its failed task again → Decided
	RetryTask Action = "retry"     // ask OCP once to run it again → Again
	Finish    Action = "finish"    // acknowledge the request
)

// Effects is what follows from a step: append the events and, only once they are durable, do the action, not before At.
type Effects struct {
	Append []events.Event
	Do     Action    // empty: the plan made before stays
	At     time.Time // zero: now
	// IfLost is the next action if the outcome of Do does not reach the next step. The agent starts Do at most once
	// then. Empty: Do may be done again.
	IfLost Action
}

// Input is what happened to an operation: one of the types below.
type Input interface{ input() }

type (
	// Received is the first message of a key, or a message that must be refused.
	Received struct {
		events.Received
		Sequence     uint64         // in the request stream
		At           time.Time      // when the stream took it
		Refusal      *events.Reason // why it must be refused; nil: it is valid
		OperationKey string         // names the operation if the request's own key belongs to another request
	}
	// Resumed is a message whose operation is in the journal already: its agent died, shut down or was too slow to
	// keep the message alive.
	Resumed struct{}
	// Duplicated is the same request, received Count more times.
	Duplicated struct{ Count int }
	// Ordered is an order that a person gave.
	Ordered struct {
		events.Order
		Sequence uint64 // of the message, which owns the operation from a retry on
		At       time.Time
		Refused  string // why an approval does not count
	}
	// Again is OCP's answer to a retry of its task.
	Again struct{ Err error }
	// Decided is the guard's decision.
	Decided struct {
		guard.Decision
		Retry    bool             // it is about a retry of OCP's task
		Error    *events.Error    // of the verdict Fail
		Policy   string           // hash of the policy
		Findings []events.Finding // rule by rule, of a dry run
		GiveUp   time.Time        // when the operation has waited for as long as the policy allows; zero: never
		Holds    bool             // the operation holds a slot that it took before
		Offset   time.Duration    // OCP's clock minus ours
		FactsAt  time.Time        // when the facts behind the decision were read
	}
	// Answered is the outcome of the call to OCP; Err is classified by ocp.ClassOf.
	Answered struct {
		Task ocp.Task
		Err  error
	}
	// Reconciled is what OCP shows after a call whose answer is lost.
	Reconciled struct {
		Finding
		Since time.Time     // the settle time counts from here
		Age   time.Duration // of the finding, at most: a look takes time, and the call may take effect meanwhile
		Cause error         // why the outcome is unknown; nil: the agent died
	}
	// Looked is one look at OCP's task.
	Looked struct {
		Task     ocp.Task
		Unmoved  bool   // the task runs and has not changed, and Task is empty
		Log      string // of the failed subtask, if there is one
		Err      error
		Failures int           // looks in a row that failed, including this one
		Refusals int           // looks in a row that OCP refused, including this one
		Refused  time.Duration // since the first of these
		Since    time.Time     // the settle time of a retry counts from here; zero: from RetriedAt
		Age      time.Duration // of the look, at most
	}
)

func (Received) input()   {}
func (Resumed) input()    {}
func (Duplicated) input() {}
func (Ordered) input()    {}
func (Again) input()      {}
func (Decided) input()    {}
func (Answered) input()   {}
func (Reconciled) input() {}
func (Looked) input()     {}

// Fail is the verdict if OCP refuses to show the facts that the guard needs. The guard itself never returns it.
const Fail guard.Verdict = "fail"

// Machine is the life of an operation. What Step returns depends on its arguments alone, so that all its methods may be
// called concurrently.
//
// Two rules make it safe. Every call to OCP has an event of its own, which is in the journal before the call. Submit
// follows only from the step that appended this event: an agent that finds the event in the journal, and does not know
// the outcome of the call, reconciles.
type Machine struct {
	Agent      string        // name of the agent, in every event
	Settle     time.Duration // how long after an unanswered call it may still take effect
	StallAfter time.Duration // how long a task may stay unchanged before it is reported as stalled
	PollMin    time.Duration // spacing of looks while a task moves
	PollMax    time.Duration // spacing of looks at a task that does not
	// Refresh is the time without an event after which an open operation repeats its state: well before the journal
	// forgets its last event. 0: never.
	Refresh time.Duration
}

// Step returns what follows from in for an operation that stands at op. An input that does not fit op's state changes
// nothing and leads back to the action that does.
func (m Machine) Step(op events.Operation, in Input, now time.Time) Effects {
	switch in := in.(type) {
	case Received:
		if op.N == 0 {
			return m.received(in, now)
		}
	case Duplicated:
		if op.N > 0 {
			op.Duplicates += in.Count
			return Effects{Append: m.event(&op, events.Duplicate, now)}
		}
	case Ordered:
		if RefuseOrder(op, in) == nil {
			return m.ordered(op, in, now)
		}
		return Effects{}
	case Again:
		if op.State == events.Running {
			return m.again(op, in, now)
		}
	case Decided:
		switch op.State {
		case events.Running:
			if in.Retry {
				return m.readmitted(op, in, now)
			}
		case events.Accepted, events.Waiting, events.Submitting:
			return m.decided(op, in, now)
		}
	case Answered:
		if op.State == events.Submitting {
			return m.answered(op, in, now)
		}
	case Reconciled:
		if op.State == events.Submitting {
			return m.reconciled(op, in, now)
		}
	case Looked:
		if op.State == events.Running {
			return m.looked(op, in, now)
		}
	}
	return Effects{Do: ActionFor(op.State)}
}

// ActionFor is the action of an agent that finds an operation in state s.
func ActionFor(s events.State) Action {
	switch s {
	case events.Accepted, events.Waiting:
		return Decide
	case events.Submitting:
		return Reconcile // never Submit: the call may have been made
	case events.Running:
		return Look
	}
	return Finish
}

// SameHolder reports whether an agent that last wrote past still holds an operation that now stands at last: nothing
// but duplicates was recorded since, or the operation has ended, so that only its request is left to be acknowledged.
func SameHolder(past, last events.Operation) bool {
	return last.Steps == past.Steps || last.State.Final()
}

// Undecided reports whether the operation waits for a decision. A call that did not arrive leads back to the guard, so
// an operation in the state submitting may wait for one, too.
func Undecided(op events.Operation) bool {
	return ActionFor(op.State) == Decide || op.State == events.Submitting
}

// Spacing returns the time between two looks at a task. The longer the task has not moved, the longer it is: an eighth
// of that time, so that an event is late by an eighth of the time that its subtask took, at most.
func (m Machine) Spacing(moved, now time.Time) time.Duration {
	return min(max(now.Sub(moved)/8, m.PollMin), m.PollMax)
}

// event moves op on to its next event.
func (m Machine) event(
	op *events.Operation, token events.State, now time.Time, changes ...events.Change,
) []events.Event {
	op.Schema = events.OperationSchema
	op.N++
	op.Agent = m.Agent
	op.UpdatedAt = now.UTC()
	op.Changes = changes
	if token != events.Duplicate {
		op.Steps++
	}
	switch token {
	case events.Progress, events.Stalled, events.Duplicate, events.Approved:
	default:
		op.State = token
		if token.Final() {
			op.EndedAt = op.UpdatedAt
		}
	}
	return []events.Event{{Operation: *op, Token: token}}
}

// refresh repeats op's state if the journal would otherwise forget it.
func (m Machine) refresh(op *events.Operation, now time.Time) []events.Event {
	if !m.stale(*op, now) {
		return nil
	}
	return m.event(op, events.Progress, now)
}

// stale reports whether the journal may forget op if nothing is written.
func (m Machine) stale(op events.Operation, now time.Time) bool {
	return m.Refresh > 0 && now.Sub(op.UpdatedAt) >= m.Refresh
}

// failed ends an operation. The reason repeats the error's code and message, so that a consumer of events finds the
// cause in one place, however the operation ended.
func (m Machine) failed(op events.Operation, e events.Error, now time.Time) Effects {
	op.Error = &e
	op.Reason = &events.Reason{Code: e.Code, Message: e.Message}
	return Effects{Append: m.event(&op, events.Failed, now), Do: Finish}
}

func warn(warnings []string, w string) []string {
	warnings = append(warnings[:len(warnings):len(warnings)], w)
	return warnings[max(0, len(warnings)-maxWarnings):]
}
