package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// receipt is where JetStream wants to hear of a request: all that is kept of its message
// once it is decoded, often for days. Its methods are those of a jetstream.Msg; what is
// said of a request that is settled, JetStream passes over.
type receipt struct {
	conn    *nats.Conn
	subject string
}

func (a *Agent) receiptOf(msg jetstream.Msg) receipt { return receipt{a.JetStream.Conn(), msg.Reply()} }

// none: there is no request.
func (r receipt) none() bool { return r.conn == nil }

func (r receipt) Ack() error        { return r.conn.Publish(r.subject, []byte("+ACK")) }
func (r receipt) Nak() error        { return r.conn.Publish(r.subject, []byte("-NAK")) }
func (r receipt) InProgress() error { return r.conn.Publish(r.subject, []byte("+WPI")) }

func (r receipt) NakWithDelay(delay time.Duration) error {
	return r.conn.Publish(r.subject, fmt.Appendf(nil, `-NAK {"delay": %d}`, delay.Nanoseconds()))
}

func (r receipt) TermWithReason(reason string) error {
	return r.conn.Publish(r.subject, []byte("+TERM "+reason))
}

// DoubleAck is Ack, and waits until JetStream has taken it.
func (r receipt) DoubleAck(ctx context.Context) error {
	_, err := r.conn.RequestWithContext(ctx, r.subject, []byte("+ACK"))
	return err
}
