package agent

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// queueModel says when an id is due, in which lane and whether it is woken, and holds the queue to it. It is exact where
// there is a worker for every id, and where nothing is added at the very moment at which an id starts or ends.
type queueModel struct {
	mu     sync.Mutex
	t      *testing.T
	random *rand.Rand
	ids    map[string]*modelled
	ending bool // nothing goes on
	starts int
}

type modelled struct {
	processing bool
	due        time.Time
	from       time.Time // when it began to rest with due, which may have passed then
	lane       lane
	woken      bool
	dirty      bool
	again      time.Time
}

func (m *queueModel) put(id string, at time.Time, woken bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.ids[id]
	switch {
	case x == nil:
		m.ids[id] = &modelled{due: at, from: time.Now(), woken: woken}
		return
	case x.processing:
		if !x.dirty || at.Before(x.again) {
			x.again = at
		}
		x.dirty = true
	case at.Before(x.due):
		x.due, x.from = at, time.Now()
		if !woken {
			x.lane = acting
		}
	}
	x.woken = x.woken || woken
}

func (m *queueModel) requeueProcessing() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.ids {
		if x.processing {
			x.dirty, x.again, x.woken = true, time.Time{}, true
		}
	}
}

// work is the queue's: for a random time, with a random next turn.
func (m *queueModel) work(id string, l lane, woken bool) turn {
	time.Sleep(m.start(id, l, woken))
	return m.end(id)
}

func (m *queueModel) start(id string, l lane, woken bool) (took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.starts++
	x, now := m.ids[id], time.Now()
	switch {
	case x == nil:
		m.t.Errorf("%s is processed, and nobody has added it", id)
		return 0
	case x.processing:
		m.t.Errorf("%s is processed by two workers", id)
		return 0
	}
	want := x.due
	if want.Before(x.from) {
		want = x.from
	}
	if !now.Equal(want) || l != x.lane || woken != x.woken {
		m.t.Errorf("%s is processed %s after it is due, in lane %d, woken %v; want lane %d, woken %v", id, now.Sub(want), l, woken, x.lane, x.woken)
	}
	x.processing, x.woken, x.dirty = true, false, false
	return time.Duration(m.random.IntN(5)) * time.Millisecond
}

func (m *queueModel) end(id string) (t turn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x, now := m.ids[id], time.Now()
	t.lane = lane(m.random.IntN(int(lanes)))
	switch n := m.random.IntN(10); {
	case m.ending || n < 3:
		t = turn{over: true}
	case n < 4: // at once
	default:
		t.at = now.Add(time.Duration(m.random.IntN(20)-2) * time.Millisecond)
	}
	due, next := t.at, t.lane
	switch {
	case x.dirty && (t.over || !due.Before(x.again)):
		due, next = x.again, acting
	case t.over:
		delete(m.ids, id)
		return t
	}
	x.processing, x.due, x.from, x.lane = false, due, now, next
	return t
}

// TestQueueProcessesEachIDWhenItIsDue: never by two workers, never early, never late, whatever is added when. What is
// added while it is processed is processed again. Who is requeued is woken once.
func TestQueueProcessesEachIDWhenItIsDue(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 1))
				m := &queueModel{t: t, ids: map[string]*modelled{}, random: rand.New(rand.NewPCG(seed, 2))}
				q := newQueue(m.work)
				for range 300 {
					time.Sleep(time.Duration(random.IntN(4)) * time.Millisecond)
					synctest.Wait()
					id, at := fmt.Sprint(random.IntN(8)), time.Now().Add(time.Duration(random.IntN(20)-3)*time.Millisecond)
					switch random.IntN(8) {
					case 0:
						m.put(id, time.Time{}, true)
						q.requeue(id)
					case 1:
						m.requeueProcessing()
						q.requeueProcessing()
					case 2, 3:
						m.put(id, time.Time{}, false)
						q.addAt(id, time.Time{})
					default:
						m.put(id, at, false)
						q.addAt(id, at)
					}
				}
				m.mu.Lock()
				m.ending = true
				m.mu.Unlock()
				time.Sleep(time.Minute)
				synctest.Wait()
				if len(m.ids) > 0 || len(q.items) > 0 {
					t.Errorf("%d ids were never processed, %d are in the queue, want none", len(m.ids), len(q.items))
				}
				if m.starts < 100 {
					t.Errorf("only %d ids were processed: the test tests nothing", m.starts)
				}
				q.close()
			})
		})
	}
}

