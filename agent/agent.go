// Package agent operates OceanBase servers: it takes requests from NATS, decides
// on them, calls OCP once for each, follows the task and writes every step to the
// journal.
//
// Read operation.go first: it is the life of an operation as one pure function.
// agent.go carries out what it says. The stages are intake.go, guard.go,
// submit.go and follow.go; journal.go and slots.go are what agents share. The
// package imports events, metrics and agent/ocp.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"obwarden/agent/ocp"
	"obwarden/events"
	"obwarden/metrics"
)

const (
	// maxActive operations do something at the same time; all others are parked,
	// and cost a timer each.
	maxActive = 256
	// shutdownGrace is how long what is under way may take to end by itself when
	// the agent shuts down. A call to OCP cut off here is reconciled by the next agent.
	shutdownGrace = 1500 * time.Millisecond
	// finishTimeout is how long the acknowledgement of an ended operation may take.
	// Without it the request comes again, finds the end in the journal and is
	// acknowledged then.
	finishTimeout = 5 * time.Second
)

// Config is what an agent works with. All fields are required.
type Config struct {
	JetStream jetstream.JetStream
	Streams   events.Streams
	OCP       *ocp.Client
	Metrics   *metrics.Metrics
	Log       *slog.Logger
	Machine   Machine
	Policy    Policy
	AckWait   time.Duration // of the consumer
	Timeout   time.Duration // from the intent to the end of the call to OCP; less than Machine.Settle
}

// Agent holds operations from their request to their end. Run may be called once.
type Agent struct {
	Config
	journal Journal
	looks   *looks
	slots   slots
	active  chan struct{} // a place for each operation that does something

	mu      sync.Mutex
	held    map[string]*held
	closing bool
	running sync.WaitGroup
}

// held is one operation in this agent's hands. The fields of the first group
// belong to Agent.mu, the others to whoever set busy.
type held struct {
	id       string
	busy     bool
	hurried  bool // somebody woke it while it was busy
	inbox    []delivery
	owner    jetstream.Msg // the request, unacknowledged; nil: only duplicates are here
	timer    *time.Timer
	position position

	entry    Entry
	loaded   bool
	do       Action
	at       time.Time
	intended time.Time // when the latest call was intended, before the journal had it
	since    time.Time // from when the settle time of the latest call counts
	cause    error     // why the outcome of the latest call is not known
	full     time.Time // when the task was last seen in full
	failures int       // looks in a row that failed
	refusals int       // looks in a row that OCP refused
}

// position is what others may read of an operation while it is worked on.
type position struct {
	state   events.State
	kind    events.Kind
	cluster int64
	first   uint64    // sequence of its request: who came first
	moved   time.Time // when it last moved
}

// New makes an agent; Run starts it.
func New(c Config) *Agent {
	a := &Agent{Config: c, held: map[string]*held{}, active: make(chan struct{}, maxActive)}
	a.journal = Journal{
		stream: c.Streams.Operations, group: &group{js: c.JetStream}, log: c.Log,
		appended: func(took time.Duration) { c.Metrics.JournalAppend.Observe(took.Seconds()) },
		conflict: c.Metrics.JournalConflicts.Inc,
		trouble:  &atomic.Pointer[error]{},
	}
	a.looks = newLooks(c.OCP, c.Machine.PollMin)
	a.slots = slots{bucket: c.Streams.Clusters, ended: a.ended}
	return a
}

// Run takes and carries out requests until ctx ends. Then it lets what is under
// way come to a good point, hands every open operation back at once and returns
// nil. An error says that the agent cannot go on, and why.
func (a *Agent) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.intake(ctx, work) })
	group.Go(func() error { return a.keepAlive(ctx) })
	group.Go(func() error { return a.slots.watch(ctx, func(cluster int64) { a.wakeFirst(work, cluster) }) })
	<-ctx.Done()
	a.shutdown(stop)
	return group.Wait()
}

// shutdown ends the work and gives every request back.
func (a *Agent) shutdown(stop context.CancelFunc) {
	a.mu.Lock()
	a.closing = true
	a.mu.Unlock()
	time.AfterFunc(shutdownGrace, stop)
	a.running.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.held {
		if h.timer != nil {
			h.timer.Stop()
		}
		for _, msg := range h.messages() {
			a.handBack(h.id, msg)
		}
	}
}

func (a *Agent) handBack(id string, msg jetstream.Msg) {
	if err := msg.Nak(); err != nil {
		a.Log.Warn("request not handed back; it goes to another agent after the ack wait", "operation_id", id, "error", err)
	}
}

