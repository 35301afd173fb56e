package agent

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// TestRosterKeepsItsIndexesByWhatIsPublished compares them with a look at every operation.
func TestRosterKeepsItsIndexesByWhatIsPublished(t *testing.T) {
	t.Parallel()
	start := time.Now()
	states := append(events.States(), "") // "" is that of an operation that this agent does not hold
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 3))
		r := newRoster()
		last := map[string]summary{}
		for step := range 500 {
			id := fmt.Sprint(random.IntN(30))
			h := r.get(id)
			if h == nil {
				r.deliver(id, delivery{}, start)
				h = r.get(id)
				r.takeMail(h, start)
			}
			s := summary{}
			if state := states[random.IntN(len(states))]; state != "" {
				s = summary{
					state: state, kind: events.Kinds()[random.IntN(3)], cluster: int64(1 + random.IntN(3)),
					sequence: random.Uint64(), arrived: at(start, random), progressed: at(start, random),
					queued: random.IntN(2) == 0, stalled: random.IntN(4) == 0, needsOCP: random.IntN(4) == 0,
				}
				if state == events.Waiting {
					s.reason = []string{events.CodePaused, events.CodeOCPUnreachable}[random.IntN(2)]
				}
			}
			if before := r.publish(h, s); before.state != last[id].state || before.sequence != last[id].sequence {
				t.Fatalf("seed %d, step %d: got %+v as it was before, want %+v", seed, step, before, last[id])
			}
			last[id] = s
			if s.state == "" { // as a worker does once it does not hold the operation any more
				if _, over := r.rest(h, false, time.Time{}, start); !over {
					t.Fatalf("seed %d, step %d: the operation is kept", seed, step)
				}
				delete(last, id)
			}
			if !rosterIs(t, r, last, start.Add(time.Hour)) {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

func at(start time.Time, random *rand.Rand) time.Time {
	return start.Add(time.Duration(random.IntN(1000)) * time.Second)
}

// rosterIs compares all that the roster answers with what follows from the summaries.
func rosterIs(t *testing.T, r *roster, all map[string]summary, now time.Time) bool {
	t.Helper()
	counts, queued, waiting, needOCP := map[metrics.Group]int{}, map[int64][]string{}, []string{}, []string{}
	var progressed, arrived time.Time
	for id, s := range all {
		if !s.state.Final() {
			counts[metrics.Group{Kind: s.kind, State: s.state, Cluster: s.cluster, Reason: s.reason, Stalled: s.stalled}]++
		}
		if s.state == events.Waiting {
			arrived = earlier(arrived, s.arrived)
		} else if !s.state.Final() {
			progressed = earlier(progressed, s.progressed)
		}
		if s.state == events.Accepted || s.state == events.Waiting {
			waiting = append(waiting, id)
			if s.queued {
				queued[s.cluster] = append(queued[s.cluster], id)
			}
		}
		if s.needsOCP {
			needOCP = append(needOCP, id)
		}
	}
	age := func(since time.Time) time.Duration {
		if since.IsZero() {
			return 0
		}
		return now.Sub(since)
	}
	ok := true
	check := func(same bool, format string, args ...any) {
		t.Helper()
		if !same {
			t.Errorf(format, args...)
			ok = false
		}
	}
	got := r.counted()
	check(maps.Equal(got, counts), "got counts %v, want %v", got, counts)
	progress, wait := r.oldest(now)
	check(progress == age(progressed) && wait == age(arrived), "got oldest progress %s and wait %s, want %s and %s", progress, wait, age(progressed), age(arrived))
	for cluster := int64(1); cluster <= 3; cluster++ {
		want := queued[cluster]
		slices.SortFunc(want, func(x, y string) int {
			if all[x].sequence < all[y].sequence {
				return -1
			}
			return 1
		})
		for _, n := range []int{2, 100} {
			got := r.queued(cluster, n)
			check(slices.Equal(got, want[:min(n, len(want))]), "got %v of cluster %d queued, want the first %d of %v", got, cluster, n, want)
		}
	}
	woken := r.waiting(func(summary) bool { return true })
	check(sameIDs(woken, waiting), "got %v waiting, want %v", woken, waiting)
	paused := r.waiting(summary.waitsForResume)
	check(sameIDs(paused, slices.DeleteFunc(waiting, func(id string) bool { return all[id].reason != events.CodePaused })), "got %v held back", paused)
	blocked := r.needOCP(100)
	check(sameIDs(blocked, needOCP), "got %v that need OCP, want %v", blocked, needOCP)
	check(len(r.needOCP(1)) == min(1, len(needOCP)), "got %v, want one that needs OCP", r.needOCP(1))
	check(len(r.all) == len(all), "got %d operations, want %d", len(r.all), len(all))
	return ok
}

func sameIDs(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// inboxOf is what has come for an operation and was not taken.
func inboxOf(mail []delivery) (replies []string) {
	for _, d := range mail {
		replies = append(replies, d.ack.reply)
	}
	return replies
}

func mailOf(reply string) delivery { return delivery{ack: ack{conn: &nats.Conn{}, reply: reply}} }

// TestDuplicatesAreOnlyCollectedForATime: then, or once there are many, or something else comes, all are taken in the
// order in which they came.
func TestDuplicatesAreOnlyCollectedForATime(t *testing.T) {
	t.Parallel()
	now := time.Now()
	until := now.Add(duplicatesEvery)
	order, again := mailOf("last"), mailOf("last")
	order.order, again.again = &operation.Ordered{}, true
	for _, test := range []struct {
		name string
		n    int
		last delivery
		now  time.Time
		at   time.Time // when it is to be looked at
	}{
		{"one", 0, mailOf("last"), now, until},
		{"as many as are kept", duplicatesKept - 1, mailOf("last"), now, until},
		{"more", duplicatesKept, mailOf("last"), now, time.Time{}},
		{"an order", 1, order, now, time.Time{}},
		{"a message that was delivered before", 1, again, now, time.Time{}},
		{"the time has passed", 1, mailOf("last"), until, time.Time{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRoster()
			if at, _ := r.deliver("a", mailOf("first"), now); !at.IsZero() {
				t.Errorf("the first message is looked at %s, want at once", at)
			}
			h := r.get("a")
			if got := inboxOf(r.takeMail(h, now)); !slices.Equal(got, []string{"first"}) {
				t.Errorf("got mail %v, want the first message", got)
			}
			r.collect(h, until)
			var want []string
			for i := range test.n {
				want = append(want, fmt.Sprint(i))
				if at, _ := r.deliver("a", mailOf(fmt.Sprint(i)), now); !at.Equal(until) {
					t.Errorf("message %d is looked at %s, want %s", i, at, until)
				}
			}
			want = append(want, "last")
			if at, _ := r.deliver("a", test.last, test.now); !at.Equal(test.at) {
				t.Errorf("looked at %s, want %s", at, test.at)
			}
			if collecting := !test.at.IsZero(); r.hasMail(h, test.now) == collecting {
				t.Errorf("has mail: %v, want %v", !collecting, collecting)
			} else if collecting {
				if got := r.takeMail(h, test.now); len(got) > 0 {
					t.Errorf("got mail %v while it is only collected", inboxOf(got))
				}
				if at, over := r.rest(h, true, until.Add(time.Minute), test.now); over || !at.Equal(until) {
					t.Errorf("rests until %s (over: %v), want %s", at, over, until)
				}
				if at, over := r.rest(h, true, now.Add(time.Millisecond), test.now); over || !at.Equal(now.Add(time.Millisecond)) {
					t.Errorf("rests until %s (over: %v), want until its plan is due", at, over)
				}
			}
			if got := inboxOf(r.takeMail(h, until)); !slices.Equal(got, want) {
				t.Errorf("got mail %v, want %v", got, want)
			}
			if r.hasMail(h, until) || len(r.takeMail(h, until)) > 0 {
				t.Error("there is mail after all was taken")
			}
		})
	}
}

// TestAnOperationIsForgottenOnceNobodyNeedsIt, and no earlier.
func TestAnOperationIsForgottenOnceNobodyNeedsIt(t *testing.T) {
	t.Parallel()
	now := time.Now()
	due, until := now.Add(time.Minute), now.Add(duplicatesEvery)
	for _, test := range []struct {
		name       string
		owned      bool
		mail       bool
		collecting time.Time
		at         time.Time
		over       bool
	}{
		{"held", true, false, time.Time{}, due, false},
		{"held, duplicates may come", true, false, until, due, false},
		{"held, with mail", true, true, time.Time{}, time.Time{}, false},
		{"held, with duplicates", true, true, until, until, false},
		{"another agent's", false, false, time.Time{}, time.Time{}, true},
		{"another agent's, duplicates may come", false, false, until, until, false},
		{"another agent's, duplicates may have come", false, false, now, time.Time{}, true},
		{"another agent's, with mail", false, true, time.Time{}, time.Time{}, false},
		{"another agent's, with duplicates", false, true, until, until, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRoster()
			r.deliver("a", mailOf("1"), now)
			h := r.get("a")
			if !test.mail {
				r.takeMail(h, now)
			}
			r.collect(h, test.collecting)
			if at, over := r.rest(h, test.owned, due, now); !at.Equal(test.at) || over != test.over {
				t.Errorf("goes on at %s, over %v; want %s, %v", at, over, test.at, test.over)
			}
			if kept := r.get("a") == h; kept == test.over {
				t.Errorf("kept: %v, want %v", kept, !test.over)
			}
		})
	}
}

// TestMailThatIsPutBackComesFirst: it came first.
func TestMailThatIsPutBackComesFirst(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := newRoster()
	r.deliver("a", mailOf("1"), now)
	r.deliver("a", mailOf("2"), now)
	h := r.get("a")
	mail := r.takeMail(h, now)
	r.deliver("a", mailOf("3"), now)
	r.returnMail(h, mail[1:])
	if got := len(r.requests()); got != 2 {
		t.Errorf("got %d acknowledgements that are due, want 2", got)
	}
	if got := inboxOf(r.takeMail(h, now)); !slices.Equal(got, []string{"2", "3"}) {
		t.Errorf("got mail %v, want 2 and 3", got)
	}
}

// TestAMessageIsNeverLostWhileItsOperationIsForgotten delivers as an agent does, while a worker forgets the operation
// whenever it may.
func TestAMessageIsNeverLostWhileItsOperationIsForgotten(t *testing.T) {
	t.Parallel()
	const senders, messages, ids = 8, 4000, 4
	r := newRoster()
	taken, all := make(chan string, senders*messages), map[string]bool{}
	q := newQueue(nil)
	q.work = func(id string, _ lane, _ bool) turn {
		h := r.get(id)
		if h == nil {
			return turn{over: true}
		}
		now := time.Now()
		for _, d := range r.takeMail(h, now) {
			taken <- d.ack.reply
		}
		if rand.IntN(3) == 0 {
			r.collect(h, now.Add(50*time.Microsecond))
		}
		at, over := r.rest(h, false, time.Time{}, now)
		return turn{at: at, over: over}
	}
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for i := range messages {
				id := fmt.Sprint(rand.IntN(ids))
				at, _ := r.deliver(id, mailOf(fmt.Sprint(s, ".", i)), time.Now())
				q.addAt(id, at)
			}
		})
	}
	deadline := time.After(30 * time.Second)
	for range senders * messages {
		select {
		case reply := <-taken:
			if all[reply] {
				t.Errorf("message %s was taken twice", reply)
			}
			all[reply] = true
		case <-deadline:
			t.Fatalf("%d of %d messages were taken", len(all), senders*messages)
		}
	}
	sending.Wait()
	q.close()
}

// Messages come while the agent shuts down: each is in an inbox then and handed back from there, or refused.
func TestAMessageThatComesWhileTheRosterClosesIsHandedBack(t *testing.T) {
	t.Parallel()
	const senders, each = 8, 2000
	r, refused := newRoster(), atomic.Int64{}
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for i := range each {
				if _, ok := r.deliver(fmt.Sprint(s, ".", i), delivery{}, time.Now()); !ok {
					refused.Add(1)
				}
			}
		})
	}
	eventually(t, "some have come", func() bool { return len(r.requests()) > 100 })
	kept := len(r.close())
	sending.Wait()
	if all := kept + int(refused.Load()); all != senders*each {
		t.Errorf("%d of %d messages are handed back", all, senders*each)
	}
}
