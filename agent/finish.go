package agent

import (
	"context"
	"time"

	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

// finishTimeout is how long the acknowledgement of an ended operation may take. If it fails, JetStream delivers the
// request again, and an agent finds the end in the journal and acknowledges it.
const finishTimeout = 5 * time.Second

// finish is the stage that acknowledges the request of an ended operation and releases the operation. Its slot is free
// already, because its last event says that it has ended.
func (a *Agent) finish(ctx context.Context, h *held) (operation.Input, error) {
	op := h.hand.entry.Operation
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	var err error
	if op.State == events.Rejected {
		err = h.hand.ack.TermWithReason(op.Reason.Code)
	} else {
		err = h.hand.ack.DoubleAck(ctx)
	}
	if err != nil {
		a.logOf(h).Warn("request not acknowledged; it will come again", "error", err)
	}
	a.release(h)
	return nil, nil
}
