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
	// prefetch is the number of requests that the client holds ready. While others write to the stream as fast as they can,
	// NATS comes round to the client's question for more every 100 ms or so: a storm has to fit in between. They are not
	// kept alive until they are taken out, so it is far less than an agent takes in within the ack wait.
	prefetch = 4096
	// intakeRetry is the pause after an error of the consumer, so that a NATS server that is away is not asked in a busy
	// loop.
	intakeRetry = time.Second
)

// Headers of an order that an agent has put in the place of others: see renew.
const (
	renewsHeader = "Obwarden-Renews" // the message ids of these
	afterHeader  = "Obwarden-After"  // the sequence of the event in the journal after which it is to be obeyed
)

// errStreamsGone ends an agent: its stream was taken away under it.
var errStreamsGone = fmt.Errorf("stream %s or its consumer %s was deleted; nothing is made anew behind your back: restart the agent to make them", events.RequestStream, events.Consumer)

// delivery is a request on its way to its operation.
type delivery struct {
	ack      ack
	received operation.Received
	again    bool               // it was delivered before
	order    *operation.Ordered // set: an order, and no request
	renews   []string           // ids of the messages in whose place the order's was put
	after    uint64             // the sequence in the journal after which the order is to be obeyed; 0: not yet
	fallback string             // key by which the request is refused where its own belongs to another
}

// intake takes requests until ctx ends.
func (a *Agent) intake(ctx, work context.Context) error {
	messages, err := a.Streams.Requests.Messages(jetstream.PullMaxMessages(prefetch))
	if err != nil {
		return fmt.Errorf("take requests from stream %s: %w", events.RequestStream, err)
	}
	// Draining brings out the requests that the client holds ready, so that they are handed back too. Without a connection
	// there is nobody to hand them to, and draining waits for one.
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

// intakeOrder takes an order. An order that cannot be decoded names no operation, so that no event can tell of it: the
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

// receive decodes a message. A message that cannot be decoded, or breaks a limit, is received too: with its refusal.
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

// messageID names a message of the request stream for good; see receive.
func messageID(sequence uint64, at time.Time) string {
	return fmt.Sprintf("%d@%s", sequence, at.UTC().Format(time.RFC3339Nano))
}

// messageIDs are the id of an order's message and those of the messages in whose place it was put.
func (d delivery) messageIDs() []string {
	return append(slices.Clone(d.renews), messageID(d.order.Sequence, d.order.At))
}

// deliver hands a message to its operation.
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