// messages are all requests that wait in h for their acknowledgement.
func (h *held) messages() []jetstream.Msg {
	var msgs []jetstream.Msg
	if h.owner != nil {
		msgs = append(msgs, h.owner)
	}
	for _, d := range h.inbox {
		msgs = append(msgs, d.msg)
	}
	return msgs
}

// keepAlive tells JetStream that the requests are in good hands, three times
// within the ack wait.
func (a *Agent) keepAlive(ctx context.Context) error {
	tick := time.NewTicker(a.AckWait / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.mu.Lock()
		var msgs []jetstream.Msg
		for _, h := range a.held {
			msgs = append(msgs, h.messages()...)
		}
		a.mu.Unlock()
		for _, msg := range msgs {
			// An error means that NATS is away or the message settled meanwhile: the
			// journal, not the message, says who holds the operation.
			_ = msg.InProgress()
		}
	}
}

// deliver hands a message to its operation.
func (a *Agent) deliver(work context.Context, id string, d delivery) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		a.handBack(id, d.msg)
		return
	}
	h := a.held[id]
	if h == nil {
		h = &held{id: id}
		a.held[id] = h
	}
	h.inbox = append(h.inbox, d)
	a.wake(work, h)
}

// wake starts work on h unless somebody is at it. The caller holds a.mu.
func (a *Agent) wake(work context.Context, h *held) {
	if h.busy || a.closing {
		return
	}
	h.busy = true
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	a.running.Go(func() {
		a.active <- struct{}{}
		defer func() { <-a.active }()
		a.work(work, h)
	})
}

// wakeFirst wakes the operation of a cluster that has waited for longest, or is about to.
func (a *Agent) wakeFirst(work context.Context, cluster int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var first *held
	for _, h := range a.held {
		undecided := h.position.state == events.Waiting || h.position.state == events.Accepted
		if undecided && h.position.cluster == cluster && (first == nil || h.position.first < first.position.first) {
			first = h
		}
	}
	if first == nil || a.closing {
		return
	}
	if first.busy { // it may have read the record before it changed
		first.hurried = true
		return
	}
	first.at = time.Time{} // nobody is at it: busy is false, and a.mu is held
	a.wake(work, first)
}

// work carries h on until there is nothing to be done before some later time.
func (a *Agent) work(ctx context.Context, h *held) {
	for {
		a.mu.Lock()
		var inbox []delivery
		if h.do != Submit && ctx.Err() == nil { // nothing comes between the intent and the call
			inbox, h.inbox = h.inbox, nil
		}
		if h.hurried {
			h.hurried = false
			if h.position.state == events.Waiting {
				h.at = time.Time{}
			}
		}
		done := len(inbox) == 0 && (ctx.Err() != nil || a.closing || h.owner == nil || time.Now().Before(h.at))
		if done {
			a.park(ctx, h)
		}
		a.mu.Unlock()
		if done {
			return
		}
		var err error
		if len(inbox) > 0 {
			inbox, err = a.admit(ctx, h, inbox)
		} else {
			err = a.act(ctx, h)
		}
		if err != nil {
			a.trouble(ctx, h, inbox, err)
		}
	}
}

// park leaves h until its time. The caller holds a.mu.
func (a *Agent) park(ctx context.Context, h *held) {
	h.busy = false
	switch {
	case h.owner == nil && len(h.inbox) == 0:
		delete(a.held, h.id)
	case !a.closing:
		h.timer = time.AfterFunc(time.Until(h.at), func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.wake(ctx, h)
		})
	}
}

// trouble is what comes of an error: none is the operation's own, those are steps.
func (a *Agent) trouble(ctx context.Context, h *held, inbox []delivery, err error) {
	log := a.logOf(h)
	switch {
	case errors.Is(err, ErrConflict):
		log.Warn("another agent holds the operation; letting it go", "error", err)
		a.release(h)
	case ctx.Err() != nil:
		// Shutting down: what is unacknowledged is handed back.
		a.mu.Lock()
		h.inbox = append(inbox, h.inbox...)
		a.mu.Unlock()
	default:
		log.Error("cannot go on with the operation, trying again", "error", err, "in", retryAfter)
		a.mu.Lock()
		h.at = time.Now().Add(retryAfter)
		for _, d := range inbox {
			if err := d.msg.NakWithDelay(retryAfter); err != nil {
				log.Warn("request not handed back", "error", err)
			}
		}
		a.mu.Unlock()
	}
}

