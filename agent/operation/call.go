package operation

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// The steps from a call to OCP to the task that it started.

// again follows the task after a retry, whatever the answer: OCP refuses to retry a task that runs already, and a lost
// answer may have been a yes. Only if the user may not retry, no look can find anything new.
func (m Machine) again(op events.Operation, in Again, now time.Time) Effects {
	if e, ok := errors.AsType[*ocp.Error](in.Err); ok && e.Class == ocp.Refused &&
		(e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden) {
		failure := Failure(events.CodeOCPRefused, in.Err)
		failure.Message = fmt.Sprintf("OCP does not let this user retry task %d: %s; does it have TASK_MANAGER?",
			op.Task.ID, failure.Message)
		return m.failed(op, failure, now)
	}
	return Effects{Do: Look, At: now.Add(m.PollMin)}
}

func (m Machine) answered(op events.Operation, in Answered, now time.Time) Effects {
	if in.Err == nil {
		return m.running(op, in.Task, now)
	}
	switch ocp.ClassOf(in.Err) {
	case ocp.Refused:
		if op.Attempt > 1 { // it may refuse because the previous call did arrive
			return Effects{Do: Reconcile}
		}
		return m.failed(op, Failure(events.CodeOCPRefused, in.Err), now)
	case ocp.NotSent:
		op.Attempt-- // no call was made
		op.Reason = &events.Reason{Code: awayCode(in.Err), Message: in.Err.Error(), Until: now.Add(RetryAfter)}
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
		// Often only one look fails, so the next one comes soon. If OCP is away for long, it is asked less often.
		wait := min(max(now.Sub(in.Since)/4, reconcileAfter), RetryAfter)
		return Effects{Append: m.refresh(&op, now), Do: Reconcile, At: now.Add(wait)}
	case InBetween:
		effects := Effects{Do: Reconcile, At: now.Add(max(m.PollMin, m.Settle/10))}
		if !op.SeenMoving { // the server is moving, so the call did arrive
			op.SeenMoving = true
			op.Warnings = warn(op.Warnings, fmt.Sprintf("attempt %d: %s; %s", op.Attempt, cause(in.Cause), in.Note))
			effects.Append = m.event(&op, events.Progress, now)
		}
		if now.Sub(in.Since) < unsettledSettles*m.Settle {
			return effects
		}
		return m.unknown(op, in, now)
	case Forbidden, Unclear: // that may change: look again until the settle time is over
		if unsettled {
			break
		}
		return m.unknown(op, in, now)
	case Done:
		if unsettled { // its task may still appear in OCP's list
			break
		}
		op.Reason = &events.Reason{Code: events.CodeAlreadyDone, Message: in.Note}
		op.Warnings = warn(op.Warnings, fmt.Sprintf("attempt %d: %s; OCP shows no task for it",
			op.Attempt, cause(in.Cause)))
		return Effects{Append: m.event(&op, events.Succeeded, now), Do: Finish}
	case Nothing:
		if unsettled {
			break
		}
		if op.SeenMoving {
			in.Note = fmt.Sprintf("the server was moving after the call and is not any more: "+
				"the %s was probably done, but OCP shows no task for it", op.Kind)
			return m.unknown(op, in, now)
		}
		if in.Cause != nil && ocp.ClassOf(in.Cause) == ocp.Refused {
			return m.failed(op, Failure(events.CodeOCPRefused, in.Cause), now)
		}
		if op.Attempt >= maxAttempts {
			return m.failed(op, events.Error{Code: events.CodeUnanswered, Message: fmt.Sprintf(
				"%d calls to OCP, none of which started a task; the last: %s", op.Attempt, cause(in.Cause))}, now)
		}
		return Effects{Do: Decide} // the call did not arrive: everything is as it was before
	}
	soon, settled := now.Add(2*m.PollMin), in.Since.Add(m.Settle)
	if settled.Before(soon) {
		soon = settled
	}
	return Effects{Do: Reconcile, At: soon}
}

func (m Machine) unknown(op events.Operation, in Reconciled, now time.Time) Effects {
	return m.failed(op, events.Error{Code: events.CodeOutcomeUnknown, Message: fmt.Sprintf(
		"nobody knows whether OCP took the %s of server %d of cluster %d: %s; and %s; "+
			"look at OCP's tasks of this cluster since %s, and at the server",
		op.Kind, op.ServerID, op.ClusterID, cause(in.Cause), in.Note, op.SubmittedAt.Format(time.RFC3339))}, now)
}

// awayCode returns the code of a call that was not sent: OCP does not answer, or the agent's budget of requests is used
// up.
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

// running starts to follow OCP's task.
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
		effects.At = time.Time{} // the next look ends the operation, with the log if the task failed
	}
	return effects
}

// mismatch describes an answer of OCP that is not about the requested server. The sample in OCP's own documentation is
// such an answer, so the operation only warns of it and goes on.
func mismatch(op events.Operation, task ocp.Task) string {
	subject := task.Subject()
	if subject.InCluster(op.ClusterID) != ocp.No && subject.OnServer(op.ClusterID, op.ServerID, 0) != ocp.No {
		return ""
	}
	return fmt.Sprintf("OCP answered the %s of server %d of cluster %d with task %d, which says cluster %d, servers %v",
		op.Kind, op.ServerID, op.ClusterID, task.ID, max(task.ClusterID, task.ContextClusterID), task.ServerIDs)
}

// Failure returns an error of the OCP client as the operation's document shows it.
func Failure(code string, err error) events.Error {
	e := events.Error{Code: code, Message: err.Error()}
	if o, ok := errors.AsType[*ocp.Error](err); ok {
		e.OCPCode, e.HTTPStatus, e.TraceID = o.Code, o.Status, o.TraceID
	}
	return e
}
