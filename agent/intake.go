package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

const (
	// prefetch is the number of requests that the client fetches ahead. While senders write to the stream as fast as
	// they can, NATS serves the client's next pull only every 100 ms or so: the buffer must hold what a storm brings in
	// between. Requests in the buffer are not kept alive, so there must be far fewer than the agent takes in within the
	// ack wait.
	prefetch = 4096
	// intakeRetry is the pause after an error of the consumer, so that the agent does not ask a NATS server that is
	// away in a busy loop.
	intakeRetry = time.Second
)

// Headers of an order that replaces others: see renew.
const (
	renewsHeader = "Obwarden-Renews" // the message ids of the orders that it replaces
	afterHeader  = "Obwarden-After"  // the sequence of the event in the journal after which the order is to be obeyed
)

// errStreamsGone ends the agent: somebody deleted a stream that it works on.
var errStreamsGone = fmt.Errorf("stream %s or its consumer %s was deleted; the agent does not create them again by "+
	"itself: restart it to create them", events.RequestStream, events.Consumer)

// delivery is a request or an order on its way to its operation.
type delivery struct {
	ack      ack
	received operation.Received
	again    bool               // it was delivered before
	order    *operation.Ordered // nil: it is a request
	renews   []string           // ids of the messages that the order replaces
	after    uint64             // the sequence in the journal after which the order is to be obeyed; 0: not known yet
	fallback string             // key of the operation in which the request is rejected, if its own key is another's
}

// intake takes requests until ctx ends.
func (a *Agent) intake(ctx, work context.Context) error {
	messages, err := a.Streams.Requests.Messages(jetstream.PullMaxMessages(prefetch))
	if err != nil {
		return fmt.Errorf("take requests from stream %s: %w", events.RequestStream, err)
	}
	// Draining brings out the requests that the client has fetched ahead, so that the agent hands them back too.
	// Without a connection that is impossible, and draining would wait for one.
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
		msg, err := messages.Next(jetstream.NextContext(work)) // draining waits for NATS, which may stand still
		switch {
		case work.Err() != nil:
			return nil
		case errors.Is(err, jetstream.ErrMsgIteratorClosed) && ctx.Err() != nil:
			return nil
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return errors.New("the connection to NATS was closed for good")
		case errors.Is(err, jetstream.ErrConsumerDeleted), errors.Is(err, jetstream.ErrConsumerNotFound),
			errors.Is(err, jetstream.ErrStreamNotFound):
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
			a.intakeOrder(msg)
			continue
		}
		d, err := receive(msg)
		if err != nil {
			a.Log.Error("message without JetStream's metadata", "subject", msg.Subject(), "error", err)
			continue
		}
		d.ack = a.ackOf(msg)
		a.deliver(events.OperationID(d.received.Request.IdempotencyKey), d)
	}
}

// intakeOrder takes an order. An order that cannot be decoded names no operation, so that no event can report it: the
// log does.
func (a *Agent) intakeOrder(msg jetstream.Msg) {
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
	a.deliver(order.OperationID, delivery{
		ack: a.ackOf(msg), renews: msg.Headers().Values(renewsHeader), after: after,
		order: &operation.Ordered{Order: order, Sequence: meta.Sequence.Stream, At: meta.Timestamp.UTC()},
	})
}

// receive decodes a message. A message that cannot be decoded, or exceeds a limit, becomes a delivery with a refusal.
func receive(msg jetstream.Msg) (delivery, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return delivery{}, err
	}
	// The sequence alone is no key: it starts again at 1 where the stream is created anew.
	fallback := events.RequestStream + "/" + messageID(meta.Sequence.Stream, meta.Timestamp)
	d := delivery{fallback: fallback, again: meta.NumDelivered > 1}
	d.received = operation.Received{Sequence: meta.Sequence.Stream, At: meta.Timestamp.UTC()}
	d.received.Received, err = events.DecodeRequest(msg.Subject(), msg.Headers(), msg.Data(), fallback)
	if err != nil {
		d.received.Refusal = &events.Reason{Code: events.CodeInvalidRequest, Message: oneLine(err)}
	}
	return d, nil
}

// messageID identifies a message of the request stream, also after the stream was created anew.
func messageID(sequence uint64, at time.Time) string {
	return fmt.Sprintf("%d@%s", sequence, at.UTC().Format(time.RFC3339Nano))
}

// messageIDs returns the ids of the order's message and of the messages that it replaces.
func (d delivery) messageIDs() []string {
	return append(slices.Clone(d.renews), messageID(d.order.Sequence, d.order.At))
}

// deliver puts a message into the inbox of its operation, and adds the operation to the queue.
func (a *Agent) deliver(id string, d delivery) {
	if a.queue.closing() {
		a.handBack(id, d.ack)
		return
	}
	at, ok := a.roster.deliver(id, d, time.Now())
	if !ok { // closed since
		a.handBack(id, d.ack)
		return
	}
	a.queue.addAt(id, at)
}
