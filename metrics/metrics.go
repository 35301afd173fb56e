// Package metrics has every collector of the agent: counters and histograms in one struct,
// made and registered by one constructor, and one collector of the gauges that describe what
// an agent holds at the time of a scrape (held.go).
//
// Of obwarden it imports package events alone, for kinds, states and codes. No label takes an
// unbounded value: there are no ids of operations, tasks or traces, and names of subtasks,
// clusters and codes are bounded. known.go lists the series that exist from the start.
package metrics

import (
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/obwarden/obwarden/events"
)

const namespace = "obwarden"

const (
	// maxSubtaskNames is how many distinct names of subtasks become label values. The stop,
	// start and restart of all known versions of OCP have fewer than half as many.
	maxSubtaskNames = 64
	// maxClusters is how many clusters become label values: the first ones that the agent meets.
	maxClusters = 200
)

// Other is the label of every subtask, cluster and code beyond the bound.
const Other = "other"

// Metrics are the collectors of the agent. Their methods may be called concurrently.
type Metrics struct {
	Requests           *prometheus.CounterVec   // kind, source, result
	Operations         *prometheus.CounterVec   // kind, outcome
	OperationDuration  *prometheus.HistogramVec // kind, outcome
	SubmitLatency      *prometheus.HistogramVec // kind
	Wait               *prometheus.HistogramVec // reason
	SubtaskDuration    *prometheus.HistogramVec // kind, subtask, outcome
	SubtaskFailures    *prometheus.CounterVec   // kind, subtask
	SubtasksRunning    *prometheus.GaugeVec     // kind, subtask
	GuardDecisions     *prometheus.CounterVec   // decision, reason
	OCPRequestDuration *prometheus.HistogramVec // endpoint, code
	OCPRetries         *prometheus.CounterVec   // endpoint
	Ambiguous          *prometheus.CounterVec   // resolution
	JournalAppend      prometheus.Histogram
	JournalConflicts   prometheus.Counter
	BuildInfo          *prometheus.GaugeVec // version, goversion

	Failures          *prometheus.CounterVec // kind, code
	ClusterOperations *prometheus.CounterVec // cluster, outcome
	NATSConnected     prometheus.GaugeFunc
	Ready             prometheus.Gauge
	JournalErrors     prometheus.Counter
	OCPUp             prometheus.Gauge

	// Policy, people and alerts.
	PolicyReloadFailed prometheus.Gauge
	PolicyReloads      *prometheus.CounterVec // result
	Alerts             *prometheus.CounterVec // rule, result
	Silences           *prometheus.CounterVec // result

	subtasks, clusters names
}

// Scraped has functions that are called in each scrape. They may be called concurrently, and
// must wait for nothing but a lock that is held briefly. The value of a nil function is 0.
type Scraped struct {
	NATSConnected func() bool
}

// minutes are the buckets of the time that OCP takes for its work: a second to four hours.
func minutes() []float64 {
	return []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400}
}

// millis are the buckets of the time that one exchange over the network takes: 0.5 ms to 30 s.
func millis() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
}

