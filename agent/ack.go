package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ack acknowledges a request to JetStream. The agent keeps nothing else of a message that is decoded, often for days.
// Its methods are those of jetstream.Msg. JetStream ignores acknowledgements of a request that is settled.
type ack struct {
	conn  *nats.Conn
	reply string // subject
}

func (a *Agent) ackOf(msg jetstream.Msg) ack { return ack{a.JetStream.Conn(), msg.Reply()} }

// isZero reports that there is no request.
func (r ack) isZero() bool { return r.conn == nil }

func (r ack) Ack() error        { return r.conn.Publish(r.reply, []byte("+ACK")) }
func (r ack) Nak() error        { return r.conn.Publish(r.reply, []byte("-NAK")) }
func (r ack) InProgress() error { return r.conn.Publish(r.reply, []byte("+WPI")) }

func (r ack) NakWithDelay(delay time.Duration) error {
	return r.conn.Publish(r.reply, fmt.Appendf(nil, `-NAK {"delay": %d}`, delay.Nanoseconds()))
}

func (r ack) TermWithReason(reason string) error {
	return r.conn.Publish(r.reply, []byte("+TERM "+reason))
}

// DoubleAck is Ack, and waits until JetStream has taken it.
func (r ack) DoubleAck(ctx context.Context) error {
	_, err := r.conn.RequestWithContext(ctx, r.reply, []byte("+ACK"))
	return err
}
