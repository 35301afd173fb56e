package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	memoryInterval = 5 * time.Second // between two looks at the memory in use
	// Go collects a heap with more live memory than largeHeap when its garbage is largeHeapPercent of the live memory.
	// A smaller heap is collected at 100 percent, Go's default, because there processor time counts for more.
	largeHeap        = 32 << 20
	largeHeapPercent = 30
	// Free memory is returned to the system at once if it is more than largeFree and more than half of the live memory.
	// Without that, Go takes minutes to return the memory that was needed only for the start.
	largeFree = 32 << 20
)

// keepMemory keeps the memory of the process in proportion to its live memory until ctx ends. It does nothing if one of
// Go's own variables for that is set.
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
		percent, returnFree := memoryFor(measured[0].Value.Uint64(), measured[1].Value.Uint64())
		if percent != current { // the call stops the world
			debug.SetGCPercent(percent)
			current = percent
		}
		if returnFree {
			debug.FreeOSMemory()
		}
	}
}

// memoryFor decides how much garbage there may be, in percent of the live memory, and whether free memory is returned
// to the system.
func memoryFor(live, free uint64) (percent int, returnFree bool) {
	percent = 100
	if live > largeHeap {
		percent = largeHeapPercent
	}
	return percent, free > max(largeFree, live/2)
}
