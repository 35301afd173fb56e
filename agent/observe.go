package agent

import (
	"context"
	"log/slog"

	"obwarden/agent/ocp"
	"obwarden/events"
	"obwarden/metrics"
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
		m.Wait.WithLabelValues(before.Reason.Code).Observe(e.UpdatedAt.Sub(before.UpdatedAt).Seconds())
	}
	switch {
	case e.Token == events.Running:
		m.SubmitLatency.WithLabelValues(kind).Observe(e.UpdatedAt.Sub(e.RequestedAt).Seconds())
	case e.Token.Final():
		m.Operations.WithLabelValues(kind, string(e.State)).Inc()
		m.OperationDuration.WithLabelValues(kind, string(e.State)).Observe(e.EndedAt.Sub(e.RequestedAt).Seconds())
	}
	for _, c := range e.Changes {
		if c.To == ocp.StatusSuccessful || c.To == ocp.StatusFailed {
			a.measureSubtask(kind, e, c)
		}
	}
	a.countSubtasks(before, -1)
	a.countSubtasks(e.Operation, +1)
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
			a.Metrics.SubtaskDuration.WithLabelValues(kind, name, outcome).Observe(s.DurationSeconds)
		}
	}
}

// countSubtasks adds an open operation's running subtasks to the gauge, or takes them out.
func (a *Agent) countSubtasks(op events.Operation, sign float64) {
	if op.Task == nil || op.State != events.Running {
		return
	}
	for _, s := range op.Task.Subtasks {
		if s.Status == ocp.StatusRunning {
			a.Metrics.SubtasksRunning.WithLabelValues(metrics.Kind(string(op.Kind)), a.Metrics.Subtask(s.Name)).Add(sign)
		}
	}
}

// account moves an operation from one state to another in the gauge of those that
// this agent holds. The caller holds a.mu.
func (a *Agent) account(h *held, to position) {
	in := func(p position) bool { return p.state != "" && !p.state.Final() }
	if in(h.position) {
		a.Metrics.OperationsInFlight.WithLabelValues(metrics.Kind(string(h.position.kind)), string(h.position.state)).Dec()
	}
	if in(to) {
		a.Metrics.OperationsInFlight.WithLabelValues(metrics.Kind(string(to.kind)), string(to.state)).Inc()
	}
	if h.position.state == events.Running {
		a.looks.following.Add(-1)
	}
	if to.state == events.Running {
		a.looks.following.Add(1)
	}
	h.position = to
}

func (a *Agent) countRequest(r Received, result string) {
	a.Metrics.Requests.WithLabelValues(metrics.Kind(string(r.Kind)), r.Source, result).Inc()
}
