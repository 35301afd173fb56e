package agent

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// measured is an agent that can do nothing but measure.
func measured() (*Agent, *prometheus.Registry) {
	reg := prometheus.NewRegistry()
	a := New(Config{Metrics: metrics.New(reg, "test", "go", metrics.Scraped{}), Log: slog.New(slog.DiscardHandler), Policy: policy.NewLive(laxPolicy())})
	reg.MustRegister(a.Collector())
	return a, reg
}

// live measures the life of an operation that waited, ran and failed.
func (a *Agent) live(kind events.Kind, cluster, server int64, subtask, code string) {
	at := time.Now()
	op := events.Operation{
		OperationID: events.OperationID(fmt.Sprint(cluster, server)), Kind: kind, ClusterID: cluster, ServerID: server,
		RequestedAt: at, UpdatedAt: at, State: events.Waiting, Reason: &events.Reason{Code: code},
	}
	h := &held{}
	step := func(token events.State, change func(*events.Operation)) {
		before := op
		op.State, op.UpdatedAt = token, op.UpdatedAt.Add(time.Second)
		change(&op)
		a.observe(before, []events.Event{{Operation: op, Token: token}})
		h.hand.entry = &journal.Entry{Operation: op}
		a.publishEntry(h)
	}
	step(events.Waiting, func(*events.Operation) {})
	step(events.Running, func(op *events.Operation) {
		op.Reason, op.Attempt = nil, 1
		op.Task = &events.Task{StalledAt: at, Subtasks: []events.Subtask{{ID: 1, Name: subtask, Status: ocp.StatusRunning}}}
	})
	step(events.Failed, func(op *events.Operation) {
		op.Error, op.EndedAt = &events.Error{Code: code}, op.UpdatedAt
		op.Task = &events.Task{Subtasks: []events.Subtask{{ID: 1, Name: subtask, Status: ocp.StatusFailed, StartedAt: at, FinishedAt: op.UpdatedAt, DurationSeconds: 1}}}
		op.Changes = []events.Change{{SubtaskID: 1, Name: subtask, To: ocp.StatusFailed}}
	})
}

func TestSeriesAreBoundedWhateverComes(t *testing.T) {
	t.Parallel()
	a, reg := measured()
	before := seriesOf(t, reg)
	for server := range int64(10_000) {
		kind := []events.Kind{events.Stop, events.Start, events.Restart, "kind of another version"}[server%4]
		a.live(kind, server/5, server, fmt.Sprintf("subtask\n%d\"} 1 %s", server, strings.Repeat("x", int(server%100))), fmt.Sprintf("CODE_%d", server))
	}
	all := seriesOf(t, reg)
	// Each kind has at most 65 subtasks: a histogram of 18 series for their failures,
	// a counter and a gauge. 201 clusters have four states and outcomes between them.
	const subtasks, clusters, rest = 4 * 65 * (18 + 2), 201 * 4, 500
	if all > before+subtasks+clusters+rest {
		t.Errorf("got %d series after 10,000 servers, %d before any; want at most %d more", all, before, subtasks+clusters+rest)
	}
	for server := range int64(10_000) {
		a.live(events.Stop, 1e6+server, server, fmt.Sprintf("another %d", server), fmt.Sprintf("OTHER_%d", server))
	}
	if again := seriesOf(t, reg); again != all {
		t.Errorf("got %d series after 10,000 more, want the %d that there were", again, all)
	}
}

// seriesOf counts what a scraper would store.
func seriesOf(t testing.TB, reg *prometheus.Registry) int {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	n := 0
	for line := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			n++
		}
	}
	return n
}

