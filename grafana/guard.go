package grafana

// guard is what holds operations back, and who asked for them.
func guard(b *board) {
	b.about("Guard", "What the guard decided and why, what waits for what, how much of the budgets is used, and what comes in from Alertmanager.")
	b.window()

	b.row("Now")
	b.stat(panel{"Waiting", "Operations that may not begin yet.", "short", "0", 4, []query{
		{expr: `sum(obwarden_operations_waiting{` + ofJob + `})`, legend: "waiting"},
	}}, "", levels(level{10, "yellow"}, level{50, "red"}))
	b.stat(panel{"Longest wait", "Time since the request came whose operation waits for longest.", "s", "nothing waits", 5, []query{
		{expr: `max(obwarden_oldest_wait_age_seconds{` + ofJob + `})`, legend: "wait"},
	}}, "", levels(level{3600, "yellow"}, level{14400, "red"}))
	b.stat(panel{"Paused", "Clusters, or all, in which a person holds operations back.", "short", "nothing", 5, []query{
		{expr: `count(max by (cluster) (obwarden_paused{` + ofJob + `}) == 1) or vector(0)`, legend: "paused"},
	}}, "", levels(level{1, "orange"}))
	b.stat(panel{"Budget used", "Share of the budget of operations that is used: of the fleet, and of the cluster where it is highest.", "percentunit", "no budget", 5, []query{
		{expr: `max by (scope) (obwarden_budget_used_ratio{` + ofJob + `})`, legend: "{{scope}}"},
	}}, "", levels(level{.8, "yellow"}, level{1, "red"})).Max(1)
	b.health(panel{"Policy", "Whether the policy file was read when it last changed. Where it was not, the one before holds.", "short", "no agent", 5, []query{
		{expr: `1 - max(obwarden_policy_reload_failed{` + ofJob + `})`, legend: "policy"},
	}}, "holds", "faulty")

	b.row("Decisions")
	decided := b.bars(panel{"Decisions", "What the guard said in each interval. It looks again at what waits, and each look counts.", "short", "nothing decided", 12, []query{
		{expr: `sum by (decision) (increase(obwarden_guard_decisions_total{` + ofJob + `}[$__rate_interval]))`, legend: "{{decision}}"},
	}})
	colored(decided, map[string]string{"allow": "green", "wait": "yellow", "reject": "purple", "done": "blue", "supersede": "orange"})
	b.bars(panel{"Objections by reason", "Why the guard did not say yes, in each interval.", "short", "no objections", 12, []query{
		{expr: `sum by (decision, reason) (increase(obwarden_guard_decisions_total{` + ofJob + `,decision!="allow"}[$__rate_interval])) > 0`, legend: "{{decision}} {{reason}}"},
	}})

	b.row("Queue")
	b.stacked(panel{"Waiting by reason", "Operations that wait, by what for.", "short", "nothing waits", 12, []query{
		{expr: `sum by (reason) (obwarden_operations_waiting{` + ofJob + `}) > 0`, legend: "{{reason}}"},
	}})
	b.lines(panel{"How long they waited", "Time that operations waited for one reason: 95 of 100 for less.", "s", "nothing has waited", 12, []query{
		{expr: quantile(.95, "obwarden_wait_seconds", ofJob, "reason"), legend: "{{reason}}", exemplars: true},
	}})
	b.lines(panel{"Longest wait", "Time since the request came whose operation waits for longest, by agent.", "s", "nothing waits", 12, []query{
		{expr: `obwarden_oldest_wait_age_seconds{` + ofJob + `}`, legend: "{{instance}}"},
	}})
	b.lines(panel{"Budget used", "Share of the policy's budget of operations that is used.", "percentunit", "no budget", 12, []query{
		{expr: `max by (scope) (obwarden_budget_used_ratio{` + ofJob + `})`, legend: "{{scope}}"},
	}}).Max(1)

	b.row("People and alerts")
	b.lines(panel{"Pauses", "1 while operations are held back by a person, by cluster.", "short", "nothing is paused", 6, []query{
		{expr: `max by (cluster) (obwarden_paused{` + ofJob + `})`, legend: "{{cluster}}"},
	}})
	b.bars(panel{"Policy reloads", "Times that a changed policy file was read, in each interval.", "short", "never", 6, []query{
		{expr: `sum by (result) (increase(obwarden_policy_reloads_total{` + ofJob + `}[$__rate_interval]))`, legend: "{{result}}"},
	}})
	b.bars(panel{"Alerts in", "Alerts that Alertmanager sent in each interval, by the rule that matched and what became of them.", "short", "no alerts", 6, []query{
		{expr: `sum by (rule, result) (increase(obwarden_alerts_total{` + ofJob + `}[$__rate_interval])) > 0`, legend: "{{rule}} {{result}}"},
	}})
	b.bars(panel{"Silences out", "Calls to Alertmanager about silences, in each interval.", "short", "no silences", 6, []query{
		{expr: `sum by (result) (increase(obwarden_silences_total{` + ofJob + `}[$__rate_interval]))`, legend: "{{result}}"},
	}})
}
