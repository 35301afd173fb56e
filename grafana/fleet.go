package grafana

// fleet is the dashboard to look at first: which operations run, wait or have failed, and in which clusters.
func fleet(b *board) {
	b.about("Fleet", "What all agents do: operations that run, wait or have failed, by cluster; how many succeed, and how long they take.")
	b.choice("cluster", "Cluster", `label_values(obwarden_cluster_operations_in_flight{job=~"$job"}, cluster)`)
	b.kinds()
	b.window()
	const ofCluster = `job=~"$job",cluster=~"$cluster"`

	b.row("Now")
	b.stat(panel{"Under way", "Operations that are being submitted to OCP or carried out by it.", "short", "0", 4, []query{
		{expr: `sum(obwarden_operations_in_flight{` + ofKind + `,state!="waiting"})`, legend: "under way"},
	}}, "obwarden-operation", levels())
	b.stat(panel{"Waiting", "Operations that may not be submitted to OCP yet. The guard's dashboard shows the reasons.", "short", "0", 4, []query{
		{expr: `sum(obwarden_operations_in_flight{` + ofKind + `,state="waiting"})`, legend: "waiting"},
	}}, "obwarden-guard", levels(level{10, "yellow"}, level{50, "red"}))
	b.stat(panel{"Standing still", "Operations whose task in OCP has made no progress for OBWARDEN_STALL_AFTER.", "short", "0", 4, []query{
		{expr: `sum(obwarden_operations_stalled{` + ofJob + `})`, legend: "stalled"},
	}}, "obwarden-operation", levels(level{1, "red"}))
	b.stat(panel{"Failed in 24 hours", "Operations that ended as failed in the last 24 hours.", "short", "0", 4, []query{
		{expr: `round(sum(increase(obwarden_operations_total{` + ofKind + `,outcome="failed"}[24h])))`, legend: "failed"},
	}}, "obwarden-operation", levels(level{1, "orange"}, level{5, "red"}))
	b.stat(panel{"Success in 30 days", "Share of operations that succeeded, among those for which OCP was called. The objective is 99 %.", "percentunit", "no operation ended", 4, []query{
		{expr: `min(job:obwarden_operations:success_ratio30d{` + ofJob + `})`, legend: "success"},
	}}, "obwarden-operation", steps("red", level{.95, "orange"}, level{.99, "green"})).Max(1)
	b.stat(panel{"Agents", "Agents that are ready to take requests.", "short", "none", 4, []query{
		{expr: `sum(obwarden_ready{` + ofJob + `})`, legend: "ready"},
	}}, "obwarden-agent", steps("red", level{1, "green"}))

	b.row("Operations")
	colored(b.stacked(panel{"In flight by state", "Operations that have not ended, by state.", "short", "nothing in flight", 12, []query{
		{expr: `sum by (state) (obwarden_operations_in_flight{` + ofKind + `})`, legend: "{{state}}"},
	}}), stateColors())
	colored(b.bars(panel{"Ended by outcome", "Operations that ended in each interval.", "short", "nothing ended", 12, []query{
		{expr: `sum by (outcome) (increase(obwarden_operations_total{` + ofKind + `}[$__rate_interval]))`, legend: "{{outcome}}"},
	}}), outcomeColors())
	b.bars(panel{"Requests", "Requests that came in each interval, by source and result.", "short", "no requests", 12, []query{
		{expr: `sum by (source, result) (increase(obwarden_requests_total{` + ofKind + `}[$__rate_interval])) > 0`, legend: "{{source}} {{result}}"},
	}})
	b.lines(panel{"From request to end", "How long operations took, waiting included: median and 95th percentile.", "s", "nothing ended", 12, []query{
		{expr: quantile(.5, "obwarden_operation_duration_seconds", ofKind+`,outcome=~"succeeded|failed"`, "kind"), legend: "{{kind}} p50"},
		{expr: quantile(.95, "obwarden_operation_duration_seconds", ofKind+`,outcome=~"succeeded|failed"`, "kind"), legend: "{{kind}} p95", exemplars: true},
	}})

	b.row("Clusters")
	b.stacked(panel{"In flight by cluster", "Operations that wait or are under way, by cluster. Only the first 200 clusters are shown separately.", "short", "nothing in flight", 12, []query{
		{expr: `sum by (cluster, state) (obwarden_cluster_operations_in_flight{` + ofCluster + `}) > 0`, legend: "{{cluster}} {{state}}"},
	}})
	b.ranking(panel{"Clusters with most operations", "Operations that ended in the chosen time range, among those for which OCP was called.", "short", "nothing ended", 6, []query{
		{expr: `topk(10, round(sum by (cluster) (increase(obwarden_cluster_operations_total{` + ofCluster + `}[$__range]))) > 0)`, legend: "cluster {{cluster}}"},
	}}, levels())
	b.ranking(panel{"Clusters with most failures", "Operations that failed in the chosen time range after OCP was called.", "short", "nothing failed", 6, []query{
		{expr: `topk(10, round(sum by (cluster) (increase(obwarden_cluster_operations_total{` + ofCluster + `,outcome="failed"}[$__range]))) > 0)`, legend: "cluster {{cluster}}"},
	}}, levels(level{1, "orange"}, level{5, "red"}))

	b.row("Objectives")
	b.lines(panel{"Burn rate of failures", "How fast failures use up the error budget of 1 %: at 1 the budget lasts for 30 days. 14.4 over an hour pages somebody.", "suffix:×", "nothing ended", 12, []query{
		{expr: `max(job:obwarden_operations:failure_burn5m{` + ofJob + `})`, legend: "5 minutes"},
		{expr: `max(job:obwarden_operations:failure_burn1h{` + ofJob + `})`, legend: "1 hour"},
		{expr: `max(job:obwarden_operations:failure_burn6h{` + ofJob + `})`, legend: "6 hours"},
	}})
	b.lines(panel{"Burn rate of slow operations", "How fast operations that take longer than 20 minutes from request to end use up their budget of 5 %.", "suffix:×", "nothing ended", 12, []query{
		{expr: `max(job:obwarden_operations:slow_burn1h{` + ofJob + `})`, legend: "1 hour"},
		{expr: `max(job:obwarden_operations:slow_burn6h{` + ofJob + `})`, legend: "6 hours"},
	}})
}
