package metrics

import "github.com/obwarden/obwarden/events"

// AllClusters is the label of a pause of all clusters.
const AllClusters = "all"

// NoRule is the label of alerts that no rule matches.
const NoRule = "none"

// codesIn are the codes that an operation in state s carries.
func codesIn(s events.State) (names []string) {
	for _, c := range events.Codes() {
		if c.In(s) {
			names = append(names, c.Name)
		}
	}
	return names
}

// Code is the label for a code: the code itself where this version knows it, Other where
// it does not, and empty where there is none. The journal may hold events of another version.
func Code(code string) string {
	if _, known := events.LookupCode(code); known || code == "" {
		return code
	}
	return Other
}

// startAtZero creates the series whose labels are known. A series that appears only with
// its first event hides that event from rate and increase, and an alert on it never fires.
func (m *Metrics) startAtZero() {
	for _, k := range events.Kinds() {
		kind := string(k)
		for _, source := range []string{"nats", "cloudevent", "cli", "http", "alertmanager"} {
			for _, result := range []string{"accepted", "duplicate", "rejected"} {
				m.Requests.WithLabelValues(kind, source, result)
			}
		}
		for _, s := range events.States() {
			if s.Final() {
				m.Operations.WithLabelValues(kind, string(s))
			}
		}
		// An operation whose slot was refused after a call that did not arrive fails with
		// a code of the guard: its series appears with it.
		for _, code := range append(codesIn(events.Failed), Other) {
			m.Failures.WithLabelValues(kind, code)
		}
		m.SubmitLatency.WithLabelValues(kind)
	}
	m.GuardDecisions.WithLabelValues("allow", "")
	for _, code := range codesIn(events.Waiting) {
		m.GuardDecisions.WithLabelValues("wait", code)
	}
	for _, code := range codesIn(events.Rejected) {
		if code != events.CodeInvalidRequest && code != events.CodeKeyReused { // the guard never sees such a request
			m.GuardDecisions.WithLabelValues("reject", code)
		}
	}
	for _, code := range []string{events.CodeAlreadyStopped, events.CodeAlreadyRunning} {
		m.GuardDecisions.WithLabelValues("done", code)
	}
	for _, endpoint := range []string{
		"status", "info", "clusters_list", "zones_list", "servers_list", "tasks_list", "task_get", "subtask_log",
	} {
		m.OCPRetries.WithLabelValues(endpoint)
	}
	for _, resolution := range []string{"adopted", "done", "not_arrived", "unknown"} {
		m.Ambiguous.WithLabelValues(resolution)
	}
	for _, result := range []string{"loaded", "refused"} {
		m.PolicyReloads.WithLabelValues(result)
	}
	m.Alerts.WithLabelValues(NoRule, "refused")
	for _, result := range []string{"created", "extended", "ended", "failed"} {
		m.Silences.WithLabelValues(result)
	}
}
