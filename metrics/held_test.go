package metrics

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/obwarden/obwarden/events"
)

// newMetrics is a set of collectors on a registry of its own.
func newMetrics() *Metrics { return New(prometheus.NewRegistry(), "v", "go", Scraped{}) }

// holder collects what held is at the time of each scrape.
func holder(t testing.TB, m *Metrics, held *Held) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(m.Holding(func() Held { return *held }))
	return reg
}

func wantSeries(t *testing.T, reg prometheus.Gatherer, name, want string) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		if f.GetName() != "obwarden_"+name {
			continue
		}
		for _, s := range f.GetMetric() {
			var labels []string
			for _, l := range s.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			got = append(got, fmt.Sprintf("%s %v", strings.Join(labels, ","), s.GetGauge().GetValue()))
		}
	}
	slices.Sort(got)
	if all := strings.TrimSpace(strings.Join(got, "\n")); all != strings.TrimSpace(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, all, strings.TrimSpace(want))
	}
}

func TestAnAgentThatHoldsNothingShowsZeros(t *testing.T) {
	t.Parallel()
	reg := holder(t, newMetrics(), &Held{})
	for name, want := range map[string]int{
		"operations_in_flight": 3 * 4, "operations_waiting": 16, "operations_stalled": 1, "oldest_progress_age_seconds": 1,
		"oldest_wait_age_seconds": 1, "budget_used_ratio": 2, "cluster_operations_in_flight": 0, "paused": 0,
	} {
		if got, err := testutil.GatherAndCount(reg, "obwarden_"+name); err != nil || got != want {
			t.Errorf("%s: got %d series and error %v, want %d", name, got, err, want)
		}
	}
}

func TestOperationsAreCountedByEachGauge(t *testing.T) {
	t.Parallel()
	held := Held{
		Operations: map[Group]int{
			{Kind: events.Stop, State: events.Accepted, Cluster: 7}:                                         1,
			{Kind: events.Stop, State: events.Waiting, Cluster: 7, Reason: events.CodeClusterBusy}:          2,
			{Kind: events.Start, State: events.Waiting, Cluster: 7, Reason: events.CodeClusterBusy}:         3,
			{Kind: events.Stop, State: events.Waiting, Cluster: 8, Reason: "OF_A_LATER_VERSION"}:            4,
			{Kind: events.Stop, State: events.Running, Cluster: 7, Stalled: true}:                           5,
			{Kind: events.Stop, State: events.Running, Cluster: 7}:                                          6,
			{Kind: "a kind of another version", State: events.Running, Cluster: 8}:                          7,
			{Kind: events.Stop, State: events.Succeeded, Cluster: 9}:                                        8,
			{Kind: events.Stop, State: events.Waiting, Cluster: 10, Reason: events.CodePaused}:              0, // they have all gone on
			{Kind: events.Restart, State: events.Submitting, Cluster: 8, Reason: events.CodeOCPUnreachable}: 9,
		},
		OldestProgress: 90 * time.Second, OldestWait: time.Hour, ClusterBudget: .5, FleetBudget: .25,
		Paused: []int64{events.AllClusters, 7, 7},
	}
	reg := holder(t, newMetrics(), &held)
	wantSeries(t, reg, "operations_in_flight", `
kind=restart,state=accepted 0
kind=restart,state=running 0
kind=restart,state=submitting 9
kind=restart,state=waiting 0
kind=start,state=accepted 0
kind=start,state=running 0
kind=start,state=submitting 0
kind=start,state=waiting 3
kind=stop,state=accepted 1
kind=stop,state=running 11
kind=stop,state=submitting 0
kind=stop,state=waiting 6
kind=unknown,state=running 7`)
	wantSeries(t, reg, "cluster_operations_in_flight", `
cluster=7,state=running 11
cluster=7,state=submitting 0
cluster=7,state=waiting 5
cluster=8,state=running 7
cluster=8,state=submitting 9
cluster=8,state=waiting 4`)
	wantSeries(t, reg, "operations_stalled", " 5")
	wantSeries(t, reg, "oldest_progress_age_seconds", " 90")
	wantSeries(t, reg, "oldest_wait_age_seconds", " 3600")
	wantSeries(t, reg, "budget_used_ratio", "scope=cluster 0.5\nscope=fleet 0.25")
	wantSeries(t, reg, "paused", "cluster=7 1\ncluster=all 1")

	held = Held{}
	wantSeries(t, reg, "cluster_operations_in_flight", `
cluster=7,state=running 0
cluster=7,state=submitting 0
cluster=7,state=waiting 0
cluster=8,state=running 0
cluster=8,state=submitting 0
cluster=8,state=waiting 0`)
	wantSeries(t, reg, "paused", "")
}

func TestReasonsOfOtherVersionsAreOneSeries(t *testing.T) {
	t.Parallel()
	held := Held{Operations: map[Group]int{
		{State: events.Waiting, Reason: "OF_A_LATER_VERSION"}: 1,
		{State: events.Waiting, Reason: "ANOTHER"}:            2,
	}}
	families, err := holder(t, newMetrics(), &held).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "obwarden_operations_waiting" {
			continue
		}
		for _, s := range f.GetMetric() {
			if s.GetLabel()[0].GetValue() == Other && s.GetGauge().GetValue() == 3 {
				return
			}
		}
	}
	t.Errorf("got no series %s with value 3, want one", Other)
}

// Operations of as many clusters as an agent may meet: a scrape takes 5 ms at most.
func BenchmarkScrapeOfHeldOperations(b *testing.B) {
	held := Held{Operations: map[Group]int{}}
	states := openStates()
	for i := range 10_000 {
		g := Group{Kind: events.Kinds()[i%3], State: states[i%len(states)], Cluster: int64(i % 2000)}
		if g.State == events.Waiting {
			g.Reason = codesIn(events.Waiting)[i%16]
		}
		held.Operations[g]++
	}
	handler := promhttp.HandlerFor(holder(b, newMetrics(), &held), promhttp.HandlerOpts{})
	b.ReportAllocs()
	for b.Loop() {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}
	b.ReportMetric(float64(len(held.Operations)), "groups")
}
