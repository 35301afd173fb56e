package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/events"
)

// serveNATS makes the test binary a NATS server, listening on $serveNATSOn with
// its data in $serveNATS, until its stdin is closed: one that can be stopped or killed.
const (
	serveNATS   = "OBWARDEN_TEST_NATS_DIRECTORY"
	serveNATSOn = "OBWARDEN_TEST_NATS_LISTEN"
)

func TestMain(m *testing.M) {
	if dataDir := os.Getenv(serveNATS); dataDir != "" {
		s, err := events.StartServer(os.Getenv(serveNATSOn), dataDir, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
		if err != nil {
			panic(err)
		}
		fmt.Println(s.URL())
		_, _ = io.Copy(io.Discard, os.Stdin)
		if err := s.Close(); err != nil {
			panic(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}
