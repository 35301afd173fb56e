package agent

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// What the machine holds to. Durations that a person may want to change are
// fields of Machine.
const (
	maxAttempts         = 5               // calls that may have arrived, before a person is asked
	refusalsUntilFailed = 5               // looks in a row that OCP refuses before it is believed
	maxEventsALook      = 32              // more changes than that in one look share one event
	retryAfter          = 5 * time.Second // until OCP is tried again after it did not answer
	reconcileAfter      = time.Second     // until OCP is asked what became of an unanswered call
	unsettledSettles    = 10              // settle times that a server may be in between with no task to be seen
	maxWarnings         = 16              // kept in the document, the latest
	maxApprovals        = 16              // kept in the document, the latest
	// Between events that say no more than another place in the queue: at least
	// waitingNews, and a third of the time that it has waited.
	waitingNews     = 10 * time.Second
	logExcerptBytes = 4 << 10 // of a failed subtask's log in the document
)

// Action is what is to be done next for an operation, after everything that was
// to be appended is in the journal.
type Action string

// The actions. Each leads to one input of the next step.
const (
	Decide    Action = "decide"    // ask the guard → Decided
	Submit    Action = "submit"    // call OCP once → Answered
	Reconcile Action = "reconcile" // find out what became of a call → Reconciled
	Look      Action = "look"      // at OCP's task → Looked
	Readmit   Action = "readmit"   // ask the guard whether OCP may run its failed task again → Decided
	RetryTask Action = "retry"     // have OCP run it again, once → Again
	Finish    Action = "finish"    // give the slot back, acknowledge the request
)

// Effects is what a step asks for: first append, and only when that is durable
// do, not before At.
type Effects struct {
	Append []events.Event
	Do     Action    // empty: what was planned before stays planned
	At     time.Time // zero: now
}

// Input is what happened to an operation: one of the types below.
type Input interface{ input() }