// gauge is the sum of a gauge's series with all of the label values, as a scrape shows them.
func gauge(t *testing.T, reg *prometheus.Registry, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if !slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(values, l) }) {
				sum += m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestGaugesFollowAnOperationAndLeaveNothing(t *testing.T) {
	t.Parallel()
	a, reg := measured()
	h := &held{}
	check := func(when string, waiting, stalled, inCluster, subtasks float64) {
		t.Helper()
		for name, g := range map[string]struct{ got, want float64 }{
			"waiting":    {gauge(t, reg, "obwarden_operations_waiting", events.CodeClusterBusy), waiting},
			"stalled":    {gauge(t, reg, "obwarden_operations_stalled"), stalled},
			"in cluster": {gauge(t, reg, "obwarden_cluster_operations_in_flight", "7"), inCluster},
			"subtasks":   {gauge(t, reg, "obwarden_subtasks_running", "stop_server"), subtasks},
		} {
			if g.got != g.want {
				t.Errorf("%s: %s is %v, want %v", when, name, g.got, g.want)
			}
		}
	}
	op := events.Operation{Kind: events.Stop, ClusterID: 7, State: events.Accepted}
	runs := []events.Subtask{{ID: 1, Name: "Stop server", Status: ocp.StatusRunning}}
	move := func(state events.State, change func()) {
		op.State = state
		change()
		h.hand.entry = &journal.Entry{Operation: op}
		a.publishEntry(h)
	}
	move(events.Accepted, func() {})
	check("accepted", 0, 0, 0, 0)
	move(events.Waiting, func() { op.Reason = &events.Reason{Code: events.CodeClusterBusy} })
	check("waiting", 1, 0, 1, 0)
	move(events.Running, func() { op.Reason, op.Task = nil, &events.Task{StalledAt: time.Now(), Subtasks: runs} })
	check("stalled", 0, 1, 1, 1)
	move(events.Running, func() { op.Task = &events.Task{Subtasks: runs} })
	check("moving again", 0, 0, 1, 1)
	a.release(h)
	check("let go", 0, 0, 0, 0)
	move(events.Running, func() {})
	check("taken up", 0, 0, 1, 1)
	move(events.Failed, func() { op.Error = &events.Error{Code: events.CodeSubtaskFailed} })
	check("ended", 0, 0, 0, 0)
}

func TestAgesTellWaitingFromStandingStill(t *testing.T) {
	t.Parallel()
	a, _ := measured()
	now := time.Now()
	ages := func(when string, progress, wait time.Duration) {
		t.Helper()
		if gotProgress, gotWait := a.roster.oldest(now); gotProgress != progress || gotWait != wait {
			t.Errorf("%s: oldest progress %s, oldest wait %s; want %s and %s", when, gotProgress, gotWait, progress, wait)
		}
	}
	ages("nothing in hand", 0, 0)
	in := func(s summary) *held {
		h := &held{}
		a.publish(h, s)
		return h
	}
	in(summary{state: events.Waiting, arrived: now.Add(-2 * time.Hour), progressed: now.Add(-2 * time.Hour)})
	first := in(summary{state: events.Waiting, arrived: now.Add(-3 * time.Hour), progressed: now.Add(-2 * time.Hour)})
	in(summary{state: events.Running, arrived: now.Add(-9 * time.Hour), progressed: now.Add(-time.Hour)})
	in(summary{state: events.Failed, arrived: now.Add(-9 * time.Hour), progressed: now.Add(-9 * time.Hour)})
	ages("two wait and one runs", time.Hour, 3*time.Hour)
	a.publish(first, summary{state: events.Running, arrived: now.Add(-3 * time.Hour), progressed: now})
	ages("the first has gone on", time.Hour, 2*time.Hour)
	a.publish(first, summary{})
	ages("the first is let go", time.Hour, 2*time.Hour)
}

// A scrape of an agent that has seen as much as it can tell apart: at most 5 ms.
func BenchmarkScrape(b *testing.B) {
	a, reg := measured()
	for server := range int64(10_000) {
		kind := []events.Kind{events.Stop, events.Start, events.Restart}[server%3]
		a.live(kind, server/5, server, fmt.Sprintf("Subtask %d", server%20), events.CodeClusterBusy)
	}
	handler := promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: true, EnableOpenMetricsTextCreatedSamples: true})
	b.ReportAllocs()
	for b.Loop() {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
	b.ReportMetric(float64(seriesOf(b, reg)), "series")
}
