package agent

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// roster holds every operation that this agent has heard of, with the messages in its inbox and the summary that its
// worker published last. All methods may be called concurrently.
type roster struct {
	mu         sync.Mutex
	all        map[string]*held
	undecided  map[int64]map[string]*held // operations that wait or are about to, by cluster
	byProgress summaries                  // operations under way, by the time of their last progress
	byArrival  summaries                  // operations that wait, by the arrival of their request
	counts     map[metrics.Group]int
	closed     bool // no message is taken any more
}

func newRoster() *roster {
	return &roster{
		all: map[string]*held{}, undecided: map[int64]map[string]*held{}, counts: map[metrics.Group]int{},
		byProgress: summaries{at: func(h *held) time.Time { return h.summary.progressed }, index: func(h *held) *int { return &h.byProgress }},
		byArrival:  summaries{at: func(h *held) time.Time { return h.summary.arrived }, index: func(h *held) *int { return &h.byArrival }},
	}
}

// deliver puts a message into the inbox of its operation, and returns when a worker is to look at it; zero is now. It
// returns false if the roster is closed.
func (r *roster) deliver(id string, d delivery, now time.Time) (at time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return time.Time{}, false
	}
	h := r.all[id]
	if h == nil {
		h = &held{id: id}
		r.all[id] = h
	}
	h.inbox = append(h.inbox, d)
	// A message that was delivered before may be the request that owns the operation, and that another agent had.
	if d.order != nil || d.again || len(h.inbox) > duplicatesKept {
		h.collecting = time.Time{}
	}
	if now.Before(h.collecting) {
		return h.collecting, true
	}
	return time.Time{}, true
}

// close takes no message any more, and lists every request that waits for its acknowledgement.
func (r *roster) close() []openRequest {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	return r.requests()
}

// get returns an operation; nil if this agent has not heard of it.
func (r *roster) get(id string) *held {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[id]
}

// takeMail empties the inbox of an operation, unless the inbox only collects duplicates now.
func (r *roster) takeMail(h *held, now time.Time) []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(h.collecting) {
		return nil
	}
	mail := h.inbox
	h.inbox = nil
	return mail
}

// hasMail reports whether takeMail would return anything.
func (r *roster) hasMail(h *held, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(h.inbox) > 0 && !now.Before(h.collecting)
}

// returnMail puts messages back to the head of the inbox.
func (r *roster) returnMail(h *held, mail []delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.inbox = append(mail, h.inbox...)
}

// collect makes the inbox of an operation only collect duplicates until a time.
func (r *roster) collect(h *held, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.collecting = until
}

// rest returns when a worker goes on with an operation whose own plan is due at a time: earlier if messages wait. If
// this agent does not hold the operation and no message is left, rest forgets it and returns over.
func (r *roster) rest(h *held, owned bool, due, now time.Time) (at time.Time, over bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !owned && len(h.inbox) == 0 && !now.Before(h.collecting):
		delete(r.all, h.id)
		return time.Time{}, true
	case !owned || len(h.inbox) > 0 && h.collecting.Before(due):
		return h.collecting, false
	}
	return due, false
}

// publish replaces the summary of an operation, and returns the previous one.
func (r *roster) publish(h *held, s summary) (before summary) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before = h.summary
	r.count(before, -1)
	if before.undecided() {
		delete(r.undecided[before.cluster], h.id)
		if len(r.undecided[before.cluster]) == 0 {
			delete(r.undecided, before.cluster)
		}
	}
	h.summary = s
	r.count(s, +1)
	if s.undecided() {
		if r.undecided[s.cluster] == nil {
			r.undecided[s.cluster] = map[string]*held{}
		}
		r.undecided[s.cluster][h.id] = h
	}
	r.byProgress.keep(h, s.underWay())
	r.byArrival.keep(h, s.state == events.Waiting)
	return before
}

