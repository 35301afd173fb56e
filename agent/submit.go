package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

// submit is the stage that makes the one call to OCP. It follows from the step that appended `submitting`, and from
// nothing else. Its deadline counts from the intent, on this process's own clock, so that the call is over before
// another agent may assume that it was lost.
func (a *Agent) submit(ctx context.Context, h *held) (operation.Input, error) {
	op := h.hand.entry.Operation
	h.hand.since, h.hand.cause = time.Now(), nil
	ctx, cancel := context.WithDeadline(ctx, h.hand.intended.Add(a.Timeout))
	defer cancel()
	task, err := a.OCP.Operate(ctx, ocp.Action(op.Kind), op.ClusterID, op.ServerID,
		ocp.Params{Force: op.Request.Force, FreezeServer: op.Request.FreezeServer, StopType: op.Request.StopType},
		ocp.RequestID{IdempotencyKey: op.OperationID, XRequestID: fmt.Sprintf("%s.%d", op.OperationID, op.Attempt)})
	h.hand.since = time.Now() // the latest moment at which the call may have gone out
	if err != nil {
		h.hand.cause = err
		a.logOf(h).Warn("OCP did not accept", "attempt", op.Attempt, "class", ocp.ClassOf(err), "error", err)
	}
	return operation.Answered{Task: task, Err: err}, nil
}

// retryTask is the stage that asks OCP to run a failed task again. It has the same deadline as submit.
func (a *Agent) retryTask(ctx context.Context, h *held) (operation.Input, error) {
	ctx, cancel := context.WithDeadline(ctx, h.hand.intended.Add(a.Timeout))
	defer cancel()
	id := h.hand.entry.Operation.Task.ID
	err := a.OCP.RetryTask(ctx, id)
	h.hand.since = time.Now() // the latest moment at which the call may have gone out
	if err != nil {
		a.logOf(h).Warn("OCP did not take the retry", "task", id, "class", ocp.ClassOf(err), "error", err)
	}
	return operation.Again{Err: err}, nil
}

// reconcile is the stage that looks in OCP for the outcome of a call whose answer is lost.
func (a *Agent) reconcile(ctx context.Context, h *held) (operation.Input, error) {
	began := time.Now()
	op := h.hand.entry.Operation
	finding := a.gather(ctx, op)
	a.logOf(h).Info("reconciled",
		"attempt", op.Attempt, "outcome", finding.Outcome, "task", finding.Task.ID, "note", finding.Note)
	resolution := map[operation.Outcome]string{
		operation.Found: "adopted", operation.Done: "done", operation.Nothing: "not_arrived",
		operation.Unclear: "unknown", operation.Forbidden: "unknown",
	}[finding.Outcome]
	settled := resolution == "adopted" || resolution == "unknown" || began.Sub(h.hand.since) >= a.Machine.Settle
	if resolution != "" && settled {
		a.Metrics.Ambiguous.WithLabelValues(resolution).Inc()
	}
	return operation.Reconciled{Finding: finding, Since: h.hand.since, Age: time.Since(began), Cause: h.hand.cause}, nil
}

// gather collects the evidence: the topology, and each task of the cluster since the call that may be the call's, in
// full.
func (a *Agent) gather(ctx context.Context, op events.Operation) operation.Finding {
	unreadable := func(err error) operation.Finding {
		if ocp.ClassOf(err) == ocp.Refused {
			note := fmt.Sprintf("OCP does not let this user look: %v", err)
			return operation.Finding{Outcome: operation.Forbidden, Note: note}
		}
		return operation.Finding{Outcome: operation.Unreadable, Note: err.Error()}
	}
	topology, errTopology := a.OCP.Zones(ctx, op.ClusterID)
	if errTopology == nil && len(topology) == 0 {
		errTopology = facts.ErrNoZones
	}
	since := op.OCPTime.Add(-operation.ClockTolerance)
	tasks, err := a.OCP.Tasks(ctx, ocp.TaskQuery{ClusterID: op.ClusterID, Since: since})
	if err != nil {
		return unreadable(err)
	}
	evidence := operation.Evidence{Topology: topology}
	server, _, _ := topology.Server(op.ServerID)
	for _, t := range tasks {
		if !operation.Candidate(op, t, server.HostID) {
			continue
		}
		full, err := a.OCP.Task(ctx, t.ID)
		if err != nil {
			return unreadable(err)
		}
		evidence.Tasks = append(evidence.Tasks, full)
	}
	finding := operation.Trace(op, evidence)
	if errTopology != nil && finding.Outcome != operation.Found { // a task that was found is evidence enough
		return unreadable(errTopology)
	}
	return finding
}
