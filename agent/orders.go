package agent

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

const (
	// orderPatience is how long an order waits for the first event of its operation, or for the agent that has it in
	// hand; orderRetry is how often an agent looks at the order meanwhile.
	orderPatience = 10 * time.Second
	orderRetry    = 500 * time.Millisecond
	// cancelRetry is the pause until an order to cancel goes to the next agent, in search of the agent that has the
	// operation in hand. It is short, because the operation may be submitted any moment.
	cancelRetry = 50 * time.Millisecond
)

// prepareOrder prepares an order that its operation accepts, and returns whether to obey it now. If not, it has settled
// the order's message.
type prepareOrder func(a *Agent, ctx context.Context, h *held, d delivery) (now bool, err error)

// orders returns the function that prepares the orders of each verb.
func orders() map[events.Verb]prepareOrder {
	return map[events.Verb]prepareOrder{
		events.Retry:   (*Agent).prepareRetry,
		events.Cancel:  (*Agent).prepareCancel,
		events.Approve: (*Agent).prepareApprove,
	}
}

// obey obeys or refuses an order. The message of a retry that is obeyed owns the operation from then on. Any other
// order is acknowledged, whether it is obeyed or refused: the person who gave it reads the events.
func (a *Agent) obey(ctx context.Context, h *held, d delivery) error {
	op := h.hand.entry.Operation
	switch {
	case d.order.Verb == events.Retry && slices.Contains(d.messageIDs(), messageID(op.RequestSequence, op.RequestedAt)):
		return a.resume(ctx, h, d.ack)
	case op.N == 0 && time.Since(d.order.At) < orderPatience:
		return d.ack.NakWithDelay(orderRetry) // its request may be in another agent's hands, and not written yet
	}
	refusal, err := a.refusal(ctx, h, d)
	if err != nil {
		return err
	}
	if refusal == nil {
		now, err := a.orders[d.order.Verb](a, ctx, h, d)
		if err != nil || !now {
			return err
		}
		if err := a.step(ctx, h, *d.order); err != nil {
			return err
		}
	}
	a.logOf(h).Info("order", "verb", d.order.Verb,
		"requested_by", d.order.RequestedBy, "reason", d.order.Reason, "refused", refusal)
	if refusal == nil && d.order.Verb == events.Retry {
		return a.ownRetry(h, d)
	}
	a.ackOrder(h, d)
	return nil
}

// refusal returns why the operation does not take an order; nil if it does. Before it refuses, it reads the journal:
// another agent may have gone on with the operation, and without an append this agent would not notice.
func (a *Agent) refusal(ctx context.Context, h *held, d delivery) (refusal, err error) {
	for {
		refusal := operation.RefuseOrder(h.hand.entry.Operation, *d.order)
		if refusal == nil {
			return nil, nil
		}
		last, err := a.journal.Last(ctx, h.id)
		switch {
		case err != nil:
			return nil, err
		case last.Sequence == h.hand.entry.Sequence:
			return refusal, nil
		case !operation.SameHolder(h.hand.entry.Operation, last.Operation):
			return nil, fmt.Errorf("order to %s operation %s: %w", d.order.Verb, h.id, journal.ErrConflict)
		}
		h.hand.entry = &last
	}
}

// prepareRetry obeys a retry whose message names the last event of the operation, and renews any other.
func (a *Agent) prepareRetry(ctx context.Context, h *held, d delivery) (now bool, err error) {
	if d.after != h.hand.entry.Sequence {
		return false, a.renew(ctx, h, d)
	}
	return true, nil
}

// prepareCancel leaves the order to the agent that has the operation in hand: that agent would not notice the event of
// another one for as long as the operation waits for the same thing. After orderPatience no living agent has it in
// hand.
func (a *Agent) prepareCancel(_ context.Context, h *held, d delivery) (now bool, err error) {
	if !h.owned() && time.Since(d.order.At) < orderPatience {
		return false, d.ack.NakWithDelay(cancelRetry)
	}
	return true, nil
}

// prepareApprove notes why an approval does not count. Only the agent that has the operation in hand may write into it.
func (a *Agent) prepareApprove(ctx context.Context, h *held, d delivery) (now bool, err error) {
	if !h.owned() {
		return false, d.ack.NakWithDelay(orderRetry)
	}
	no, err := a.mayApprove(ctx, h.hand.entry.Operation, d.order.RequestedBy)
	if no != nil {
		d.order.Refused = no.Error()
	}
	return err == nil, err
}

// ownRetry makes the message of an obeyed retry the one that owns the operation, unless another agent has gone on with
// it.
func (a *Agent) ownRetry(h *held, d delivery) error {
	if op := h.hand.entry.Operation; op.State != events.Running || op.RequestSequence != d.order.Sequence {
		return fmt.Errorf("order to retry operation %s, which went on elsewhere: %w", h.id, journal.ErrConflict)
	}
	a.own(h, d.ack)
	return nil
}

// renew replaces the message of a retry by a message that says after which event the order is to be obeyed.
//
// The old message may have been delivered to other agents too. An agent that refuses it acknowledges it. If another
// agent obeyed it, so that the message owns the operation by then, that acknowledgement would leave the operation
// without an agent. The new message is refused only if the operation has gone on, and obeyed only if it has not.
// JetStream lets a message be replaced once, and only while it exists and is the last of its operation. The new message
// names the messages that it replaces: if one of these was obeyed after all, the new message owns the operation
// instead.
func (a *Agent) renew(ctx context.Context, h *held, d delivery) error {
	msg, err := d.order.Message()
	if err != nil {
		return err
	}
	msg.Header[renewsHeader] = d.messageIDs()
	msg.Header.Set(afterHeader, strconv.FormatUint(h.hand.entry.Sequence, 10))
	_, err = a.JetStream.PublishMsg(ctx, msg, jetstream.WithExpectLastSequencePerSubject(d.order.Sequence))
	if journal.IsConflict(err) {
		// It was renewed, or a later order has arrived and goes first. This message may yet turn out to own the
		// operation.
		return d.ack.NakWithDelay(orderRetry)
	}
	if err != nil {
		return fmt.Errorf("renew the order to retry operation %s: %w", h.id, err)
	}
	a.logOf(h).Debug("order renewed", "verb", d.order.Verb, "requested_by", d.order.RequestedBy)
	a.ackOrder(h, d)
	return nil
}

func (a *Agent) ackOrder(h *held, d delivery) {
	if err := d.ack.Ack(); err != nil {
		a.logOf(h).Warn("order not acknowledged; it will come again", "error", err)
	}
}
