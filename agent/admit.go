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
	// duplicatesEvery is how often one agent tells the journal of duplicates of an operation: in a storm of them there must
	// be room in it for the events of others.
	duplicatesEvery = time.Second
	// duplicatesKept is how many are kept until then; with more the journal is told at once.
	duplicatesKept = 256
)

// relation is what a request is to the operation of its key.
type relation int

const (
	first     relation = iota // there is no operation yet
	owner                     // the request of the operation itself, delivered again
	duplicate                 // the same again
	stranger                  // the key belongs to another request
)

// relate is pure. A request is an operation's own if it is the same message, not only the same words: sequence and time of
// arrival together.
func relate(op events.Operation, r operation.Received) relation {
	switch {
	case op.N == 0:
		return first
	case op.RequestSequence == r.Sequence && op.RequestedAt.Equal(r.At):
		return owner
	case r.Refusal == nil && op.Kind == r.Kind && op.Request.Same(r.Request):
		return duplicate
	}
	return stranger
}

// admit takes the messages that came for an operation, and returns those that an error kept it from.
func (a *Agent) admit(ctx context.Context, h *held, inbox []delivery) ([]delivery, error) {
	for {
		err := a.admitOnce(ctx, h, &inbox)
		if !errors.Is(err, journal.ErrConflict) {
			return inbox, err
		}
		// Another agent wrote the operation: if this agent held it, it does not any more. The messages are looked at again
		// in the light of what is there now.
		if h.owned() {
			a.logOf(h).Warn("another agent holds the operation; letting it go", "error", err)
		}
		a.release(h)
	}
}

// admitOnce takes the messages that it has dealt with out of the inbox.
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
			if err := a.step(ctx, h, d.received); err != nil {
				return err
			}
			a.own(h, d.ack)
			a.countRequest(d.received, resultOf(d.received))
		case owner:
			if err := a.resume(ctx, h, d.ack); err != nil {
				return err
			}
		case duplicate:
			duplicates = append(duplicates, d)
		case stranger:
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

// recordDuplicates tells the journal of duplicates and acknowledges them.
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

// own makes a message the request that is acknowledged when the operation ends.
func (a *Agent) own(h *held, msg ack) {
	h.hand.ack = msg
	a.publishEntry(h)
}

// resume takes an operation up by the message that owns it, unless it is in hand.
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

// refuse gives a request whose key belongs to another an operation of its own, in which it is rejected: the events of the
// other stay as they are.
func (a *Agent) refuse(h *held, d delivery) {
	if d.received.Refusal == nil {
		op := h.hand.entry.Operation
		d.received.Refusal = &events.Reason{Code: events.CodeKeyReused, Message: fmt.Sprintf(
			"idempotency key %q was used for another request, operation %s: %s of server %d of cluster %d; a new request needs a new key",
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
