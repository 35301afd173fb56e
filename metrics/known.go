package metrics

import "slices"

// AllClusters is the label of a pause that holds for all of them.
const AllClusters = "all"

// NoRule is the label of alerts that no rule matches.
const NoRule = "none"

func kinds() []string { return []string{"stop", "start", "restart"} }

func outcomes() []string { return []string{"succeeded", "failed", "cancelled", "rejected", "expired"} }

// failureCodes are the codes with which an operation fails; any other is one of the
// guard's, for an operation whose slot was refused after a call that did not arrive.
func failureCodes() []string {
	return []string{"SUBTASK_FAILED", "OCP_REFUSED", "OCP_UNANSWERED", "OUTCOME_UNKNOWN", "ROLLED_BACK", "TASK_CANCELLED"}
}

// waitCodes are the reasons that may pass.
func waitCodes() []string {
	return []string{"SERVER_BUSY", "CLUSTER_BUSY", "OTHER_ZONE_ACTIVE", "MAJORITY_AT_RISK", "LAST_ROOT_SERVER", "NEEDS_APPROVAL",
		"OUTSIDE_WINDOW", "COOLDOWN", "BUDGET", "PAUSED", "FAILING", "STALE_TOPOLOGY", "OCP_UNREACHABLE", "OCP_BUDGET", "ALERTMANAGER_UNREACHABLE",
		"RECORD_UNREADABLE"}
}

// otherCodes end an operation, or its request, before anything was sent.
func otherCodes() []string {
	return []string{"NOT_FOUND", "DENIED", "WRONG_STATE", "INVALID_REQUEST", "IDEMPOTENCY_KEY_REUSED", "EXPIRED", "CANCELLED", "DRY_RUN",
		"ALREADY_DONE", "ALREADY_STOPPED", "ALREADY_RUNNING", "SUPERSEDED"}
}

// Code is the label for a code: itself where it is one of ours, and empty where
// there is none. Events of the journal may be those of another version.
func Code(code string) string {
	if code == "" || slices.Contains(failureCodes(), code) || slices.Contains(waitCodes(), code) || slices.Contains(otherCodes(), code) {
		return code
	}
	return Other
}

// startAtZero makes the series whose labels are known. Where one appears with its
// first event only, rate and increase do not see that event, and an alert on it
// never fires.
func (m *Metrics) startAtZero() {
	for _, kind := range kinds() {
		for _, source := range []string{"nats", "cloudevent", "cli", "http", "alertmanager"} {
			for _, result := range []string{"accepted", "duplicate", "rejected"} {
				m.Requests.WithLabelValues(kind, source, result)
			}
		}
		for _, outcome := range outcomes() {
			m.Operations.WithLabelValues(kind, outcome)
		}
		for _, code := range append(failureCodes(), Other) {
			m.Failures.WithLabelValues(kind, code)
		}
		for _, state := range []string{"accepted", "waiting", "submitting", "running"} {
			m.OperationsInFlight.WithLabelValues(kind, state)
		}
		m.SubmitLatency.WithLabelValues(kind)
	}
	m.GuardDecisions.WithLabelValues("allow", "")
	for _, code := range waitCodes() {
		m.GuardDecisions.WithLabelValues("wait", code)
		m.OperationsWaiting.WithLabelValues(code)
	}
	for _, code := range []string{"NOT_FOUND", "DENIED", "WRONG_STATE", "MAJORITY_AT_RISK", "LAST_ROOT_SERVER"} {
		m.GuardDecisions.WithLabelValues("reject", code)
	}
	for _, code := range []string{"ALREADY_STOPPED", "ALREADY_RUNNING"} {
		m.GuardDecisions.WithLabelValues("done", code)
	}
	for _, endpoint := range []string{"status", "info", "clusters_list", "zones_list", "servers_list", "tasks_list", "task_get", "subtask_log"} {
		m.OCPRetries.WithLabelValues(endpoint)
	}
	for _, resolution := range []string{"adopted", "done", "not_arrived", "unknown"} {
		m.Ambiguous.WithLabelValues(resolution)
	}
	for _, scope := range []string{"cluster", "fleet"} {
		m.BudgetUsed.WithLabelValues(scope)
	}
	for _, result := range []string{"loaded", "refused"} {
		m.PolicyReloads.WithLabelValues(result)
	}
	m.Alerts.WithLabelValues(NoRule, "refused")
	for _, result := range []string{"created", "extended", "ended", "failed"} {
		m.Silences.WithLabelValues(result)
	}
}
