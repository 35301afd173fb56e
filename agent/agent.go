// Package agent operates OceanBase servers: it takes requests from NATS, decides
// on them, calls OCP once for each, follows the task and writes every step to the
// journal.
//
// Read operation.go first: it is the life of an operation as one pure function.
// agent.go carries out what it says, wake.go when. The stages are intake.go, decide.go,
// submit.go and follow.go; journal.go, slots.go and control.go are what agents
// share. The package imports events, metrics and the packages below it.
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

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

const (
	// maxActive operations do something at the same time, and as many look at OCP's
	// tasks; all others are parked, or wait for a place: without a goroutine, whose
	// stack would be more than all else of them.
	maxActive = 256
	// wakeTogether is how many operations whose time has come are woken before others
	// have their turn with the lock.
	wakeTogether = 256
	// shutdownGrace is how long what is under way may take to end by itself when
	// the agent shuts down. A call to OCP cut off here is reconciled by the next agent.
	shutdownGrace = 1500 * time.Millisecond
	// finishTimeout is how long the acknowledgement of an ended operation may take.
	// Without it the request comes again, finds the end in the journal and is
	// acknowledged then.
	finishTimeout = 5 * time.Second
)

// Config is what an agent works with. All fields but Silencer are required.
type Config struct {
	JetStream jetstream.JetStream
	Streams   events.Streams
	OCP       *ocp.Client
	Metrics   *metrics.Metrics
	Log       *slog.Logger
	Machine   Machine
	Policy    *policy.Policy   // SetPolicy changes it
	Silencer  *alerts.Silencer // nil: nothing is silenced
	AckWait   time.Duration    // of the consumer
	Timeout   time.Duration    // from the intent to the end of the call to OCP; less than Machine.Settle
}

// Agent holds operations from their request to their end. Run may be called once.
type Agent struct {
	Config
	journal Journal
	looks   *looks
	slots   *slots
	control *control
	facts   *facts
	policy  atomic.Pointer[policy.Policy]

	news      atomic.Uint64 // counts what people change: policies, pauses
	leftAlone atomic.Bool   // OCP, because it does not answer
	changed   chan struct{} // leftAlone has
	aheadFrom atomic.Int64  // when facts may be read ahead again, in nanoseconds of Unix time

	mu      sync.Mutex
	under   context.Context // what everything that is under way belongs to
	held    map[string]*held
	waiting map[int64]map[*held]struct{} // those that wait or are about to, by cluster
	early   map[int64]bool               // clusters in which one is decided on early
	ahead   map[int64]bool               // clusters whose facts are being read ahead
	parked  queue                        // by when they go on
	alarm   *time.Timer                  // for the first of them
	moved   queue                        // those under way, by when they last moved
	came    queue                        // those that wait, by when their request came
	active  places                       // of operations that do something
	looking places                       // of those that look at their task, which may take long
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
	quiet    time.Time // until then duplicates are only collected
	owner    receipt   // of the request, unacknowledged; none: only duplicates are here
	position position
	in       struct{ parked, moved, came int } // its places in the queues

	entry    *Entry // the operation as it stands; nil: the journal is still to be asked, or it is set aside
	aside    *aside // what is kept of it then
	do       Action
	at       time.Time
	intended time.Time // when the latest call was intended, before the journal had it
	since    time.Time // from when the settle time of the latest call counts
	cause    error     // why the outcome of the latest call is not known
	full     time.Time // when the task was last seen in full
	failures int       // looks in a row that failed
	refusals int       // looks in a row that OCP refused
	refused  time.Time // the first of these
	news     uint64    // what the latest decision knew
	unmoved  bool      // the latest look found nothing new
	grounds  *grounds  // of the latest decision; nil: it may be another the next moment
	early    *early    // a decision of before its first event was in the journal; nil: none
}

// position is what others may read of an operation while it is worked on.
type position struct {
	state     events.State
	kind      events.Kind
	cluster   int64
	server    int64
	first     uint64    // sequence of its request: who came first
	requested time.Time // when that came
	moved     time.Time // when it last moved
	reason    string    // why it waits
	queued    bool      // waits for a slot, or is about to
	stalled   bool      // its task in OCP
}

