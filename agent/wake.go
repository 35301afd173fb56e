package agent

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"obwarden/agent/guard"
)

const (
	// wakeAtOnce is how many of those that wait for a slot look when one is free: the
	// first may wait for something else by then.
	wakeAtOnce = 4
	// tryEvery is how often an OCP that is left alone is tried, if it may be.
	tryEvery = time.Second
)

// Who waits is woken by what it waits for: a slot, people, OCP. Timers are there for
// what nobody tells.

// wake starts work on h unless somebody is at it. The caller holds a.mu.
func (a *Agent) wake(work context.Context, h *held) {
	if h.busy || a.closing {
		return
	}
	h.busy = true
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	a.running.Go(func() {
		a.active <- struct{}{}
		defer func() { <-a.active }()
		a.work(work, h)
	})
}

// wakeFirst wakes those of a cluster that have waited for longest for a slot.
func (a *Agent) wakeFirst(cluster int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var queued []*held
	for h := range a.waiting[cluster] {
		if h.position.queued {
			queued = append(queued, h)
		}
	}
	slices.SortFunc(queued, func(x, y *held) int { return cmp.Compare(x.position.first, y.position.first) })
	for _, h := range queued[:min(len(queued), wakeAtOnce)] {
		a.hurry(h)
	}
}

// reconsider has those that wait and match decided on anew.
func (a *Agent) reconsider(match func(position) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, waiting := range a.waiting {
		for h := range waiting {
			if match(h.position) {
				a.hurry(h)
			}
		}
	}
}

// hurry has h go on now, whatever it waits for. One that is busy decides once more:
// it may have looked before there was something new. The caller holds a.mu.
func (a *Agent) hurry(h *held) {
	if h.hurried = h.busy; h.busy || a.closing || a.under == nil {
		return
	}
	h.at = time.Time{} // nobody is at it: busy is false, and a.mu is held
	a.wake(a.under, h)
}

// OCPLeftAlone says that OCP gets no requests because it does not answer, or that it
// answers again. It does not block, and may be called at any time.
func (a *Agent) OCPLeftAlone(alone bool) {
	a.leftAlone.Store(alone)
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// tryOCP has one of the operations that wait for OCP try it now and then while it is
// left alone, and all go on at once when it answers. The client, which lets one request
// through after each pause, and the request budget keep that within bounds.
func (a *Agent) tryOCP(ctx context.Context) {
	for {
		var try <-chan time.Time
		if a.leftAlone.Load() {
			try = time.After(tryEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-a.changed:
			if !a.leftAlone.Load() {
				a.hurrySpared(math.MaxInt)
			}
		case <-try:
			a.hurrySpared(1)
		}
	}
}

// hurrySpared has as many of the operations go on that may wait because OCP does not
// answer; where all are to, also those that hear at this moment that it does not. To
// look sooner than need be does no harm.
func (a *Agent) hurrySpared(most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := most == math.MaxInt
	for _, h := range a.held {
		if most == 0 {
			return
		}
		switch {
		case h.owner == nil:
		case h.busy && all:
			h.hurried = true
		case !h.busy && h.waitsForOCP(): // nobody is at it, and a.mu is held
			a.hurry(h)
			most--
		}
	}
}

// waitsForOCP also holds for calls whose settle time is not over.
func (h *held) waitsForOCP() bool {
	switch h.do {
	case Decide:
		reason := h.entry.Operation.Reason
		return reason != nil && (reason.Code == CodeOCPUnreachable || reason.Code == guard.CodeStaleTopology)
	case Reconcile:
		return true
	case Look:
		return h.failures > 0
	}
	return false
}
