package agenttest

import (
	"context"
	"testing"
	"time"
)

// Poll calls check until it returns nil, with a pause between calls. It returns check's last error if ctx ends first.
//
// Poll and Eventually are for states whose changes nobody announces. Where there is a channel or a subscription to wait
// for, wait for that.
func Poll(ctx context.Context, pause time.Duration, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// Eventually polls until check returns nil, and fails the test if it does not within patience. What is the condition,
// for the failure's message; check returns what is still missing.
func Eventually(t testing.TB, what string, patience, pause time.Duration, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := Poll(ctx, pause, check); err != nil {
		t.Fatalf("%s: not within %s: %v", what, patience, err)
	}
}
