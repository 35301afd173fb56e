package agent

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
)

func TestFactsTooOldForAnyDecisionAreForgotten(t *testing.T) {
	t.Parallel()
	f := newFacts(nil)
	add := func(cluster int64, age time.Duration) *shared[guard.Facts] {
		f.forget()
		s := &shared[guard.Facts]{began: time.Now().Add(-age)}
		f.clusters[cluster] = s
		return s
	}
	read := add(1, 2*factsOld)
	read.reading.Lock() // by somebody, for as long as this test runs
	fresh := add(2, 0)
	for cluster := range int64(10_000) {
		add(10+cluster, 2*factsOld)
		if len(f.clusters) > 2*factsKept {
			t.Fatalf("facts of %d clusters, want %d at most", len(f.clusters), 2*factsKept)
		}
	}
	if f.clusters[1] != read || f.clusters[2] != fresh {
		t.Error("facts that are being read, or good still, are forgotten")
	}
}

// An OCP that needs longer to show a cluster than facts count as fresh: who asked before
// a reading began has asked for that one.
func TestOneReadingServesAllWhoWaitForItHoweverLongItTakes(t *testing.T) {
	t.Parallel()
	const askers, took = 40, 50 * time.Millisecond
	var s shared[int]
	var readings atomic.Int64
	var all sync.WaitGroup
	for range askers {
		all.Go(func() {
			_, _ = s.get(t.Context(), func(_ int, age time.Duration) bool { return age < took/10 }, func() (int, error) {
				time.Sleep(took)
				return int(readings.Add(1)), nil
			})
		})
	}
	all.Wait()
	if n := readings.Load(); n > askers/2 {
		t.Errorf("%d readings for %d who asked at the same time, want 2, and a few where the machine is busy", n, askers)
	}
}
