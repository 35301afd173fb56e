package agent

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Whatever comes and goes in whatever order, the first is whose time is earliest.
func TestQueueKnowsTheEarliest(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	q := queue{of: func(h *held) time.Time { return h.at }, place: func(h *held) *int { return &h.in.parked }}
	all := make([]*held, 50)
	for i := range all {
		all[i] = &held{}
	}
	start := time.Now()
	in := map[*held]bool{}
	for step := range 5000 {
		h := all[random.IntN(len(all))]
		switch random.IntN(3) {
		case 0:
			h.at = start // what it had does not matter any more
			q.drop(h)
			delete(in, h)
		default:
			h.at = start.Add(time.Duration(1 + random.IntN(100)))
			q.put(h)
			in[h] = true
		}
		var want time.Time
		for h := range in {
			if want.IsZero() || h.at.Before(want) {
				want = h.at
			}
		}
		if got := q.first(); !got.Equal(want) || q.Len() != len(in) {
			t.Fatalf("step %d: the first of %d is at %s, want %s of %d", step, q.Len(), got, want, len(in))
		}
	}
}
