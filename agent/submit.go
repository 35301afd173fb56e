package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"obwarden/agent/ocp"
	"obwarden/events"
	"obwarden/metrics"
)

// decide asks the guard about h and takes its slot where the word is Allow.
func (a *Agent) decide(ctx context.Context, h *held) (Decision, error) {
	q := Question{Policy: a.Policy, Operation: h.entry.Operation, Now: time.Now()}
	decision, err := a.decideOn(ctx, q)
	if err != nil {
		return Decision{}, err
	}
	code := decision.Reason.Code
	if decision.Verdict == Fail {
		code = decision.Error.Code
	}
	a.Metrics.GuardDecisions.WithLabelValues(string(decision.Verdict), metrics.Code(code)).Inc()
	a.logOf(h).Debug("guard decided", "decision", decision.Verdict, "reason", code, "message", decision.Reason.Message)
	return decision, nil
}

// decideOn looks at OCP only where the record alone does not make op wait.
func (a *Agent) decideOn(ctx context.Context, q Question) (Decision, error) {
	op := q.Operation
	slot := Slot{OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Since: q.Now.UTC()}
	onRecord := func(record ClusterRecord) Decision { q.Record = record; return decideOnRecord(q) }
	decision, err := a.slots.take(ctx, op.ClusterID, slot, false, onRecord)
	if err != nil || decision.Verdict != Allow {
		return decision, err
	}
	q.Topology, err = a.OCP.Zones(ctx, op.ClusterID)
	switch {
	case ctx.Err() != nil:
		return Decision{}, ctx.Err()
	case err != nil:
		return withoutTopology(op, err, q.Now), nil
	case len(q.Topology) == 0: // no cluster is without zones: none such, or an answer that is none
		if _, err = a.OCP.Cluster(ctx, op.ClusterID); err == nil {
			err = errNoZones
		}
		return withoutTopology(op, err, q.Now), ctx.Err()
	}
	onAll := func(record ClusterRecord) Decision { q.Record = record; return decide(q) }
	return a.slots.take(ctx, op.ClusterID, slot, !op.Request.DryRun, onAll)
}

// withoutTopology is the word where OCP does not show the cluster.
func withoutTopology(op events.Operation, err error, now time.Time) Decision {
	e, _ := asOCPError(err)
	fromOCP := e != nil && e.Err == nil // not from a gateway that knows no such path
	notFound := e != nil && e.Status == http.StatusNotFound
	switch {
	case ocp.ClassOf(err) == ocp.Refused && notFound && fromOCP:
		return Decision{Verdict: Reject, Reason: events.Reason{Code: CodeNotFound, Message: fmt.Sprintf("OCP knows no cluster %d: %v", op.ClusterID, err)}}
	case ocp.ClassOf(err) == ocp.Refused && !notFound:
		failure := describe(CodeOCPRefused, err)
		failure.Message = fmt.Sprintf("OCP does not show cluster %d to this user, nothing was sent: %v", op.ClusterID, err)
		return Decision{Verdict: Fail, Error: &failure}
	}
	return Decision{Verdict: Wait, Reason: events.Reason{
		Code: awayCode(err), Message: fmt.Sprintf("cluster %d cannot be looked at: %v", op.ClusterID, err),
		Until: now.Add(jitter(retryAfter)).UTC(),
	}}
}

// submit is the one call. Its deadline counts from the intent, on this process's
// own clock: it is over before anybody else may take it for lost.
func (a *Agent) submit(ctx context.Context, h *held) Answered {
	op := h.entry.Operation
	h.since, h.cause = time.Now(), nil
	ctx, cancel := context.WithDeadline(ctx, h.intended.Add(a.Timeout))
	defer cancel()
	task, err := a.OCP.Operate(ctx, ocp.Action(op.Kind), op.ClusterID, op.ServerID,
		ocp.Params{Force: op.Request.Force, FreezeServer: op.Request.FreezeServer, StopType: op.Request.StopType},
		ocp.RequestID{IdempotencyKey: op.OperationID, XRequestID: fmt.Sprintf("%s.%d", op.OperationID, op.Attempt)})
	h.since = time.Now() // the last moment at which it may still have gone out
	if err != nil {
		h.cause = err
		a.logOf(h).Warn("OCP did not accept", "attempt", op.Attempt, "class", ocp.ClassOf(err), "error", err)
	}
	return Answered{Task: task, Err: err}
}

