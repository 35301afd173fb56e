//go:build linux

package bench

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

var (
	flagSoak      = flag.Duration("soak.time", 0, "how long operations go on; 0: not at all")
	flagRetention = flag.Duration("soak.retention", time.Minute, "of the journal: from then on it is as large as it will be")
)

const (
	// soakGeneration is how many requests one simulated OCP gets before it is replaced, because it forgets nothing.
	soakGeneration = 5_000
	soakOpen       = 2_000 // requests in the queue, at most
	soakClusters   = 240   // each has one operation a second at most
	// mayGrow is the growth over the whole run, as a share of the mean, that still counts as flat. It is found by linear
	// regression over the part after the warm-up.
	mayGrow = 0.10
	// leastResting is how many generations it takes to tell growth from warming up.
	leastResting = 8
)

// soakPolicy holds nothing back either, but it has a budget, so that the record of each cluster has reached its full
// size after a minute.
func soakPolicy() string {
	return strings.Replace(agenttest.LaxPolicy, "budget: {operations: 0, window: 1h}", "budget: {operations: 100, window: 1m}", 1)
}

// TestSoak runs operations against an OCP with faults, and checks that memory and goroutines do not grow. NATS is a
// process of its own, because the memory for the journal does grow until the journal is as old as its retention.
func TestSoak(t *testing.T) {
	if *flagSoak == 0 {
		t.Skip("run it with make soak")
	}
	ocp := &swapped{}
	front := httptest.NewServer(ocp)
	defer front.Close()
	users := ocp.swap(t, 0)
	servers, url, js := startNATS(t, 1)
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(soakPolicy()), 0o600); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, map[string]string{
		"OBWARDEN_OCP_URL": front.URL, "OBWARDEN_OCP_USERNAME": users[0].Name, "OBWARDEN_OCP_PASSWORD": users[0].Password,
		"OBWARDEN_NATS_URL": url, "OBWARDEN_POLICY_FILE": policy, "OBWARDEN_LOG_LEVEL": "error", "OBWARDEN_RETENTION": flagRetention.String(),
		"OBWARDEN_SETTLE": "1s", "OBWARDEN_POLL_MIN": "50ms", "OBWARDEN_POLL_MAX": "500ms",
	})
	s := &soak{t: t, rig: &rig{t: t, js: js}, agent: a, nats: servers[0], ocp: ocp, began: time.Now(), want: map[string]int{}}
	s.run()
	took := time.Since(s.began)
	a.profile("soak-late")()
	s.checkOutcomes(took)
	s.checkGrowth()
}

// soak is a run and what it has measured so far.
type soak struct {
	t     *testing.T
	rig   *rig
	agent *agentProcess
	nats  *process
	ocp   *swapped
	began time.Time

	requests         int
	want             map[string]int // requests by what is to become of them
	working, resting []sample       // taken at work, and when nothing was open
}

// run makes requests until the time is over, a generation of OCP after the other.
func (s *soak) run() {
	stop := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		tick := time.NewTicker(max(*flagSoak/400, time.Second))
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.working = append(s.working, s.agent.sample(s.began, s.nats))
			}
		}
	})
	early := s.agent.profile("soak-early")
	for generation := 1; time.Since(s.began) < *flagSoak; generation++ {
		for n := 0; n < soakGeneration && time.Since(s.began) < *flagSoak; n += soakOpen / 4 {
			var msgs []*nats.Msg
			for range soakOpen / 4 {
				s.requests++
				msg, result := soakRequest(s.requests)
				msgs = append(msgs, msg)
				s.want[result]++
			}
			s.rig.publish(msgs)
			s.rig.awaitEmpty(events.RequestStream, soakOpen)
		}
		s.rig.awaitEmpty(events.RequestStream, 0)
		s.resting = append(s.resting, s.agent.sample(s.began, s.nats))
		if early != nil && time.Since(s.began) > *flagSoak/5 { // warm
			early()
			early = nil
		}
		s.ocp.swap(s.t, generation)
	}
	close(stop)
	sampling.Wait()
}

