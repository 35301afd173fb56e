package metrics

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/events"
)

// Held is what an agent holds and knows at one moment, already counted: a scrape of
// 10,000 open operations must not walk through them.
type Held struct {
	// Operations counts the operations in hand that have not ended. The collector only
	// reads the map, while it collects.
	Operations map[Group]int
	// OldestProgress is the time since the last progress of the operation under way that
	// has not moved for longest; 0 if none is under way.
	OldestProgress time.Duration
	// OldestWait is the time since the request came whose operation waits for longest; 0
	// where none waits.
	OldestWait time.Duration
	// Paused are the clusters that a person has paused, events.AllClusters among them.
	Paused []int64
	// ClusterBudget and FleetBudget are the shares of the policy's budgets that are used, 0
	// to 1: of the cluster where it is highest, and of all clusters together.
	ClusterBudget, FleetBudget float64
}

// Group is what the gauges tell operations apart by.
type Group struct {
	Kind    events.Kind
	State   events.State
	Cluster int64
	Reason  string // code of the reason, while the operation waits
	Stalled bool   // its task in OCP has not moved for long
}

// Holding returns a collector of the gauges that describe what an agent holds. It calls
// read once in each scrape; read may be called concurrently, and must wait for nothing but
// a lock that is held briefly.
func (m *Metrics) Holding(read func() Held) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &holding{
		read:     read,
		clusters: &m.clusters,
		inFlight: desc("operations_in_flight",
			"Operations that this agent holds now, by state.", "kind", "state"),
		stalled: desc("operations_stalled",
			"Operations whose task in OCP has not moved for OBWARDEN_STALL_AFTER."),
		waiting: desc("operations_waiting",
			"Operations that wait now, by the code of the reason.", "reason"),
		oldestProgress: desc("oldest_progress_age_seconds",
			"Seconds since the operation under way that has not moved for longest last did; 0 where none is. Those "+
				"that wait do not count."),
		oldestWait: desc("oldest_wait_age_seconds",
			"Seconds since the request came whose operation waits for longest; 0 where none waits."),
		clusterInFlight: desc("cluster_operations_in_flight",
			"Operations that wait or are under way in each cluster, in the hands of this agent; the first 200 "+
				"clusters are told apart.", "cluster", "state"),
		paused: desc("paused",
			"1 for each cluster, or all, in which a person holds operations back; absent otherwise.", "cluster"),
		budgetUsed: desc("budget_used_ratio",
			"Share of the policy's budget of operations that is used, 0 to 1: of the cluster where it is highest, "+
				"and of the fleet.", "scope"),
	}
}

type holding struct {
	read     func() Held
	clusters *names

	inFlight, stalled, waiting, oldestProgress, oldestWait, clusterInFlight, paused, budgetUsed *prometheus.Desc
}

func (h *holding) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		h.inFlight, h.stalled, h.waiting, h.oldestProgress, h.oldestWait, h.clusterInFlight, h.paused, h.budgetUsed,
	} {
		to <- d
	}
}

func (h *holding) Collect(to chan<- prometheus.Metric) {
	held := h.read()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	pairs := func(d *prometheus.Desc, counted map[pair]int) {
		for labels, n := range counted {
			gauge(d, float64(n), labels[0], labels[1])
		}
	}
	counted := h.count(held.Operations)
	pairs(h.inFlight, counted.inFlight)
	pairs(h.clusterInFlight, counted.clusters)
	for reason, n := range counted.waiting {
		gauge(h.waiting, float64(n), reason)
	}
	gauge(h.stalled, float64(counted.stalled))
	gauge(h.oldestProgress, held.OldestProgress.Seconds())
	gauge(h.oldestWait, held.OldestWait.Seconds())
	// A series that is collected twice fails the scrape.
	for _, cluster := range slices.Compact(slices.Sorted(slices.Values(held.Paused))) {
		label := AllClusters
		if cluster != events.AllClusters {
			label = strconv.FormatInt(cluster, 10)
		}
		gauge(h.paused, 1, label)
	}
	gauge(h.budgetUsed, held.ClusterBudget, "cluster")
	gauge(h.budgetUsed, held.FleetBudget, "fleet")
}

// pair are the values of two labels.
type pair [2]string

// sums are the operations in hand, counted by labels.
type sums struct {
	inFlight, clusters map[pair]int
	waiting            map[string]int
	stalled            int
}

// count adds up groups that have the same labels. Series whose labels are known are there
// at 0, and so are those of each cluster that was told apart once.
func (h *holding) count(operations map[Group]int) sums {
	s := sums{inFlight: map[pair]int{}, clusters: map[pair]int{}, waiting: map[string]int{}}
	for _, state := range openStates() {
		for _, kind := range events.Kinds() {
			s.inFlight[pair{string(kind), string(state)}] = 0
		}
	}
	for _, code := range codesIn(events.Waiting) {
		s.waiting[code] = 0
	}
	// There are many groups: label values are looked up once for each, and not for each group.
	cluster, reason := memo(h.clusterLabel), memo(Code)
	for g, n := range operations {
		if n == 0 || g.State == "" || g.State.Final() {
			continue
		}
		s.inFlight[pair{Kind(string(g.Kind)), string(g.State)}] += n
		if g.State != events.Accepted { // not decided on yet: there may be no such cluster
			s.clusters[pair{cluster(g.Cluster), string(g.State)}] += n
		}
		if g.Reason != "" {
			s.waiting[reason(g.Reason)] += n
		}
		if g.Stalled {
			s.stalled += n
		}
	}
	for _, cluster := range h.clusters.all() {
		for _, state := range openStates() {
			if state != events.Accepted {
				s.clusters[pair{cluster, string(state)}] += 0
			}
		}
	}
	return s
}

func (h *holding) clusterLabel(id int64) string {
	return h.clusters.bounded(strconv.FormatInt(id, 10), maxClusters)
}

// memo remembers what label returned for a value.
func memo[T comparable](label func(T) string) func(T) string {
	known := map[T]string{}
	return func(value T) string {
		l, ok := known[value]
		if !ok {
			l = label(value)
			known[value] = l
		}
		return l
	}
}

// openStates are the states of operations that have not ended.
func openStates() []events.State {
	return slices.DeleteFunc(events.States(), events.State.Final)
}

// all returns the names that are told apart.
func (n *names) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.seen))
}
