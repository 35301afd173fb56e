package journal

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

// GroupCommit lets writes of many callers share a flush, which takes as long for a hundred messages as for one. A
// single write goes at once. Writes that arrive while another one is under way go together after it. All methods may be
// called concurrently.
type GroupCommit struct {
	js jetstream.JetStream

	mu        sync.Mutex
	busy      bool // a caller is writing, and will promote one of the waiting writes
	waiting   []*pending
	noBatches bool // the server or the stream accepts no batches
}

// NewGroupCommit returns a group that publishes through js.
func NewGroupCommit(js jetstream.JetStream) *GroupCommit { return &GroupCommit{js: js} }

// pending is one write: messages of one operation or one record, the first of which is conditional.
type pending struct {
	ctx context.Context
	// messages creates them anew for each try, because a try changes their headers.
	messages func() ([]*nats.Msg, error)
	events   int

	lead chan []*pending // promote sends the writes that the caller of this one is to write, itself included
	done chan struct{}
	// Set once done is closed: the sequence of the last event, or the error.
	sequence uint64
	err      error
}

// Publish writes n messages, in order, and returns the sequence of the last one once all are on disk. After an error
// they may still be on disk: the answer may have been lost. messages creates them anew for each try.
func (g *GroupCommit) Publish(ctx context.Context, n int, messages func() ([]*nats.Msg, error)) (uint64, error) {
	p := &pending{ctx: ctx, messages: messages, events: n, lead: make(chan []*pending, 1), done: make(chan struct{})}
	g.mu.Lock()
	if g.noBatches {
		g.mu.Unlock()
		g.publishOne(p)
		return p.sequence, p.err
	}
	if !g.busy {
		g.busy = true
		g.mu.Unlock()
		g.publishOne(p)
		g.promote()
		return p.sequence, p.err
	}
	g.waiting = append(g.waiting, p)
	g.mu.Unlock()
	select {
	case <-p.done:
	case all := <-p.lead:
		g.publishAll(all)
		g.promote()
	}
	return p.sequence, p.err
}

// promote lets one of the callers that have arrived meanwhile write for all of them.
func (g *GroupCommit) promote() {
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
		next[0].lead <- next
	}
}

// publishAll writes all in one batch if that is cheaper. Otherwise, or if the batch is refused because one of the
// writes conflicts, it writes each by itself.
func (g *GroupCommit) publishAll(all []*pending) {
	events := 0
	for _, p := range all {
		events += p.events
	}
	if events >= batchFrom && len(all) > 1 && g.publishBatch(all) == nil {
		return
	}
	var appending sync.WaitGroup
	for _, p := range all {
		appending.Go(func() { g.publishOne(p) })
	}
	appending.Wait()
}

// publishBatch writes all in one batch, and wakes their callers. After an error it has written none of them, or the
// answer was lost.
func (g *GroupCommit) publishBatch(all []*pending) error {
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
	if errors.Is(err, jetstreamext.ErrBatchPublishNotEnabled) ||
		errors.Is(err, jetstreamext.ErrBatchPublishUnsupportedHeader) {
		g.mu.Lock()
		g.noBatches = true
		g.mu.Unlock()
	}
	if err != nil {
		return err
	}
	sequence := ack.Sequence - uint64(len(msgs)) // a batch has consecutive sequences
	for _, p := range all {
		sequence += uint64(p.events)
		p.sequence = sequence
		close(p.done)
	}
	return nil
}

// publishOne writes for p, and wakes its caller.
func (g *GroupCommit) publishOne(p *pending) {
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