// checkOutcomes compares what has become of the requests, by the agent's metrics, with what should have.
func (s *soak) checkOutcomes(took time.Duration) {
	s.t.Helper()
	_, values := s.agent.scrape()
	got, failures := map[string]int{}, map[string]float64{}
	for name, value := range values {
		metric, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
		switch {
		case value == 0:
		case metric == "obwarden_operations_total":
			got[label(labels, "outcome")] += int(value)
		case metric == "obwarden_requests_total" && label(labels, "result") == "duplicate":
			got["duplicate"] += int(value)
		case metric == "obwarden_failures_total":
			failures[labels] += value
		}
	}
	s.t.Logf("%d requests in %s, %.0f/s: %v; failures: %v", s.requests, took.Round(time.Second), float64(s.requests)/took.Seconds(), got, failures)
	each := func(n float64) float64 { return n / float64(s.requests) }
	s.t.Logf("for each: %.1f ms of processor in the agent and %.1f in NATS, %.1f events, %.1f writes of records, %.1f requests to OCP",
		each(1000*s.agent.processorSeconds()), each(1000*s.nats.processorSeconds()), each(float64(s.rig.last(events.OperationStream))),
		each(float64(s.rig.last("KV_"+events.ClusterBucket))), each(float64(s.ocp.requests.Load())))
	got["succeeded"] += got["failed"] // OCP may have left a call unanswered five times
	for result, n := range s.want {
		if got[result] != n {
			s.t.Errorf("%d requests %s, want %d", got[result], result, n)
		}
	}
}

// checkGrowth wants memory and goroutines to be flat behind the warm-up.
func (s *soak) checkGrowth() {
	s.t.Helper()
	if len(s.resting) < leastResting {
		s.t.Fatalf("nothing was open %d times: too few, of at least %d, to tell what grows; let it run for longer", len(s.resting), leastResting)
	}
	for _, figure := range []struct {
		name  string
		value func(sample) float64
	}{
		{"agent, MiB in use", func(s sample) float64 { return s.heap }},
		{"agent, goroutines", func(s sample) float64 { return s.goroutines }},
		{"agent, MiB resident", func(s sample) float64 { return s.resident }},
		{"NATS, MiB resident", func(s sample) float64 { return s.nats }},
	} {
		s.t.Log(fifths(figure.name+", at work", s.working, figure.value))
		s.t.Log(fifths(figure.name+", at rest", s.resting, figure.value))
		mean, growth := growthOf(s.resting, figure.value)
		s.t.Logf("%s: at rest %.4g in the mean, over the whole run it would grow by %.3g (%.1f %%)", figure.name, mean, growth, 100*growth/mean)
		if growth > mayGrow*mean {
			s.t.Errorf("%s: grows", figure.name)
		}
	}
}

// soakRequest is the nth request, and its expected result. Requests that are rejected or repeated are among them,
// because they must leave nothing behind either.
func soakRequest(n int) (*nats.Msg, string) {
	cluster := int64(1 + n%soakClusters)
	server := (cluster-1)*6 + int64(1+n/soakClusters%6)
	switch n % 20 {
	case 7: // no such cluster, and none twice
		return requestFor(fmt.Sprint("soak-", n), int64(1_000+n), 1), "rejected"
	case 11: // no such server
		return requestFor(fmt.Sprint("soak-", n), cluster, 1_000_000), "rejected"
	case 13: // the one before, once more
		msg, _ := soakRequest(n - 1)
		return msg, "duplicate"
	case 17:
		msg := requestFor(fmt.Sprint("soak-", n), cluster, server)
		msg.Data = msg.Data[:len(msg.Data)/2]
		return msg, "rejected"
	}
	return requestFor(fmt.Sprint("soak-", n), cluster, server), "succeeded"
}

// label is the value of one of a metric's labels.
func label(labels, name string) string {
	_, value, _ := strings.Cut(labels, name+`="`)
	value, _, _ = strings.Cut(value, `"`)
	return value
}

