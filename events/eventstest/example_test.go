package eventstest_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

func ExampleStart() {
	test := func(t *testing.T) {
		s := eventstest.Start(t)
		streams := s.Streams(eventstest.Options())

		request := events.Request{IdempotencyKey: "key", ClusterID: 1, ServerID: 2}
		if _, err := request.Publish(t.Context(), s.JetStream(), events.Stop, "cli"); err != nil {
			t.Fatal(err)
		}

		// What an agent would do, or a test in its place.
		msg, err := streams.Requests.Next(jetstream.FetchMaxWait(eventstest.Patience))
		if err != nil {
			t.Fatal(err)
		}
		op := events.Operation{Schema: events.OperationSchema, OperationID: events.OperationID("key"), Kind: events.Stop, State: events.Succeeded}
		event, err := events.Event{Operation: op, Token: events.Succeeded}.Message()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.JetStream().PublishMsg(t.Context(), event); err != nil {
			t.Fatal(err)
		}
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}

		eventstest.Await(t, s.JetStream(), op.OperationID, events.Succeeded, events.Failed)
	}
	_ = test // a function Test… in a file _test.go
}
