package slots_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/slots"
	"github.com/obwarden/obwarden/events"
)

// A cluster has one slot. Nobody gives it back: it is free once the journal says that its holder has ended.
func Example() {
	js, streams, stop, err := open()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	group := journal.NewGroupCommit(js)
	all := slots.New(streams.Clusters, group, streams.Operations, slots.NewPauses(streams.Control, log), log)
	operations := journal.New(streams.Operations, group, log, journal.Counters{
		Appended: func(time.Duration) {}, Conflict: func() {}, Failed: func() {},
	})
	// say appends the next event of an operation.
	say := func(after journal.Entry, key string, state events.State) journal.Entry {
		op := after.Operation
		op.Schema, op.OperationID, op.Kind, op.ClusterID, op.ServerID = events.OperationSchema, events.OperationID(key), events.Restart, 1, 2
		op.N, op.Steps, op.State = op.N+1, op.Steps+1, state
		entry, err := operations.Append(ctx, after, []events.Event{{Operation: op, Token: state}})
		if err != nil {
			fmt.Println(err)
		}
		if all.Saw(entry) {
			fmt.Println("those who wait are woken")
		}
		return entry
	}
	take := func(op events.Operation) (taken bool) {
		_, err := all.Update(ctx, op, func(record *guard.Record) bool {
			taken = len(record.Active) == 0 // in an agent, the guard decides
			return taken && record.Take(guard.Slot{OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Since: time.Now().UTC(), Steps: op.Steps})
		})
		if err != nil {
			fmt.Println(err)
		}
		return taken
	}

	first, second := say(journal.Entry{}, "first", events.Accepted), say(journal.Entry{}, "second", events.Accepted)
	fmt.Println("first takes the slot:", take(first.Operation))
	fmt.Println("second takes the slot:", take(second.Operation))
	first = say(first, "first", events.Submitting)
	say(first, "first", events.Succeeded)
	fmt.Println("second takes the slot:", take(second.Operation))

	// Output:
	// first takes the slot: true
	// second takes the slot: false
	// those who wait are woken
	// second takes the slot: true
}

// open starts a NATS server inside this process and opens the streams and buckets in it.
func open() (js jetstream.JetStream, streams events.Streams, stop func(), err error) {
	dir, err := os.MkdirTemp("", "slots")
	if err != nil {
		return nil, streams, nil, err
	}
	server, err := events.StartServer("127.0.0.1:0", dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, streams, nil, err
	}
	nc, err := nats.Connect(server.URL())
	if err != nil {
		return nil, streams, nil, err
	}
	if js, err = jetstream.New(nc); err != nil {
		return nil, streams, nil, err
	}
	streams, err = events.OpenStreams(context.Background(), js, events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: 5 * time.Second})
	return js, streams, func() {
		nc.Close()
		_ = server.Close()
		_ = os.RemoveAll(dir)
	}, err
}
