package metrics_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// scrape prints the samples of some metrics.
func scrape(registry prometheus.Gatherer, names ...string) {
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		for _, name := range names {
			if strings.HasPrefix(line, name) {
				fmt.Print(line)
			}
		}
	}
}

// Counters whose labels are known stand at zero before anything has happened.
func ExampleNew() {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, "v1.2.3", "go1.26", metrics.Scraped{})
	m.Operations.WithLabelValues(string(events.Stop), string(events.Succeeded)).Inc()
	m.Failures.WithLabelValues(metrics.Kind("stop"), metrics.Code("OF_A_LATER_VERSION")).Inc()
	scrape(registry, `obwarden_operations_total{kind="stop"`, `obwarden_failures_total{code="other",kind="stop"`)
	// Output:
	// obwarden_failures_total{code="other",kind="stop"} 1
	// obwarden_operations_total{kind="stop",outcome="cancelled"} 0
	// obwarden_operations_total{kind="stop",outcome="expired"} 0
	// obwarden_operations_total{kind="stop",outcome="failed"} 0
	// obwarden_operations_total{kind="stop",outcome="rejected"} 0
	// obwarden_operations_total{kind="stop",outcome="succeeded"} 1
}

// The collector asks for what the agent holds in each scrape.
func ExampleMetrics_Holding() {
	m := metrics.New(prometheus.NewRegistry(), "v1.2.3", "go1.26", metrics.Scraped{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.Holding(func() metrics.Held {
		return metrics.Held{
			Operations: map[metrics.Group]int{
				{Kind: events.Stop, State: events.Running, Cluster: 7}:                                  1,
				{Kind: events.Stop, State: events.Waiting, Cluster: 7, Reason: events.CodeClusterBusy}:  2,
				{Kind: events.Start, State: events.Waiting, Cluster: 7, Reason: events.CodeClusterBusy}: 1,
			},
			OldestWait: 90 * time.Second,
			Paused:     []int64{events.AllClusters},
		}
	}))
	scrape(registry, "obwarden_cluster_operations_in_flight{", `obwarden_operations_waiting{reason="CLUSTER_BUSY"`, "obwarden_oldest_wait", "obwarden_paused{")
	// Output:
	// obwarden_cluster_operations_in_flight{cluster="7",state="running"} 1
	// obwarden_cluster_operations_in_flight{cluster="7",state="submitting"} 0
	// obwarden_cluster_operations_in_flight{cluster="7",state="waiting"} 3
	// obwarden_oldest_wait_age_seconds 90
	// obwarden_operations_waiting{reason="CLUSTER_BUSY"} 3
	// obwarden_paused{cluster="all"} 1
}

// An exemplar leads from a slow bucket to the operation that was slow.
func ExampleObserve() {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, "v1.2.3", "go1.26", metrics.Scraped{})
	metrics.Observe(m.SubmitLatency.WithLabelValues("stop"), 90*time.Second, events.OperationID("disk-4711"))
	scrape(registry, `obwarden_submit_latency_seconds_sum{kind="stop"`)
	// Output: obwarden_submit_latency_seconds_sum{kind="stop"} 90
}
