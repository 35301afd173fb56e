package grafana

// agent is the dashboard about the agents themselves: what they depend on, and which resources they use.
func agent(b *board) {
	b.about("Agents", "Whether the agents reach NATS and OCP, how fast the journal and OCP answer, and which resources the processes use.")
	b.choice("instance", "Agent", `label_values(obwarden_build_info{job=~"$job"}, instance)`)
	b.window()

	b.row("Now")
	b.health(panel{"Prometheus reaches", "Whether every agent answers Prometheus.", "short", "no agent", 4, []query{
		{expr: `min(up{` + ofAgent + `})`, legend: "up"},
	}}, "all agents", "not all")
	b.health(panel{"NATS", "Whether every agent is connected to NATS.", "short", "no agent", 4, []query{
		{expr: `min(obwarden_nats_connected{` + ofAgent + `})`, legend: "NATS"},
	}}, "connected", "lost")
	b.health(panel{"JetStream", "Whether every agent can use the streams and the journal.", "short", "no agent", 4, []query{
		{expr: `min(obwarden_ready{` + ofAgent + `})`, legend: "ready"},
	}}, "usable", "not usable")
	b.health(panel{"OCP", "Whether every agent calls OCP. An agent stops calling it for a while when it does not answer.", "short", "no agent", 4, []query{
		{expr: `min(obwarden_ocp_up{` + ofAgent + `})`, legend: "OCP"},
	}}, "answers", "not called")
	b.stat(panel{"Versions", "Agents by version. More than one version is fine during an upgrade.", "short", "no agent", 8, []query{
		{expr: `count by (version, goversion) (obwarden_build_info{` + ofAgent + `})`, legend: "{{version}} {{goversion}}"},
	}}, "", levels())

	b.row("Journal")
	b.lines(panel{"Append latency", "How long NATS took to write an event, or a batch of events, to disk.", "s", "no appends", 8, []query{
		{expr: quantile(.5, "obwarden_journal_append_duration_seconds", ofAgent, ""), legend: "p50"},
		{expr: quantile(.99, "obwarden_journal_append_duration_seconds", ofAgent, ""), legend: "p99"},
	}})
	b.lines(panel{"Appends", "Events, or batches of events, that are written per second.", "wps", "no appends", 8, []query{
		{expr: `sum by (instance) (rate(obwarden_journal_append_duration_seconds_count{` + ofAgent + `}[$__rate_interval]))`, legend: "{{instance}}"},
	}})
	b.bars(panel{"Errors and conflicts", "Errors are appends that failed. Conflicts are appends that were refused because another agent had taken over the operation; an agent then lets go of it.", "short", "none", 8, []query{
		{expr: `sum(increase(obwarden_journal_errors_total{` + ofAgent + `}[$__rate_interval]))`, legend: "errors"},
		{expr: `sum(increase(obwarden_journal_conflicts_total{` + ofAgent + `}[$__rate_interval]))`, legend: "conflicts"},
	}})

	b.row("OCP")
	b.lines(panel{"Latency by endpoint", "How long one HTTP exchange with OCP took: 95th percentile.", "s", "OCP was not called", 8, []query{
		{expr: quantile(.95, "obwarden_ocp_request_duration_seconds", ofAgent, "endpoint"), legend: "{{endpoint}}"},
	}})
	b.stacked(panel{"Calls by endpoint", "HTTP exchanges with OCP per second. OBWARDEN_OCP_MAX_RPS is the limit of each agent.", "reqps", "OCP was not called", 8, []query{
		{expr: `sum by (endpoint) (rate(obwarden_ocp_request_duration_seconds_count{` + ofAgent + `}[$__rate_interval]))`, legend: "{{endpoint}}"},
	}})
	b.bars(panel{"Errors and retries", "HTTP exchanges with OCP that ended with an error, by status (error: no answer), and reads that were retried.", "short", "none", 8, []query{
		{expr: `sum by (endpoint, code) (increase(obwarden_ocp_request_duration_seconds_count{` + ofAgent + `,code!~"2.."}[$__rate_interval])) > 0`, legend: "{{endpoint}} {{code}}"},
		{expr: `sum by (endpoint) (increase(obwarden_ocp_retries_total{` + ofAgent + `}[$__rate_interval])) > 0`, legend: "{{endpoint}} retried"},
	}})

	b.row("Resources")
	b.lines(panel{"CPU", "Processors that the process keeps busy.", "short", "no agent", 6, []query{
		{expr: `rate(process_cpu_seconds_total{` + ofAgent + `}[$__rate_interval])`, legend: "{{instance}}"},
	}})
	b.lines(panel{"Memory", "Resident memory of the process, and the part of it that the Go heap uses.", "bytes", "no agent", 6, []query{
		{expr: `process_resident_memory_bytes{` + ofAgent + `}`, legend: "{{instance}} resident"},
		{expr: `go_memstats_heap_inuse_bytes{` + ofAgent + `}`, legend: "{{instance}} heap"},
	}})
	b.lines(panel{"Goroutines", "Goroutines of the process. An operation that waits needs none.", "short", "no agent", 6, []query{
		{expr: `go_goroutines{` + ofAgent + `}`, legend: "{{instance}}"},
	}})
	b.lines(panel{"Open files", "Open files, as a share of the limit of the process. The embedded NATS server opens one for each block of its streams.", "percentunit", "no agent", 6, []query{
		{expr: `process_open_fds{` + ofAgent + `} / process_max_fds{` + ofAgent + `}`, legend: "{{instance}}"},
	}})
}