type (
	// Received is the first message of a key, or one that must be refused.
	Received struct {
		events.Received
		Sequence     uint64         // in the request stream
		At           time.Time      // when the stream took it
		Refusal      *events.Reason // set: it must be refused
		OperationKey string         // names the operation where the request's own key must not
	}
	// Resumed is a message whose operation is in the journal already: its agent
	// died, shut down or was too slow to keep it alive.
	Resumed struct{}
	// Duplicated is the same request again, Count times.
	Duplicated struct{ Count int }
	// Ordered is what a person wants of the operation.
	Ordered struct {
		events.Order
		Sequence uint64 // of the message, which owns the operation from a retry on
		At       time.Time
		Refused  string // why an approval does not count
	}
	// Again is OCP's answer to a retry of its task.
	Again struct{ Err error }
	// Decided is the guard's word.
	Decided struct {
		guard.Decision
		Retry    bool             // it is about a retry of OCP's task
		Error    *events.Error    // of the verdict Fail
		Policy   string           // hash of the policy
		Findings []events.Finding // rule by rule, of a dry run
		GiveUp   time.Time        // when the policy lets it wait no longer; zero: never
		Holds    bool             // it still holds a slot that it took before it waited
		Offset   time.Duration    // OCP's clock minus ours
		FactsAt  time.Time        // when the facts were read that it rests on
	}
	// Answered is what the call to OCP brought; Err is classified by ocp.ClassOf.
	Answered struct {
		Task ocp.Task
		Err  error
	}
	// Reconciled is what OCP shows after a call whose outcome nobody knows.
	Reconciled struct {
		Finding
		Since time.Time     // from when the settle time counts
		Age   time.Duration // of the finding, at most: a look takes time, and a call may take effect meanwhile
		Cause error         // why the outcome is unknown; nil: the agent died
	}
	// Looked is one look at OCP's task.
	Looked struct {
		Task     ocp.Task
		Unmoved  bool   // set: it runs and is as it was, and Task is empty
		Log      string // of the failed subtask, where there is one
		Err      error
		Failures int           // looks in a row that failed, this one included
		Refusals int           // looks in a row that OCP refused, this one included
		Refused  time.Duration // for how long it has refused them
		Since    time.Time     // from when the settle time of a retry counts; zero: from RetriedAt
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

// Machine is the life of an operation as one pure function. It does no I/O and
// has no clock: what Step returns depends on its arguments alone.
//
// Two rules make it safe. Every call to OCP has an event of its own in the
// journal that was there before the call; and Submit follows from nothing but
// the step that appended this event. An agent that finds the event in the
// journal and does not know what came of it reconciles.
type Machine struct {
	Agent      string        // who writes, in every event
	Settle     time.Duration // how long after an unanswered call it may still take effect
	StallAfter time.Duration
	PollMin    time.Duration // spacing of looks while a task moves
	PollMax    time.Duration // spacing of looks at a task that does not
	// Refresh is after how long without an event an open operation says again how
	// it stands: well before the journal forgets the last one. 0: never.
	Refresh time.Duration
}

// Step says what follows from in for an operation that stands at op. An input
// that does not belong to op's state changes nothing and leads back to the
// action that does.
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
		if refuseOrder(op, in) == nil {
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

// ActionFor is what an agent does that finds an operation in state s.
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

// event moves op on to its next event.
func (m Machine) event(op *events.Operation, token events.State, now time.Time, changes ...events.Change) []events.Event {
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

func (m Machine) received(in Received, now time.Time) Effects {
	op := events.Operation{
		OperationID:     events.OperationID(either(in.OperationKey, in.Request.IdempotencyKey)),
		Kind:            in.Kind,
		ClusterID:       in.Request.ClusterID,
		ServerID:        in.Request.ServerID,
		IdempotencyKey:  in.Request.IdempotencyKey,
		Source:          in.Source,
		Request:         in.Request,
		RequestSequence: in.Sequence,
		Traceparent:     in.Traceparent,
		RequestedAt:     in.At.UTC(),
	}
	if in.Refusal != nil {
		op.Reason = in.Refusal
		return Effects{Append: m.event(&op, events.Rejected, now), Do: Finish}
	}
	return Effects{Append: m.event(&op, events.Accepted, now), Do: Decide}
}

func (m Machine) decided(op events.Operation, in Decided, now time.Time) Effects {
	op.Decision = in.Findings
	waits := in.Verdict == guard.Wait
	switch {
	case in.Verdict == Fail:
		return m.failed(op, *in.Error, now)
	case in.Verdict == guard.Reject && op.Attempt > 0: // rejected means that nothing was ever sent
		op.Policy = in.Policy
		return m.failed(op, events.Error{Code: in.Reason.Code, Message: in.Reason.Message}, now)
	case in.Verdict == guard.Reject:
		op.Policy, op.Reason = in.Policy, &in.Reason
		return Effects{Append: m.event(&op, events.Rejected, now), Do: Finish}
	case op.Request.DryRun:
		message := fmt.Sprintf("would %s server %d of cluster %d now", op.Kind, op.ServerID, op.ClusterID)
		switch in.Verdict {
		case guard.Wait:
			message = fmt.Sprintf("would wait: %s: %s", in.Reason.Code, in.Reason.Message)
		case guard.Done, guard.Supersede:
			message = fmt.Sprintf("would end without a call: %s: %s", in.Reason.Code, in.Reason.Message)
		}
		op.Policy, op.Reason = in.Policy, &events.Reason{Code: events.CodeDryRun, Message: message}
		return Effects{Append: m.event(&op, events.Succeeded, now), Do: Finish}
	case in.Verdict == guard.Done:
		op.Policy, op.Reason = in.Policy, &in.Reason
		return Effects{Append: m.event(&op, events.Succeeded, now), Do: Finish}
	case in.Verdict == guard.Supersede:
		op.Policy, op.Reason = in.Policy, &in.Reason
		return Effects{Append: m.event(&op, events.Cancelled, now), Do: Finish}
	case op.Request.Expired(now):
		return m.expired(op, in, fmt.Sprintf("not submitted by %s", op.Request.ExpiresAt.Format(time.RFC3339)), now)
	case waits && !in.GiveUp.IsZero() && !now.Before(in.GiveUp):
		return m.expired(op, in, fmt.Sprintf("waited for %s, as long as the policy lets it (max_wait)", in.GiveUp.Sub(op.RequestedAt)), now)
	case waits:
		return m.waits(op, in, now)
	}
	op.Policy = in.Policy
	op.Attempt++
	op.SubmittedAt, op.SeenMoving = now.UTC(), false
	if op.Attempt == 1 {
		op.OCPTime = now.Add(in.Offset).UTC()
	}
	op.Reason = nil
	return Effects{Append: m.event(&op, events.Submitting, now), Do: Submit}
}

// refuseOrder says why an operation that stands at op does not take an order; nil
// where it does. An order to retry that comes again after it, or a later one, was
// obeyed is obeyed no second time.
func refuseOrder(op events.Operation, o Ordered) error {
	if o.Verb == events.Retry && o.Sequence <= op.RequestSequence && !o.At.After(op.RequestedAt) {
		return errors.New("it, or a later order to retry, was obeyed")
	}
	return op.Accepts(o.Order)
}

// ordered carries out an order that op accepts.
func (m Machine) ordered(op events.Operation, in Ordered, now time.Time) Effects {
	switch in.Verb {
	case events.Cancel:
		op.Reason = &events.Reason{Code: events.CodeCancelled, Message: signed("cancelled", in.Order)}
		return Effects{Append: m.event(&op, events.Cancelled, now), Do: Finish}
	case events.Approve:
		approvals := append(slices.Clone(op.Approvals), events.Approval{
			By: in.RequestedBy, Reason: in.Reason, Sequence: in.Sequence, At: in.At.UTC(), Refused: in.Refused})
		op.Approvals = approvals[max(0, len(approvals)-maxApprovals):]
		return Effects{Append: m.event(&op, events.Approved, now), Do: Decide}
	}
	op.RequestSequence, op.RequestedAt = in.Sequence, in.At.UTC()
	op.Warnings = warn(op.Warnings, signed("OCP's task retried", in.Order))
	op.RetriedAt, op.EndedAt = now.UTC(), time.Time{}
	op.Reason, op.Error = nil, nil
	return Effects{Append: m.event(&op, events.Running, now), Do: Readmit}
}

// readmitted goes on to the retry where the guard allows it. The guard takes its time,
// and the call needs an event right before it as any other does: whoever takes the
// operation up meanwhile counts from there how long the call may still take effect.
func (m Machine) readmitted(op events.Operation, in Decided, now time.Time) Effects {
	switch in.Verdict {
	case guard.Allow:
		op.RetriedAt, op.Policy = now.UTC(), in.Policy
		return Effects{Append: m.event(&op, events.Progress, now), Do: RetryTask}
	case Fail:
		return m.failed(op, *in.Error, now)
	}
	return m.failed(op, events.Error{Code: in.Reason.Code, Message: fmt.Sprintf("task %d was not retried: %s", op.Task.ID, in.Reason.Message)}, now)
}

// again follows the task after a retry, whatever the answer: OCP refuses the retry
// of a task that runs, and a lost answer may have been a yes. Only where the user
// may not retry, no look can find anything new.
func (m Machine) again(op events.Operation, in Again, now time.Time) Effects {
	if e, ok := asOCPError(in.Err); ok && e.Class == ocp.Refused && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden) {
		failure := describe(events.CodeOCPRefused, in.Err)
		failure.Message = fmt.Sprintf("OCP does not let this user retry task %d: %s; does it have TASK_MANAGER?", op.Task.ID, failure.Message)
		return m.failed(op, failure, now)
	}
	return Effects{Do: Look, At: now.Add(m.PollMin)}
}

func signed(what string, o events.Order) string {
	if o.RequestedBy != "" {
		what += " by " + o.RequestedBy
	}
	if o.Reason != "" {
		what += ": " + o.Reason
	}
	return what
}

func (m Machine) expired(op events.Operation, in Decided, message string, now time.Time) Effects {
	op.Policy, op.Reason = in.Policy, &events.Reason{Code: events.CodeExpired, Message: message}
	if in.Verdict == guard.Wait {
		op.Reason.Message += fmt.Sprintf("; it waited: %s: %s", in.Reason.Code, in.Reason.Message)
	}
	return Effects{Append: m.event(&op, events.Expired, now), Do: Finish}
}

// waits appends only what is new: an operation that waits for the same as before
// says so once, and which place in a queue it has, or what it is behind, now and then.
// One that holds a slot says so in any case: the slot is given back by that event.
func (m Machine) waits(op events.Operation, in Decided, now time.Time) Effects {
	at := in.Reason.Until
	for _, end := range []time.Time{op.Request.ExpiresAt, in.GiveUp} {
		if !end.IsZero() && end.Before(at) {
			at = end
		}
	}
	if was := op.Reason; op.State == events.Waiting && was != nil && !in.Holds && !m.stale(op, now) {
		recent := now.Sub(op.UpdatedAt) < max(waitingNews, now.Sub(op.RequestedAt)/3)
		same := was.Code == in.Reason.Code
		unchanged := same && was.Message == in.Reason.Message && was.Position == in.Reason.Position && op.Policy == in.Policy
		blind := in.Reason.Code == events.CodeStaleTopology // another error each time, and often over at the next look
		inQueue := was.Position > 0 && in.Reason.Position > 0
		if unchanged || same && blind || recent && (same || inQueue || blind && was.Position > 0) {
			return Effects{Do: Decide, At: at}
		}
	}
	reason := in.Reason // a pointer into in would keep all of it
	op.Policy, op.Reason = in.Policy, &reason
	return Effects{Append: m.event(&op, events.Waiting, now), Do: Decide, At: at}
}

// stale: the journal may forget op if nothing is written.
func (m Machine) stale(op events.Operation, now time.Time) bool {
	return m.Refresh > 0 && now.Sub(op.UpdatedAt) >= m.Refresh
}

func (m Machine) answered(op events.Operation, in Answered, now time.Time) Effects {
	if in.Err == nil {
		return m.running(op, in.Task, now)
	}
	switch ocp.ClassOf(in.Err) {
	case ocp.Refused:
		if op.Attempt > 1 { // it may refuse because the call before did arrive
			return Effects{Do: Reconcile}
		}
		return m.failed(op, describe(events.CodeOCPRefused, in.Err), now)
	case ocp.NotSent:
		op.Attempt-- // it never was
		op.Reason = &events.Reason{Code: awayCode(in.Err), Message: in.Err.Error(), Until: now.Add(retryAfter)}
		return Effects{Append: m.event(&op, events.Waiting, now), Do: Decide, At: op.Reason.Until}
	}
	return Effects{Do: Reconcile, At: now.Add(reconcileAfter)}
}

func (m Machine) reconciled(op events.Operation, in Reconciled, now time.Time) Effects {
	unsettled := now.Add(-in.Age).Sub(in.Since) < m.Settle
	switch in.Outcome {
	case Found:
		op.Warnings = warn(op.Warnings, fmt.Sprintf("attempt %d: %s; OCP shows the task that it started, %d%s",
			op.Attempt, cause(in.Cause), in.Task.ID, in.Note))
		return m.running(op, in.Task, now)
	case Unreadable:
		// Often one look alone fails; an OCP that is away for long is spared.
		wait := min(max(now.Sub(in.Since)/4, reconcileAfter), retryAfter)
		return Effects{Append: m.refresh(&op, now), Do: Reconcile, At: now.Add(wait)}
	case InBetween:
		effects := Effects{Do: Reconcile, At: now.Add(max(m.PollMin, m.Settle/10))}
		if !op.SeenMoving { // on its way: the call did arrive, whatever comes next
			op.SeenMoving = true
			op.Warnings = warn(op.Warnings, fmt.Sprintf("attempt %d: %s; %s", op.Attempt, cause(in.Cause), in.Note))
			effects.Append = m.event(&op, events.Progress, now)
		}
		if now.Sub(in.Since) < unsettledSettles*m.Settle {
			return effects
		}
		return m.unknown(op, in, now)
	case Forbidden, Unclear: // it may be a moment's: looked at again until the settle time is over
		if unsettled {
			break
		}
		return m.unknown(op, in, now)
	case Done:
		if unsettled { // its task may still appear in OCP's list
			break
		}
		op.Reason = &events.Reason{Code: events.CodeAlreadyDone, Message: in.Note}
		op.Warnings = warn(op.Warnings, fmt.Sprintf("attempt %d: %s; OCP shows no task of it", op.Attempt, cause(in.Cause)))
		return Effects{Append: m.event(&op, events.Succeeded, now), Do: Finish}
	case Nothing:
		if unsettled {
			break
		}
		if op.SeenMoving {
			in.Note = fmt.Sprintf("the server was on its way since and is not any more: the %s was probably done, but OCP shows no task of it", op.Kind)
			return m.unknown(op, in, now)
		}
		if in.Cause != nil && ocp.ClassOf(in.Cause) == ocp.Refused {
			return m.failed(op, describe(events.CodeOCPRefused, in.Cause), now)
		}
		if op.Attempt >= maxAttempts {
			return m.failed(op, events.Error{Code: events.CodeUnanswered, Message: fmt.Sprintf(
				"%d calls to OCP, none of which started a task; the last: %s", op.Attempt, cause(in.Cause))}, now)
		}
		return Effects{Do: Decide} // the call did not arrive: everything is as before it
	}
	soon, settled := now.Add(2*m.PollMin), in.Since.Add(m.Settle)
	if settled.Before(soon) {
		soon = settled
	}
	return Effects{Do: Reconcile, At: soon}
}

func (m Machine) unknown(op events.Operation, in Reconciled, now time.Time) Effects {
	return m.failed(op, events.Error{Code: events.CodeOutcomeUnknown, Message: fmt.Sprintf(
		"nobody knows whether OCP took the %s of server %d of cluster %d: %s; and %s; look at OCP's tasks of this cluster since %s, and at the server",
		op.Kind, op.ServerID, op.ClusterID, cause(in.Cause), in.Note, op.SubmittedAt.Format(time.RFC3339))}, now)
}

// awayCode tells an OCP that does not answer from one that is not asked.
func awayCode(err error) string {
	if errors.Is(err, ocp.ErrBudget) {
		return events.CodeOCPBudget
	}
	return events.CodeOCPUnreachable
}

func cause(err error) string {
	if err == nil {
		return "the agent that called OCP did not record the answer"
	}
	return err.Error()
}

// failed ends an operation. The reason repeats the error's code and message: a
// consumer of events reads why in one place, however the operation ended.
func (m Machine) failed(op events.Operation, e events.Error, now time.Time) Effects {
	op.Error = &e
	op.Reason = &events.Reason{Code: e.Code, Message: e.Message}
	return Effects{Append: m.event(&op, events.Failed, now), Do: Finish}
}

// running takes OCP's task over.
func (m Machine) running(op events.Operation, task ocp.Task, now time.Time) Effects {
	mismatch := mismatch(op, task)
	if mismatch != "" {
		op.Warnings = warn(op.Warnings, mismatch)
	}
	merged := mergeTask(nil, task, now)
	var changes []events.Change
	for _, s := range merged.Subtasks {
		if s.Status != ocp.StatusPending {
			changes = append(changes, events.Change{SubtaskID: s.ID, Name: s.Name, To: s.Status})
		}
	}
	op.Task = &merged
	op.Reason = nil
	effects := Effects{Append: m.event(&op, events.Running, now, changes...), Do: Look, At: now.Add(m.PollMin)}
	switch {
	case !task.Finished():
	case task.Status == ocp.StatusSuccessful && len(task.Subtasks) > 0 && mismatch == "":
		end := m.end(op, Looked{Task: task}, now)
		effects = Effects{Append: append(effects.Append, end.Append...), Do: end.Do}
	default:
		effects.At = time.Time{} // a look ends the operation, with the log where it failed
	}
	return effects
}

// mismatch says where OCP's answer is not about the server that was asked for.
// Its documentation's own sample is such an answer, so this is said, not believed.
func mismatch(op events.Operation, task ocp.Task) string {
	cluster, about := AboutServer(task, op.ClusterID, op.ServerID, 0)
	if cluster != No && about != No {
		return ""
	}
	return fmt.Sprintf("OCP answered the %s of server %d of cluster %d with task %d, which says cluster %d, servers %v",
		op.Kind, op.ServerID, op.ClusterID, task.ID, max(task.ClusterID, task.ContextClusterID), task.ServerIDs)
}

// refresh writes how op stands once more where the journal may forget it else.
func (m Machine) refresh(op *events.Operation, now time.Time) []events.Event {
	if !m.stale(*op, now) {
		return nil
	}
	return m.event(op, events.Progress, now)
}

// describe turns an error of the OCP client into the document's.
func describe(code string, err error) events.Error {
	e := events.Error{Code: code, Message: err.Error()}
	if o, ok := asOCPError(err); ok {
		e.OCPCode, e.HTTPStatus, e.TraceID = o.Code, o.Status, o.TraceID
	}
	return e
}

func warn(warnings []string, w string) []string {
	warnings = append(warnings[:len(warnings):len(warnings)], w)
	return warnings[max(0, len(warnings)-maxWarnings):]
}

// Holds reports whether an agent that last wrote past still holds an operation
// that has come to last: nothing happened but duplicates, or it has ended, which
// leaves nothing to be held but its request.
func Holds(past, last events.Operation) bool { return last.Steps == past.Steps || last.State.Final() }
