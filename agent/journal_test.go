package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

func newJournal(t testing.TB) (*rig, Journal, func() int) {
	t.Helper()
	r := newRig(t, ocpsim.Config{})
	streams, err := events.OpenStreams(t.Context(), r.js, events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: r.ackWait})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	conflicts := 0
	j := Journal{
		stream: streams.Operations, group: &group{js: r.js}, log: slog.New(slog.DiscardHandler),
		appended: func(time.Duration) {},
		trouble:  &atomic.Pointer[error]{},
		conflict: func() { mu.Lock(); defer mu.Unlock(); conflicts++ },
		failed:   func() {},
	}
	return r, j, func() int { mu.Lock(); defer mu.Unlock(); return conflicts }
}

// next makes the next n events of an operation, each by the agent named.
func next(after Entry, agent string, n int) []events.Event {
	op := after.Operation
	op.OperationID, op.Kind, op.ClusterID, op.ServerID = events.OperationID("k"), events.Stop, 1, 2
	var appended []events.Event
	for range n {
		appended = append(appended, Machine{Agent: agent}.event(&op, events.Waiting, time.Now())...)
	}
	return appended
}

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
	r, j, conflicts := newJournal(t)
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
	stream, err := r.js.Stream(t.Context(), events.OperationStream)
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got != 1+batchFrom {
		t.Errorf("%d events in the journal, want %d", got, 1+batchFrom)
	}
}

func TestAStreamWithoutBatchesIsAppendedToOneByOne(t *testing.T) {
	t.Parallel()
	r, j, _ := newJournal(t)
	config := j.stream.CachedInfo().Config
	config.AllowAtomicPublish = false
	if _, err := r.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	last, err := j.Append(t.Context(), Entry{}, next(Entry{}, "a", 2*batchFrom))
	if err != nil || last.Sequence != 2*batchFrom {
		t.Errorf("sequence %d, %v; want %d", last.Sequence, err, 2*batchFrom)
	}
}

func TestAnAppendEndsWithItsContextWhileTheStreamIsGone(t *testing.T) {
	t.Parallel()
	r, j, _ := newJournal(t)
	if err := r.js.DeleteStream(t.Context(), events.OperationStream); err != nil {
		t.Fatal(err)
	}
	var failures atomic.Int64
	j.failed = func() { failures.Add(1) }
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := j.Append(ctx, Entry{}, next(Entry{}, "a", 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if failures.Load() == 0 {
		t.Error("no failure was counted: the alert on them would never fire")
	}
}
