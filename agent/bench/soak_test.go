//go:build linux

package bench

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"obwarden/agent/ocp/ocpsim"
	"obwarden/events"
)

var (
	flagSoak      = flag.Duration("soak.time", 0, "how long operations go on; 0: not at all")
	flagRetention = flag.Duration("soak.retention", time.Minute, "of the journal: from then on it is as large as it will be")
)

const (
	// soakGeneration is how many operations one simulated OCP sees: it forgets nothing.
	soakGeneration = 10_000
	soakOpen       = 1_000 // requests in the queue, at most
	soakClusters   = 100
	// mayGrow is the growth from the end of the warm-up to the end of the run, by
	// linear regression, that counts as flat: of the mean.
	mayGrow = 0.10
)

// TestSoak runs operations against an OCP with faults, and sees that memory and
// goroutines stay as they are once the journal has come to its size.
func TestSoak(t *testing.T) {
	if *flagSoak == 0 {
		t.Skip("run it with make soak")
	}
	ocp := &swapped{}
	front := httptest.NewServer(ocp)
	defer front.Close()
	users := ocp.swap(t, 0)
	listen := freeAddress(t)
	a := startAgent(t, map[string]string{
		"OBWARDEN_OCP_URL": front.URL, "OBWARDEN_OCP_USERNAME": users[0].Name, "OBWARDEN_OCP_PASSWORD": users[0].Password,
		"OBWARDEN_DATA_DIR": t.TempDir(), "OBWARDEN_NATS_LISTEN": listen, "OBWARDEN_LOG_LEVEL": "error", "OBWARDEN_RETENTION": flagRetention.String(),
		"OBWARDEN_SETTLE": "1s", "OBWARDEN_POLL_MIN": "50ms", "OBWARDEN_POLL_MAX": "500ms",
	})
	nc, err := nats.Connect("nats://" + listen)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, nc: nc, js: js}

	began := time.Now()
	stop := make(chan struct{})
	var samples []sample
	var sampling sync.WaitGroup
	sampling.Go(func() { samples = a.sample(*flagSoak/200, stop) })
	published := 0
	for generation := 1; time.Since(began) < *flagSoak; generation++ {
		for n := 0; n < soakGeneration && time.Since(began) < *flagSoak; n += soakOpen / 4 {
			var msgs []*nats.Msg
			for range soakOpen / 4 {
				published++
				cluster := int64(1 + published%soakClusters)
				msgs = append(msgs, requestFor(fmt.Sprint("soak-", published), cluster, (cluster-1)*6+int64(1+published/soakClusters%6)))
			}
			r.publish(msgs)
			r.awaitEmpty(events.RequestStream, soakOpen)
		}
		r.awaitEmpty(events.RequestStream, 0)
		ocp.swap(t, generation)
	}
	close(stop)
	sampling.Wait()
	a.profile("soak")()
	_, values := a.scrape()
	ended, failures := map[string]float64{}, map[string]float64{}
	total := 0.0
	for name, value := range values {
		if outcome, ok := strings.CutPrefix(name, "obwarden_operations_total{"); ok {
			ended[strings.TrimSuffix(outcome, "}")] += value
			total += value
		}
		if code, ok := strings.CutPrefix(name, "obwarden_failures_total{"); ok {
			failures[strings.TrimSuffix(code, "}")] += value
		}
	}
	t.Logf("%d operations in %s, %.0f/s: %v", published, time.Since(began).Round(time.Second), float64(published)/time.Since(began).Seconds(), ended)
	t.Logf("failures by code: %v", failures)
	if int(total) != published {
		t.Errorf("%g operations ended, %d were asked for", total, published)
	}
	flat(t, "memory (MiB)", samples, func(s sample) float64 { return s.resident })
	flat(t, "heap in use (MiB)", samples, func(s sample) float64 { return s.heap })
	flat(t, "goroutines", samples, func(s sample) float64 { return s.goroutines })
}

// swapped is a simulated OCP that can be replaced by a fresh one.
type swapped struct{ now atomic.Pointer[ocpsim.Sim] }

func (s *swapped) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.now.Load().Handler().ServeHTTP(w, r)
}

// swap replaces it by one in which all goes wrong now and then, but for tasks: one that
// fails leaves its server as it is, and what is asked of that waits for a person.
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

// sample is what the process holds at one moment.
type sample struct {
	at                         time.Time
	resident, heap, goroutines float64
}

func (p *agentProcess) sample(every time.Duration, stop <-chan struct{}) (samples []sample) {
	tick := time.NewTicker(max(every, 100*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return samples
		case at := <-tick.C:
			_, values := p.scrape()
			samples = append(samples, sample{at: at, resident: p.residentMiB(), heap: values["go_memstats_heap_inuse_bytes"] / (1 << 20), goroutines: values["go_goroutines"]})
		}
	}
}

// flat fails where a figure grows from the end of the warm-up on.
func flat(t *testing.T, what string, samples []sample, value func(sample) float64) {
	t.Helper()
	var xs, ys []float64
	for _, s := range samples[len(samples)/3:] {
		xs, ys = append(xs, s.at.Sub(samples[0].at).Seconds()), append(ys, value(s))
	}
	mean, slope := regression(xs, ys)
	growth := slope * (xs[len(xs)-1] - xs[0])
	t.Logf("%s: mean %.4g, grows by %.3g (%.1f %%) over the last two thirds", what, mean, growth, 100*growth/mean)
	if growth > mayGrow*mean {
		t.Errorf("%s grows", what)
	}
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
