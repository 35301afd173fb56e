package metrics

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

// touched is every collector with one sample.
func touched(t *testing.T) (*Metrics, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	m := New(reg, "v1.2.3", "go1.26", Scraped{})
	reg.MustRegister(m.Holding(func() Held {
		return Held{Operations: map[Group]int{{Kind: "stop", State: "running", Cluster: 1}: 1}, OldestProgress: 90 * time.Second, Paused: []int64{0}}
	}))
	m.Requests.WithLabelValues("stop", "cli", "accepted").Inc()
	m.Operations.WithLabelValues("stop", "succeeded").Inc()
	m.OperationDuration.WithLabelValues("stop", "succeeded").Observe(60)
	m.SubmitLatency.WithLabelValues("stop").Observe(.1)
	m.Wait.WithLabelValues("CLUSTER_BUSY").Observe(5)
	m.SubtaskDuration.WithLabelValues("stop", m.Subtask("Stop observer process"), "successful").Observe(3)
	m.SubtaskFailures.WithLabelValues("stop", m.Subtask("Stop observer process")).Inc()
	m.SubtasksRunning.WithLabelValues("stop", m.Subtask("Stop observer process")).Inc()
	m.GuardDecisions.WithLabelValues("wait", "CLUSTER_BUSY").Inc()
	m.OCPRequestDuration.WithLabelValues("stop_server", "200").Observe(.02)
	m.OCPRetries.WithLabelValues("get_task").Inc()
	m.Ambiguous.WithLabelValues("adopted").Inc()
	m.JournalAppend.Observe(.002)
	m.JournalConflicts.Inc()
	m.ClusterOperations.WithLabelValues(m.Cluster(1), "succeeded").Inc()
	return m, reg
}

// gathered is what a scrape shows of our own.
func gathered(t *testing.T, reg prometheus.Gatherer) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]*dto.MetricFamily{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "obwarden_") {
			ours[f.GetName()] = f
		}
	}
	return ours
}

// want is the public interface: dashboards and rules rest on it.
var want = map[string]struct {
	labels string
	kind   dto.MetricType
}{
	"requests_total":                  {"kind result source", dto.MetricType_COUNTER},
	"operations_in_flight":            {"kind state", dto.MetricType_GAUGE},
	"operations_total":                {"kind outcome", dto.MetricType_COUNTER},
	"operation_duration_seconds":      {"kind outcome", dto.MetricType_HISTOGRAM},
	"submit_latency_seconds":          {"kind", dto.MetricType_HISTOGRAM},
	"wait_seconds":                    {"reason", dto.MetricType_HISTOGRAM},
	"subtask_duration_seconds":        {"kind outcome subtask", dto.MetricType_HISTOGRAM},
	"subtask_failures_total":          {"kind subtask", dto.MetricType_COUNTER},
	"subtasks_running":                {"kind subtask", dto.MetricType_GAUGE},
	"guard_decisions_total":           {"decision reason", dto.MetricType_COUNTER},
	"ocp_request_duration_seconds":    {"code endpoint", dto.MetricType_HISTOGRAM},
	"ocp_retries_total":               {"endpoint", dto.MetricType_COUNTER},
	"ambiguous_submissions_total":     {"resolution", dto.MetricType_COUNTER},
	"journal_append_duration_seconds": {"", dto.MetricType_HISTOGRAM},
	"journal_conflicts_total":         {"", dto.MetricType_COUNTER},
	"oldest_progress_age_seconds":     {"", dto.MetricType_GAUGE},
	"build_info":                      {"goversion version", dto.MetricType_GAUGE},
	"failures_total":                  {"code kind", dto.MetricType_COUNTER},
	"operations_stalled":              {"", dto.MetricType_GAUGE},
	"operations_waiting":              {"reason", dto.MetricType_GAUGE},
	"oldest_wait_age_seconds":         {"", dto.MetricType_GAUGE},
	"cluster_operations_in_flight":    {"cluster state", dto.MetricType_GAUGE},
	"cluster_operations_total":        {"cluster outcome", dto.MetricType_COUNTER},
	"nats_connected":                  {"", dto.MetricType_GAUGE},
	"ready":                           {"", dto.MetricType_GAUGE},
	"journal_errors_total":            {"", dto.MetricType_COUNTER},
	"ocp_up":                          {"", dto.MetricType_GAUGE},
	"paused":                          {"cluster", dto.MetricType_GAUGE},
	"budget_used_ratio":               {"scope", dto.MetricType_GAUGE},
	"policy_reload_failed":            {"", dto.MetricType_GAUGE},
	"policy_reloads_total":            {"result", dto.MetricType_COUNTER},
	"alerts_total":                    {"result rule", dto.MetricType_COUNTER},
	"silences_total":                  {"result", dto.MetricType_COUNTER},
}

