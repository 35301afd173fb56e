package agent

import (
	"testing"
	"time"

	"obwarden/agent/guard"
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
