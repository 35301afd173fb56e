package journal

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
)

func TestLastIsTheLatestEventOfOneOperation(t *testing.T) {
	t.Parallel()
	server, err := events.StartServer("127.0.0.1:0", t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	nc, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	options := events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: 5 * time.Second}
	streams, err := events.OpenStreams(t.Context(), js, options)
	if err != nil {
		t.Fatal(err)
	}
	last := func(key string) Entry {
		t.Helper()
		entry, err := Last(t.Context(), streams.Operations, events.OperationID(key))
		if err != nil {
			t.Fatal(err)
		}
		return entry
	}
	if got := last("a"); got.Sequence != 0 || got.Operation.N != 0 {
		t.Errorf("entry %+v of an operation without events, want the zero entry", got)
	}
	var subject string
	for i, e := range []struct {
		key   string
		n     int
		state events.State
	}{{"a", 1, events.Accepted}, {"a", 2, events.Running}, {"b", 1, events.Accepted}} {
		op := events.Operation{
			Schema: events.OperationSchema, OperationID: events.OperationID(e.key), IdempotencyKey: e.key, N: e.n,
			State: e.state, Kind: events.Stop, ClusterID: 1, ServerID: 1, Agent: "test", UpdatedAt: time.Now().UTC(),
		}
		msg, err := events.Event{Operation: op, Token: e.state}.Message()
		if err != nil {
			t.Fatal(err)
		}
		subject = msg.Subject
		ack, err := js.PublishMsg(t.Context(), msg)
		if err != nil || ack.Sequence != uint64(i+1) {
			t.Fatalf("sequence %v, %v", ack, err)
		}
	}
	if got := last("a"); got.Sequence != 2 || got.Operation.State != events.Running {
		t.Errorf("entry %+v, want the running one at sequence 2", got)
	}
	if _, err := js.Publish(t.Context(), subject, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := Last(t.Context(), streams.Operations, events.OperationID("b")); err == nil {
		t.Error("an event that cannot be read is no error")
	}
}