// undecided: it waits, or is about to.
func (p position) undecided() bool { return p.state == events.Accepted || p.state == events.Waiting }

// heldBack: it waits for a person to let it go.
func (p position) heldBack() bool {
	return p.reason == events.CodePaused || p.reason == events.CodeFailing
}

// New makes an agent; Run starts it.
func New(c Config) *Agent {
	a := &Agent{
		Config: c, held: map[string]*held{}, waiting: map[int64]map[*held]struct{}{}, early: map[int64]bool{}, ahead: map[int64]bool{},
		active: places{free: maxActive}, looking: places{free: maxActive}, changed: make(chan struct{}, 1),
		parked: queue{of: (*held).due, place: func(h *held) *int { return &h.in.parked }},
		moved:  queue{of: func(h *held) time.Time { return h.position.moved }, place: func(h *held) *int { return &h.in.moved }},
		came:   queue{of: func(h *held) time.Time { return h.position.requested }, place: func(h *held) *int { return &h.in.came }},
	}
	a.journal = Journal{
		stream: c.Streams.Operations, group: &group{js: c.JetStream}, log: c.Log,
		appended: func(took time.Duration) { c.Metrics.JournalAppend.Observe(took.Seconds()) },
		conflict: c.Metrics.JournalConflicts.Inc,
		failed:   c.Metrics.JournalErrors.Inc,
		trouble:  &atomic.Pointer[error]{},
	}
	a.looks = newLooks(c.OCP, c.Machine.PollMin)
	a.slots = newSlots(c.JetStream, c.Streams.Clusters, c.Log)
	a.control = newControl(c.Streams.Control, c.Log, a.countPause)
	a.facts = newFacts(c.OCP)
	a.policy.Store(c.Policy)
	return a
}

// SetPolicy has everything from now on decided by p, and what waits decided anew.
func (a *Agent) SetPolicy(p *policy.Policy) {
	a.policy.Store(p)
	a.news.Add(1)
	a.reconsider(func(position) bool { return true })
}

// Run takes and carries out requests until ctx ends. Then it lets what is under
// way come to a good point, hands every open operation back at once and returns
// nil. An error says that the agent cannot go on, and why.
func (a *Agent) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	a.mu.Lock()
	a.under = work
	a.mu.Unlock()
	// Nothing is decided before it is known what others hold and people have paused.
	known, paused := make(chan struct{}), make(chan struct{})
	group.Go(func() error {
		return a.slots.watch(ctx, sync.OnceFunc(func() { close(known) }), a.wakeFirst)
	})
	group.Go(func() error {
		return a.control.watch(ctx, sync.OnceFunc(func() { close(paused) }), func(cluster int64) {
			a.news.Add(1)
			a.reconsider(func(p position) bool { return p.heldBack() && (cluster == events.AllClusters || p.cluster == cluster) })
		})
	})
	group.Go(func() error {
		for _, ready := range []chan struct{}{known, paused} {
			select {
			case <-ready:
			case <-ctx.Done():
				return nil
			}
		}
		group.Go(func() error { return a.sweep(ctx) })
		return a.intake(ctx, work)
	})
	group.Go(func() error { return a.keepAlive(ctx) })
	group.Go(func() error { return a.tidy(ctx) })
	group.Go(func() error { a.tryOCP(ctx); return nil })
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
	if a.alarm != nil {
		a.alarm.Stop()
	}
	for _, h := range a.held {
		for _, r := range h.receipts() {
			a.handBack(h.id, r)
		}
	}
}

func (a *Agent) handBack(id string, r receipt) {
	if err := r.Nak(); err != nil {
		a.Log.Warn("request not handed back; it goes to another agent after the ack wait", "operation_id", id, "error", err)
	}
}

