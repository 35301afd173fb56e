package slots

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

func TestWhatAnAgentHasWrittenItKnowsAsOthersReadIt(t *testing.T) {
	t.Parallel()
	a := newAgents(t, 1)[0]
	first, second := a.accept(1, "a"), a.accept(1, "b")
	for _, change := range []func(){
		func() { a.enqueue(second, 2) },
		func() { a.take(first) },
		func() { a.change(second, func(r *guard.Record) bool { return r.Announce(ticketOf(second, 2)) }) },
		func() {
			a.append(1, "a", events.Failed, func(op *events.Operation) { op.Attempt = 1 })
			a.take(second)
		},
	} {
		change()
		entry, err := a.bucket.Get(t.Context(), clusterKey(1))
		if err != nil {
			t.Fatal(err)
		}
		read, _, err := decodeKnown[guard.Record](versioned{value: entry.Value()})
		if got := a.Record(1); err != nil || !equalAsWritten(got, read) {
			t.Errorf("got %+v, others read %+v, %v", got, read, err)
		}
	}
}

// equalAsWritten also compares what == tells apart in slots, which are keys of maps.
func equalAsWritten(a, b guard.Record) bool {
	return a.Generation == b.Generation && slices.Equal(a.Active, b.Active) && slices.Equal(a.Queue, b.Queue) &&
		slices.Equal(a.Recent, b.Recent) && maps.Equal(a.Newest, b.Newest) && a.Failures == b.Failures && a.LastFailure == b.LastFailure
}

