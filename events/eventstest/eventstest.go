// Package eventstest starts NATS servers for tests, as net/http/httptest starts HTTP
// servers: each test has one of its own, with its data in a directory of its own, which
// ends with the test.
//
// It also waits for events of operations. Only tests import it, and it imports package
// events alone, so that tests of any room can use it.
package eventstest

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/events"
)

// Patience is how long a test waits for something that must happen. No test that passes
// waits for so long.
const Patience = 30 * time.Second

// Server is a NATS server with JetStream, and one connection to it.
type Server struct {
	t       testing.TB
	dataDir string
	listen  string // once started: the port that it has, so that it can have it again
	server  *events.Server
	js      jetstream.JetStream
}

// Start starts a server on any free port of the loopback address. It fails the test where
// the server does not start or, at the end of the test, does not close.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartIn(t, "127.0.0.1:0", t.TempDir())
}

// StartIn starts a server that listens on listen (host:port) and has its data in dataDir.
func StartIn(t testing.TB, listen, dataDir string) *Server {
	t.Helper()
	s := &Server{t: t, dataDir: dataDir, listen: listen}
	s.start()
	t.Cleanup(s.Stop)
	s.js = s.Connect()
	return s
}

func (s *Server) start() {
	s.t.Helper()
	server, err := events.StartServer(s.listen, s.dataDir, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	s.server, s.listen = server, strings.TrimPrefix(server.URL(), "nats://")
}

// Stop stops the server now, without the test. Its connections stay and look for it.
func (s *Server) Stop() {
	s.t.Helper()
	if s.server == nil {
		return
	}
	if err := s.server.Close(); err != nil {
		s.t.Error(err)
	}
	s.server = nil
}

// Restart stops the server if it runs, and starts it with the same address and data.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// URL is where clients connect, also while the server is stopped.
func (s *Server) URL() string { return "nats://" + s.listen }

// JetStream is that of the connection that the server came with.
func (s *Server) JetStream() jetstream.JetStream { return s.js }

// Conn is the connection that the server came with.
func (s *Server) Conn() *nats.Conn { return s.js.Conn() }

// Connect makes another connection, for the time of the test.
func (s *Server) Connect(options ...nats.Option) jetstream.JetStream {
	s.t.Helper()
	return Connect(s.t, s.URL(), options...)
}

// Streams opens the streams and buckets of agents, and creates them where they are missing.
func (s *Server) Streams(o events.StreamOptions) events.Streams {
	s.t.Helper()
	streams, err := events.OpenStreams(s.t.Context(), s.js, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return streams
}

// Options are those of streams on one server.
func Options() events.StreamOptions {
	return events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: 5 * time.Second}
}

// Connect connects to any server for the time of a test. A connection that is lost is made
// again, however long that takes.
func Connect(t testing.TB, url string, options ...nats.Option) jetstream.JetStream {
	t.Helper()
	options = append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond)}, options...)
	nc, err := nats.Connect(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Await waits until an operation has an event with one of the tokens, and returns the
// operation as it stood then.
func Await(t testing.TB, js jetstream.JetStream, operationID string, tokens ...events.State) events.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	consumer, err := js.OrderedConsumer(ctx, events.OperationStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{events.OperationSubjects(operationID)},
	})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	var seen []events.State
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			t.Fatalf("operation %s: got events %v, want %v: %v", operationID, seen, tokens, err)
		}
		e, err := events.DecodeEvent(msg.Subject(), msg.Data())
		if err != nil {
			t.Fatal(err)
		}
		if seen = append(seen, e.Token); slices.Contains(tokens, e.Token) {
			return e.Operation
		}
	}
}

// IgnoreServer has goleak pass over the goroutines of the NATS server that live as long as
// the process.
func IgnoreServer() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGoRoutine.func1"),
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.init.0.func1"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.fs_rebuild"),
	}
}
