package agent

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// observe turns what was appended into metrics and log lines, one line an event.
func (a *Agent) observe(before events.Operation, appended []events.Event) {
	for _, e := range appended {
		a.log(e)
		a.measure(before, e)
		before = e.Operation
	}
}

func (a *Agent) log(e events.Event) {
	level := slog.LevelInfo
	attributes := []any{"operation_id", e.OperationID, "cluster", e.ClusterID, "server", e.ServerID, "kind", e.Kind, "n", e.N, "state", e.State}
	if e.Reason != nil {
		attributes = append(attributes, "reason", e.Reason.Code, "message", e.Reason.Message)
	}
	if e.Error != nil && e.Error.TraceID != "" {
		attributes = append(attributes, "ocp_trace", e.Error.TraceID)
	}
	if e.Task != nil {
		attributes = append(attributes, "task", e.Task.ID)
	}
	for _, c := range e.Changes {
		attributes = append(attributes, "subtask", c.Name, "from", c.From, "to", c.To)
	}
	if e.Token == events.Failed || e.Token == events.Stalled {
		level = slog.LevelWarn
	}
	a.Log.Log(context.Background(), level, string(e.Token), attributes...)
}

func (a *Agent) measure(before events.Operation, e events.Event) {
	m, kind := a.Metrics, metrics.Kind(string(e.Kind))
	if before.State == events.Waiting && before.Reason != nil && (e.State != events.Waiting || e.Reason.Code != before.Reason.Code) {
		metrics.Observe(m.Wait.WithLabelValues(metrics.Code(before.Reason.Code)), e.UpdatedAt.Sub(before.UpdatedAt), e.OperationID)
	}
	switch {
	case e.Token == events.Running:
		metrics.Observe(m.SubmitLatency.WithLabelValues(kind), e.UpdatedAt.Sub(e.RequestedAt), e.OperationID)
	case e.Token.Final():
		a.measureEnd(kind, e)
	}
	for _, c := range e.Changes {
		if c.To == ocp.StatusSuccessful || c.To == ocp.StatusFailed {
			a.measureSubtask(kind, e, c)
		}
	}
	a.countSubtasks(before, -1)
	a.countSubtasks(e.Operation, +1)
}

func (a *Agent) measureEnd(kind string, e events.Event) {
	m, outcome := a.Metrics, string(e.State)
	m.Operations.WithLabelValues(kind, outcome).Inc()
	metrics.Observe(m.OperationDuration.WithLabelValues(kind, outcome), e.EndedAt.Sub(e.RequestedAt), e.OperationID)
	if e.Error != nil {
		m.Failures.WithLabelValues(kind, metrics.Code(e.Error.Code)).Inc()
	}
	if e.Attempt > 0 { // OCP knows the cluster: a request can name any
		m.ClusterOperations.WithLabelValues(m.Cluster(e.ClusterID), outcome).Inc()
	}
}

func (a *Agent) measureSubtask(kind string, e events.Event, c events.Change) {
	for _, s := range e.Task.Subtasks {
		if s.ID != c.SubtaskID {
			continue
		}
		name, outcome := a.Metrics.Subtask(s.Name), "successful"
		if s.Status == ocp.StatusFailed {
			outcome = "failed"
			a.Metrics.SubtaskFailures.WithLabelValues(kind, name).Inc()
		}
		if !s.StartedAt.IsZero() && !s.FinishedAt.IsZero() {
			took := time.Duration(s.DurationSeconds * float64(time.Second))
			metrics.Observe(a.Metrics.SubtaskDuration.WithLabelValues(kind, name, outcome), took, e.OperationID)
		}
	}
}

// countSubtasks adds an open operation's running subtasks to the gauge, or takes them out.
func (a *Agent) countSubtasks(op events.Operation, sign float64) {
	if op.Task == nil || op.State != events.Running {
		return
	}
	kind := metrics.Kind(string(op.Kind))
	for _, s := range op.Task.Subtasks {
		name := a.Metrics.Subtask(s.Name)
		a.Metrics.SubtaskFailures.WithLabelValues(kind, name) // at 0 before its first failure
		if s.Status == ocp.StatusRunning {
			a.Metrics.SubtasksRunning.WithLabelValues(kind, name).Add(sign)
		}
	}
}

// account moves an operation from one position to another in the gauges of those
// that this agent holds. The caller holds a.mu.
func (a *Agent) account(h *held, to position) {
	a.count(h.position, -1)
	a.count(to, +1)
	if h.position.undecided() {
		delete(a.waiting[h.position.cluster], h)
		if len(a.waiting[h.position.cluster]) == 0 {
			delete(a.waiting, h.position.cluster)
		}
	}
	if to.undecided() {
		if a.waiting[to.cluster] == nil {
			a.waiting[to.cluster] = map[*held]struct{}{}
		}
		a.waiting[to.cluster][h] = struct{}{}
	}
	if h.position.state == events.Running {
		a.looks.following.Add(-1)
	}
	if to.state == events.Running {
		a.looks.following.Add(1)
	}
	h.position = to
	if p := h.position; p.state != "" && p.state != events.Waiting && !p.state.Final() {
		a.moved.put(h)
	} else {
		a.moved.drop(h)
	}
	if h.position.state == events.Waiting {
		a.came.put(h)
	} else {
		a.came.drop(h)
	}
}

// countPause shows what people have paused.
func (a *Agent) countPause(cluster int64, paused bool) {
	label := metrics.AllClusters
	if cluster != events.AllClusters {
		label = strconv.FormatInt(cluster, 10)
	}
	if paused {
		a.Metrics.Paused.WithLabelValues(label).Set(1)
	} else {
		a.Metrics.Paused.DeleteLabelValues(label)
	}
}

// measureBudgets shows how much of the budgets is used: of the clusters' the highest.
func (a *Agent) measureBudgets() {
	var highest float64
	q := guard.Question{Policy: a.policy.Load(), Fleet: a.slots.fleet(), Now: time.Now()}
	_, fleet := q.BudgetsUsed()
	for cluster, record := range a.slots.all() {
		q.Record, q.Operation.ClusterID = record, cluster
		used, _ := q.BudgetsUsed()
		highest = min(max(highest, used), 1) // an override by the cluster's name may give it more
	}
	a.Metrics.BudgetUsed.WithLabelValues("cluster").Set(highest)
	a.Metrics.BudgetUsed.WithLabelValues("fleet").Set(fleet)
}

// count adds an open operation to the gauges, or takes it out.
func (a *Agent) count(p position, sign float64) {
	if p.state == "" || p.state.Final() {
		return
	}
	m, state := a.Metrics, string(p.state)
	m.OperationsInFlight.WithLabelValues(metrics.Kind(string(p.kind)), state).Add(sign)
	if p.state != events.Accepted { // not decided on yet: there may be no such cluster
		m.ClusterInFlight.WithLabelValues(m.Cluster(p.cluster), state).Add(sign)
	}
	if p.reason != "" {
		m.OperationsWaiting.WithLabelValues(metrics.Code(p.reason)).Add(sign)
	}
	if p.stalled {
		m.OperationsStalled.Add(sign)
	}
}

func (a *Agent) countRequest(r Received, result string) {
	a.Metrics.Requests.WithLabelValues(metrics.Kind(string(r.Kind)), r.Source, result).Inc()
}