func TestEveryCollectorIsRegisteredAsTheDesignSays(t *testing.T) {
	t.Parallel()
	_, reg := touched(t)
	got := gathered(t, reg)
	for name, want := range want {
		f, ok := got["obwarden_"+name]
		if !ok {
			t.Errorf("got no obwarden_%s, want it; there are %s", name, slices.Sorted(maps.Keys(got)))
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		if l := strings.Join(labels, " "); l != want.labels || f.GetType() != want.kind {
			t.Errorf("%s: got %s with labels %q, want %s with %q", name, f.GetType(), l, want.kind, want.labels)
		}
	}
	for name := range got {
		if _, known := want[strings.TrimPrefix(name, "obwarden_")]; !known {
			t.Errorf("got %s, which is not in the design's list", name)
		}
	}
}

func TestHelpNamesTheUnit(t *testing.T) {
	t.Parallel()
	_, reg := touched(t)
	for name, f := range gathered(t, reg) {
		help := f.GetHelp()
		if strings.HasSuffix(name, "_seconds") && !strings.HasPrefix(help, "Seconds ") {
			t.Errorf("%s: got help %q, want it to begin with the unit", name, help)
		}
		if len(help) < 20 || !strings.HasSuffix(help, ".") {
			t.Errorf("%s: got help %q, want a sentence", name, help)
		}
	}
}

func TestNamesPassPromlint(t *testing.T) {
	t.Parallel()
	_, reg := touched(t)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: got %q, want no problem", p.Metric, p.Text)
	}
}

func TestHistogramsAreClassicAndNative(t *testing.T) {
	t.Parallel()
	_, reg := touched(t)
	for name, f := range gathered(t, reg) {
		if f.GetType() != dto.MetricType_HISTOGRAM {
			continue
		}
		h := slices.MaxFunc(f.GetMetric(), func(a, b *dto.Metric) int {
			return cmp.Compare(a.GetHistogram().GetSampleCount(), b.GetHistogram().GetSampleCount())
		}).GetHistogram()
		if len(h.GetBucket()) < 10 {
			t.Errorf("%s: got %d classic buckets, want the list of them", name, len(h.GetBucket()))
		}
		if len(h.GetPositiveSpan()) == 0 || h.GetSchema() < 3 {
			t.Errorf("%s: got spans %v of schema %d, want a native histogram of growth 1.1", name, h.GetPositiveSpan(), h.GetSchema())
		}
		bounds := make([]float64, len(h.GetBucket()))
		for i, b := range h.GetBucket() {
			bounds[i] = b.GetUpperBound()
		}
		if !slices.IsSorted(bounds) || len(slices.Compact(slices.Clone(bounds))) != len(bounds) {
			t.Errorf("%s: got buckets %v, want them in order and once each", name, bounds)
		}
	}
}

func TestValuesThatAreThereFromTheStart(t *testing.T) {
	t.Parallel()
	age := 90 * time.Second
	reg := prometheus.NewRegistry()
	m := New(reg, "v1.2.3", "go1.26", Scraped{})
	reg.MustRegister(m.Holding(func() Held { return Held{OldestProgress: age} }))
	check := func(want string) {
		t.Helper()
		err := testutil.GatherAndCompare(reg, strings.NewReader(want), "obwarden_build_info", "obwarden_oldest_progress_age_seconds", "obwarden_journal_conflicts_total")
		if err != nil {
			t.Error(err)
		}
	}
	const rest = `
# HELP obwarden_build_info Always 1; the labels say what runs.
# TYPE obwarden_build_info gauge
obwarden_build_info{goversion="go1.26",version="v1.2.3"} 1
# HELP obwarden_journal_conflicts_total Appends that were refused because another agent had written the operation.
# TYPE obwarden_journal_conflicts_total counter
obwarden_journal_conflicts_total 0
# HELP obwarden_oldest_progress_age_seconds Seconds since the operation under way that has not moved for longest last did; 0 where none is. Those that wait do not count.
# TYPE obwarden_oldest_progress_age_seconds gauge
obwarden_oldest_progress_age_seconds `
	check(rest + "90\n")
	age = 1500 * time.Millisecond // asked anew at each scrape
	check(rest + "1.5\n")
}

