package agent

import (
	"context"
	"time"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/events"
)

// silence has the silences made for an operation that the guard has allowed, before
// the intent to call OCP is written. It returns why the operation must wait for them;
// nil: it may go on. A nil silencer makes none, and nobody is disturbed by a dry run.
func silence(ctx context.Context, s *alerts.Silencer, op events.Operation, now time.Time) *events.Reason {
	if s == nil || op.Request.DryRun {
		return nil
	}
	if err := s.Before(ctx, op); err != nil {
		return &events.Reason{
			Code: events.CodeAlertmanagerUnreachable, Message: "no silences can be made, and the policy says to wait for them: " + oneLine(err),
			Until: now.Add(jitter(retryAfter)).UTC(),
		}
	}
	return nil
}
