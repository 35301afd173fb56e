package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// observe turns appended events into metrics and log lines, one line for each event.
func (a *Agent) observe(before events.Operation, appended []events.Event) {
	for _, e := range appended {
		a.log(e)
		a.measure(before, e)
		before = e.Operation
	}
}

// logOf returns the log with the id and the target of an operation.
func (a *Agent) logOf(h *held) *slog.Logger {
	s := h.summary
	if h.hand.entry != nil {
		s = summaryOf(h.hand.entry.Operation)
	}
	return a.Log.With("operation_id", h.id, "cluster", s.cluster, "server", s.server)
}

func (a *Agent) log(e events.Event) {
	level := slog.LevelInfo
	attributes := []any{
		"operation_id", e.OperationID, "cluster", e.ClusterID, "server", e.ServerID, "kind", e.Kind,
		"n", e.N, "state", e.State,
	}
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
	if was := before.Reason; before.State == events.Waiting && was != nil &&
		(e.State != events.Waiting || e.Reason.Code != was.Code) {
		waited := e.UpdatedAt.Sub(before.UpdatedAt)
		metrics.Observe(m.Wait.WithLabelValues(metrics.Code(was.Code)), waited, e.OperationID)
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
}

func (a *Agent) measureEnd(kind string, e events.Event) {
	m, outcome := a.Metrics, string(e.State)
	m.Operations.WithLabelValues(kind, outcome).Inc()
	metrics.Observe(m.OperationDuration.WithLabelValues(kind, outcome), e.EndedAt.Sub(e.RequestedAt), e.OperationID)
	if e.Error != nil {
		m.Failures.WithLabelValues(kind, metrics.Code(e.Error.Code)).Inc()
	}
	if e.Attempt > 0 { // only then does OCP know the cluster: a request can name any
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

func (a *Agent) countRequest(r operation.Received, result string) {
	a.Metrics.Requests.WithLabelValues(metrics.Kind(string(r.Kind)), r.Source, result).Inc()
}

// publishEntry publishes the summary of an operation in hand.
func (a *Agent) publishEntry(h *held) {
	op := h.hand.entry.Operation
	s := summaryOf(op)
	s.ack, s.needsOCP = h.hand.ack, h.summary.needsOCP
	if op.State == events.Running && op.Task != nil {
		for _, sub := range op.Task.Subtasks {
			name := a.Metrics.Subtask(sub.Name)
			// The series exists, at 0, before the first failure.
			a.Metrics.SubtaskFailures.WithLabelValues(metrics.Kind(string(op.Kind)), name)
			if sub.Status == ocp.StatusRunning {
				s.running = append(s.running, name)
			}
		}
	}
	a.publish(h, s)
}

// publish replaces the summary of an operation, and updates the counts that follow from it.
func (a *Agent) publish(h *held, s summary) {
	before := a.roster.publish(h, s)
	count := func(s summary, n int) {
		if s.state != events.Running {
			return
		}
		a.tasks.Follow(n)
		for _, name := range s.running {
			a.Metrics.SubtasksRunning.WithLabelValues(metrics.Kind(string(s.kind)), name).Add(float64(n))
		}
	}
	count(before, -1)
	count(s, +1)
}

// Collector returns gauges of the operations that the agent holds. They are read at each scrape.
func (a *Agent) Collector() prometheus.Collector {
	return a.Metrics.Holding(func() metrics.Held {
		held := metrics.Held{Operations: a.roster.counted(), Paused: a.pauses.Paused()}
		held.OldestProgress, held.OldestWait = a.roster.oldest(time.Now())
		held.ClusterBudget, held.FleetBudget = a.budgetsUsed()
		return held
	})
}

// budgetsUsed returns which share of the budgets is used: in the cluster that has used most, and in all clusters
// together.
func (a *Agent) budgetsUsed() (cluster, fleet float64) {
	q := guard.Question{Policy: a.Policy.Load(), Fleet: a.slots.Fleet(), Now: time.Now()}
	_, fleet = q.BudgetsUsed()
	for _, id := range a.slots.Clusters() {
		q.Record, q.Operation.ClusterID = a.slots.Record(id), id
		used, _ := q.BudgetsUsed()
		cluster = min(max(cluster, used), 1) // an override by the cluster's name may give it more
	}
	return cluster, fleet
}
