package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, eventstest.IgnoreServer()...) }

// newJournal returns an empty journal on a NATS server of its own, and the number of its conflicts.
func newJournal(t testing.TB) (jetstream.JetStream, *Journal, func() int64) {
	t.Helper()
	server := eventstest.Start(t)
	var conflicts atomic.Int64
	stream := server.Streams(eventstest.Options()).Operations
	return server.JetStream(), New(stream, NewGroupCommit(server.JetStream()), slog.New(slog.DiscardHandler), Counters{
		Appended: func(time.Duration) {},
		Conflict: func() { conflicts.Add(1) },
		Failed:   func() {},
	}), conflicts.Load
}

// next makes the next n events of an operation, each by the agent named.
func next(after Entry, agent string, n int) []events.Event { return nextOf(after, "k", agent, n) }

func TestOfTwoAgentsOnlyOneCanAppend(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3, batchFrom, 3 * batchFrom} {
		t.Run(fmt.Sprint(size, " events"), func(t *testing.T) {
			t.Parallel()
			_, j, conflicts := newJournal(t)
			start, err := j.Append(t.Context(), Entry{}, next(Entry{}, "a", 1))
			if err != nil {
				t.Fatal(err)
			}
			after, err := j.Append(t.Context(), start, next(start, "a", size))
			if err != nil || after.Operation.N != 1+size {
				t.Fatalf("first agent: n %d, %v", after.Operation.N, err)
			}
			// The same event numbers, and so the same message ids, by an agent that is late.
			if _, err := j.Append(t.Context(), start, next(start, "b", size)); !errors.Is(err, ErrConflict) {
				t.Errorf("second agent: %v, want ErrConflict", err)
			}
			if got := conflicts(); got != 1 {
				t.Errorf("%d conflicts counted, want 1", got)
			}
			last, err := j.Last(t.Context(), events.OperationID("k"))
			if err != nil || last.Operation.Agent != "a" || last.Operation.N != 1+size || last.Sequence != after.Sequence {
				t.Errorf("last is n %d by %s at %d (%v), want %d by a at %d", last.Operation.N, last.Operation.Agent, last.Sequence, err, 1+size, after.Sequence)
			}
		})
	}
}

// The answer to an append may be lost although it was stored: trying again must
// find it, not fail on it and not store it twice.
func TestAnAppendThatWasStoredBeforeIsFound(t *testing.T) {
	t.Parallel()
	js, j, conflicts := newJournal(t)
	for _, size := range []int{1, batchFrom} {
		start, err := j.Last(t.Context(), events.OperationID("k"))
		if err != nil {
			t.Fatal(err)
		}
		appended := next(start, "a", size)
		first, err := j.Append(t.Context(), start, appended)
		if err != nil {
			t.Fatal(err)
		}
		again, err := j.Append(t.Context(), start, appended)
		if err != nil || again.Sequence != first.Sequence {
			t.Errorf("again: sequence %d, %v; want %d", again.Sequence, err, first.Sequence)
		}
	}
	if got := conflicts(); got != 0 {
		t.Errorf("%d conflicts, want none", got)
	}
	stream, err := js.Stream(t.Context(), events.OperationStream)
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got != 1+batchFrom {
		t.Errorf("%d events in the journal, want %d", got, 1+batchFrom)
	}
}

func TestAStreamWithoutBatchesIsAppendedToOneByOne(t *testing.T) {
	t.Parallel()
	js, j, _ := newJournal(t)
	config := j.stream.CachedInfo().Config
	config.AllowAtomicPublish = false
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	last, err := j.Append(t.Context(), Entry{}, next(Entry{}, "a", 2*batchFrom))
	if err != nil || last.Sequence != 2*batchFrom {
		t.Errorf("sequence %d, %v; want %d", last.Sequence, err, 2*batchFrom)
	}
}

func TestAnAppendEndsWithItsContextWhileTheStreamIsGone(t *testing.T) {
	t.Parallel()
	js, j, _ := newJournal(t)
	if err := js.DeleteStream(t.Context(), events.OperationStream); err != nil {
		t.Fatal(err)
	}
	var failures atomic.Int64
	j.count.Failed = func() { failures.Add(1) }
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := j.Append(ctx, Entry{}, next(Entry{}, "a", 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if failures.Load() == 0 {
		t.Error("no failure was counted: the alert on them would never fire")
	}
}

// TestTheJournalIsWellAgainOnceItAnswers: readiness rests on Err. The append that meets a lost answer, or a conflict,
// may be the last for hours.
func TestTheJournalIsWellAgainOnceItAnswers(t *testing.T) {
	t.Parallel()
	_, j, _ := newJournal(t)
	if err := j.Err(); err != nil {
		t.Errorf("got %v of a new journal, want nil", err)
	}
	stored := next(Entry{}, "a", 1)
	if _, err := j.Append(t.Context(), Entry{}, stored); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name     string
		appended []events.Event
		want     error
	}{
		{"the answer was lost", stored, nil},
		{"another agent was first", next(Entry{}, "b", 1), ErrConflict},
	} {
		lost := errors.New("timeout")
		j.tryFailed(lost)
		if err := j.Err(); !errors.Is(err, lost) {
			t.Errorf("%s: got %v, want the failure", test.name, err)
		}
		if _, err := j.Append(t.Context(), Entry{}, test.appended); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
		if err := j.Err(); err != nil {
			t.Errorf("%s: got %v after the journal answered, want nil", test.name, err)
		}
	}
}

func TestAtIsTheOperationAsThatEventLeftIt(t *testing.T) {
	t.Parallel()
	_, j, _ := newJournal(t)
	first, err := j.Append(t.Context(), Entry{}, next(Entry{}, "a", 1))
	if err != nil {
		t.Fatal(err)
	}
	second, err := j.Append(t.Context(), first, next(first, "a", 1))
	if err != nil {
		t.Fatal(err)
	}
	id := events.OperationID("k")
	for _, want := range []Entry{first, second} {
		got, err := j.At(t.Context(), id, want.Sequence)
		if err != nil || got.Sequence != want.Sequence || got.Operation.N != want.Operation.N {
			t.Errorf("got n %d at %d and error %v, want n %d at %d", got.Operation.N, got.Sequence, err, want.Operation.N, want.Sequence)
		}
	}
	if _, err := j.At(t.Context(), id, second.Sequence+1); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v where there is no event, want ErrConflict", err)
	}
	if _, err := j.At(t.Context(), events.OperationID("other"), first.Sequence); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v where there is another operation, want ErrConflict", err)
	}
}
