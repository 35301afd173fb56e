package journal_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/events"
)

// Two agents believe that they own an operation. Both append the next event; only one can.
func Example() {
	js, stream, stop, err := openJournal()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	counters := journal.Counters{Appended: func(time.Duration) {}, Conflict: func() {}, Failed: func() {}}
	first := journal.New(stream, journal.NewGroupCommit(js), log, counters)
	second := journal.New(stream, journal.NewGroupCommit(js), log, counters)

	accepted, err := first.Append(ctx, journal.Entry{}, []events.Event{event(journal.Entry{}, events.Accepted, "first")})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = first.Append(ctx, accepted, []events.Event{event(accepted, events.Waiting, "first")})
	fmt.Println("first:", err)
	_, err = second.Append(ctx, accepted, []events.Event{event(accepted, events.Submitting, "second")})
	fmt.Println("second conflicts:", errors.Is(err, journal.ErrConflict))

	last, err := second.Last(ctx, events.OperationID("rack 7"))
	fmt.Println(last.Operation.State, "by", last.Operation.Agent, "after", last.Operation.N, "events", err)

	// Output:
	// first: <nil>
	// second conflicts: true
	// waiting by first after 2 events <nil>
}

// Writes of many callers share a flush of the disk; each caller gets the sequence of its own message.
func ExampleGroupCommit() {
	js, _, stop, err := openJournal()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()
	group := journal.NewGroupCommit(js)

	var all sync.WaitGroup
	sequences := make([]uint64, 20)
	for i := range sequences {
		all.Go(func() {
			e := event(journal.Entry{}, events.Accepted, "agent")
			e.OperationID = events.OperationID(fmt.Sprint("server ", i))
			sequences[i], _ = group.Publish(context.Background(), 1, func() ([]*nats.Msg, error) {
				msg, err := e.Message()
				return []*nats.Msg{msg}, err
			})
		})
	}
	all.Wait()
	distinct := map[uint64]bool{}
	for _, sequence := range sequences {
		distinct[sequence] = true
	}
	fmt.Println(len(distinct), "messages, each with a sequence of its own")

	// Output: 20 messages, each with a sequence of its own
}

// event is the next event of an operation.
func event(after journal.Entry, state events.State, agent string) events.Event {
	op := after.Operation
	op.Schema, op.OperationID, op.Kind, op.ClusterID, op.ServerID = events.OperationSchema, events.OperationID("rack 7"), events.Stop, 1, 2
	op.N, op.Steps, op.State, op.Agent, op.UpdatedAt = op.N+1, op.Steps+1, state, agent, time.Now().UTC()
	return events.Event{Operation: op, Token: state}
}

// openJournal starts a NATS server inside this process and opens the streams in it.
func openJournal() (js jetstream.JetStream, stream jetstream.Stream, stop func(), err error) {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		return nil, nil, nil, err
	}
	server, err := events.StartServer("127.0.0.1:0", dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, nil, err
	}
	nc, err := nats.Connect(server.URL())
	if err != nil {
		return nil, nil, nil, err
	}
	if js, err = jetstream.New(nc); err != nil {
		return nil, nil, nil, err
	}
	streams, err := events.OpenStreams(context.Background(), js, events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: 5 * time.Second})
	return js, streams.Operations, func() {
		nc.Close()
		_ = server.Close()
		_ = os.RemoveAll(dir)
	}, err
}
