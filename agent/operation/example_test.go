package operation_test

import (
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

// A request is received and allowed. The effects name the events to append first, and the action that may follow.
func ExampleMachine_Step() {
	m := operation.Machine{Agent: "agent-1", Settle: 30 * time.Second, PollMin: time.Second, PollMax: 15 * time.Second}
	now := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	var op events.Operation
	for _, in := range []operation.Input{
		operation.Received{Sequence: 7, At: now, Received: events.Received{
			Kind: events.Stop, Request: events.Request{IdempotencyKey: "disk-4711", ClusterID: 1, ServerID: 2},
		}},
		operation.Decided{Decision: guard.Decision{Verdict: guard.Allow}},
	} {
		effects := m.Step(op, in, now)
		for _, e := range effects.Append {
			fmt.Printf("append event %d: %s\n", e.N, e.Token)
			op = e.Operation
		}
		fmt.Printf("then %s", effects.Do)
		if effects.IfLost != "" {
			fmt.Printf(", once; if its outcome is lost, %s", effects.IfLost)
		}
		fmt.Println()
	}
	// Output:
	// append event 1: accepted
	// then decide
	// append event 2: submitting
	// then submit, once; if its outcome is lost, reconcile
}
