package events

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write the golden files anew")

// holdDirectory is the variable that turns the test binary into another process:
// one that has a server on this data directory until its stdin is closed.
const holdDirectory = "OBWARDEN_TEST_HOLD"

// patience is for what must happen; it is never waited out.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	if dataDir := os.Getenv(holdDirectory); dataDir != "" {
		os.Exit(holdServer(dataDir))
	}
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(m.Run()) // a fuzzing run has goroutines of its own
	}
	goleak.VerifyTestMain(m,
		// The NATS server's own, which live as long as the process.
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGoRoutine.func1"),
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.init.0.func1"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.fs_rebuild"),
	)
}

func holdServer(dataDir string) int {
	s, err := StartServer("127.0.0.1:0", dataDir, quiet())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(s.URL())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func startServer(t *testing.T, dataDir string) *Server {
	t.Helper()
	s, err := StartServer("127.0.0.1:0", dataDir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t *testing.T, s *Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(s.URL())
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

// newJetStream is JetStream of a server of its own.
func newJetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	s := startServer(t, t.TempDir())
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return connect(t, s)
}

// wantError checks that an error says all of wants.
func wantError(t *testing.T, err error, wants ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("got no error, want one with %q", wants)
		return
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got error %q, want it to say %q", err, want)
		}
	}
}

// faults is how many errors were joined into err.
func faults(err error) int {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return 1
	}
	n := 0
	for _, e := range joined.Unwrap() {
		n += faults(e)
	}
	return n
}
