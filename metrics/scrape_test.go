package metrics

import (
	"bytes"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestPromtoolHasNothingToSay(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool here: apt-get install prometheus")
	}
	_, reg := touched(t)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = w.Body
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) != 0 {
		t.Errorf("got %v and\n%s\nwant silence", err, out)
	}
}

// An alert on increase does not see the event that makes a series appear.
func TestKnownSeriesAreThereBeforeTheirFirstEvent(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := New(reg, "v", "go", Scraped{})
	for name, known := range map[string]struct {
		of   prometheus.Collector
		want int
	}{
		"requests_total":              {m.Requests, 3 * 5 * 3}, // kinds, sources, results
		"operations_total":            {m.Operations, 3 * 5},
		"failures_total":              {m.Failures, 3 * 7},
		"guard_decisions_total":       {m.GuardDecisions, 1 + 16 + 5 + 2},
		"ambiguous_submissions_total": {m.Ambiguous, 4},
		"policy_reloads_total":        {m.PolicyReloads, 2},
		"silences_total":              {m.Silences, 4},
		"alerts_total":                {m.Alerts, 1},
	} {
		if got := testutil.CollectAndCount(known.of); got != known.want {
			t.Errorf("%s: got %d series before anything happened, want %d", name, got, known.want)
		}
	}
	for _, f := range gathered(t, reg) {
		for _, s := range f.GetMetric() {
			if v := s.GetCounter().GetValue(); v != 0 {
				t.Errorf("%s: got %v before anything happened, want 0", f.GetName(), v)
			}
		}
	}
}

func TestAnExemplarNamesTheOperation(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := New(reg, "v", "go", Scraped{})
	const id = "abcdefghijklmnopqrstuvwxyz"
	Observe(m.OperationDuration.WithLabelValues("stop", "succeeded"), 90*time.Second, id)
	Observe(m.SubmitLatency.WithLabelValues("stop"), time.Second, "")
	for name, want := range map[string]string{"obwarden_operation_duration_seconds": id, "obwarden_submit_latency_seconds": ""} {
		got := ""
		for _, s := range gathered(t, reg)[name].GetMetric() {
			for _, b := range s.GetHistogram().GetBucket() {
				if e := b.GetExemplar(); e != nil {
					got += e.GetLabel()[0].GetValue()
				}
			}
		}
		if got != want {
			t.Errorf("%s: got exemplar %q, want %q", name, got, want)
		}
	}
}

func TestOnlyKnownCodesBecomeLabels(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]string{
		"": "", "CLUSTER_BUSY": "CLUSTER_BUSY", "OUTCOME_UNKNOWN": "OUTCOME_UNKNOWN", "DENIED": "DENIED",
		"cluster_busy": Other, "OF_A_LATER_VERSION": Other, strings.Repeat("X", 1<<16): Other,
	} {
		if got := Code(code); got != want {
			t.Errorf("%.20q: got %q, want %q", code, got, want)
		}
	}
}

func TestPast200ClustersTheyAreOther(t *testing.T) {
	t.Parallel()
	m := New(prometheus.NewRegistry(), "v", "go", Scraped{})
	distinct := map[string]bool{}
	for id := range int64(1000) {
		distinct[m.Cluster(id)] = true
	}
	if len(distinct) != maxClusters+1 || !distinct[Other] || m.Cluster(0) != "0" {
		t.Errorf("got %d labels, want %d, %q among them, and the first still told apart", len(distinct), maxClusters+1, Other)
	}
}

// blocked is a client that takes the first byte and then nothing.
type blocked struct {
	*httptest.ResponseRecorder
	reached, release chan struct{}
}

func (b *blocked) Write(p []byte) (int, error) {
	select {
	case b.reached <- struct{}{}:
	default:
	}
	<-b.release
	return len(p), nil
}

// A client that reads slowly must hold up neither the agent nor other scrapes.
func TestAScrapeHoldsNoLockWhileItWrites(t *testing.T) {
	t.Parallel()
	m, reg := touched(t)
	handler := promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: true})
	slow := &blocked{httptest.NewRecorder(), make(chan struct{}, 1), make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		handler.ServeHTTP(slow, httptest.NewRequest("GET", "/metrics", nil))
	}()
	<-slow.reached
	free := make(chan struct{})
	go func() {
		defer close(free)
		m.Operations.WithLabelValues("stop", "never seen before").Inc() // takes the lock for writing
		m.OperationDuration.WithLabelValues("stop", "never seen before").Observe(1)
		m.Subtask("never seen before")
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}()
	select {
	case <-free:
	case <-time.After(30 * time.Second):
		t.Error("measuring waits for a client that does not read")
	}
	close(slow.release)
	<-ended
}
