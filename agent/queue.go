package agent

import (
	"container/heap"
	"slices"
	"sync"
	"time"
)

// maxWorkers is how many operations each lane works on at the same time. All other operations rest or wait for a
// worker, without a goroutine: its stack would take more memory than the rest of the operation.
const maxWorkers = 256

// lane is a kind of work with workers of its own, so that a slow kind does not hold the other up.
type lane int

// The lanes.
const (
	acting  lane = iota // decisions, calls, appends
	looking             // looks at OCP's tasks, which may take long
	lanes
)

// turn says when, and in which lane, an id is processed next. The zero turn is now, in acting.
type turn struct {
	at   time.Time // zero: now
	lane lane
	over bool // the queue forgets the id until it is added again
}

// queue decides which operation runs when. It knows ids and times only. Each id has one worker at a time. All methods
// may be called concurrently.
//
// The algorithm is that of client-go's workqueue: an id that is added while it is being processed is dirty, and is
// processed again once its worker is done.
type queue struct {
	// work processes an id and returns its next turn. woken means that it acts now, whatever it waits for.
	work func(id string, l lane, woken bool) turn

	mu      sync.Mutex
	items   map[string]*item
	resting byDue // by when they are due
	alarm   *time.Timer
	ready   [lanes][]*item
	free    [lanes]int // workers that may start; below 0 if stepAside has ended before another worker has
	closed  bool
	running sync.WaitGroup
}

// item is an id in the queue.
type item struct {
	id    string
	lane  lane
	state itemState
	due   time.Time // while it rests
	index int       // in resting
	woken bool
	// actNow is the value of woken when processing began, for the worker.
	actNow bool
	dirty  bool      // added while it is being processed
	again  time.Time // when a dirty id is processed again, at the latest
}

type itemState int

const (
	resting itemState = iota
	ready
	processing
)

func newQueue(work func(id string, l lane, woken bool) turn) *queue {
	q := &queue{work: work, items: map[string]*item{}}
	for l := range q.free {
		q.free[l] = maxWorkers
	}
	return q
}

// addAt adds an id that is due at a time; zero is now. An id that is due earlier stays so.
func (q *queue) addAt(id string, at time.Time) { q.put(id, at, false) }

// requeue makes ids act now, whatever they wait for. An id that is being processed acts once more: its worker may have
// looked before the change.
func (q *queue) requeue(ids ...string) {
	for _, id := range ids {
		q.put(id, time.Time{}, true)
	}
}

// requeueProcessing is requeue for every id that is being processed.
func (q *queue) requeueProcessing() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		if it.state == processing {
			it.woken, it.dirty, it.again = true, true, time.Time{}
		}
	}
}

func (q *queue) put(id string, at time.Time, woken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[id]
	isNew := it == nil
	if isNew {
		it = &item{id: id}
		q.items[id] = it
	}
	it.woken = it.woken || woken // before rest, which may start a worker
	switch {
	case isNew:
		q.rest(it, at)
	case it.state == processing:
		if !it.dirty || at.Before(it.again) {
			it.again = at
		}
		it.dirty = true
	case it.state == resting && at.Before(it.due):
		heap.Remove(&q.resting, it.index)
		if !woken { // there is mail for it, which must not wait for a slow kind of work
			it.lane = acting
		}
		q.rest(it, at)
	}
}

// rest lets an id rest until it is due; an id that is due now becomes ready.
func (q *queue) rest(it *item, at time.Time) {
	if !time.Now().Before(at) {
		it.state = ready
		q.ready[it.lane] = append(q.ready[it.lane], it)
		q.fill(it.lane)
		return
	}
	it.state, it.due = resting, at
	heap.Push(&q.resting, it)
	if it.index == 0 {
		q.setAlarm()
	}
}

func (q *queue) setAlarm() {
	switch wait := time.Until(q.resting[0].due); {
	case q.closed:
	case q.alarm == nil:
		q.alarm = time.AfterFunc(wait, q.ring)
	default:
		q.alarm.Reset(wait)
	}
}

// ring makes every id ready that is due.
func (q *queue) ring() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.resting) > 0 && !time.Now().Before(q.resting[0].due) {
		it := q.resting[0]
		heap.Pop(&q.resting)
		q.rest(it, time.Time{})
	}
	if len(q.resting) > 0 {
		q.setAlarm()
	}
}

// fill starts workers for ready ids, first come, first served. Each worker takes further ids until none is ready.
func (q *queue) fill(l lane) {
	for q.free[l] > 0 && !q.closed {
		it := q.next(l)
		if it == nil {
			return
		}
		q.free[l]--
		q.running.Go(func() {
			for it != nil {
				it = q.process(it, l)
			}
		})
	}
}

// next takes the next ready id of a lane; nil if there is none.
func (q *queue) next(l lane) *item {
	if len(q.ready[l]) == 0 {
		return nil
	}
	it := q.ready[l][0]
	q.ready[l][0] = nil
	q.ready[l] = q.ready[l][1:]
	it.state = processing
	it.actNow, it.woken = it.woken, false
	return it
}

// process works on an id and returns the next one for the same worker; nil ends the worker.
func (q *queue) process(it *item, l lane) *item {
	t := q.work(it.id, l, it.actNow)

	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case it.dirty && (t.over || !t.at.Before(it.again)):
		t.at, t.lane = it.again, acting // as in put
	case t.over:
		delete(q.items, it.id)
	}
	if q.items[it.id] != nil {
		it.dirty, it.lane = false, t.lane
		q.rest(it, t.at)
	}
	if q.closed || q.free[l] < 0 {
		q.free[l]++
		return nil
	}
	next := q.next(l)
	if next == nil {
		q.free[l]++
	}
	return next
}

// stepAside lets another worker of acting run in place of the caller until the returned function is called.
func (q *queue) stepAside() (comeBack func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free[acting]++
	q.fill(acting)
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.free[acting]--
	}
}

// closing reports whether close was called.
func (q *queue) closing() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

// close makes the queue start nothing any more, and waits for the ids that are being processed.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	if q.alarm != nil {
		q.alarm.Stop()
	}
	q.mu.Unlock()
	q.running.Wait()
}

// byDue is a heap for container/heap.
type byDue []*item

func (d byDue) Len() int           { return len(d) }
func (d byDue) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d byDue) Swap(i, j int)      { d[i], d[j] = d[j], d[i]; d[i].index, d[j].index = i, j }

func (d *byDue) Push(x any) {
	x.(*item).index = len(*d)
	*d = append(*d, x.(*item))
}

func (d *byDue) Pop() any {
	last := len(*d) - 1
	it := (*d)[last]
	(*d)[last] = nil
	*d = slices.Delete(*d, last, last+1)
	return it
}
