package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
)

const (
	// prefetch is the number of requests that the client holds ready. While others write
	// to the stream as fast as they can, NATS comes round to the client's question for more
	// every 100 ms or so: a storm has to fit in between. They are not kept alive until they
	// are taken out, so it is far less than an agent takes in within the ack wait.
	prefetch = 4096
	// intakeRetry is the pause after an error of the consumer, so that a NATS server
	// that is away is not asked in a busy loop.
	intakeRetry = time.Second
	// orderPatience is how long an order may come before the first event of its
	// operation, and orderRetry how often it is looked at meanwhile.
	orderPatience = 10 * time.Second
	orderRetry    = 500 * time.Millisecond
	// cancelRetry is after how long an order to cancel goes on to the next agent, in search of
	// the one that has the operation in hand: it is in a hurry.
	cancelRetry = 50 * time.Millisecond
	// duplicatesEvery is how often the journal is told of duplicates of an operation, by
	// one agent: in a storm of them there must be room in it for what others do.
	duplicatesEvery = time.Second
	// duplicatesKept is how many are kept until then; with more it is told at once.
	duplicatesKept = 256
)

// Headers of an order that an agent has put in the place of others: see renew.
const (
	renewsHeader = "Obwarden-Renews" // the places of these
	afterHeader  = "Obwarden-After"  // the place of the event in the journal after which it is to be obeyed
)

// errStreamsGone ends an agent: what it works with was taken away under it.
var errStreamsGone = fmt.Errorf("stream %s or its consumer %s was deleted; nothing is made anew behind your back: restart the agent to make them", events.RequestStream, events.Consumer)

// delivery is a request on its way to its operation.
type delivery struct {
	msg      receipt
	received Received
	again    bool     // it was delivered before
	order    *Ordered // set: an order, and no request
	renews   []string // places of the messages in whose place the order's was put
	after    uint64   // the place in the journal after which the order is to be obeyed; 0: not yet
	fallback string   // key by which the request is refused where its own belongs to another
}

// intake takes requests until ctx ends.
func (a *Agent) intake(ctx, work context.Context) error {
	messages, err := a.Streams.Requests.Messages(jetstream.PullMaxMessages(prefetch))
	if err != nil {
		return fmt.Errorf("take requests from stream %s: %w", events.RequestStream, err)
	}
	// Draining brings out what the client holds ready, so that it is handed back too.
	// Without a connection there is nobody to hand it to, and draining waits for one.
	stop := context.AfterFunc(ctx, func() {
		if a.JetStream.Conn().IsConnected() {
			messages.Drain()
		} else {
			messages.Stop()
		}
	})
	defer stop()
	defer messages.Stop()
	for {
		msg, err := messages.Next(jetstream.NextContext(work)) // what drains waits for NATS, which may stand still
		switch {
		case work.Err() != nil:
			return nil
		case errors.Is(err, jetstream.ErrMsgIteratorClosed) && ctx.Err() != nil:
			return nil
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return errors.New("the connection to NATS was closed for good")
		case errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound):
			return errStreamsGone
		case err != nil:
			a.Log.Warn("no requests from NATS, trying again", "stream", events.RequestStream, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(intakeRetry):
			}
			continue
		}
		if events.IsOrder(msg.Subject()) {
			a.intakeOrder(work, msg)
			continue
		}
		d, err := receive(msg)
		if err != nil {
			a.Log.Error("message without JetStream's metadata", "subject", msg.Subject(), "error", err)
			continue
		}
		d.msg = a.receiptOf(msg)
		a.deliver(work, events.OperationID(d.received.Request.IdempotencyKey), d)
	}
}

// intakeOrder takes an order. One that cannot be decoded is about no operation, so
// that no event can tell of it: the log does.
func (a *Agent) intakeOrder(work context.Context, msg jetstream.Msg) {
	order, err := events.DecodeOrder(msg.Subject(), msg.Data())
	meta, errMeta := msg.Metadata()
	if err = errors.Join(err, errMeta); err != nil {
		a.Log.Error("order refused", "subject", msg.Subject(), "error", oneLine(err))
		if err := msg.TermWithReason(events.CodeInvalidRequest); err != nil {
			a.Log.Warn("refused order not terminated; it will come again", "error", err)
		}
		return
	}
	after, _ := strconv.ParseUint(msg.Headers().Get(afterHeader), 10, 64)
	a.deliver(work, order.OperationID, delivery{
		msg: a.receiptOf(msg), renews: msg.Headers().Values(renewsHeader), after: after,
		order: &Ordered{Order: order, Sequence: meta.Sequence.Stream, At: meta.Timestamp.UTC()},
	})
}

