package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

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

// retryTask has OCP run the failed task again. Its deadline is that of submit.
func (a *Agent) retryTask(ctx context.Context, h *held) error {
	ctx, cancel := context.WithDeadline(ctx, h.intended.Add(a.Timeout))
	defer cancel()
	err := a.OCP.RetryTask(ctx, h.entry.Operation.Task.ID)
	h.since = time.Now() // the last moment at which it may still have gone out
	if err != nil {
		a.logOf(h).Warn("OCP did not take the retry", "task", h.entry.Operation.Task.ID, "class", ocp.ClassOf(err), "error", err)
	}
	return err
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
	server, _ := guard.FindServer(topology, op.ServerID)
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

// forbidden reports whether OCP said that this user may not.
func forbidden(err error) bool {
	return refusedWith(err, http.StatusUnauthorized, http.StatusForbidden)
}

// refusedWith reports whether OCP itself, and no gateway before it, refused with one of
// the statuses.
func refusedWith(err error, statuses ...int) bool {
	e, ok := asOCPError(err)
	return ok && e.Class == ocp.Refused && e.Err == nil && slices.Contains(statuses, e.Status)
}

func asOCPError(err error) (*ocp.Error, bool) {
	var e *ocp.Error
	ok := errors.As(err, &e)
	return e, ok
}