// TestTheLastSlotIsNeverTakenTwice: nobody gives the slot back. In each round another agent appends the event that ends
// its holder.
func TestTheLastSlotIsNeverTakenTwice(t *testing.T) {
	t.Parallel()
	agents := newAgents(t, 4)
	for round := range 10 {
		var all sync.WaitGroup
		var mu sync.Mutex
		var holder string
		for i := range 16 {
			all.Go(func() {
				a, key := agents[i%len(agents)], fmt.Sprintf("%d-%d", round, i)
				if taken, _ := a.take(a.accept(1, key)); !taken {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if holder != "" {
					t.Errorf("%s and %s both have the only slot", holder, key)
				}
				holder = key
			})
		}
		all.Wait()
		if holder == "" {
			t.Fatal("nobody has the slot")
		}
		agents[round%len(agents)].append(1, holder, events.Cancelled, nil)
		for _, a := range agents {
			a.await("told of the end of "+holder, func() bool { return a.heardOf(1, events.OperationID(holder)) })
		}
	}
}

func TestARecordThatWasDeletedByHandIsMadeAnew(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	for cluster, a := range []*agent{newAgent(t, server), newDeafAgent(t, server)} {
		cluster := int64(cluster + 1)
		for i, forget := range []func(context.Context) error{
			func(ctx context.Context) error { return a.bucket.Delete(ctx, clusterKey(cluster)) },
			func(ctx context.Context) error { return a.bucket.Purge(ctx, clusterKey(cluster)) },
		} {
			a.change(a.accept(cluster, fmt.Sprint("a", i)), func(r *guard.Record) bool { return r.Take(guard.Slot{OperationID: "gone"}) })
			before := a.Version(cluster)
			if err := forget(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := a.read(t.Context(), clusterKey(cluster)); err != nil {
				t.Fatal(err)
			}
			forgotten := a.Version(cluster)
			if forgotten <= before {
				t.Errorf("cluster %d: got version %d after the record was deleted, want one above %d", cluster, forgotten, before)
			}
			op := a.accept(cluster, fmt.Sprint("b", i))
			version := a.change(op, func(r *guard.Record) bool { return r.Take(slotOf(op)) })
			record := a.Record(cluster)
			if len(record.Active) != 1 || record.Active[0].OperationID != op.OperationID {
				t.Errorf("cluster %d: got slots %+v, want the one of %s", cluster, record.Active, op.OperationID)
			}
			if version <= forgotten || version != a.Version(cluster) {
				t.Errorf("cluster %d: got version %d and then %d, want one above %d", cluster, version, a.Version(cluster), forgotten)
			}
			a.append(cluster, fmt.Sprint("b", i), events.Cancelled, nil)
		}
	}
}

func TestWhatIsNoRecordHoldsEverythingBack(t *testing.T) {
	t.Parallel()
	a := newAgents(t, 1)[0]
	op := a.accept(1, "a")
	if _, err := a.streams.Clusters.Put(t.Context(), "1", []byte(`{"actve":[]}`)); err != nil {
		t.Fatal(err)
	}
	a.await("the watch shows the value", func() bool { return a.Version(1) > 0 })
	version, err := a.Update(t.Context(), op, func(record *guard.Record) bool {
		t.Error("a decision rests on a record that cannot be understood")
		return record.Take(slotOf(op))
	})
	if !errors.Is(err, ErrRecord) {
		t.Errorf("got %v, want ErrRecord", err)
	}
	if version != a.Version(1) {
		t.Errorf("got version %d, want %d: the agent decides again and again where they differ", version, a.Version(1))
	}
	// Somebody mends it.
	if _, err := a.streams.Clusters.Put(t.Context(), "1", []byte(`{"generation":1,"active":[]}`)); err != nil {
		t.Fatal(err)
	}
	// The write below meets a conflict before the watch has shown the value, and the error for as long.
	for deadline := time.Now().Add(eventstest.Patience); a.Version(1) == version; {
		if time.Now().After(deadline) {
			t.Fatal("the watch never shows the value")
		}
		if err := a.read(t.Context(), "1"); err != nil {
			t.Fatal(err)
		}
	}
	if taken, _ := a.take(op); !taken {
		t.Error("no slot in a record that was mended")
	}
}

// TestARecordOfTheVersionBeforeIsTakenOver: that version gave slots back by a write; it has left one behind.
func TestARecordOfTheVersionBeforeIsTakenOver(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	a := newDeafAgent(t, server)
	ended, queued := a.accept(1, "ended"), a.accept(1, "queued")
	for _, state := range []events.State{events.Submitting, events.Running} {
		a.append(1, "ended", state, func(op *events.Operation) { op.Attempt = 1 })
	}
	failed, _ := a.append(1, "ended", events.Failed, nil)
	value := fmt.Sprintf(`{"generation":7,
		"active":[{"operation_id":%q,"kind":"stop","server_id":1,"zone":"zone1","since":"2026-11-27T10:00:00Z","steps":1}],
		"queue":[{"operation_id":%q,"kind":"stop","server_id":1,"sequence":9}],
		"recent":[{"operation_id":"older","kind":"restart","server_id":2,"zone":"zone2","since":"2026-11-27T08:00:00Z","at":"2026-11-27T09:00:00Z","succeeded":false}],
		"failures":1,"last_failure":"older",
		"newest":{"1":{"operation_id":%q,"kind":"stop","server_id":1,"sequence":9}}}`, ended.OperationID, queued.OperationID, queued.OperationID)
	if _, err := a.streams.Clusters.Put(t.Context(), "1", []byte(value)); err != nil {
		t.Fatal(err)
	}
	b := newAgent(t, server) // this version
	if taken, _ := b.take(queued); !taken {
		t.Fatal("the slot of an operation that has ended counts as held")
	}
	got := b.Record(1)
	if len(got.Active) != 1 || got.Active[0].OperationID != queued.OperationID || len(got.Queue) != 0 || got.Newest[1].OperationID != queued.OperationID {
		t.Errorf("got %+v, want the slot and the newest request of %s, and nobody queued", got, queued.OperationID)
	}
	if got.Generation <= 7 || got.Failures != 2 || got.LastFailure != ended.OperationID {
		t.Errorf("got generation %d, %d failures, the last of %s, want more than 7, 2 and %s", got.Generation, got.Failures, got.LastFailure, ended.OperationID)
	}
	if len(got.Recent) != 2 || got.Recent[0].OperationID != "older" || got.Recent[1].OperationID != ended.OperationID ||
		!got.Recent[1].At.Equal(failed.EndedAt) || got.Recent[1].Zone != "zone1" {
		t.Errorf("got history %+v, want the older one and then %s", got.Recent, ended.OperationID)
	}
}

// TestRecordsThatAreWrittenTogetherCountEachForItself has two agents write the records of many clusters at once, also into
// a bucket that was made without batches.
func TestRecordsThatAreWrittenTogetherCountEachForItself(t *testing.T) {
	t.Parallel()
	for _, batches := range []bool{true, false} {
		t.Run(fmt.Sprint("batches ", batches), func(t *testing.T) {
			t.Parallel()
			agents := newAgents(t, 2)
			if !batches {
				js := agents[0].js
				stream, err := js.Stream(t.Context(), "KV_"+events.ClusterBucket)
				if err != nil {
					t.Fatal(err)
				}
				config := stream.CachedInfo().Config
				config.AllowAtomicPublish = false
				if _, err := js.UpdateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
			}
			const clusters, writes = 32, 4
			var all sync.WaitGroup
			for n, a := range agents {
				for cluster := int64(1); cluster <= clusters; cluster++ {
					all.Go(func() {
						for i := range writes {
							op := a.accept(cluster, fmt.Sprintf("%d-%d-%d", n, cluster, i))
							a.change(op, func(r *guard.Record) bool { return r.Take(slotOf(op)) })
						}
					})
				}
			}
			all.Wait()
			for cluster := int64(1); cluster <= clusters; cluster++ {
				if err := agents[0].read(t.Context(), clusterKey(cluster)); err != nil {
					t.Fatal(err)
				}
				if record := agents[0].Record(cluster); len(record.Active) != len(agents)*writes || record.Generation != uint64(len(agents)*writes) {
					t.Errorf("cluster %d: %d slots, generation %d, want %d of both", cluster, len(record.Active), record.Generation, len(agents)*writes)
				}
			}
		})
	}
}

func TestTheRecordOfAllClustersIsSharedToo(t *testing.T) {
	t.Parallel()
	agents := newAgents(t, 2)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := agents[i%2].UpdateFleet(t.Context(), func(f *guard.Fleet) bool { return f.Take(fmt.Sprint(i), time.Now()) }); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i, a := range agents {
		if err := a.read(t.Context(), fleetKey); err != nil {
			t.Fatal(err)
		}
		if got := len(a.Fleet().Taken); got != 20 {
			t.Errorf("agent %d: got %d shares, want 20", i, got)
		}
	}
	if got := agents[0].Clusters(); len(got) != 0 {
		t.Errorf("got clusters %v, want none: this is no cluster's record", got)
	}
}

// TestTheVersionIsThatOfWhatTheDecisionSaw: the agent decides again wherever they differ.
func TestTheVersionIsThatOfWhatTheDecisionSaw(t *testing.T) {
	t.Parallel()
	agents := newAgents(t, 2)
	a, b := agents[0], agents[1]
	holder, waits := a.accept(1, "holder"), a.accept(1, "waits")
	same := func(what string, version uint64) {
		t.Helper()
		if got := a.Version(1); got != version {
			t.Errorf("version %d after %s, want %d", got, what, version)
		}
	}
	taken, version := a.take(holder)
	if !taken {
		t.Fatal("slot not taken")
	}
	same("a take", version)
	a.append(1, "holder", events.Submitting, nil)
	same("an event that frees nothing", version)
	version = a.enqueue(waits, 2)
	same("an enqueue", version)
	waits, _ = a.append(1, "waits", events.Waiting, nil)
	same("the event that says so", version)
	if again := a.enqueue(waits, 2); again != version {
		t.Errorf("version %d after nothing was written, want %d", again, version)
	}
	same("nothing was written", version)

	// Another agent's event changes it, also before it is read. Reading it changes it no more than once.
	b.append(1, "holder", events.Cancelled, nil)
	a.await("told of the end", func() bool { return a.heardOf(1, holder.OperationID) })
	if a.Version(1) == version {
		t.Error("the version is the same after another agent's event freed the slot")
	}
	seen := 0
	version = a.change(waits, func(r *guard.Record) bool { seen = len(r.Active); return false })
	if seen != 0 {
		t.Errorf("the decision sees %d slots taken, want none", seen)
	}
	same("a look", version)
	// A decision that saw the record as it was then has another version than the record after somebody's write.
	b.dequeue(waits)
	a.await("told of the dequeue", func() bool { return a.Version(1) != version })
}

// TestAChangeBetweenLookAndWriteChangesTheVersion: the agent that writes may learn of a later record before the answer to
// its own write.
func TestAChangeBetweenLookAndWriteChangesTheVersion(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	a := newDeafAgent(t, server)
	op := a.accept(1, "a")
	version := a.enqueue(op, 1)

	// While the decision looks, a later record comes; it decides to write nothing.
	looked := a.change(op, func(*guard.Record) bool {
		a.learn("1", versioned{value: []byte(`{"generation":5,"active":[]}`), revision: a.known["1"].revision + 1})
		return false
	})
	if looked != version || a.Version(1) == looked {
		t.Errorf("got version %d and then %d, want %d and another: the decision has not seen the later record", looked, a.Version(1), version)
	}
	if err := a.read(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}

	// While it writes, the record of another agent's later write comes.
	a.mu.Lock()
	delete(a.known, "1")
	a.mu.Unlock()
	wrote := a.change(op, func(r *guard.Record) bool {
		if len(r.Queue) == 0 {
			return r.Enqueue(ticketOf(op, 1)) // a conflict: it has been written
		}
		a.mu.Lock()
		own := a.known["1"].revision
		a.mu.Unlock()
		defer a.learn("1", versioned{value: []byte(`{"generation":6,"active":[]}`), revision: own + 2})
		return r.Enqueue(ticketOf(op, 2))
	})
	if a.Version(1) == wrote {
		t.Errorf("got version %d twice, want another: the decision has not seen the later record", wrote)
	}
}

// TestAWatchThatCannotBeginEnds: an agent that knows no record must not stand still in silence.
func TestAWatchThatCannotBeginEnds(t *testing.T) {
	t.Parallel()
	for _, stream := range []string{"KV_" + events.ClusterBucket, events.OperationStream} {
		t.Run(stream, func(t *testing.T) {
			t.Parallel()
			a := newDeafAgent(t, eventstest.Start(t))
			if err := a.js.DeleteStream(t.Context(), stream); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), eventstest.Patience)
			defer cancel()
			if err := a.Watch(ctx, func() { t.Error("ready") }, func(int64) {}); err == nil || ctx.Err() != nil {
				t.Errorf("got error %v (%v), want one at once", err, ctx.Err())
			}
		})
	}
}
