package grafana

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// operation is the dashboard about operations and subtasks: how long they take and where they fail.
func operation(b *board) {
	b.about("Operations and subtasks", "How long operations and the subtasks of OCP's tasks take, now and a week ago; which of them fail or make no progress.")
	b.kinds()
	b.choice("subtask", "Subtask", `label_values(obwarden_subtasks_running{job=~"$job",kind=~"$kind"}, subtask)`)
	b.window()
	const ofSubtask = ofKind + `,subtask=~"$subtask"`

	b.row("Operations")
	b.heat(panel{"From request to end", "How long operations took, waiting included. An exemplar names its operation, which obwarden get shows.", "s", "nothing ended", 12, []query{
		{expr: `sum by (le) (increase(obwarden_operation_duration_seconds_bucket{` + ofKind + `,outcome=~"succeeded|failed"}[$__rate_interval]))`, legend: "{{le}}"},
	}})
	b.bars(panel{"Failures by code", "Operations that failed in each interval. After OUTCOME_UNKNOWN a person must look at the server.", "short", "nothing failed", 12, []query{
		{expr: `sum by (code) (increase(obwarden_failures_total{` + ofKind + `}[$__rate_interval])) > 0`, legend: "{{code}}"},
	}})
	b.lines(panel{"From request to acceptance", "How long it took until OCP had accepted the call, waiting included.", "s", "nothing submitted", 8, []query{
		{expr: quantile(.5, "obwarden_submit_latency_seconds", ofKind, "kind"), legend: "{{kind}} p50"},
		{expr: quantile(.95, "obwarden_submit_latency_seconds", ofKind, "kind"), legend: "{{kind}} p95", exemplars: true},
	}})
	b.lines(panel{"Longest without progress", "Of the operations under way, the longest time without progress, by agent. An hour pages somebody.", "s", "nothing under way", 8, []query{
		{expr: `obwarden_oldest_progress_age_seconds{` + ofJob + `}`, legend: "{{instance}}"},
	}})
	b.lines(panel{"Standing still", "Operations whose task in OCP has not moved for OBWARDEN_STALL_AFTER.", "short", "nothing stands still", 8, []query{
		{expr: `sum by (instance) (obwarden_operations_stalled{` + ofJob + `})`, legend: "{{instance}}"},
	}})
	b.bars(panel{"Calls with a lost answer", "Calls to OCP whose outcome was not known at first, by what the agent found out later. Adopted: it found the task and follows it. Unknown: a person must look at the server.", "short", "every call was answered", 24, []query{
		{expr: `sum by (resolution) (increase(obwarden_ambiguous_submissions_total{` + ofJob + `}[$__rate_interval]))`, legend: "{{resolution}}"},
	}})

	b.row("Subtasks in OCP")
	b.heat(panel{"Duration of subtasks", "How long the chosen subtasks took.", "s", "no subtask ended", 12, []query{
		{expr: `sum by (le) (increase(obwarden_subtask_duration_seconds_bucket{` + ofSubtask + `}[$__rate_interval]))`, legend: "{{le}}"},
	}})
	b.stacked(panel{"Running now", "Subtasks that OCP runs now, in operations that the agents follow.", "short", "no subtask runs", 12, []query{
		{expr: `sum by (subtask) (obwarden_subtasks_running{` + ofSubtask + `}) > 0`, legend: "{{subtask}}"},
	}})
	b.lines(panel{"Median duration", "Median of the durations of each subtask.", "s", "no subtask ended", 12, []query{
		{expr: quantile(.5, "obwarden_subtask_duration_seconds", ofSubtask, "subtask"), legend: "{{subtask}}"},
	}})
	b.lines(panel{"95th percentile of durations", "95th percentile of the durations of each subtask. An exemplar names its operation.", "s", "no subtask ended", 12, []query{
		{expr: quantile(.95, "obwarden_subtask_duration_seconds", ofSubtask, "subtask"), legend: "{{subtask}}", exemplars: true},
	}})
	week := b.lines(panel{"Mean duration, and a week ago", "Mean duration of subtasks that ended, and the same a week earlier (dashed), to show which subtasks have become slower.", "s", "no subtask ended", 24, []query{
		{expr: mean("", ofSubtask), legend: "{{subtask}}"},
		{expr: mean(" offset 1w", ofSubtask), legend: "{{subtask}}, last week"},
	}})
	week.OverrideByRegexp("/last week$/", []dashboard.DynamicConfigValue{
		{Id: "custom.lineStyle", Value: map[string]any{"fill": "dash", "dash": []int{6, 6}}},
		{Id: "custom.fillOpacity", Value: 0},
	})
	b.bars(panel{"Failures by subtask", "Subtasks that failed in each interval.", "short", "no subtask failed", 12, []query{
		{expr: `sum by (kind, subtask) (increase(obwarden_subtask_failures_total{` + ofSubtask + `}[$__rate_interval])) > 0`, legend: "{{kind}}: {{subtask}}"},
	}})
	b.ranking(panel{"Subtasks with most failures", "Subtasks that failed in the chosen time range.", "short", "no subtask failed", 12, []query{
		{expr: `topk(10, round(sum by (subtask) (increase(obwarden_subtask_failures_total{` + ofSubtask + `}[$__range]))) > 0)`, legend: "{{subtask}}"},
	}}, levels(level{1, "orange"}, level{5, "red"}))
}

// mean is the mean duration of subtasks that ended within the chosen window.
func mean(offset, selector string) string {
	of := func(series string) string {
		return `sum by (subtask) (rate(obwarden_subtask_duration_seconds_` + series + `{` + selector + `}[$window]` + offset + `))`
	}
	return of("sum") + " / " + of("count")
}
