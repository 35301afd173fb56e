package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// maxBatch is how many events go in one batch; the server's limit is 1,000.
const maxBatch = 256

// group lets appends of many operations share a flush, which takes as long for a
// hundred events as for one. An append that comes alone goes at once, and waits for
// no company; those that come while it is under way go together after it. All
// methods may be called concurrently.
type group struct {
	js jetstream.JetStream

	mu        sync.Mutex
	busy      bool // somebody is appending, and will let those who wait go on
	waiting   []*pending
	noBatches bool // the server or the stream takes none
}

// pending is one append: events of one operation, the first of which is conditional.
type pending struct {
	ctx context.Context
	// messages makes them anew: an attempt leaves its marks in the headers.
	messages func() ([]*nats.Msg, error)
	events   int

	turn chan []*pending // sent to whoever is to append for all of these, itself among them
	done chan struct{}
	// Set once done is closed: the sequence of the last event, or what went wrong.
	sequence uint64
	err      error
}

// append returns the sequence of the last event once all are on disk. An error says
// nothing about whether they are: the answer may have been lost.
func (g *group) append(ctx context.Context, events int, messages func() ([]*nats.Msg, error)) (uint64, error) {
	p := &pending{ctx: ctx, messages: messages, events: events, turn: make(chan []*pending, 1), done: make(chan struct{})}
	g.mu.Lock()
	if g.noBatches {
		g.mu.Unlock()
		g.alone(p)
		return p.sequence, p.err
	}
	if !g.busy {
		g.busy = true
		g.mu.Unlock()
		g.alone(p)
		g.handOver()
		return p.sequence, p.err
	}
	g.waiting = append(g.waiting, p)
	g.mu.Unlock()
	select {
	case <-p.done:
	case all := <-p.turn:
		g.together(all)
		g.handOver()
	}
	return p.sequence, p.err
}

// handOver gives the turn to one of those who came meanwhile.
func (g *group) handOver() {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, events := 0, 0
	for n < len(g.waiting) && (n == 0 || events+g.waiting[n].events <= maxBatch) {
		events += g.waiting[n].events
		n++
	}
	if g.busy = n > 0; g.busy {
		next := g.waiting[:n:n]
		g.waiting = g.waiting[n:]
		next[0].turn <- next
	}
}

// together appends all in one batch where that is cheaper, and each for itself where
// it is not or where the batch is refused: one conflict refuses all of it.
func (g *group) together(all []*pending) {
	events := 0
	for _, p := range all {
		events += p.events
	}
	if events >= batchFrom && len(all) > 1 && g.batch(all) == nil {
		return
	}
	var appending sync.WaitGroup
	for _, p := range all {
		appending.Go(func() { g.alone(p) })
	}
	appending.Wait()
}

func (g *group) batch(all []*pending) error {
	var msgs []*nats.Msg
	for _, p := range all {
		own, err := p.messages()
		if err != nil {
			return err
		}
		msgs = append(msgs, own...)
	}
	ctx, cancel := context.WithTimeout(all[0].ctx, appendTimeout)
	defer cancel()
	ack, err := jetstreamext.PublishMsgBatch(ctx, g.js, msgs)
	if errors.Is(err, jetstreamext.ErrBatchPublishNotEnabled) || errors.Is(err, jetstreamext.ErrBatchPublishUnsupportedHeader) {
		g.mu.Lock()
		g.noBatches = true
		g.mu.Unlock()
	}
	if err != nil {
		return err
	}
	sequence := ack.Sequence - uint64(len(msgs)) // they lie one behind the other
	for _, p := range all {
		sequence += uint64(p.events)
		p.sequence = sequence
		close(p.done)
	}
	return nil
}

// alone appends for p, and says so to whoever waits for it.
func (g *group) alone(p *pending) {
	defer close(p.done)
	ctx, cancel := context.WithTimeout(p.ctx, appendTimeout)
	defer cancel()
	msgs, err := p.messages()
	if err != nil {
		p.err = err
		return
	}
	if len(msgs) > 1 {
		ack, err := jetstreamext.PublishMsgBatch(ctx, g.js, msgs)
		if err != nil {
			p.err = err
			return
		}
		p.sequence = ack.Sequence
		return
	}
	ack, err := g.js.PublishMsg(ctx, msgs[0])
	switch {
	case err != nil:
		p.err = err
	case ack.Duplicate:
		p.err = errDuplicate
	default:
		p.sequence = ack.Sequence
	}
}
