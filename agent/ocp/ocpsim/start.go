package ocpsim

import (
	"context"
	"net"
)

// TB is the part of testing.TB that Start needs. It keeps package testing out of binaries.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Start runs a simulator on a free port of 127.0.0.1 until the test ends. Its address is URL().
func Start(t TB, cfg Config) *Sim {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatalf("start simulated OCP: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start simulated OCP: %v", err)
	}
	s.listens(ln) // URL() must hold when Start returns, whenever Serve gets its turn

	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Fatalf("simulated OCP: %v", err)
		}
	})
	return s
}
