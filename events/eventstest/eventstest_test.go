package eventstest_test

import (
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, eventstest.IgnoreServer()...) }

func TestARestartKeepsAddressDataAndConnections(t *testing.T) {
	t.Parallel()
	s := eventstest.Start(t)
	s.Streams(eventstest.Options())
	if _, err := (events.Request{ClusterID: 1, ServerID: 2}).Publish(t.Context(), s.JetStream(), events.Stop, "cli"); err != nil {
		t.Fatal(err)
	}
	url := s.URL()
	s.Stop()
	if s.URL() != url {
		t.Errorf("got %s while it is stopped, want %s", s.URL(), url)
	}
	s.Restart()
	if s.URL() != url {
		t.Errorf("got %s, want %s again", s.URL(), url)
	}
	msg, err := s.Streams(eventstest.Options()).Requests.Next(jetstream.FetchMaxWait(eventstest.Patience))
	if err != nil || msg.Subject() != "ob.server.stop.request.1.2" {
		t.Errorf("got %v and error %v, want the request of before", msg, err)
	}
}

func TestAwaitReturnsTheOperationAsItStoodThen(t *testing.T) {
	t.Parallel()
	s := eventstest.Start(t)
	s.Streams(eventstest.Options())
	op := events.Operation{Schema: events.OperationSchema, OperationID: events.OperationID("key"), Kind: events.Stop, ClusterID: 1, ServerID: 2}
	publish := func(token events.State) {
		op.N++
		op.State, op.UpdatedAt = token, time.Now().UTC()
		msg, err := events.Event{Operation: op, Token: token}.Message()
		if err == nil {
			_, err = s.JetStream().PublishMsg(t.Context(), msg)
		}
		if err != nil {
			t.Error(err)
		}
	}
	publish(events.Accepted)
	var published sync.WaitGroup
	published.Go(func() { publish(events.Running) })
	got := eventstest.Await(t, s.JetStream(), op.OperationID, events.Running, events.Succeeded)
	published.Wait()
	if got.N != 2 || got.State != events.Running {
		t.Errorf("got event %d in state %s, want event 2, running", got.N, got.State)
	}
}