func TestTheRuntimeAndTheProcessAreMeasuredToo(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	New(reg, "v", "go", Scraped{})
	for _, name := range []string{"go_goroutines", "process_cpu_seconds_total"} {
		if n, err := testutil.GatherAndCount(reg, name); err != nil || n != 1 {
			t.Errorf("%s: got %d and error %v, want one", name, n, err)
		}
	}
}

func TestASecondSetOnOneRegistryPanics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	New(reg, "v", "go", Scraped{})
	defer func() {
		if recover() == nil {
			t.Error("got two sets on one registry, want a panic: they would hide each other")
		}
	}()
	New(reg, "v", "go", Scraped{})
}

func TestASubtasksNameBecomesALabel(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, want string }{
		{"Stop observer process", "stop_observer_process"},
		{"stop_observer_process", "stop_observer_process"},
		{"  Stop\tobserver -- process! ", "stop_observer_process"},
		{"Check OB 4.2.1 version", "check_ob_4_2_1_version"},
		{"StopObserver", "stopobserver"},
		{"停止 observer 进程", "停止_observer_进程"},
		{"ÄRGER", "ärger"},
		{"", "unnamed"},
		{" \n\x00-_-", "unnamed"},
		{"\xff\xfe", "unnamed"},
		{"stop\xffserver", "stop_server"},
		{`a"} 1` + "\n" + `obwarden_paused{cluster="`, "a_1_obwarden_paused_cluster"},
		{"rm -rf / ; ../../etc/passwd", "rm_rf_etc_passwd"},
		{"😀 stop", "stop"},
		{strings.Repeat("a", 64), strings.Repeat("a", 64)},
		{strings.Repeat("a", 65), strings.Repeat("a", 64)},
		{strings.Repeat("停", 1000), strings.Repeat("停", 64)},
		{strings.Repeat("x ", 1<<20), strings.Repeat("x_", 32)},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%.40q", tt.name), func(t *testing.T) {
			t.Parallel()
			m := New(prometheus.NewRegistry(), "v", "go", Scraped{})
			got := m.Subtask(tt.name)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if !utf8.ValidString(got) || utf8.RuneCountInString(got) > 64 {
				t.Errorf("got %q, want at most 64 characters of UTF-8", got)
			}
		})
	}
}

func TestPast64NamesASubtaskIsOther(t *testing.T) {
	t.Parallel()
	m := New(prometheus.NewRegistry(), "v", "go", Scraped{})
	for i := range 64 {
		if got, want := m.Subtask(fmt.Sprintf("Subtask %d", i)), fmt.Sprintf("subtask_%d", i); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, name := range []string{"Subtask 64", "", "停止"} {
		if got := m.Subtask(name); got != Other {
			t.Errorf("%q: got %q, want %q", name, got, Other)
		}
	}
	if got := m.Subtask("SUBTASK 0"); got != "subtask_0" {
		t.Errorf("got %q, want the names that came first told apart still", got)
	}
}

func TestTheBoundHoldsUnderConcurrentUse(t *testing.T) {
	t.Parallel()
	m := New(prometheus.NewRegistry(), "v", "go", Scraped{})
	labels := make([]map[string]bool, 8)
	var all sync.WaitGroup
	for i := range labels {
		labels[i] = map[string]bool{}
		all.Go(func() {
			for n := range 200 {
				labels[i][m.Subtask(fmt.Sprintf("Subtask %d", (n+i*25)%200))] = true
			}
		})
	}
	all.Wait()
	distinct := map[string]bool{}
	for _, seen := range labels {
		maps.Copy(distinct, seen)
	}
	if !distinct[Other] || len(distinct) != maxSubtaskNames+1 {
		t.Errorf("got %d labels, want %d and %q", len(distinct), maxSubtaskNames, Other)
	}
}

func TestOnlyKnownKindsBecomeLabels(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]string{
		"stop": "stop", "start": "start", "restart": "restart",
		"": "unknown", "Stop": "unknown", "halt": "unknown", "stop\n": "unknown", strings.Repeat("x", 1<<16): "unknown",
	} {
		if got := Kind(kind); got != want {
			t.Errorf("%.20q: got %q, want %q", kind, got, want)
		}
	}
}