// swapped is a simulated OCP that can be replaced by a fresh one.
type swapped struct {
	now      atomic.Pointer[ocpsim.Sim]
	requests atomic.Int64
}

func (s *swapped) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	s.now.Load().Handler().ServeHTTP(w, r)
}

// swap replaces the simulated OCP by a new one in which everything goes wrong now and then, except tasks: a failed task
// leaves its server between two states, and later operations on the server would wait for a person.
func (s *swapped) swap(t *testing.T, seed int) []ocpsim.User {
	t.Helper()
	topology, err := ocpsim.Grid(soakClusters, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	users := ocpsim.DefaultUsers("admin", "secret")
	config := ocpsim.Config{Clusters: topology, Users: users, Speed: 1000, Seed: uint64(seed)}
	for _, text := range []string{
		"server_restart:lose_after,probability=0.01", "server_restart:lose_before,probability=0.01", "server_restart:truncate,probability=0.005",
		"server_restart:status,status=503,probability=0.005", "server_restart:html_after,probability=0.005",
		"server_restart:delay_after,delay=300ms,probability=0.01",
		"*:reset,method=GET,probability=0.005", "*:truncate,method=GET,probability=0.005", "*:status,status=502,method=GET,probability=0.005",
	} {
		f, err := ocpsim.ParseFault(text)
		if err != nil {
			t.Fatal(err)
		}
		config.Faults = append(config.Faults, f)
	}
	sim, err := ocpsim.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if old := s.now.Swap(sim); old != nil {
		old.Close()
	}
	return users
}

// sample is the memory and the goroutines in use at one moment. The heap is measured after a garbage collection.
type sample struct {
	at                               time.Duration
	heap, goroutines, resident, nats float64
}

func (p *agentProcess) sample(began time.Time, nats *process) sample {
	p.t.Helper()
	p.collect()
	_, values := p.scrape()
	return sample{
		at: time.Since(began), heap: values["go_memstats_heap_alloc_bytes"] / (1 << 20), goroutines: values["go_goroutines"],
		resident: p.residentMiB(), nats: nats.residentMiB(),
	}
}

// fifths shows the least, the median and the most of each fifth of the samples.
func fifths(name string, samples []sample, value func(sample) float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:", name)
	for i := range 5 {
		var ys []float64
		for _, s := range samples[i*len(samples)/5 : (i+1)*len(samples)/5] {
			ys = append(ys, value(s))
		}
		if len(ys) > 0 {
			fmt.Fprintf(&b, "  %.4g %.4g %.4g", slices.Min(ys), median(ys), slices.Max(ys))
		}
	}
	return b.String()
}

// growthOf is the mean of a figure behind the warm-up, and how much it would grow in
// the whole run if it went on like that.
func growthOf(samples []sample, value func(sample) float64) (mean, growth float64) {
	var xs, ys []float64
	for _, s := range samples[len(samples)/5:] {
		xs, ys = append(xs, s.at.Seconds()), append(ys, value(s))
	}
	mean, slope := regression(xs, ys)
	return mean, slope * samples[len(samples)-1].at.Seconds()
}

// regression is the mean of ys, and the slope of the line that fits them best.
func regression(xs, ys []float64) (mean, slope float64) {
	var x, y, xy, xx float64
	n := float64(len(xs))
	for i := range xs {
		x, y = x+xs[i]/n, y+ys[i]/n
	}
	for i := range xs {
		xy += (xs[i] - x) * (ys[i] - y)
		xx += (xs[i] - x) * (xs[i] - x)
	}
	return y, xy / xx
}

func TestRegressionFindsTheSlopeUnderTheNoise(t *testing.T) {
	t.Parallel()
	var xs, ys []float64
	for i := range 1000 {
		xs, ys = append(xs, float64(i)), append(ys, 50+0.25*float64(i)+float64(i%7-3))
	}
	mean, slope := regression(xs, ys)
	if slope < 0.24 || slope > 0.26 || mean < 174 || mean > 176 {
		t.Errorf("mean %g, slope %g, want 174.9 and 0.25", mean, slope)
	}
}