// receive decodes a message. One that cannot be decoded, or breaks a limit, is
// received too: with its refusal.
func receive(msg jetstream.Msg) (delivery, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return delivery{}, err
	}
	// The sequence alone is no key: it starts again at 1 where the stream is made anew.
	fallback := events.RequestStream + "/" + placeOf(meta.Sequence.Stream, meta.Timestamp)
	d := delivery{fallback: fallback, again: meta.NumDelivered > 1}
	d.received = Received{Sequence: meta.Sequence.Stream, At: meta.Timestamp.UTC()}
	d.received.Received, err = events.DecodeRequest(msg.Subject(), msg.Headers(), msg.Data(), fallback)
	if err != nil {
		d.received.Refusal = &events.Reason{Code: events.CodeInvalidRequest, Message: oneLine(err)}
	}
	return d, nil
}

// placeOf names a message of the request stream for good; see receive.
func placeOf(sequence uint64, at time.Time) string {
	return fmt.Sprintf("%d@%s", sequence, at.UTC().Format(time.RFC3339Nano))
}

// places are that of an order's message and those of the ones that it was put in the place of.
func (d delivery) places() []string {
	return append(slices.Clone(d.renews), placeOf(d.order.Sequence, d.order.At))
}

// relation is what a request is to the operation of its key.
type relation int

const (
	first     relation = iota // there is no operation yet
	owner                     // the request of the operation itself, delivered again
	duplicate                 // the same again
	stranger                  // the key belongs to another request
)