// release forgets h without touching its request: it is another agent's, or settled.
func (a *Agent) release(h *held) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h.owner != nil {
		a.countSubtasks(h.entry.Operation, -1)
	}
	a.account(h, position{})
	h.owner, h.loaded, h.do, h.full = nil, false, "", time.Time{}
}

// step feeds the machine and appends what it says. Where others recorded no more
// than duplicates meanwhile, it takes the step again from there.
func (a *Agent) step(ctx context.Context, h *held, in Input) error {
	for {
		now := time.Now()
		effects := a.Machine.Step(h.entry.Operation, in, now)
		before := h.entry.Operation
		after, err := a.journal.Append(ctx, h.entry, effects.Append)
		if errors.Is(err, ErrConflict) {
			h.entry = after // what went before the conflict is written
			last, errLast := a.journal.Last(ctx, h.id)
			if errLast == nil && h.entry.Sequence > 0 && Holds(h.entry.Operation, last.Operation) {
				h.entry = last
				continue
			}
			return errors.Join(err, errLast)
		}
		if err != nil {
			return err
		}
		h.entry = after
		a.observe(before, effects.Append)
		a.mu.Lock()
		if h.owner != nil {
			a.account(h, positionOf(after.Operation))
		}
		if effects.Do != "" {
			h.do, h.at, h.intended = effects.Do, effects.At, now
			if h.do == Look {
				h.at = a.looks.due(h.at, now)
			}
		}
		a.mu.Unlock()
		return nil
	}
}

// act does what is to be done next for h, and steps on with what came of it.
func (a *Agent) act(ctx context.Context, h *held) error {
	switch h.do {
	case Decide:
		decision, err := a.decide(ctx, h)
		if err != nil {
			return err
		}
		return a.step(ctx, h, Decided{Decision: decision, Offset: a.OCP.ClockOffset()})
	case Submit:
		h.do = Reconcile // whatever goes wrong from here on, the call is not made again
		return a.step(ctx, h, a.submit(ctx, h))
	case Reconcile:
		return a.step(ctx, h, a.reconcile(ctx, h))
	case Look:
		in := a.look(ctx, h)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return a.step(ctx, h, in)
	case RetryTask:
		h.do = Look // whatever goes wrong from here on, OCP is not asked again
		again, err := a.retryTask(ctx, h)
		if err != nil {
			return err
		}
		return a.step(ctx, h, again)
	case Finish:
		return a.finish(ctx, h)
	}
	return fmt.Errorf("operation %s has nothing to do: this is a bug", h.id)
}

// finish gives the slot back and acknowledges the request: in this order, so that
// a request is there for as long as anything of its operation is.
func (a *Agent) finish(ctx context.Context, h *held) error {
	op := h.entry.Operation
	if op.State != events.Rejected {
		if err := a.slots.give(ctx, op.ClusterID, op.OperationID); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	var err error
	if op.State == events.Rejected {
		err = h.owner.TermWithReason(op.Reason.Code)
	} else {
		err = h.owner.DoubleAck(ctx)
	}
	if err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		a.logOf(h).Warn("request not acknowledged; it will come again", "error", err)
	}
	a.release(h)
	return nil
}

// ended reports whether an operation holds its slot no longer, according to the journal.
func (a *Agent) ended(ctx context.Context, operationID string) bool {
	last, err := a.journal.Last(ctx, operationID)
	return err == nil && (last.Sequence == 0 || last.Operation.State.Final())
}

func positionOf(op events.Operation) position {
	moved := op.UpdatedAt
	if op.Task != nil && op.State == events.Running {
		moved = op.Task.MovedAt
	}
	return position{state: op.State, kind: op.Kind, cluster: op.ClusterID, first: op.RequestSequence, moved: moved}
}

// OldestProgress is for how long the open operation that has not moved for longest
// has not; 0 where none is open.
func (a *Agent) OldestProgress() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	var oldest time.Duration
	for _, h := range a.held {
		if s := h.position.state; s != "" && !s.Final() {
			oldest = max(oldest, time.Since(h.position.moved))
		}
	}
	return oldest
}

// JournalError is why the latest append to the journal failed, while they do.
func (a *Agent) JournalError() error {
	if err := a.journal.trouble.Load(); err != nil {
		return fmt.Errorf("journal cannot be written: %w", *err)
	}
	return nil
}

func (a *Agent) logOf(h *held) *slog.Logger {
	op := h.entry.Operation
	return a.Log.With("operation_id", h.id, "cluster", op.ClusterID, "server", op.ServerID)
}

// jitter spreads tries of many operations that failed at the same moment.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/4+1))
}
