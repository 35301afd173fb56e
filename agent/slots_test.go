package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
)

// newSlotsTest returns the slots of as many agents on one bucket.
func newSlotsTest(t *testing.T, agents int) []*slots {
	t.Helper()
	r, _, _ := newJournal(t)
	bucket, err := r.js.KeyValue(t.Context(), events.ClusterBucket)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]*slots, agents)
	for i := range all {
		all[i] = newSlots(r.js, bucket, slog.New(slog.DiscardHandler))
		ready := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- all[i].watch(ctx, sync.OnceFunc(func() { close(ready) }), func(int64) {})
		}()
		<-ready
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	return all
}

// take takes a slot if nobody else has it.
func take(ctx context.Context, s *slots, id string) (taken bool, err error) {
	err = s.update(ctx, 1, func(record *guard.Record) bool {
		taken = len(record.Active) == 0
		return taken && record.Take(guard.Slot{OperationID: id, ServerID: 1, Since: time.Now().UTC()})
	})
	return taken, err
}

func TestWhatAnAgentHasWrittenItKnowsAsOthersReadIt(t *testing.T) {
	t.Parallel()
	s := newSlotsTest(t, 1)[0]
	for _, change := range []func(*guard.Record) bool{
		func(r *guard.Record) bool { return r.Enqueue(guard.Ticket{OperationID: "b", ServerID: 2, Sequence: 2}) },
		func(r *guard.Record) bool {
			return r.Take(guard.Slot{OperationID: "a", ServerID: 1, Since: time.Now().UTC()})
		},
		func(r *guard.Record) bool {
			return r.Announce(guard.Ticket{OperationID: "b", ServerID: 2, Sequence: 2})
		},
		func(r *guard.Record) bool {
			return r.Give(events.Operation{OperationID: "a", Attempt: 1, State: events.Succeeded, Steps: 9}, 0, time.Now())
		},
	} {
		if err := s.update(t.Context(), 1, change); err != nil {
			t.Fatal(err)
		}
		entry, err := s.bucket.Get(t.Context(), clusterKey(1))
		if err != nil {
			t.Fatal(err)
		}
		read, _, err := decodeKnown[guard.Record](versioned{value: entry.Value()})
		if got := s.record(1); err != nil || !equalAsWritten(got, read) {
			t.Errorf("got %+v, others read %+v, %v", got, read, err)
		}
	}
}

// equalAsWritten also compares what == tells apart in slots, which are keys of maps.
func equalAsWritten(a, b guard.Record) bool {
	return a.Generation == b.Generation && slices.Equal(a.Active, b.Active) && slices.Equal(a.Queue, b.Queue) &&
		slices.Equal(a.Recent, b.Recent) && maps.Equal(a.Newest, b.Newest)
}

