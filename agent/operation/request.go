package operation

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
)

// The steps from a request to the intent to call OCP, and the orders that people give.

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
	case in.Verdict == guard.Reject && op.Attempt > 0: // the state rejected would mean that nothing was ever sent
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
		waited := in.GiveUp.Sub(op.RequestedAt)
		return m.expired(op, in, fmt.Sprintf("waited for %s, as long as the policy allows (max_wait)", waited), now)
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
	return Effects{Append: m.event(&op, events.Submitting, now), Do: Submit, IfLost: Reconcile}
}

// RefuseOrder returns why an operation that stands at op does not take an order; nil if it does. An order to retry is
// not obeyed again if it is delivered again, and not after a later one was obeyed.
func RefuseOrder(op events.Operation, o Ordered) error {
	if o.Verb == events.Retry && o.Sequence <= op.RequestSequence && !o.At.After(op.RequestedAt) {
		return errors.New("this order to retry, or a later one, was obeyed already")
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
	return Effects{Append: m.event(&op, events.Running, now), Do: Readmit, IfLost: Look}
}

// readmitted goes on to the retry if the guard allows it. Like any other call, the retry needs an event right before
// it: the guard may have taken long, and an agent that takes up the operation later counts the settle time from that
// event.
func (m Machine) readmitted(op events.Operation, in Decided, now time.Time) Effects {
	switch in.Verdict {
	case guard.Allow:
		op.RetriedAt, op.Policy = now.UTC(), in.Policy
		return Effects{Append: m.event(&op, events.Progress, now), Do: RetryTask, IfLost: Look}
	case Fail:
		return m.failed(op, *in.Error, now)
	}
	message := fmt.Sprintf("task %d was not retried: %s", op.Task.ID, in.Reason.Message)
	return m.failed(op, events.Error{Code: in.Reason.Code, Message: message}, now)
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

// waits appends an event only if the reason has changed. A new place in the queue, or another operation before it, is
// not reported at once, but now and then. An operation that holds a slot always appends an event, because that event
// frees the slot.
func (m Machine) waits(op events.Operation, in Decided, now time.Time) Effects {
	at := in.Reason.Until
	for _, end := range []time.Time{op.Request.ExpiresAt, in.GiveUp} {
		if !end.IsZero() && end.Before(at) {
			at = end
		}
	}
	if was := op.Reason; op.State == events.Waiting && was != nil && !in.Holds && !m.stale(op, now) {
		recent := now.Sub(op.UpdatedAt) < max(minRepeat, now.Sub(op.RequestedAt)/3)
		same := was.Code == in.Reason.Code
		unchanged := same && was.Message == in.Reason.Message && was.Position == in.Reason.Position &&
			op.Policy == in.Policy
		unseen := in.Reason.Code == events.CodeStaleTopology // the error differs each time, and is often over soon
		inQueue := was.Position > 0 && in.Reason.Position > 0
		if unchanged || same && unseen || recent && (same || inQueue || unseen && was.Position > 0) {
			return Effects{Do: Decide, At: at}
		}
	}
	reason := in.Reason // a pointer into in would keep all of in alive
	op.Policy, op.Reason = in.Policy, &reason
	return Effects{Append: m.event(&op, events.Waiting, now), Do: Decide, At: at}
}
