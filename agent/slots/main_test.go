package slots

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, eventstest.IgnoreServer()...) }

// agent is what an agent has of these rooms, with a connection of its own.
type agent struct {
	*Slots
	t       *testing.T
	js      jetstream.JetStream
	journal *journal.Journal
	streams events.Streams
	free    chan int64 // clusters in which something came free, as Watch told
}

// newDeafAgent returns an agent that watches nothing.
func newDeafAgent(t *testing.T, server *eventstest.Server) *agent {
	t.Helper()
	js, log := server.Connect(), slog.New(slog.DiscardHandler)
	streams, err := events.OpenStreams(t.Context(), js, eventstest.Options())
	if err != nil {
		t.Fatal(err)
	}
	return &agent{
		Slots: New(streams.Clusters, journal.NewGroupCommit(js), streams.Operations, NewPauses(streams.Control, log), log),
		journal: journal.New(streams.Operations, journal.NewGroupCommit(js), log, journal.Counters{
			Appended: func(time.Duration) {}, Conflict: func() {}, Failed: func() {},
		}),
		t: t, js: js, streams: streams, free: make(chan int64, 10_000),
	}
}

// newAgent returns an agent that watches records and events for the time of the test.
func newAgent(t *testing.T, server *eventstest.Server) *agent {
	t.Helper()
	a := newDeafAgent(t, server)
	runWatch(t, func(ctx context.Context, ready func()) error {
		return a.Watch(ctx, ready, func(cluster int64) { a.free <- cluster })
	})
	return a
}

// runWatch runs a watch for the time of the test, and returns once it is ready.
func runWatch(t *testing.T, watch func(ctx context.Context, ready func()) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- watch(ctx, sync.OnceFunc(func() { close(ready) })) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case <-time.After(eventstest.Patience):
		t.Fatal("the watch is not ready")
	}
}

func newAgents(t *testing.T, n int) []*agent {
	t.Helper()
	server := eventstest.Start(t)
	all := make([]*agent, n)
	for i := range all {
		all[i] = newAgent(t, server)
	}
	return all
}

// append appends the next event of an operation, and has the agent see it. change may be nil.
func (a *agent) append(cluster int64, key string, state events.State, change func(*events.Operation)) (op events.Operation, free bool) {
	a.t.Helper()
	last, err := a.journal.Last(a.t.Context(), events.OperationID(key))
	if err != nil {
		a.t.Fatal(err)
	}
	op = last.Operation
	op.Schema, op.OperationID, op.IdempotencyKey, op.Kind = events.OperationSchema, events.OperationID(key), key, events.Stop
	op.ClusterID, op.ServerID, op.N, op.Steps, op.State, op.UpdatedAt = cluster, 1, op.N+1, op.Steps+1, state, time.Now().UTC()
	if state.Final() {
		op.EndedAt = op.UpdatedAt
	}
	if change != nil {
		change(&op)
	}
	entry, err := a.journal.Append(a.t.Context(), last, []events.Event{{Operation: op, Token: state}})
	if err != nil {
		a.t.Fatal(err)
	}
	return op, a.Saw(entry)
}

// accept appends the first event of an operation.
func (a *agent) accept(cluster int64, key string) events.Operation {
	a.t.Helper()
	op, _ := a.append(cluster, key, events.Accepted, nil)
	return op
}

// take takes the only slot of op's cluster if nobody else has it.
func (a *agent) take(op events.Operation) (taken bool, version uint64) {
	a.t.Helper()
	version, err := a.Update(a.t.Context(), op, func(record *guard.Record) bool {
		taken = len(record.Active) == 0
		return taken && record.Take(slotOf(op))
	})
	if err != nil {
		a.t.Error(err)
	}
	return taken, version
}

func (a *agent) enqueue(op events.Operation, sequence uint64) (version uint64) {
	a.t.Helper()
	return a.change(op, func(r *guard.Record) bool { return r.Enqueue(ticketOf(op, sequence)) })
}

func (a *agent) dequeue(op events.Operation) (version uint64) {
	a.t.Helper()
	return a.change(op, func(r *guard.Record) bool { return r.Dequeue(op.OperationID) })
}

func (a *agent) change(op events.Operation, change func(*guard.Record) bool) (version uint64) {
	a.t.Helper()
	version, err := a.Update(a.t.Context(), op, change)
	if err != nil {
		a.t.Error(err)
	}
	return version
}

func slotOf(op events.Operation) guard.Slot {
	return guard.Slot{OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Zone: "zone1", Since: time.Now().UTC(), Steps: op.Steps}
}

func ticketOf(op events.Operation, sequence uint64) guard.Ticket {
	return guard.Ticket{OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Sequence: sequence}
}

// await waits until the agent is told of something that came free and condition holds.
func (a *agent) await(what string, condition func() bool) {
	a.t.Helper()
	deadline := time.After(eventstest.Patience)
	for !condition() {
		select {
		case <-a.free:
		case <-deadline:
			a.t.Fatalf("never: %s", what)
		}
	}
}

// heardOf reports whether the agent knows that an operation has written an event that may free its slot.
func (a *agent) heardOf(cluster int64, id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.holders[cluster].of(id)
	return h.announced > 0 || h.State.Final() || h.State == events.Waiting
}
