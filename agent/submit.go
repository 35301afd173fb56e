package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"obwarden/agent/ocp"
	"obwarden/events"
)

// decide asks the guard about h and takes its slot where the word is Allow.
func (a *Agent) decide(ctx context.Context, h *held) (Decision, error) {
	op := h.entry.Operation
	topology, err := a.OCP.Zones(ctx, op.ClusterID)
	if ctx.Err() != nil {
		return Decision{}, ctx.Err()
	}
	var decision Decision
	if err != nil {
		decision = withoutTopology(op, err, time.Now())
	} else {
		slot := Slot{OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Since: time.Now().UTC()}
		decision, err = a.slots.take(ctx, op.ClusterID, slot, !op.Request.DryRun && !op.Request.Expired(time.Now()), func(record ClusterRecord) Decision {
			return decide(Question{Policy: a.Policy, Topology: topology, Record: record, Operation: op, Now: time.Now()})
		})
		if err != nil {
			return Decision{}, err
		}
	}
	code := decision.Reason.Code
	if decision.Verdict == Fail {
		code = decision.Error.Code
	}
	a.Metrics.GuardDecisions.WithLabelValues(string(decision.Verdict), code).Inc()
	a.logOf(h).Debug("guard decided", "decision", decision.Verdict, "reason", code, "message", decision.Reason.Message)
	return decision, nil
}

// withoutTopology is the word where OCP does not show the cluster.
func withoutTopology(op events.Operation, err error, now time.Time) Decision {
	e, _ := asOCPError(err)
	switch {
	case ocp.ClassOf(err) == ocp.Refused && e != nil && e.Status == http.StatusNotFound:
		return Decision{Verdict: Reject, Reason: events.Reason{Code: CodeNotFound, Message: fmt.Sprintf("OCP knows no cluster %d: %v", op.ClusterID, err)}}
	case ocp.ClassOf(err) == ocp.Refused:
		failure := describe(CodeOCPRefused, err)
		failure.Message = fmt.Sprintf("OCP does not show cluster %d to this user, nothing was sent: %v", op.ClusterID, err)
		return Decision{Verdict: Fail, Error: &failure}
	}
	return Decision{Verdict: Wait, Reason: events.Reason{
		Code: CodeOCPUnreachable, Message: fmt.Sprintf("cluster %d cannot be looked at: OCP does not answer as it should", op.ClusterID),
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
	if err != nil {
		a.logOf(h).Warn("OCP did not take the retry", "task", h.entry.Operation.Task.ID, "class", ocp.ClassOf(err), "error", err)
	}
	return Again{Decision: decision, Err: err}, nil
}

// reconcile looks what became of a call whose outcome is not known.
func (a *Agent) reconcile(ctx context.Context, h *held) Reconciled {
	finding := a.find(ctx, h.entry.Operation)
	resolution := map[Outcome]string{Found: "adopted", Done: "done", Unclear: "unknown", Forbidden: "unknown", Nothing: "not_arrived"}[finding.Outcome]
	in := Reconciled{Finding: finding, Since: h.since, Cause: h.cause}
	a.logOf(h).Info("reconciled", "attempt", h.entry.Operation.Attempt, "outcome", finding.Outcome, "task", finding.Task.ID, "note", finding.Note)
	settled := finding.Outcome == Found || finding.Outcome == Unclear || finding.Outcome == Forbidden || time.Since(h.since) >= a.Machine.Settle
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
	topology, err := a.OCP.Zones(ctx, op.ClusterID)
	if err != nil {
		return unreadable(err)
	}
	e := Evidence{Topology: topology, Offset: a.OCP.ClockOffset()}
	since := op.SubmittedAt.Add(e.Offset - clockTolerance)
	listed, err := a.OCP.Tasks(ctx, ocp.TaskQuery{ClusterID: op.ClusterID, Since: since})
	if err != nil {
		return unreadable(err)
	}
	server, _ := findServer(topology, op.ServerID)
	for _, t := range listed {
		early := !t.StartedAt.IsZero() && t.StartedAt.Before(since)
		_, about := AboutServer(t, op.ClusterID, op.ServerID, server.HostID)
		if early || does(t, op.Kind) == No || about == No {
			continue
		}
		full, err := a.OCP.Task(ctx, t.ID)
		if err != nil {
			return unreadable(err)
		}
		e.Tasks = append(e.Tasks, full)
	}
	return reconcile(op, e)
}

func asOCPError(err error) (*ocp.Error, bool) {
	var e *ocp.Error
	ok := errors.As(err, &e)
	return e, ok
}