// relate is pure. A request is an operation's own if it is the same message, not
// only the same words: sequence and time of arrival together.
func relate(op events.Operation, r Received) relation {
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

// admit takes the requests that came for h's key, and returns those that an error
// kept it from.
func (a *Agent) admit(ctx context.Context, h *held, inbox []delivery) ([]delivery, error) {
	for {
		err := a.admitOnce(ctx, h, &inbox)
		if !errors.Is(err, ErrConflict) {
			return inbox, err
		}
		// Somebody else wrote the operation: if this agent held it, it does not any
		// more. What came is looked at again in the light of what is there now.
		if !h.owner.none() {
			a.logOf(h).Warn("another agent holds the operation; letting it go", "error", err)
		}
		a.release(h)
	}
}

// admitOnce takes what it has dealt with out of the inbox.
func (a *Agent) admitOnce(ctx context.Context, h *held, inbox *[]delivery) error {
	if err := a.recall(ctx, h); err != nil {
		return err
	}
	if h.entry == nil {
		entry, err := a.journal.Last(ctx, h.id)
		if err != nil {
			return err
		}
		h.entry = &entry
	}
	var duplicates []delivery
	for len(*inbox) > 0 {
		d := (*inbox)[0]
		if d.order != nil {
			if err := a.obey(ctx, h, d); err != nil {
				return err
			}
			*inbox = (*inbox)[1:]
			continue
		}
		switch relate(h.entry.Operation, d.received) {
		case first:
			a.own(h, d.msg)
			early := a.decideEarly(ctx, d)
			err := a.step(ctx, h, d.received)
			h.early = early() // whatever became of the step: nothing is done for h while it is decided on
			if err != nil {
				return err
			}
			a.countRequest(d.received, resultOf(d.received))
		case owner:
			if err := a.resume(ctx, h, d.msg); err != nil {
				return err
			}
		case duplicate:
			duplicates = append(duplicates, d)
		case stranger:
			a.refuse(ctx, h, d)
		}
		*inbox = (*inbox)[1:]
	}
	if len(duplicates) == 0 {
		return nil
	}
	a.readAheadInVain()
	*inbox = duplicates
	if err := a.step(ctx, h, Duplicated{Count: len(duplicates)}); err != nil {
		return err
	}
	a.mu.Lock()
	h.quiet = time.Now().Add(duplicatesEvery)
	a.mu.Unlock()
	*inbox = nil
	for _, d := range duplicates {
		a.countRequest(d.received, "duplicate")
		if err := d.msg.Ack(); err != nil {
			a.logOf(h).Warn("duplicate not acknowledged; it will come again", "error", err)
		}
	}
	return nil
}

// resume takes an operation up by the message that owns it, unless it is in hand.
func (a *Agent) resume(ctx context.Context, h *held, msg receipt) error {
	inHand := !h.owner.none()
	a.own(h, msg)
	if inHand {
		return nil
	}
	h.since = time.Now()
	a.countSubtasks(h.entry.Operation, +1)
	if err := a.step(ctx, h, Resumed{}); err != nil {
		return err
	}
	if err := a.keepSlot(ctx, h.entry.Operation); err != nil {
		return err
	}
	a.logOf(h).Info("operation taken up", "n", h.entry.Operation.N, "state", h.entry.Operation.State, "do", h.do)
	return nil
}

// obey gives an order to its operation. A retry's message owns the operation from
// then on; any other order is acknowledged, obeyed or not: who gave it reads the events.
func (a *Agent) obey(ctx context.Context, h *held, d delivery) error {
	op := h.entry.Operation
	if d.order.Verb == events.Retry && slices.Contains(d.places(), placeOf(op.RequestSequence, op.RequestedAt)) {
		return a.resume(ctx, h, d.msg)
	}
	if op.N == 0 && time.Since(d.order.At) < orderPatience {
		// Its request may be in another agent's hands, and not written yet.
		return d.msg.NakWithDelay(orderRetry)
	}
	refusal := refuseOrder(op, *d.order)
	if refusal != nil {
		// An order is not refused by what this agent remembers: another may have
		// brought the operation further, and no append would tell.
		last, err := a.journal.Last(ctx, h.id)
		switch {
		case err != nil:
			return err
		case last.Sequence != h.entry.Sequence && Holds(op, last.Operation):
			h.entry = &last
			return a.obey(ctx, h, d)
		case last.Sequence != h.entry.Sequence:
			return fmt.Errorf("order to %s operation %s: %w", d.order.Verb, h.id, ErrConflict)
		}
	} else {
		switch d.order.Verb {
		case events.Retry:
			if d.after != h.entry.Sequence {
				return a.renew(ctx, h, d)
			}
			a.own(h, d.msg)
		case events.Cancel:
			if h.owner.none() && time.Since(d.order.At) < orderPatience {
				// Who has the operation in hand would not notice for as long as it waits for the
				// same. Later it is nobody's, or a dead agent's.
				return d.msg.NakWithDelay(cancelRetry)
			}
		case events.Approve:
			if h.owner.none() {
				// Only who has the operation in hand may write into it.
				return d.msg.NakWithDelay(orderRetry)
			}
			no, err := a.mayApprove(ctx, op, d.order.RequestedBy)
			if err != nil {
				return err
			}
			if no != nil {
				d.order.Refused = no.Error()
			}
		}
		if err := a.step(ctx, h, *d.order); err != nil {
			return err
		}
		if now := h.entry.Operation; d.order.Verb == events.Retry && (now.State != events.Running || now.RequestSequence != d.order.Sequence) {
			return fmt.Errorf("order to retry operation %s, which went on elsewhere: %w", h.id, ErrConflict)
		}
	}
	a.logOf(h).Info("order", "verb", d.order.Verb, "requested_by", d.order.RequestedBy, "reason", d.order.Reason, "refused", refusal)
	if refusal == nil && d.order.Verb == events.Retry {
		return nil
	}
	a.ackOrder(h, d)
	return nil
}

// renew puts a message in the place of a retry's that says after which event it is to be
// obeyed. The one before may have been delivered to others too: whoever refused it has
// acknowledged it, or is about to, and would take the operation out of everybody's hands
// that it owns by then. The new one is refused only where the operation has gone on, and is
// obeyed only where it has not. JetStream lets a message be replaced once, and only while it
// is there and the last of its operation. The new one says which it replaces: should these
// have been obeyed after all, it owns the operation in their place.
func (a *Agent) renew(ctx context.Context, h *held, d delivery) error {
	msg, err := d.order.Message()
	if err != nil {
		return err
	}
	msg.Header[renewsHeader] = d.places()
	msg.Header.Set(afterHeader, strconv.FormatUint(h.entry.Sequence, 10))
	_, err = a.JetStream.PublishMsg(ctx, msg, jetstream.WithExpectLastSequencePerSubject(d.order.Sequence))
	if isConflict(err) {
		// It was renewed, or a later order has come: that goes first. This one may yet turn out
		// to own the operation.
		return d.msg.NakWithDelay(orderRetry)
	}
	if err != nil {
		return fmt.Errorf("renew the order to retry operation %s: %w", h.id, err)
	}
	a.logOf(h).Debug("order renewed", "verb", d.order.Verb, "requested_by", d.order.RequestedBy)
	a.ackOrder(h, d)
	return nil
}

func (a *Agent) ackOrder(h *held, d delivery) {
	if err := d.msg.Ack(); err != nil {
		a.logOf(h).Warn("order not acknowledged; it will come again", "error", err)
	}
}

// own makes msg the request that is acknowledged when h ends.
func (a *Agent) own(h *held, msg receipt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h.owner = msg
}

// refuse gives a request whose key belongs to another an operation of its own, in
// which it is rejected: the other's events stay as they are.
func (a *Agent) refuse(ctx context.Context, h *held, d delivery) {
	if d.received.Refusal == nil {
		d.received.Refusal = &events.Reason{Code: events.CodeKeyReused, Message: fmt.Sprintf(
			"idempotency key %q was used for another request, operation %s: %s of server %d of cluster %d; a new request needs a new key",
			d.received.Request.IdempotencyKey, h.id, h.entry.Operation.Kind, h.entry.Operation.ServerID, h.entry.Operation.ClusterID)}
	}
	d.received.OperationKey = d.fallback
	a.deliver(ctx, events.OperationID(d.fallback), d)
}

func resultOf(r Received) string {
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