// retryTask has OCP run the failed task again, if the guard lets the operation have
// its slot back.
func (a *Agent) retryTask(ctx context.Context, h *held) (Again, error) {
	decision, err := a.decide(ctx, h)
	if err != nil || decision.Verdict != Allow {
		return Again{Decision: decision}, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	err = a.OCP.RetryTask(ctx, h.entry.Operation.Task.ID)
	h.since = time.Now() // the last moment at which it may still have gone out
	if err != nil {
		a.logOf(h).Warn("OCP did not take the retry", "task", h.entry.Operation.Task.ID, "class", ocp.ClassOf(err), "error", err)
	}
	return Again{Decision: decision, Err: err}, nil
}

// reconcile looks what became of a call whose outcome is not known.
func (a *Agent) reconcile(ctx context.Context, h *held) Reconciled {
	began := time.Now()
	finding := a.find(ctx, h.entry.Operation)
	resolution := map[Outcome]string{Found: "adopted", Done: "done", Unclear: "unknown", Forbidden: "unknown", Nothing: "not_arrived"}[finding.Outcome]
	in := Reconciled{Finding: finding, Since: h.since, Age: time.Since(began), Cause: h.cause}
	a.logOf(h).Info("reconciled", "attempt", h.entry.Operation.Attempt, "outcome", finding.Outcome, "task", finding.Task.ID, "note", finding.Note)
	settled := finding.Outcome == Found || finding.Outcome == Unclear || finding.Outcome == Forbidden || began.Sub(h.since) >= a.Machine.Settle
	if resolution != "" && settled {
		a.Metrics.Ambiguous.WithLabelValues(resolution).Inc()
	}
	return in
}

// find gathers the evidence: the topology, the cluster's tasks since the call and,
// where the list does not say which server one is about, that task in full.
func (a *Agent) find(ctx context.Context, op events.Operation) Finding {
	unreadable := func(err error) Finding {
		if ocp.ClassOf(err) == ocp.Refused {
			return Finding{Outcome: Forbidden, Note: fmt.Sprintf("OCP does not let this user look: %v", err)}
		}
		return Finding{Outcome: Unreadable, Note: err.Error()}
	}
	topology, errTopology := a.OCP.Zones(ctx, op.ClusterID)
	if errTopology == nil && len(topology) == 0 {
		errTopology = errNoZones
	}
	e := Evidence{Topology: topology}
	listed, err := a.OCP.Tasks(ctx, ocp.TaskQuery{ClusterID: op.ClusterID, Since: op.OCPTime.Add(-clockTolerance)})
	if err != nil {
		return unreadable(err)
	}
	server, _ := findServer(topology, op.ServerID)
	for _, t := range listed {
		_, about := AboutServer(t, op.ClusterID, op.ServerID, server.HostID)
		if min(does(t, op.Kind), about, startedSince(t, op.OCPTime)) == No {
			continue
		}
		full, err := a.OCP.Task(ctx, t.ID)
		if err != nil {
			return unreadable(err)
		}
		e.Tasks = append(e.Tasks, full)
	}
	finding := reconcile(op, e)
	if errTopology != nil && finding.Outcome != Found { // a task says enough without
		return unreadable(errTopology)
	}
	return finding
}

// errNoZones is an answer that cannot be: every cluster has zones.
var errNoZones = errors.New("OCP shows no zones of the cluster")

func asOCPError(err error) (*ocp.Error, bool) {
	var e *ocp.Error
	ok := errors.As(err, &e)
	return e, ok
}