// New makes all collectors and registers them with reg, and also those of the Go runtime and
// of the process. Series whose labels are known start at 0.
func New(reg prometheus.Registerer, version, goVersion string, scraped Scraped) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	single := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
	}
	asked := func(name, help string, value func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, value)
	}
	options := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{
			Namespace: namespace, Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(options(name, help, buckets), labels)
	}
	m := &Metrics{
		Requests: counter("requests_total",
			"Requests taken from the request stream, by what became of them: accepted, duplicate or rejected.",
			"kind", "source", "result"),
		Operations: counter("operations_total",
			"Operations that ended, by final state.", "kind", "outcome"),
		OperationDuration: histogram("operation_duration_seconds",
			"Seconds from the request's arrival in the stream to the end of its operation.", minutes(), "kind", "outcome"),
		SubmitLatency: histogram("submit_latency_seconds",
			"Seconds from the request's arrival in the stream to OCP's answer that it was accepted, waiting "+
				"included.", append(millis(), minutes()[6:]...), "kind"),
		Wait: histogram("wait_seconds",
			"Seconds that an operation waited for one reason before it went on or the reason changed.", minutes(), "reason"),
		SubtaskDuration: histogram("subtask_duration_seconds",
			"Seconds that a subtask of OCP ran, by OCP's own timestamps where it tells them, else as observed.",
			minutes(), "kind", "subtask", "outcome"),
		SubtaskFailures: counter("subtask_failures_total", "Subtasks that failed in OCP.", "kind", "subtask"),
		SubtasksRunning: gauge("subtasks_running",
			"Subtasks that run in OCP now, in operations that this agent holds.", "kind", "subtask"),
		GuardDecisions: counter("guard_decisions_total",
			"Decisions of the guard: allow, wait, reject, done (nothing to do) or supersede, with the reason's code "+
				"(none for allow). Looking again counts again.", "decision", "reason"),
		OCPRequestDuration: histogram("ocp_request_duration_seconds",
			"Seconds that one HTTP exchange with OCP took, by endpoint and HTTP status (error where there was none).",
			millis(), "endpoint", "code"),
		OCPRetries: counter("ocp_retries_total", "Reads from OCP that were tried again.", "endpoint"),
		Ambiguous: counter("ambiguous_submissions_total",
			"Calls to OCP whose outcome was not known at first, by what was found out: adopted, done, not_arrived or "+
				"unknown.", "resolution"),
		JournalAppend: prometheus.NewHistogram(options("journal_append_duration_seconds",
			"Seconds that an append to the journal took until it was on disk; a batch counts once.", millis())),
		JournalConflicts: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "journal_conflicts_total",
			Help: "Appends that were refused because another agent had written the operation."}),
		BuildInfo: gauge("build_info", "Always 1; the labels say what runs.", "version", "goversion"),

		Failures: counter("failures_total",
			"Operations that failed, by the code of their error.", "kind", "code"),
		ClusterOperations: counter("cluster_operations_total",
			"Operations that OCP was called for and that ended, by cluster and final state; the first 200 clusters "+
				"are told apart.", "cluster", "outcome"),
		NATSConnected: asked("nats_connected", "1 while the agent is connected to NATS, else 0.", func() float64 {
			if scraped.NATSConnected != nil && scraped.NATSConnected() {
				return 1
			}
			return 0
		}),
		Ready: single("ready",
			"1 while requests can be taken: NATS, its streams and the journal are usable. Looked at every 10 "+
				"seconds."),
		JournalErrors: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "journal_errors_total",
			Help: "Tries to append to the journal that failed, conflicts apart; they are repeated until one succeeds."}),
		OCPUp: single("ocp_up",
			"1 while OCP is called, 0 while it is left alone because it does not answer."),
		PolicyReloadFailed: single("policy_reload_failed",
			"1 while the policy file is faulty and an older policy holds, else 0."),
		PolicyReloads: counter("policy_reloads_total",
			"Times that a changed policy file was read, by result: loaded or refused.", "result"),
		Alerts: counter("alerts_total",
			"Alerts that came in, by the rule that matched (none where none did) and what became of them.", "rule", "result"),
		Silences: counter("silences_total",
			"Calls to Alertmanager about silences, by result: created, extended, ended or failed.", "result"),
	}
	reg.MustRegister(
		m.Requests, m.Operations, m.OperationDuration, m.SubmitLatency, m.Wait,
		m.SubtaskDuration, m.SubtaskFailures, m.SubtasksRunning, m.GuardDecisions, m.OCPRequestDuration, m.OCPRetries,
		m.Ambiguous, m.JournalAppend, m.JournalConflicts, m.BuildInfo,
		m.Failures, m.ClusterOperations,
		m.NATSConnected, m.Ready, m.JournalErrors, m.OCPUp,
		m.PolicyReloadFailed, m.PolicyReloads, m.Alerts, m.Silences,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.BuildInfo.WithLabelValues(version, goVersion).Set(1)
	m.OCPUp.Set(1) // until a call fails
	m.startAtZero()
	return m
}

// Observe adds a duration to a histogram of operations. The exemplar names the operation, so
// that a slow bucket leads to an operation that was slow.
func Observe(h prometheus.Observer, d time.Duration, operationID string) {
	if e, ok := h.(prometheus.ExemplarObserver); ok && operationID != "" {
		e.ObserveWithExemplar(d.Seconds(), prometheus.Labels{"operation_id": operationID})
		return
	}
	h.Observe(d.Seconds())
}

// PolicyReloaded counts that a changed policy file was read. A nil error means that the new
// policy is in force.
func (m *Metrics) PolicyReloaded(err error) {
	result, failed := "loaded", 0.0
	if err != nil {
		result, failed = "refused", 1
	}
	m.PolicyReloads.WithLabelValues(result).Inc()
	m.PolicyReloadFailed.Set(failed)
}

// Kind is the label for a kind of operation. Only known kinds become label values, because a
// request can name any.
func Kind(kind string) string {
	if events.Kind(kind).Known() {
		return kind
	}
	return "unknown"
}

// Subtask is the label for a subtask's name: "Stop observer process" becomes
// stop_observer_process. The first 64 distinct names are told apart.
func (m *Metrics) Subtask(name string) string {
	return m.subtasks.bounded(normalise(name), maxSubtaskNames)
}

// Cluster is the label for a cluster. The first 200 clusters are told apart, for as long as the
// process runs.
func (m *Metrics) Cluster(id int64) string {
	return m.clusters.bounded(strconv.FormatInt(id, 10), maxClusters)
}

// names are the label values that are told apart.
type names struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

func (n *names) bounded(name string, limit int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.seen[name]; ok {
		return name
	}
	if len(n.seen) >= limit {
		return Other
	}
	if n.seen == nil {
		n.seen = map[string]struct{}{}
	}
	n.seen[name] = struct{}{}
	return name
}

// normalise keeps letters and digits, in lower case, and joins the words with _. It cuts the
// result at 64 characters, because names come from OCP.
func normalise(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	joined := []rune(strings.Join(words, "_"))
	if len(joined) == 0 {
		return "unnamed"
	}
	return string(joined[:min(len(joined), 64)])
}