func TestTheLastSlotIsNeverTakenTwice(t *testing.T) {
	t.Parallel()
	agents := newSlotsTest(t, 4)
	for round := range 10 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var holder string
		for i := range 16 {
			wg.Go(func() {
				id := fmt.Sprintf("%d-%d", round, i)
				taken, err := take(t.Context(), agents[i%len(agents)], id)
				if err != nil {
					t.Error(err)
				}
				if !taken {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if holder != "" {
					t.Errorf("%s and %s both have the only slot", holder, id)
				}
				holder = id
			})
		}
		wg.Wait()
		if holder == "" {
			t.Fatal("nobody has the slot")
		}
		// Whoever gives it back may know less than who took it.
		if err := agents[round%len(agents)].updateSurely(t.Context(), 1, func(record *guard.Record) bool {
			return record.Give(events.Operation{OperationID: holder, Steps: 1, State: events.Cancelled}, 0, time.Now())
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// Those that wait in the same agent must hear of its own writes too, whichever comes
// first: the answer to the write or the watch.
func TestWhoWaitsIsToldOfEverySlotThatComesFree(t *testing.T) {
	t.Parallel()
	r, _, _ := newJournal(t)
	bucket, err := r.js.KeyValue(t.Context(), events.ClusterBucket)
	if err != nil {
		t.Fatal(err)
	}
	s := newSlots(r.js, bucket, slog.New(slog.DiscardHandler))
	ready, told, done := make(chan struct{}), make(chan int64, 1000), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- s.watch(ctx, sync.OnceFunc(func() { close(ready) }), func(cluster int64) { told <- cluster })
	}()
	<-ready
	await := func(what string) {
		select {
		case <-told:
		case <-time.After(testPatience):
			t.Fatal("nobody is told of a slot that was", what)
		}
	}
	for i := range 50 {
		id := fmt.Sprint(i)
		if taken, err := take(t.Context(), s, id); err != nil || !taken {
			t.Fatalf("slot not taken: %v, %v", taken, err)
		}
		await("taken")
		if err := s.update(t.Context(), 1, func(record *guard.Record) bool {
			return record.Give(events.Operation{OperationID: id, Steps: 1, State: events.Cancelled}, 0, time.Now())
		}); err != nil {
			t.Fatal(err)
		}
		await("given back")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestARecordThatWasDeletedByHandIsMadeAnew(t *testing.T) {
	t.Parallel()
	s := newSlotsTest(t, 1)[0]
	for _, forget := range []func(context.Context) error{
		func(ctx context.Context) error { return s.bucket.Delete(ctx, "1") },
		func(ctx context.Context) error { return s.bucket.Purge(ctx, "1") },
	} {
		if _, err := take(t.Context(), s, "a"); err != nil {
			t.Fatal(err)
		}
		if err := forget(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), testPatience)
		defer cancel()
		if err := s.update(ctx, 1, func(record *guard.Record) bool {
			return record.Take(guard.Slot{OperationID: "b"})
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsNoRecordHoldsEverythingBack(t *testing.T) {
	t.Parallel()
	s := newSlotsTest(t, 1)[0]
	if _, err := s.bucket.Put(t.Context(), "1", []byte(`{"actve":[]}`)); err != nil {
		t.Fatal(err)
	}
	seen := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.known["1"].revision > 0
	}
	for !seen() { // until the watch has seen it
		select {
		case <-t.Context().Done():
			t.Fatal("never seen")
		case <-time.After(time.Millisecond):
		}
	}
	if taken, err := take(t.Context(), s, "a"); err == nil || taken {
		t.Errorf("took a slot (%v, %v) in a record that cannot be understood", taken, err)
	}
}

// TestRecordsThatAreWrittenTogetherCountEachForItself has two agents write the records of
// many clusters at once, also into a bucket that was made without batches.
func TestRecordsThatAreWrittenTogetherCountEachForItself(t *testing.T) {
	t.Parallel()
	for _, batches := range []bool{true, false} {
		t.Run(fmt.Sprint("batches ", batches), func(t *testing.T) {
			t.Parallel()
			agents := newSlotsTest(t, 2)
			if !batches {
				js := agents[0].group.js
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
			for _, s := range agents {
				for cluster := range int64(clusters) {
					all.Go(func() {
						for i := range writes {
							if err := s.update(t.Context(), cluster, func(record *guard.Record) bool {
								return record.Take(guard.Slot{OperationID: fmt.Sprintf("%p-%d", s, i), ServerID: 1})
							}); err != nil {
								t.Error(err)
							}
						}
					})
				}
			}
			all.Wait()
			for cluster := range int64(clusters) {
				if _, err := agents[0].read(t.Context(), clusterKey(cluster)); err != nil {
					t.Fatal(err)
				}
				if record := agents[0].record(cluster); len(record.Active) != len(agents)*writes || record.Generation != uint64(len(agents)*writes) {
					t.Errorf("cluster %d: %d slots, generation %d, want %d of both", cluster, len(record.Active), record.Generation, len(agents)*writes)
				}
			}
		})
	}
}
