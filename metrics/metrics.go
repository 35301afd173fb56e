// Package metrics is every collector of the agent: one struct, made by one
// constructor, registered once.
//
// It imports nothing of ours. No label takes an unbounded value: no ids of
// operations, tasks or traces; names of subtasks are normalised and bounded.
package metrics

import (
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

const namespace = "obwarden"

// maxSubtaskNames is how many distinct subtask names become label values; the
// stop, start and restart of all known versions have fewer than half as many.
const maxSubtaskNames = 64

// OtherSubtask is the label of every subtask name past the bound.
const OtherSubtask = "other"

// Metrics are the agent's collectors. All methods of them may be called concurrently.
type Metrics struct {
	Requests           *prometheus.CounterVec   // kind, source, result
	OperationsInFlight *prometheus.GaugeVec     // kind, state
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
	OldestProgressAge  prometheus.GaugeFunc
	BuildInfo          *prometheus.GaugeVec   // version, goversion
	Alerts             *prometheus.CounterVec // rule, result
	Silences           *prometheus.CounterVec // result

	subtasks names
}

// minutes are the buckets of what OCP takes for its work: a second to four hours.
func minutes() []float64 {
	return []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400}
}

// millis are the buckets of one exchange over the network: 0.5 ms to 30 s.
func millis() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
}

// New makes all collectors and registers them, beside those of the Go runtime and
// of the process, with reg. oldestProgress is asked at each scrape for the time
// since the operation that has not moved for longest last did; 0 where none is open.
func New(reg prometheus.Registerer, version, goVersion string, oldestProgress func() time.Duration) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
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
		Requests:           counter("requests_total", "Requests taken from the request stream, by what became of them: accepted, duplicate or rejected.", "kind", "source", "result"),
		OperationsInFlight: gauge("operations_in_flight", "Operations that this agent holds now, by state.", "kind", "state"),
		Operations:         counter("operations_total", "Operations that ended, by final state.", "kind", "outcome"),
		OperationDuration:  histogram("operation_duration_seconds", "Seconds from the request's arrival in the stream to the end of its operation.", minutes(), "kind", "outcome"),
		SubmitLatency:      histogram("submit_latency_seconds", "Seconds from the request's arrival in the stream to OCP's answer that it was accepted, waiting included.", append(millis(), minutes()[6:]...), "kind"),
		Wait:               histogram("wait_seconds", "Seconds that an operation waited for one reason before it went on or the reason changed.", minutes(), "reason"),
		SubtaskDuration:    histogram("subtask_duration_seconds", "Seconds that a subtask of OCP ran, by OCP's own timestamps where it tells them, else as observed.", minutes(), "kind", "subtask", "outcome"),
		SubtaskFailures:    counter("subtask_failures_total", "Subtasks that failed in OCP.", "kind", "subtask"),
		SubtasksRunning:    gauge("subtasks_running", "Subtasks that run in OCP now, in operations that this agent holds.", "kind", "subtask"),
		GuardDecisions:     counter("guard_decisions_total", "Decisions of the guard: allow, wait or reject, with the reason's code (none for allow). Looking again counts again.", "decision", "reason"),
		OCPRequestDuration: histogram("ocp_request_duration_seconds", "Seconds that one HTTP exchange with OCP took, by endpoint and HTTP status (error where there was none).", millis(), "endpoint", "code"),
		OCPRetries:         counter("ocp_retries_total", "Reads from OCP that were tried again.", "endpoint"),
		Ambiguous:          counter("ambiguous_submissions_total", "Calls to OCP whose outcome was not known at first, by what was found out: adopted, done, not_arrived or unknown.", "resolution"),
		JournalAppend: prometheus.NewHistogram(options("journal_append_duration_seconds",
			"Seconds that an append to the journal took until it was on disk; a batch counts once.", millis())),
		JournalConflicts: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "journal_conflicts_total",
			Help: "Appends that were refused because another agent had written the operation."}),
		OldestProgressAge: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Name: "oldest_progress_age_seconds",
			Help: "Seconds since the operation that has not moved for longest last did; 0 where none is open."},
			func() float64 { return oldestProgress().Seconds() }),
		BuildInfo: gauge("build_info", "Always 1; the labels say what runs.", "version", "goversion"),
		Alerts:    counter("alerts_total", "Alerts that came in, by the rule that matched (none where none did) and what became of them.", "rule", "result"),
		Silences:  counter("silences_total", "Calls to Alertmanager about silences, by result: created, extended, ended or failed.", "result"),
	}
	reg.MustRegister(
		m.Requests, m.OperationsInFlight, m.Operations, m.OperationDuration, m.SubmitLatency, m.Wait,
		m.SubtaskDuration, m.SubtaskFailures, m.SubtasksRunning, m.GuardDecisions, m.OCPRequestDuration, m.OCPRetries,
		m.Ambiguous, m.JournalAppend, m.JournalConflicts, m.OldestProgressAge, m.BuildInfo,
		m.Alerts, m.Silences,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.BuildInfo.WithLabelValues(version, goVersion).Set(1)
	return m
}

// Kind is the label for a kind of operation. Only the known ones become label
// values: a request can name any.
func Kind(kind string) string {
	switch kind {
	case "stop", "start", "restart":
		return kind
	}
	return "unknown"
}

// Subtask is the label for a subtask's name: "Stop observer process" becomes
// stop_observer_process. The first 64 distinct names are told apart.
func (m *Metrics) Subtask(name string) string { return m.subtasks.bounded(normalise(name)) }

type names struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

func (n *names) bounded(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.seen[name]; ok {
		return name
	}
	if len(n.seen) >= maxSubtaskNames {
		return OtherSubtask
	}
	if n.seen == nil {
		n.seen = map[string]struct{}{}
	}
	n.seen[name] = struct{}{}
	return name
}

// normalise keeps letters and digits, in lower case, and joins the words with _.
// It cuts at 64 characters: names come from OCP.
func normalise(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	joined := []rune(strings.Join(words, "_"))
	if len(joined) == 0 {
		return "unnamed"
	}
	return string(joined[:min(len(joined), 64)])
}
