package agent

import (
	"context"
	"fmt"
)

// receipt is where JetStream wants to hear of a request: all that is kept of its
// message until its operation has ended, which may take days. What is said of a request
// that has been settled meanwhile, JetStream passes over.
type receipt string

// acknowledge returns once JetStream has taken the request out of the stream.
func (a *Agent) acknowledge(ctx context.Context, r receipt) error {
	_, err := a.JetStream.Conn().RequestWithContext(ctx, string(r), []byte("+ACK"))
	return err
}

// terminate takes a request out that was refused; why is in JetStream's advisory.
func (a *Agent) terminate(r receipt, why string) error { return a.tell(r, "+TERM "+why) }

// handBackNow has the request given to whoever asks next.
func (a *Agent) handBackNow(r receipt) error { return a.tell(r, "-NAK") }

// inProgress keeps the request from being given to another.
func (a *Agent) inProgress(r receipt) error { return a.tell(r, "+WPI") }

func (a *Agent) tell(r receipt, what string) error {
	if err := a.JetStream.Conn().Publish(string(r), []byte(what)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
