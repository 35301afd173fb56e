package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/slots"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// maxFactsAge is how old facts may be that were read for this decision. If OCP takes longer to answer, it shows how the
// cluster was, not how it is.
const maxFactsAge = 15 * time.Second

// The rules of decisions that the agent makes by itself, because it cannot ask the guard.
const (
	ruleTopology = "topology"
	ruleRecord   = "record"
)

// decide is the stage that asks the guard about an operation, and takes its slot if the guard allows it.
func (a *Agent) decide(ctx context.Context, h *held) (operation.Input, error) {
	if !operation.Undecided(h.hand.entry.Operation) {
		return operation.Resumed{}, nil // another agent has gone on with it: there is nothing to decide
	}
	return a.askGuard(ctx, h, false)
}

// readmit is the stage that asks the guard whether OCP may run the operation's failed task again.
func (a *Agent) readmit(ctx context.Context, h *held) (operation.Input, error) {
	if h.hand.entry.Operation.State != events.Running {
		return operation.Resumed{}, nil
	}
	return a.askGuard(ctx, h, true)
}

func (a *Agent) askGuard(ctx context.Context, h *held, retry bool) (operation.Input, error) {
	h.hand.generation = a.generation.Load()
	op := h.hand.entry.Operation
	q := guard.Question{Policy: a.Policy.Load(), Operation: op, Retry: retry, Now: time.Now()}
	d, version, err := a.decideWithSilences(ctx, &q)
	switch {
	case errors.Is(err, slots.ErrRecord):
		d = withoutRecord(op, err, q.Now)
	case err != nil:
		return nil, err
	}
	d.Policy, d.Retry = q.Policy.Hash, retry
	d.Offset, d.FactsAt = a.OCP.ClockOffset(), q.Facts.ReadAt
	record := a.slots.Record(op.ClusterID)
	d.Holds = record.Holds(op.OperationID, op.Steps)
	if wait := q.Limits().MaxWait; wait > 0 {
		d.GiveUp = op.RequestedAt.Add(wait)
	}
	switch {
	case !op.Request.DryRun:
	case d.Rule == ruleTopology || d.Rule == ruleRecord: // the guard was not asked
		d.Findings = []events.Finding{{
			Rule: d.Rule, Verdict: string(d.Verdict), Code: d.Reason.Code, Message: d.Reason.Message,
		}}
	default:
		d.Findings = guard.Explain(&q)
	}
	code := d.Reason.Code
	if d.Verdict == operation.Fail {
		code = d.Error.Code
	}
	a.Metrics.GuardDecisions.WithLabelValues(string(d.Verdict), metrics.Code(code)).Inc()
	a.logOf(h).Debug("guard decided", "decision", d.Verdict, "rule", d.Rule, "reason", code,
		"message", d.Reason.Message)
	h.hand.decided, h.hand.version = &d, version
	return d, nil
}

// decideWithSilences decides, and creates the silences of an operation that the guard allows, before the intent is
// written. If the operation already waits for its silences, it tries these first, so that it takes no slot before they
// exist. version is the version of the cluster's slots that the decision rests on.
func (a *Agent) decideWithSilences(
	ctx context.Context, q *guard.Question,
) (d operation.Decided, version uint64, err error) {
	op := q.Operation
	if op.Reason != nil && op.Reason.Code == events.CodeAlertmanagerUnreachable {
		if r := silence(ctx, a.Silencer, op, q.Now); r != nil {
			return waitFor(*r), a.slots.Version(op.ClusterID), ctx.Err()
		}
	}
	if d, version, err = a.decideOnFacts(ctx, q); err != nil || d.Verdict != guard.Allow {
		return d, version, err
	}
	if r := silence(ctx, a.Silencer, op, q.Now); r != nil {
		return waitFor(*r), a.slots.Version(op.ClusterID), ctx.Err()
	}
	return d, version, nil
}

func waitFor(r events.Reason) operation.Decided {
	return operation.Decided{Decision: guard.Decision{Verdict: guard.Wait, Reason: r}}
}

// silence creates the silences of an operation. It returns why the operation must wait for them; nil if it may go on. A
// nil silencer creates none, and a dry run needs none.
func silence(ctx context.Context, s *alerts.Silencer, op events.Operation, now time.Time) *events.Reason {
	if s == nil || op.Request.DryRun {
		return nil
	}
	if err := s.Before(ctx, op); err != nil {
		return &events.Reason{
			Code:    events.CodeAlertmanagerUnreachable,
			Message: "no silences can be created, and the policy says to wait for them: " + oneLine(err),
			Until:   now.Add(jitter(operation.RetryAfter)).UTC(),
		}
	}
	return nil
}

// decideOnFacts decides on old facts if they are good enough for a decision to wait, and on fresh facts otherwise.
// Operations that wait must not cause a storm of calls to OCP.
func (a *Agent) decideOnFacts(ctx context.Context, q *guard.Question) (d operation.Decided, version uint64, err error) {
	for fresh := q.Operation.Request.DryRun; ; fresh = true {
		err := a.readFacts(ctx, q, fresh)
		if err == nil && fresh && time.Since(q.Facts.ReadAt) > maxFactsAge {
			err = fmt.Errorf("OCP took %s to answer", time.Since(q.Facts.ReadAt).Round(time.Second))
		}
		if ctx.Err() != nil {
			return d, 0, ctx.Err()
		}
		if err != nil {
			return withoutTopology(q.Operation, err, q.Now), a.slots.Version(q.Operation.ClusterID), nil
		}
		fresh = fresh || time.Since(q.Facts.ReadAt) <= facts.Fresh
		decision, version, err := a.decideOnRecord(ctx, q, fresh)
		if err != nil || decision.Verdict != "" {
			return operation.Decided{Decision: decision}, version, err
		}
	}
}

