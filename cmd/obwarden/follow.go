package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
)

const (
	// answerGrace is how long a request may stay unanswered after its operation has ended. An agent answers at once.
	answerGrace = 5 * time.Second
	// noAgentAfter is the time without an answer after which the command says that no agent takes the request.
	noAgentAfter = 5 * time.Second
)

// refusals matches every event that refuses a request.
const refusals = "ob.server.*.event.*.*.*.rejected"

// followTarget is the operation that is followed.
type followTarget struct {
	OperationID string
	// Submit publishes a request for the operation and returns its sequence in the request stream. It is called after the
	// subscription to the events, so that no event is missed. Nil: only follow.
	Submit func(context.Context) (sequence uint64, err error)
}

// follow shows an operation from its first event to its end and returns it as it ended. A request that is refused
// because its key belongs to another operation ends in an operation of its own, which follow finds by the request's
// sequence. If ctx ends first, follow returns the operation as far as it has come, and ctx's cause as the error. Other
// errors are Submit's or JetStream's.
func follow(ctx context.Context, js jetstream.JetStream, target followTarget, out *ui) (events.Operation, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := follower{target: target, out: out}
	err := f.run(ctx, js)
	if err != nil && ctx.Err() != nil { // err only says what was interrupted
		err = context.Cause(ctx)
	}
	if out.live && f.following {
		f.settle()
	}
	return f.shown, err
}

type follower struct {
	target    followTarget
	out       *ui
	before    uint64 // the journal's last sequence before our request
	request   uint64 // sequence of our request in the request stream; 0: there is none
	answered  bool   // an event has shown that our request is part of the operation
	slow      bool   // no agent has answered for a while
	following bool   // the events are subscribed to, so there is something to show

	last  events.Operation // the target's last event
	shown events.Operation // the same, or the refusal of our request
}

func (f *follower) run(ctx context.Context, js jetstream.JetStream) error {
	stream, err := journal(ctx, js)
	if err != nil {
		return err
	}
	f.before = stream.CachedInfo().State.LastSeq
	skipped := func(err error) { f.out.notice(err.Error()) }
	history, err := subscribe(ctx, js, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{events.OperationSubjects(f.target.OperationID)},
	}, skipped)
	if err != nil {
		return err
	}
	var refused <-chan message
	if f.target.Submit == nil {
		f.answered = true
	} else {
		if refused, err = subscribe(ctx, js, jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{refusals},
			DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
			OptStartSeq:    f.before + 1,
		}, skipped); err != nil {
			return err
		}
		if f.request, err = f.target.Submit(ctx); err != nil {
			return err
		}
	}
	return f.watch(ctx, history, refused)
}

func (f *follower) watch(ctx context.Context, history, refused <-chan message) error {
	f.following = true
	var frames <-chan time.Time
	if f.out.live {
		ticker := time.NewTicker(frameTime)
		defer ticker.Stop()
		frames = ticker.C
		f.draw()
	}
	quiet := time.NewTimer(noAgentAfter)
	defer quiet.Stop()
	var grace <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case m, ok := <-history:
			if !ok {
				return closed(ctx)
			}
			f.event(m)
			switch {
			case !f.last.State.Final():
				grace = nil
			case f.answered:
				return nil
			case m.sequence > f.before && grace == nil:
				grace = time.After(answerGrace)
			}
		case m, ok := <-refused:
			if !ok {
				return closed(ctx)
			}
			if m.RequestSequence == f.request && m.OperationID != f.target.OperationID {
				f.show(m)
				return nil
			}
		case <-grace:
			return nil
		case <-quiet.C:
			if !f.answered {
				f.slow = true
				if !f.out.live {
					f.out.notice("no agent has taken the request yet; it stays in the stream " + events.RequestStream + " until one does")
				}
			}
		case <-frames:
			f.draw()
		}
	}
}

func closed(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.New("the connection was closed")
}

// event processes the next event of the target.
func (f *follower) event(m message) {
	before := f.last
	f.last = m.Operation
	// Once an order to retry is obeyed, the operation carries the sequence of a later message.
	retried := before.N > 0 && before.RequestSequence < f.request && f.request < m.RequestSequence
	if retried || m.RequestSequence == f.request || m.Token == events.Duplicate && m.sequence > f.before {
		f.answered = true
	}
	f.show(m)
}

func (f *follower) show(m message) {
	f.shown = m.Operation
	switch {
	case f.out.json:
		f.out.printJSON(m.body)
	case f.out.live:
		f.draw()
	default:
		f.out.println(f.out.eventLine(m.Event, false))
	}
}

func (f *follower) draw() { f.out.draw(f.lines(f.out.liveStyle())) }

// settle draws the whole tree a last time, to stay.
func (f *follower) settle() { f.out.settle(f.lines(f.out.style())) }

func (f *follower) lines(s style) []string {
	now := f.out.now()
	if f.shown.N > 0 {
		return renderTree(f.shown, now, s)
	}
	text := " waiting for an agent to take the request"
	if f.slow {
		text += fmt.Sprintf("; none has yet, and it stays in the stream %s until one does", events.RequestStream)
	}
	lines := []string{s.render(line{{s.dot(), cyan}, {text, ""}})}
	return append(lines, s.render(line{{"  operation " + f.target.OperationID, dim}}))
}

// gaveUp is the cause of a context that ends after --timeout.
type gaveUp struct{ after time.Duration }

func (g gaveUp) Error() string { return fmt.Sprintf("gave up waiting after %s", g.after) }

// outcome turns the result of follow into the command's error.
func outcome(c *client, id string, op events.Operation, err error) error {
	goesOn := fmt.Sprintf("the operation goes on; follow it: obwarden watch %s", id)
	switch {
	case errors.As(err, new(gaveUp)):
		state := "no agent has taken it yet"
		if op.N > 0 {
			state = "it is " + string(op.State)
		}
		return exit(exitGaveUp, fmt.Errorf("%w: %s; %s", err, state, goesOn))
	case errors.Is(err, context.Canceled):
		return exit(exitGaveUp, fmt.Errorf("interrupted; %s", goesOn))
	case err != nil:
		return c.unreachable(err)
	}
	reason := ""
	if op.Reason != nil {
		reason = " (" + op.Reason.Code + ")"
	}
	details := reason + "; in full: obwarden get " + op.OperationID
	switch op.State {
	case events.Succeeded:
		return nil
	case events.Failed:
		return exit(exitFailed, fmt.Errorf("%s failed%s", subject(op), details))
	}
	return exit(exitRejected, fmt.Errorf("%s was %s%s", subject(op), op.State, details))
}