// TestQueueLosesNothingThatIsAddedAtAnyMoment adds from many goroutines, at the moments at which ids start and end too.
func TestQueueLosesNothingThatIsAddedAtAnyMoment(t *testing.T) {
	t.Parallel()
	type counts struct{ busy, added, woken, seen, seenWoken atomic.Int64 }
	ids := map[string]*counts{}
	for i := range 8 {
		ids[fmt.Sprint(i)] = &counts{}
	}
	progress := make(chan struct{}, 1)
	q := newQueue(func(id string, l lane, woken bool) turn {
		c := ids[id]
		if c.busy.Add(1) > 1 {
			t.Errorf("%s is processed by two workers", id)
		}
		defer c.busy.Add(-1)
		c.seen.Store(c.added.Load())
		if woken {
			c.seenWoken.Store(c.woken.Load())
		}
		select {
		case progress <- struct{}{}:
		default:
		}
		if n := rand.IntN(4); n > 0 {
			return turn{at: time.Now().Add(time.Duration(n-2) * 100 * time.Microsecond), lane: lane(n % 2)}
		}
		return turn{over: true}
	})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5000 {
				id := fmt.Sprint(rand.IntN(len(ids)))
				switch c := ids[id]; rand.IntN(3) {
				case 0:
					c.added.Add(1)
					q.addAt(id, time.Time{})
				case 1:
					c.added.Add(1)
					q.addAt(id, time.Now().Add(time.Duration(rand.IntN(200))*time.Microsecond))
				default:
					c.woken.Add(1)
					q.requeue(id)
				}
			}
		})
	}
	all.Wait()
	settled := func() bool {
		for _, c := range ids {
			if c.seen.Load() != c.added.Load() || c.seenWoken.Load() != c.woken.Load() {
				return false
			}
		}
		return true
	}
	for deadline := time.After(30 * time.Second); !settled(); {
		select {
		case <-progress:
		case <-deadline:
			t.Fatal("an id that was added is never processed again")
		}
	}
	q.close()
}

// gate lets the workers of a queue begin, and end one by one.
type gate struct {
	mu      sync.Mutex
	begun   []string
	at      map[string]chan turn
	running [lanes]int
}

func newGate() *gate { return &gate{at: map[string]chan turn{}} }

func (g *gate) work(id string, l lane, _ bool) turn {
	ended := make(chan turn)
	g.mu.Lock()
	g.begun = append(g.begun, id)
	g.at[id] = ended
	g.running[l]++
	g.mu.Unlock()
	t := <-ended
	g.mu.Lock()
	g.running[l]--
	g.mu.Unlock()
	return t
}

// end ends the work on an id, and returns the ids that are begun then.
func (g *gate) end(id string, t turn) []string {
	g.mu.Lock()
	before, ended := len(g.begun), g.at[id]
	delete(g.at, id)
	g.mu.Unlock()
	ended <- t
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.begun[before:])
}

func (g *gate) endAll() {
	for {
		synctest.Wait()
		if len(g.at) == 0 {
			return
		}
		for id := range g.at {
			g.end(id, turn{over: true})
			break
		}
	}
}

func numbered(from, to int) (ids []string) {
	for i := from; i < to; i++ {
		ids = append(ids, fmt.Sprintf("%04d", i))
	}
	return ids
}

func TestQueueServesWhoComesFirstWithinItsWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		q := newQueue(g.work)
		ids := numbered(0, 2*maxWorkers+10)
		for _, id := range ids {
			q.addAt(id, time.Time{})
		}
		synctest.Wait()
		if g.running != [lanes]int{acting: maxWorkers} {
			t.Fatalf("got %v workers, want %d in acting", g.running, maxWorkers)
		}
		begun := slices.Sorted(slices.Values(g.begun)) // they start together
		if !slices.Equal(begun, ids[:maxWorkers]) {
			t.Errorf("the first workers have %v, want the first that came", begun)
		}
		// Each worker that is free takes the next one. An id that goes on at once, or is dirty, stands at the end.
		first := ids[0]
		q.requeue(ids[1])
		if got := g.end(ids[1], turn{over: true}); !slices.Equal(got, []string{ids[maxWorkers]}) {
			t.Errorf("got %v, want %s", got, ids[maxWorkers])
		}
		if got := g.end(first, turn{}); !slices.Equal(got, []string{ids[maxWorkers+1]}) {
			t.Errorf("got %v, want %s", got, ids[maxWorkers+1])
		}
		// The other lane has workers of its own, as many.
		next := maxWorkers + 2
		for i := 2; i < maxWorkers; i++ {
			want := []string{ids[i], ids[next]}
			if got := g.end(ids[i], turn{lane: looking}); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
				t.Errorf("got %v, want %v: one of each lane", got, want)
			}
			next++
		}
		if g.running != [lanes]int{acting: maxWorkers, looking: maxWorkers - 2} {
			t.Errorf("got %v workers, want %d and %d", g.running, maxWorkers, maxWorkers-2)
		}
		// Who is left in acting, and then those who came back.
		var rest []string
		for i := maxWorkers; i < next; i++ {
			rest = append(rest, g.end(ids[i], turn{lane: looking})...)
		}
		if g.running[looking] != maxWorkers {
			t.Errorf("got %d workers in looking, want %d", g.running[looking], maxWorkers)
		}
		var left []string
		for _, id := range rest {
			if id >= ids[next] || id <= ids[1] {
				left = append(left, id)
			}
		}
		if want := append(slices.Clone(ids[next:]), ids[1], first); !slices.Equal(left, want) {
			t.Errorf("got %v, want %v", left, want)
		}
		g.endAll()
		if len(q.items) > 0 || q.free != [lanes]int{maxWorkers, maxWorkers} {
			t.Errorf("%d ids are left, %v workers are free, want none and all", len(q.items), q.free)
		}
		q.close()
	})
}

