package operation

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var simulationSeed = flag.Uint64("seed", 0, "of the simulation; 0: a new one, printed")

// TestSimulation walks through the model at random, far deeper than it can be
// enumerated: each walk may meet a dozen of each kind of fault before it is healed.
// A failure is replayed by its seed.
func TestSimulation(t *testing.T) {
	t.Parallel()
	seed := *simulationSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay: go test ./agent -run Simulation -seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	walks, steps := 20_000, 0
	if testing.Short() {
		walks = 2_000
	}
	for range walks {
		c := &modelChecker{design: soundDesign(), seen: map[string]bool{}, healed: map[string]bool{}, violations: map[string]string{}}
		w := world{budget: budget{crashes: 12, redeliveries: 12, faults: 12, duplicates: 12, orders: 3}}
		for range 20 + random.IntN(200) {
			c.queue = c.queue[:0]
			clear(c.seen)
			c.expand(w)
			if len(c.queue) == 0 || len(c.violations) > 0 {
				break
			}
			w = c.queue[random.IntN(len(c.queue))]
			steps++
		}
		c.heal(w)
		for kind, path := range c.violations {
			t.Fatalf("seed %d: %s:\n%s", seed, kind, path)
		}
	}
	t.Logf("%d walks of %d steps in all, each healed to its end", walks, steps)
}
