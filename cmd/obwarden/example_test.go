package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// An agent runs with its own NATS server against a simulated OCP. A command asks it to stop a server and follows the
// operation to its end.
func Example() {
	sim, err := ocpsim.New(ocpsim.Config{Users: ocpsim.DefaultUsers("admin", "secret"), Speed: 1000})
	if err != nil {
		panic(err)
	}
	defer sim.Close()
	ocp := httptest.NewServer(sim.Handler())
	defer ocp.Close()
	dir, err := os.MkdirTemp("", "obwarden-example-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a free port for NATS
	if err != nil {
		panic(err)
	}
	l.Close()
	environ := map[string]string{
		"OBWARDEN_OCP_URL": ocp.URL, "OBWARDEN_OCP_USERNAME": "admin", "OBWARDEN_OCP_PASSWORD": "secret", "OBWARDEN_POLL_MIN": "20ms",
		"OBWARDEN_NATS_LISTEN": l.Addr().String(), "OBWARDEN_HTTP_LISTEN": "127.0.0.1:0", "OBWARDEN_DATA_DIR": dir,
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	obwarden := func(stdout io.Writer, args ...string) (exitCode int) {
		return execute(ctx, args, stdout, io.Discard, environ)
	}

	agent := make(chan int)
	go func() { agent <- obwarden(io.Discard, "run") }()
	_ = agenttest.Poll(ctx, 20*time.Millisecond, func() error { // until it has created its streams
		if code := obwarden(io.Discard, "list"); code != 0 {
			return fmt.Errorf("exit code %d", code)
		}
		return nil
	})

	var stdout bytes.Buffer
	code := obwarden(&stdout, "stop", "1", "2", "--reason", "replace a disk", "--wait", "-o", "json")
	var last events.State
	for documents := json.NewDecoder(&stdout); documents.More(); {
		var operation events.Operation
		if err := documents.Decode(&operation); err != nil {
			panic(err)
		}
		if operation.State != last { // several events say that it runs
			fmt.Println(operation.State)
		}
		last = operation.State
	}
	fmt.Println("exit code", code, "and", sim.Posts(ocpsim.ServerStop), "call of OCP")

	stop()
	fmt.Println("the agent ends with", <-agent)
	// Output:
	// accepted
	// submitting
	// running
	// succeeded
	// exit code 0 and 1 call of OCP
	// the agent ends with 0
}
