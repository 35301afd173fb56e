package journal

import (
	"testing"
	"time"

	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

func TestLastIsTheLatestEventOfOneOperation(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	js, stream := server.JetStream(), server.Streams(eventstest.Options()).Operations
	last := func(key string) Entry {
		t.Helper()
		entry, err := Last(t.Context(), stream, events.OperationID(key))
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
	if _, err := Last(t.Context(), stream, events.OperationID("b")); err == nil {
		t.Error("an event that cannot be read is no error")
	}
}
