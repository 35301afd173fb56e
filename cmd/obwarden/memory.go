package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	memoryInterval = 5 * time.Second // between looks at the memory in use
	// largeHeap is what must be alive for it to be worth while to collect garbage sooner:
	// at a third of what is alive, and not at all of it. Below, processor time counts for more.
	largeHeap        = 32 << 20
	largeHeapPercent = 30
	// largeFree is what must lie idle for it to be given back at once, and so must half
	// of what is alive: Go by itself takes minutes over what a start leaves behind.
	largeFree = 32 << 20
)

// keepMemory keeps the memory of the process in proportion to what is alive until ctx
// ends. Whoever has set Go's own variables has decided otherwise.
func keepMemory(ctx context.Context) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	current := 100
	defer debug.SetGCPercent(debug.SetGCPercent(current))
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		measured := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
		metrics.Read(measured)
		percent, giveBack := memoryFor(measured[0].Value.Uint64(), measured[1].Value.Uint64())
		if percent != current { // it stops the world
			debug.SetGCPercent(percent)
			current = percent
		}
		if giveBack {
			debug.FreeOSMemory()
		}
	}
}

// memoryFor is how much garbage there may be, in percent of what is alive, and whether
// what is free is given back.
func memoryFor(live, free uint64) (percent int, giveBack bool) {
	percent = 100
	if live > largeHeap {
		percent = largeHeapPercent
	}
	return percent, free > max(largeFree, live/2)
}