// count adds n to the count of the operation's group, if the operation is open.
func (r *roster) count(s summary, n int) {
	if s.state == "" || s.state.Final() {
		return
	}
	g := metrics.Group{Kind: s.kind, State: s.state, Cluster: s.cluster, Reason: s.reason, Stalled: s.stalled}
	if r.counts[g] += n; r.counts[g] == 0 {
		delete(r.counts, g)
	}
}

// openRequest is a request that waits for its acknowledgement.
type openRequest struct {
	id string // of its operation
	ack
}

// requests lists every request that waits for its acknowledgement.
func (r *roster) requests() []openRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]openRequest, 0, len(r.all))
	for id, h := range r.all {
		if !h.summary.ack.isZero() {
			all = append(all, openRequest{id, h.summary.ack})
		}
		for _, d := range h.inbox {
			all = append(all, openRequest{id, d.ack})
		}
	}
	return all
}

// queued lists the first n operations of a cluster that wait for a slot, in the order of their requests.
func (r *roster) queued(cluster int64, n int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var queued []*held
	for _, h := range r.undecided[cluster] {
		if h.summary.queued {
			queued = append(queued, h)
		}
	}
	slices.SortFunc(queued, func(x, y *held) int { return cmp.Compare(x.summary.sequence, y.summary.sequence) })
	ids := make([]string, 0, n)
	for _, h := range queued[:min(len(queued), n)] {
		ids = append(ids, h.id)
	}
	return ids
}

// waiting lists the operations that wait, or are about to, and for which match is true.
func (r *roster) waiting(match func(summary) bool) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for _, waiting := range r.undecided {
		for id, h := range waiting {
			if match(h.summary) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// needOCP lists at most n operations that wait because OCP does not answer.
func (r *roster) needOCP(n int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for id, h := range r.all {
		if len(ids) == n {
			break
		}
		if h.summary.needsOCP {
			ids = append(ids, id)
		}
	}
	return ids
}

// oldest returns how long ago any operation under way progressed last, and how long ago the request of any waiting
// operation arrived: the longest of each, 0 if there is none.
func (r *roster) oldest(now time.Time) (progress, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	age := func(s *summaries) time.Duration {
		if first := s.first(); !first.IsZero() {
			return max(0, now.Sub(first))
		}
		return 0
	}
	return age(&r.byProgress), age(&r.byArrival)
}

// counted returns the number of open operations in each group.
func (r *roster) counted() map[metrics.Group]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.counts)
}

// summaries is a heap of operations, ordered by a time in their summaries.
type summaries struct {
	at    func(*held) time.Time
	index func(*held) *int // of an operation in all, from 1; 0: it is not in the heap
	all   []*held
}

// keep adds an operation to the heap, moves it if its time has changed, or removes it.
func (s *summaries) keep(h *held, in bool) {
	i := *s.index(h)
	switch {
	case in && i > 0:
		heap.Fix(s, i-1)
	case in:
		heap.Push(s, h)
	case i > 0:
		heap.Remove(s, i-1)
	}
}

// first returns the earliest time; zero if there is no operation.
func (s *summaries) first() time.Time {
	if len(s.all) == 0 {
		return time.Time{}
	}
	return s.at(s.all[0])
}

// The rest is for container/heap.

func (s *summaries) Len() int           { return len(s.all) }
func (s *summaries) Less(i, j int) bool { return s.at(s.all[i]).Before(s.at(s.all[j])) }

func (s *summaries) Swap(i, j int) {
	s.all[i], s.all[j] = s.all[j], s.all[i]
	*s.index(s.all[i]), *s.index(s.all[j]) = i+1, j+1
}

func (s *summaries) Push(h any) {
	s.all = append(s.all, h.(*held))
	*s.index(h.(*held)) = len(s.all)
}

func (s *summaries) Pop() any {
	last := len(s.all) - 1
	h := s.all[last]
	s.all[last] = nil
	s.all = s.all[:last]
	*s.index(h) = 0
	return h
}