// receipts are of all requests that wait in h for their acknowledgement.
func (h *held) receipts() []receipt {
	var all []receipt
	if !h.owner.none() {
		all = append(all, h.owner)
	}
	for _, d := range h.inbox {
		all = append(all, d.msg)
	}
	return all
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
		var all []receipt
		for _, h := range a.held {
			all = append(all, h.receipts()...)
		}
		a.mu.Unlock()
		for _, r := range all {
			// An error means that NATS is away: the journal, not the message, says who
			// holds the operation.
			_ = r.InProgress()
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
		a.readAhead(work, d)
	}
	h.inbox = append(h.inbox, d)
	// One that was delivered before may be its own request, which another agent had.
	if d.order != nil || d.again || len(h.inbox) > duplicatesKept {
		h.quiet = time.Time{}
	}
	if !h.busy && time.Now().Before(h.quiet) {
		a.rest(h)
		return
	}
	a.wake(work, h)
}

// work carries h on until there is nothing to be done before some later time, or
// nothing that p is for.
func (a *Agent) work(ctx context.Context, h *held, p *places) {
	var seen uint64 // the news that h has gone on for already
	for {
		a.mu.Lock()
		news := a.news.Load()
		again := h.hurried || news != h.news && news != seen // decided on what others, or people, have changed since
		if h.hurried = false; again && h.do == Decide && h.position.state == events.Waiting {
			h.at, seen = time.Time{}, news
		}
		admits := len(h.inbox) > 0 && !time.Now().Before(h.quiet) && h.do != Submit && h.do != RetryTask && ctx.Err() == nil // nothing comes between the intent and the call
		done := !admits && (ctx.Err() != nil || a.closing || h.owner.none() || time.Now().Before(h.at))
		elsewhere := !done && a.placesFor(h) != p
		var inbox []delivery
		switch {
		case done:
			a.park(h)
		case elsewhere:
			a.enter(ctx, h)
		case admits:
			inbox, h.inbox = h.inbox, nil
		}
		a.mu.Unlock()
		if done || elsewhere {
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
func (a *Agent) park(h *held) {
	h.busy = false
	switch {
	case h.owner.none() && len(h.inbox) == 0 && !time.Now().Before(h.quiet):
		delete(a.held, h.id)
	case !a.closing:
		a.setAside(h)
		a.rest(h)
	}
}

// rest has h woken when its time comes. The caller holds a.mu, and h is not busy.
func (a *Agent) rest(h *held) {
	a.parked.put(h)
	if a.parked.all[0] == h {
		a.setAlarm()
	}
}

// due is when h goes on, as things are.
func (h *held) due() time.Time {
	if h.owner.none() || len(h.inbox) > 0 && h.quiet.Before(h.at) {
		return h.quiet
	}
	return h.at
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
	if !h.owner.none() && h.entry != nil {
		a.countSubtasks(h.entry.Operation, -1)
	}
	a.account(h, position{})
	h.owner, h.entry, h.aside, h.do, h.full, h.early = receipt{}, nil, nil, "", time.Time{}, nil
}

// step feeds the machine and appends what it says. Where others recorded no more
// than duplicates meanwhile, it takes the step again from there.
func (a *Agent) step(ctx context.Context, h *held, in Input) error {
	for {
		now := time.Now()
		effects := a.Machine.Step(h.entry.Operation, in, now)
		before := h.entry.Operation
		after, err := a.journal.Append(ctx, *h.entry, effects.Append)
		if errors.Is(err, ErrConflict) {
			h.entry = &after // what went before the conflict is written
			last, errLast := a.journal.Last(ctx, h.id)
			o, ordered := in.(Ordered)
			again := !ordered || o.Verb != events.Retry // that is for the one event that it was given after
			if again && errLast == nil && h.entry.Sequence > 0 && Holds(h.entry.Operation, last.Operation) {
				h.entry = &last
				continue
			}
			return errors.Join(err, errLast)
		}
		if err != nil {
			return err
		}
		h.entry = &after
		a.observe(before, effects.Append)
		a.mu.Lock()
		if !h.owner.none() {
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
	if a.nothingNew(ctx, h) {
		return nil
	}
	if err := a.recall(ctx, h); err != nil {
		return err
	}
	switch h.do {
	case Decide:
		if s := h.entry.Operation.State; ActionFor(s) != Decide && s != events.Submitting {
			return a.step(ctx, h, Resumed{}) // others brought it further: there is nothing to decide
		}
		record := a.slots.revision(h.position.cluster)
		decided, err := a.decide(ctx, h, false)
		if err != nil {
			return err
		}
		if err := a.step(ctx, h, decided); err != nil {
			return err
		}
		h.grounds = groundsOf(h.entry.Operation, decided, record)
		return a.holdNothing(ctx, h)
	case Submit:
		h.do = Reconcile // whatever goes wrong from here on, the call is not made again
		if err := a.step(ctx, h, a.submit(ctx, h)); err != nil {
			return err
		}
		return a.holdNothing(ctx, h)
	case Reconcile:
		return a.step(ctx, h, a.reconcile(ctx, h))
	case Look:
		in := a.look(ctx, h)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		before := h.entry.Sequence
		err := a.step(ctx, h, in)
		h.unmoved = err == nil && in.Err == nil && h.entry.Sequence == before
		return err
	case Readmit:
		if h.entry.Operation.State != events.Running {
			return a.step(ctx, h, Resumed{})
		}
		h.do = Look // should the decision fail for now
		decided, err := a.decide(ctx, h, true)
		if err != nil {
			return err
		}
		return a.step(ctx, h, decided)
	case RetryTask:
		h.do = Look // whatever goes wrong from here on, OCP is not asked again
		return a.step(ctx, h, Again{Err: a.retryTask(ctx, h)})
	case Finish:
		return a.finish(ctx, h)
	}
	return fmt.Errorf("operation %s has nothing to do: this is a bug", h.id)
}

// holdNothing gives the slot of an operation back that waits: it may wait for long.
func (a *Agent) holdNothing(ctx context.Context, h *held) error {
	op := h.entry.Operation
	if record := a.slots.record(op.ClusterID); op.State != events.Waiting || !record.Holds(op.OperationID, 0) {
		return nil
	}
	return a.giveBack(ctx, op)
}

// finish gives back what the operation holds and acknowledges the request: in this
// order, so that a request is there for as long as anything of its operation is.
func (a *Agent) finish(ctx context.Context, h *held) error {
	op := h.entry.Operation
	record := a.slots.record(op.ClusterID)
	if op.Attempt > 0 || record.Holds(op.OperationID, 0) || record.Queued(op.OperationID) {
		if err := a.giveBack(ctx, op); err != nil {
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
	if err != nil {
		a.logOf(h).Warn("request not acknowledged; it will come again", "error", err)
	}
	a.release(h)
	return nil
}

func positionOf(op events.Operation) position {
	p := position{
		state: op.State, kind: op.Kind, cluster: op.ClusterID, server: op.ServerID,
		first: op.RequestSequence, requested: op.RequestedAt, moved: op.UpdatedAt,
	}
	switch {
	case op.State == events.Accepted:
		p.queued = true
	case op.State == events.Waiting && op.Reason != nil:
		p.reason, p.queued = op.Reason.Code, op.Reason.Position > 0
	case op.State == events.Running && op.Task != nil:
		p.moved, p.stalled = op.Task.MovedAt, !op.Task.StalledAt.IsZero()
	}
	return p
}

// OldestProgress is for how long the operation under way that has not moved for
// longest has not; 0 where none is. Those that wait have their own measure.
func (a *Agent) OldestProgress() time.Duration { return a.oldest(&a.moved) }

// OldestWait is how long ago the request came whose operation waits for longest; 0
// where none waits.
func (a *Agent) OldestWait() time.Duration { return a.oldest(&a.came) }

func (a *Agent) oldest(q *queue) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if first := q.first(); !first.IsZero() {
		return max(0, time.Since(first))
	}
	return 0
}

// JournalError is why the latest append to the journal failed, while they do.
func (a *Agent) JournalError() error {
	if err := a.journal.trouble.Load(); err != nil {
		return fmt.Errorf("journal cannot be written: %w", *err)
	}
	return nil
}

func (a *Agent) logOf(h *held) *slog.Logger {
	at := h.position
	if h.entry != nil {
		at = positionOf(h.entry.Operation)
	}
	return a.Log.With("operation_id", h.id, "cluster", at.cluster, "server", at.server)
}

// jitter spreads tries of many operations that failed at the same moment.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/4+1))
}
