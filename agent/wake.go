package agent

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/obwarden/obwarden/events"
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
	a.parked.drop(h)
	a.enter(work, h)
}

// setAlarm has those that are parked woken when their time comes. The caller holds a.mu.
func (a *Agent) setAlarm() {
	if first := a.parked.first(); a.alarm != nil {
		a.alarm.Reset(time.Until(first))
	} else {
		a.alarm = time.AfterFunc(time.Until(first), a.wakeDue)
	}
}

// wakeDue wakes those that are parked and whose time has come.
func (a *Agent) wakeDue() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing || a.under == nil {
		return
	}
	for range wakeTogether {
		if len(a.parked.all) == 0 || time.Now().Before(a.parked.first()) {
			break
		}
		a.wake(a.under, a.parked.all[0])
	}
	if len(a.parked.all) > 0 {
		a.setAlarm()
	}
}

// places are for so many operations at the same time. Whoever is to have one while
// none is free stands in a queue, first come, first served. All of it belongs to Agent.mu.
type places struct {
	free  int // below 0: some came back to theirs, which others have taken meanwhile
	queue []*held
}

// placesFor is where what h does next is done.
func (a *Agent) placesFor(h *held) *places {
	if h.do == Look && len(h.inbox) == 0 {
		return &a.looking
	}
	return &a.active
}

// enter has h worked on as soon as there is a place. The caller holds a.mu.
func (a *Agent) enter(work context.Context, h *held) {
	p := a.placesFor(h)
	p.queue = append(p.queue, h)
	a.fill(work, p)
}

// fill gives free places to those that stand in the queue, and each that comes free to
// the next. The caller holds a.mu.
func (a *Agent) fill(work context.Context, p *places) {
	for p.free > 0 && len(p.queue) > 0 {
		p.free--
		h := p.next()
		a.running.Go(func() {
			for h != nil {
				a.work(work, h, p)
				a.mu.Lock()
				if h = nil; p.free < 0 || len(p.queue) == 0 {
					p.free++
				} else {
					h = p.next()
				}
				a.mu.Unlock()
			}
		})
	}
}

func (p *places) next() *held {
	h := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	return h
}

// stepAside leaves a place of active to others until the returned function is called.
func (a *Agent) stepAside(work context.Context) (comeBack func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.active.free++
	a.fill(work, &a.active)
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.active.free--
	}
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
		case h.owner.none():
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
		return h.position.reason == events.CodeOCPUnreachable || h.position.reason == events.CodeStaleTopology
	case Reconcile:
		return true
	case Look:
		return h.failures > 0
	}
	return false
}