// TestQueueLetsOthersInWhileAWorkerStepsAside: and none more once it is back, until others have ended.
func TestQueueLetsOthersInWhileAWorkerStepsAside(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const aside = 20
		g := newGate()
		q := newQueue(g.work)
		ids := numbered(0, maxWorkers+2*aside)
		for _, id := range ids {
			q.addAt(id, time.Time{})
		}
		synctest.Wait()
		workers := func(want int) {
			t.Helper()
			if synctest.Wait(); g.running[acting] != want {
				t.Fatalf("got %d workers, want %d", g.running[acting], want)
			}
		}
		workers(maxWorkers)
		var comeBack []func()
		for i := range aside {
			comeBack = append(comeBack, q.stepAside())
			workers(maxWorkers + i + 1)
		}
		for _, back := range comeBack {
			back()
		}
		workers(maxWorkers + aside)
		for i := range aside {
			if got := g.end(ids[i], turn{over: true}); len(got) > 0 {
				t.Fatalf("%v begins while there are more workers than there may be", got)
			}
		}
		workers(maxWorkers)
		for i := aside; i < 2*aside; i++ {
			if got, want := g.end(ids[i], turn{over: true}), []string{ids[maxWorkers+i]}; !slices.Equal(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
		workers(maxWorkers)
		// With nobody ready it changes nothing.
		back := q.stepAside()
		workers(maxWorkers)
		q.addAt("one more", time.Time{})
		workers(maxWorkers + 1)
		back()
		g.endAll()
		if q.free != [lanes]int{maxWorkers, maxWorkers} {
			t.Errorf("%v workers are free, want all", q.free)
		}
		q.close()
	})
}

func TestAClosedQueueEndsItsWorkersAndStartsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		q := newQueue(g.work)
		ids := numbered(0, maxWorkers+2) // two are ready and have no worker
		for _, id := range ids {
			q.addAt(id, time.Time{})
		}
		q.addAt("later", time.Now().Add(time.Second))
		synctest.Wait()
		if q.closing() {
			t.Error("closing before anybody has closed it")
		}
		closed := make(chan struct{})
		go func() { q.close(); close(closed) }()
		synctest.Wait()
		if !q.closing() {
			t.Error("not closing")
		}
		q.addAt("after the close", time.Time{})
		q.requeue(ids[0])
		q.stepAside()()
		time.Sleep(time.Minute)
		for i := range maxWorkers {
			select {
			case <-closed:
				t.Fatalf("closed while %d workers work", maxWorkers-i)
			default:
			}
			if got := g.end(ids[i], turn{at: time.Now().Add(time.Duration(i%3) * time.Second)}); len(got) > 0 {
				t.Errorf("%v begins after the close", got)
			}
		}
		synctest.Wait()
		select {
		case <-closed:
		default:
			t.Error("not closed although no worker works")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := len(g.begun); got != maxWorkers {
			t.Errorf("%d begun, want the %d from before the close", got, maxWorkers)
		}
	})
}

func TestAnEmptyQueueCloses(t *testing.T) {
	t.Parallel()
	q := newQueue(func(string, lane, bool) turn { return turn{over: true} })
	q.close()
	q.addAt("a", time.Time{})
	q.close()
}

func TestMailDoesNotWaitForAPlaceToLook(t *testing.T) {
	t.Parallel()
	hold, did := make(chan struct{}), make(chan lane, 10)
	q := newQueue(nil)
	q.work = func(id string, l lane, _ bool) turn {
		if id != "mail" {
			<-hold
			return turn{over: true}
		}
		select {
		case did <- l:
		default:
		}
		return turn{at: time.Now().Add(time.Hour), lane: looking}
	}
	q.addAt("mail", time.Time{})
	<-did
	eventually(t, "it rests", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.items["mail"].state == resting
	})
	q.mu.Lock()
	for i := range maxWorkers { // every place to look is taken
		it := &item{id: fmt.Sprint(i), lane: looking}
		q.items[it.id] = it
		q.rest(it, time.Time{})
	}
	q.mu.Unlock()
	q.addAt("mail", time.Time{})
	select {
	case <-did:
	case <-time.After(2 * time.Second):
		t.Error("mail waits for a place to look")
	}
	close(hold)
	q.close()
}
