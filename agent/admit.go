package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

const (
	// duplicatesEvery is how often one agent records duplicates of an operation, so that a storm of duplicates leaves
	// room in the journal for other events.
	duplicatesEvery = time.Second
	// duplicatesKept is how many duplicates the inbox keeps until then. With one more they are recorded at once.
	duplicatesKept = 256
)

// relation says how a request relates to the operation that has its key.
type relation int

const (
	first     relation = iota // there is no operation yet
	owner                     // the request of the operation itself, delivered again
	duplicate                 // the same request in another message
	keyReused                 // the key belongs to another request
)

// relate returns the relation of r to op. The request owns the operation if it is the same message, not only the same
// content: both its sequence and its time of arrival match.
func relate(op events.Operation, r operation.Received) relation {
	switch {
	case op.N == 0:
		return first
	case op.RequestSequence == r.Sequence && op.RequestedAt.Equal(r.At):
		return owner
	case r.Refusal == nil && op.Kind == r.Kind && op.Request.Same(r.Request):
		return duplicate
	}
	return keyReused
}

// admit admits the messages in the inbox of an operation. After an error it returns the messages that are not admitted.
func (a *Agent) admit(ctx context.Context, h *held, inbox []delivery) ([]delivery, error) {
	for {
		err := a.admitOnce(ctx, h, &inbox)
		if !errors.Is(err, journal.ErrConflict) {
			return inbox, err
		}
		// Another agent has written the operation, so this agent does not hold it any more. Release it, and relate the
		// messages to what the journal has now.
		if h.owned() {
			a.logOf(h).Warn("another agent holds the operation; letting it go", "error", err)
		}
		a.release(h)
	}
}

// admitOnce removes each message that it has admitted from the inbox.
func (a *Agent) admitOnce(ctx context.Context, h *held, inbox *[]delivery) error {
	if err := a.reload(ctx, h); err != nil {
		return err
	}
	if h.hand.entry == nil {
		entry, err := a.journal.Last(ctx, h.id)
		if err != nil {
			return err
		}
		h.hand.entry = &entry
	}
	var duplicates []delivery
	for ; len(*inbox) > 0; *inbox = (*inbox)[1:] {
		d := (*inbox)[0]
		if d.order != nil {
			if err := a.obey(ctx, h, d); err != nil {
				return err
			}
			continue
		}
		switch relate(h.hand.entry.Operation, d.received) {
		case first:
			a.own(h, d.ack) // so that the request is kept alive while its first event is being written
			if err := a.step(ctx, h, d.received); err != nil {
				h.hand.ack = ack{}
				a.publish(h, summary{})
				return err
			}
			a.countRequest(d.received, resultOf(d.received))
		case owner:
			if err := a.resume(ctx, h, d.ack); err != nil {
				return err
			}
		case duplicate:
			duplicates = append(duplicates, d)
		case keyReused:
			a.refuse(h, d)
		}
	}
	if len(duplicates) == 0 {
		return nil
	}
	*inbox = duplicates
	if err := a.recordDuplicates(ctx, h, duplicates); err != nil {
		return err
	}
	*inbox = nil
	return nil
}

// recordDuplicates appends one event for all these duplicates and acknowledges them.
func (a *Agent) recordDuplicates(ctx context.Context, h *held, duplicates []delivery) error {
	if err := a.step(ctx, h, operation.Duplicated{Count: len(duplicates)}); err != nil {
		return err
	}
	a.roster.collect(h, time.Now().Add(duplicatesEvery))
	for _, d := range duplicates {
		a.countRequest(d.received, "duplicate")
		if err := d.ack.Ack(); err != nil {
			a.logOf(h).Warn("duplicate not acknowledged; it will come again", "error", err)
		}
	}
	return nil
}

// own makes msg the message that owns the operation: the agent acknowledges it when the operation has ended.
func (a *Agent) own(h *held, msg ack) {
	h.hand.ack = msg
	a.publishEntry(h)
}

// resume takes up the operation of a message that was delivered again, unless this agent already has it in hand.
func (a *Agent) resume(ctx context.Context, h *held, msg ack) error {
	inHand := h.owned()
	a.own(h, msg)
	if inHand {
		return nil
	}
	h.hand.since = time.Now()
	if err := a.step(ctx, h, operation.Resumed{}); err != nil {
		return err
	}
	op := h.hand.entry.Operation
	a.logOf(h).Info("operation taken up", "n", op.N, "state", op.State, "do", h.hand.plan.do)
	return nil
}

// refuse rejects a request whose key belongs to another request. It does so in an operation of its own, so that the
// events of the other operation stay as they are.
func (a *Agent) refuse(h *held, d delivery) {
	if d.received.Refusal == nil {
		op := h.hand.entry.Operation
		d.received.Refusal = &events.Reason{Code: events.CodeKeyReused, Message: fmt.Sprintf(
			"idempotency key %q was used for another request, operation %s: %s of server %d of cluster %d; "+
				"a new request needs a new key",
			d.received.Request.IdempotencyKey, h.id, op.Kind, op.ServerID, op.ClusterID)}
	}
	d.received.OperationKey = d.fallback
	a.deliver(events.OperationID(d.fallback), d)
}

func resultOf(r operation.Received) string {
	if r.Refusal != nil {
		return "rejected"
	}
	return "accepted"
}

func oneLine(err error) string {
	text := []rune{}
	for _, r := range err.Error() {
		if r == '\n' {
			text = append(text, ';', ' ')
		} else {
			text = append(text, r)
		}
	}
	return string(text)
}
