package grafana

// guard is the dashboard about decisions: what holds operations back, and where requests come from.
func guard(b *board) {
	b.about("Guard", "What the guard decided and why, which operations wait and for what, how much of the budgets is used, and which alerts come from Alertmanager.")
	b.window()

	b.row("Now")
	b.stat(panel{"Waiting", "Operations that may not be submitted to OCP yet.", "short", "0", 4, []query{
		{expr: `sum(obwarden_operations_waiting{` + ofJob + `})`, legend: "waiting"},
	}}, "", levels(level{10, "yellow"}, level{50, "red"}))
	b.stat(panel{"Longest wait", "Age of the oldest request whose operation waits.", "s", "nothing waits", 5, []query{
		{expr: `max(obwarden_oldest_wait_age_seconds{` + ofJob + `})`, legend: "wait"},
	}}, "", levels(level{3600, "yellow"}, level{14400, "red"}))
	b.stat(panel{"Paused", "Pauses in force, each set by a person: of single clusters, or of all.", "short", "nothing", 5, []query{
		{expr: `count(max by (cluster) (obwarden_paused{` + ofJob + `}) == 1) or vector(0)`, legend: "paused"},
	}}, "", levels(level{1, "orange"}))
	b.stat(panel{"Budget used", "Share of the budget of operations that is used: of the fleet's budget, and of the budget of the cluster with the highest share.", "percentunit", "no budget", 5, []query{
		{expr: `max by (scope) (obwarden_budget_used_ratio{` + ofJob + `})`, legend: "{{scope}}"},
	}}, "", levels(level{.8, "yellow"}, level{1, "red"})).Max(1)
	b.health(panel{"Policy", "Whether the policy file was valid when it last changed. If not, the policy before stays in force.", "short", "no agent", 5, []query{
		{expr: `1 - max(obwarden_policy_reload_failed{` + ofJob + `})`, legend: "policy"},
	}}, "in force", "faulty")

	b.row("Decisions")
	decided := b.bars(panel{"Decisions", "What the guard decided in each interval. It decides about waiting operations again and again, and each decision counts.", "short", "nothing decided", 12, []query{
		{expr: `sum by (decision) (increase(obwarden_guard_decisions_total{` + ofJob + `}[$__rate_interval]))`, legend: "{{decision}}"},
	}})
	colored(decided, map[string]string{"allow": "green", "wait": "yellow", "reject": "purple", "done": "blue", "supersede": "orange"})
	b.bars(panel{"Objections by reason", "Reasons for which the guard did not allow an operation, in each interval.", "short", "no objections", 12, []query{
		{expr: `sum by (decision, reason) (increase(obwarden_guard_decisions_total{` + ofJob + `,decision!="allow"}[$__rate_interval])) > 0`, legend: "{{decision}} {{reason}}"},
	}})

	b.row("Queue")
	b.stacked(panel{"Waiting by reason", "Operations that wait, by reason.", "short", "nothing waits", 12, []query{
		{expr: `sum by (reason) (obwarden_operations_waiting{` + ofJob + `}) > 0`, legend: "{{reason}}"},
	}})
	b.lines(panel{"How long they waited", "How long operations waited for one reason: 95th percentile.", "s", "nothing has waited", 12, []query{
		{expr: quantile(.95, "obwarden_wait_seconds", ofJob, "reason"), legend: "{{reason}}", exemplars: true},
	}})
	b.lines(panel{"Longest wait", "Age of the oldest request whose operation waits, by agent.", "s", "nothing waits", 12, []query{
		{expr: `obwarden_oldest_wait_age_seconds{` + ofJob + `}`, legend: "{{instance}}"},
	}})
	b.lines(panel{"Budget used", "Share of the policy's budget of operations that is used.", "percentunit", "no budget", 12, []query{
		{expr: `max by (scope) (obwarden_budget_used_ratio{` + ofJob + `})`, legend: "{{scope}}"},
	}}).Max(1)

	b.row("People and alerts")
	b.lines(panel{"Pauses", "1 while a person has paused operations, by cluster.", "short", "nothing is paused", 6, []query{
		{expr: `max by (cluster) (obwarden_paused{` + ofJob + `})`, legend: "{{cluster}}"},
	}})
	b.bars(panel{"Policy reloads", "How often a changed policy file was read, in each interval.", "short", "never", 6, []query{
		{expr: `sum by (result) (increase(obwarden_policy_reloads_total{` + ofJob + `}[$__rate_interval]))`, legend: "{{result}}"},
	}})
	b.bars(panel{"Alerts in", "Alerts that Alertmanager sent in each interval, by matching rule and result.", "short", "no alerts", 6, []query{
		{expr: `sum by (rule, result) (increase(obwarden_alerts_total{` + ofJob + `}[$__rate_interval])) > 0`, legend: "{{rule}} {{result}}"},
	}})
	b.bars(panel{"Silences out", "Calls to Alertmanager that create or end silences, in each interval.", "short", "no silences", 6, []query{
		{expr: `sum by (result) (increase(obwarden_silences_total{` + ofJob + `}[$__rate_interval]))`, legend: "{{result}}"},
	}})
}