// readFacts reads into q what OCP shows. That may take long, so another operation gets this worker meanwhile.
func (a *Agent) readFacts(ctx context.Context, q *guard.Question, fresh bool) (err error) {
	defer a.queue.stepAside()()
	cluster := q.Operation.ClusterID
	q.Facts, err = a.clusters.Of(ctx, cluster, func() uint64 { return a.slots.Record(cluster).Generation }, fresh)
	if err == nil && q.Policy.NamesClusters() {
		q.Facts.ClusterName, err = a.Directory.Name(ctx, cluster)
	}
	return err
}

// decideOnRecord decides on the record and writes the consequence into it: the slot, or the place in the queue. Two
// agents never both get the last slot: the second write fails, and its agent decides again. A decision without a
// verdict means that the facts are not good enough.
func (a *Agent) decideOnRecord(
	ctx context.Context, q *guard.Question, fresh bool,
) (decision guard.Decision, version uint64, err error) {
	op := q.Operation
	for {
		needsShare := false
		version, err = a.slots.Update(ctx, op, func(record *guard.Record) bool {
			q.Record, q.Fleet, q.Control, q.Now = *record, a.slots.Fleet(), a.pauses.Of(op.ClusterID), time.Now()
			decision, needsShare = guard.Decision{}, false
			if waits, sure := guard.DecideOnOld(q); sure && !op.Request.DryRun {
				decision = waits
			} else if fresh && q.Facts.Generation == record.Generation {
				decision = guard.Decide(q)
			}
			switch {
			case op.Request.DryRun || decision.Verdict == "":
				return false
			case decision.Verdict == guard.Allow && q.Reserves():
				needsShare = true
				return false
			}
			return apply(record, q, decision)
		})
		if err != nil || !needsShare {
			return decision, version, err
		}
		// First the operation takes its share of the budget of all clusters. If the slot is gone by then, the operation
		// keeps its share and waits for the next slot.
		if err := a.slots.UpdateFleet(ctx, func(fleet *guard.Fleet) bool {
			q.Fleet = *fleet
			if guard.Decide(q).Verdict != guard.Allow {
				return false
			}
			fleet.Prune(q.Now, q.Policy.Fleet.Window)
			return fleet.Take(op.OperationID, q.Now)
		}); err != nil {
			return guard.Decision{}, version, err
		}
	}
}

// apply writes the consequence of a decision into the record, and reports whether the record changed. Slots are taken
// here and nowhere else.
func apply(record *guard.Record, q *guard.Question, d guard.Decision) bool {
	op := q.Operation
	ticket := guard.Ticket{
		OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Sequence: op.RequestSequence,
	}
	if d.Verdict == guard.Allow {
		_, zone, _ := q.Facts.Zones.Server(op.ServerID)
		record.Prune(q.Now, q.Policy.Longest())
		return record.Take(guard.Slot{
			OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Zone: zone.Name,
			Since: q.Now.UTC(), Steps: op.Steps,
		})
	}
	changed := false
	if d.Verdict == guard.Wait && !q.Retry && q.Limits().Supersede {
		changed = record.Announce(ticket)
	}
	if d.Reason.Position > 0 {
		return record.Enqueue(ticket) || changed
	}
	return record.Dequeue(op.OperationID) || changed
}

// withoutTopology is the decision if OCP does not show the cluster.
func withoutTopology(op events.Operation, err error, now time.Time) operation.Decided {
	switch {
	case ocp.RefusedWith(err, http.StatusNotFound): // and not by a gateway that knows no such path
		reason := events.Reason{
			Code: events.CodeNotFound, Message: fmt.Sprintf("OCP knows no cluster %d: %v", op.ClusterID, err),
		}
		return operation.Decided{Decision: guard.Decision{Verdict: guard.Reject, Rule: ruleTopology, Reason: reason}}
	case ocp.Forbidden(err):
		failure := operation.Failure(events.CodeOCPRefused, err)
		failure.Message = fmt.Sprintf(
			"OCP does not show cluster %d to this user, nothing was sent: %v", op.ClusterID, err)
		return operation.Decided{Decision: guard.Decision{Verdict: operation.Fail}, Error: &failure}
	}
	return operation.Decided{Decision: guard.Decision{Verdict: guard.Wait, Rule: ruleTopology, Reason: events.Reason{
		Code: events.CodeStaleTopology, Message: fmt.Sprintf("OCP does not show cluster %d now: %v", op.ClusterID, err),
		Until: now.Add(jitter(operation.RetryAfter)).UTC(),
	}}}
}

// withoutRecord is the decision if the record cannot be read: nobody knows what is under way in the cluster.
func withoutRecord(op events.Operation, err error, now time.Time) operation.Decided {
	return operation.Decided{Decision: guard.Decision{Verdict: guard.Wait, Rule: ruleRecord, Reason: events.Reason{
		Code: events.CodeRecordUnreadable, Message: fmt.Sprintf(
			"nothing is done in cluster %d: %v; see `nats kv get %s %d`, and delete it only while nothing runs there",
			op.ClusterID, err, events.ClusterBucket, op.ClusterID),
		Until: now.Add(jitter(operation.RetryAfter)).UTC(),
	}}}
}

// mayApprove returns why a person may not approve op; nil if the person may.
func (a *Agent) mayApprove(ctx context.Context, op events.Operation, by string) (refusal error, err error) {
	q := guard.Question{Policy: a.Policy.Load(), Operation: op, Now: time.Now()}
	if err := a.readFacts(ctx, &q, false); err != nil {
		return nil, fmt.Errorf("find out who may approve operation %s: %w", op.OperationID, err)
	}
	return q.MayApprove(by), nil
}
