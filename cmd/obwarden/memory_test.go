package main

import "testing"

func TestMemoryIsInProportionToLiveMemory(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, tt := range []struct {
		live, free uint64
		percent    int
		returnFree bool
	}{
		{8 * mib, 2 * mib, 100, false},
		{8 * mib, 33 * mib, 100, true},
		{64 * mib, 32 * mib, 30, false},
		{64 * mib, 33 * mib, 30, true},
		{600 * mib, 190 * mib, 30, false},
	} {
		if percent, returnFree := memoryFor(tt.live, tt.free); percent != tt.percent || returnFree != tt.returnFree {
			t.Errorf("%d MiB live, %d MiB free: got %d %% and %v, want %d %% and %v", tt.live/mib, tt.free/mib, percent, returnFree, tt.percent, tt.returnFree)
		}
	}
}
