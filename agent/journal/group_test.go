package journal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
)

// nextOf is next for the operation of a key.
func nextOf(after Entry, key, agent string, n int) []events.Event {
	op := after.Operation
	op.OperationID, op.Kind, op.ClusterID, op.ServerID = events.OperationID(key), events.Stop, 1, 2
	var appended []events.Event
	for range n {
		op.Schema, op.N, op.Steps, op.State = events.OperationSchema, op.N+1, op.Steps+1, events.Waiting
		op.Agent, op.UpdatedAt = agent, time.Now().UTC()
		appended = append(appended, events.Event{Operation: op, Token: events.Waiting})
	}
	return appended
}

// TestAppendsOfManyOperationsGoTogetherAndEachCountsForItself has many append at once.
// Every eighth writes behind somebody else's back and must fail, and no other.
func TestAppendsOfManyOperationsGoTogetherAndEachCountsForItself(t *testing.T) {
	t.Parallel()
	for _, batches := range []bool{true, false} {
		t.Run(fmt.Sprint("batches ", batches), func(t *testing.T) {
			t.Parallel()
			js, j, _ := newJournal(t)
			if !batches {
				config := j.stream.CachedInfo().Config
				config.AllowAtomicPublish = false
				if _, err := js.UpdateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
			}
			const operations, rounds, late = 64, 5, 8
			var all sync.WaitGroup
			for i := range operations {
				all.Go(func() {
					key := fmt.Sprint("k", i)
					last := Entry{}
					for round := range rounds {
						after := last
						if i%late == 0 && round == rounds-1 {
							after.Sequence-- // as if another had written since
						}
						entry, err := j.Append(t.Context(), after, nextOf(after, key, "a", 1+i%3))
						if i%late == 0 && round == rounds-1 {
							if !errors.Is(err, ErrConflict) {
								t.Errorf("%s: %v, want ErrConflict", key, err)
							}
							return
						}
						if err != nil {
							t.Errorf("%s: %v", key, err)
							return
						}
						last = entry
					}
				})
			}
			all.Wait()
			for i := range operations {
				want := rounds * (1 + i%3)
				if i%late == 0 {
					want = (rounds - 1) * (1 + i%3)
				}
				last, err := j.Last(t.Context(), events.OperationID(fmt.Sprint("k", i)))
				if err != nil || last.Operation.N != want {
					t.Errorf("operation %d is at n %d (%v), want %d", i, last.Operation.N, err, want)
				}
			}
		})
	}
}

// TestTheSequenceOfAnAppendIsItsOwn: the next one of the operation rests on it.
func TestTheSequenceOfAnAppendIsItsOwn(t *testing.T) {
	t.Parallel()
	_, j, conflicts := newJournal(t)
	entries := make([]Entry, 40)
	for range 3 {
		var all sync.WaitGroup
		for i := range entries {
			all.Go(func() {
				var err error
				if entries[i], err = j.Append(t.Context(), entries[i], nextOf(entries[i], fmt.Sprint("k", i), "a", 1)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	for i, entry := range entries {
		last, err := j.Last(t.Context(), events.OperationID(fmt.Sprint("k", i)))
		if err != nil || last.Sequence != entry.Sequence {
			t.Errorf("operation %d: sequence %d, journal says %d (%v)", i, entry.Sequence, last.Sequence, err)
		}
	}
	if n := conflicts(); n > 0 {
		t.Errorf("%d conflicts without anybody in the way", n)
	}
}

// TestACallerThatGivesUpDelaysNoOtherAppend cancels one of the callers that wait.
func TestACallerThatGivesUpDelaysNoOtherAppend(t *testing.T) {
	t.Parallel()
	_, j, _ := newJournal(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			ctx := t.Context()
			if i%4 == 0 {
				ctx = gone
			}
			_, err := j.Append(ctx, Entry{}, nextOf(Entry{}, fmt.Sprint("k", i), "a", 1))
			if i%4 != 0 && err != nil {
				t.Errorf("operation %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

// BenchmarkAppend is one append each of so many operations at a time, beside the
// same without group commit: each publishes for itself.
func BenchmarkAppend(b *testing.B) {
	for _, operations := range []int{1, 4, 8, 16, 64} {
		b.Run(fmt.Sprint(operations), func(b *testing.B) {
			js, j, _ := newJournal(b)
			apart := func(ctx context.Context, after Entry, appended []events.Event) (Entry, error) {
				msg, err := appended[0].Message()
				if err != nil {
					return Entry{}, err
				}
				ack, err := js.PublishMsg(ctx, msg, jetstream.WithExpectLastSequenceForSubject(after.Sequence, events.OperationSubjects(appended[0].OperationID)))
				if err != nil {
					return Entry{}, err
				}
				return Entry{Operation: appended[0].Operation, Sequence: ack.Sequence}, nil
			}
			took := map[bool]time.Duration{}
			const slices = 10 // of each in turn
			for slice := range 2 * slices {
				grouped := slice%2 == 0
				began := time.Now()
				var all sync.WaitGroup
				for i := range operations {
					all.Go(func() {
						last, append := Entry{}, apart
						if grouped {
							append = j.Append
						}
						for range max(1, b.N/operations/slices) {
							var err error
							if last, err = append(b.Context(), last, nextOf(last, fmt.Sprint("k", i, ".", slice, ".", b.N), "a", 1)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
				took[grouped] += time.Since(began)
			}
			b.ReportMetric(float64(b.N)/took[true].Seconds(), "appends/s")
			b.ReportMetric(float64(took[false])/float64(took[true]), "times-apart")
		})
	}
}
