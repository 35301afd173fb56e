// Package agent operates OceanBase servers: it takes requests from NATS, decides on them, calls OCP once for each, follows
// the task and writes every step to the journal.
//
// A message becomes a delivery (intake.go) and waits in the inbox of its operation (roster.go). The queue (queue.go) gives
// the operation to a worker, which has it in hand (held.go), admits the message (admit.go, orders.go) and carries out what
// the step function says (stage.go): decide.go, submit.go, follow.go, finish.go. observe.go tells metrics and the log.
// The life of an operation as a pure function is package operation. README.md is the walk of a request through all this.
//
// Only cmd imports the package.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/agent/slots"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

const (
	// wakeAtOnce is how many of the operations that wait for a slot look when one is free: the first may wait for something
	// else by then.
	wakeAtOnce = 4
	// probeEvery is how often an OCP whose breaker is open is tried, if it may be.
	probeEvery = time.Second
	// shutdownGrace is how long the workers may take to end by themselves when the agent shuts down. A call to OCP that is
	// cut off then is reconciled by the next agent.
	shutdownGrace = 1500 * time.Millisecond
)

// Config is what an agent works with. All fields but Silencer are required.
type Config struct {
	JetStream jetstream.JetStream
	Streams   events.Streams
	OCP       *ocp.Client
	Directory *facts.Directory
	Metrics   *metrics.Metrics
	Log       *slog.Logger
	Machine   operation.Machine
	Policy    *policy.Live
	Silencer  *alerts.Silencer // nil: nothing is silenced
	AckWait   time.Duration    // of the consumer
	Timeout   time.Duration    // from the intent to the end of the call to OCP; less than Machine.Settle
}

// Agent holds operations from their request to their end. Run may be called once. Its parts have locks of their own; the
// agent has none.
type Agent struct {
	Config
	journal  *journal.Journal
	slots    *slots.Slots
	pauses   *slots.Pauses
	clusters *facts.Clusters
	tasks    *facts.TaskPoller
	roster   *roster
	queue    *queue

	stages     map[operation.Action]stage
	orders     map[events.Verb]orderly
	generation atomic.Uint64   // grows with each change that people make: of the policy, of pauses
	workCtx    context.Context // of every worker; set by Run before anything is queued
}

// New makes an agent; Run starts it.
func New(c Config) *Agent {
	group := journal.NewGroupCommit(c.JetStream)
	a := &Agent{
		Config: c,
		journal: journal.New(c.Streams.Operations, group, c.Log, journal.Counters{
			Appended: func(took time.Duration) { c.Metrics.JournalAppend.Observe(took.Seconds()) },
			Conflict: c.Metrics.JournalConflicts.Inc,
			Failed:   c.Metrics.JournalErrors.Inc,
		}),
		pauses:   slots.NewPauses(c.Streams.Control, c.Log),
		clusters: facts.NewClusters(c.OCP),
		tasks:    facts.NewTaskPoller(c.OCP, c.Machine.PollMin),
		roster:   newRoster(),
		stages:   stages(),
		orders:   orders(),
	}
	a.slots = slots.New(c.Streams.Clusters, journal.NewGroupCommit(c.JetStream), c.Streams.Operations, a.pauses, c.Log)
	a.queue = newQueue(a.work)
	return a
}

// Run takes and carries out requests until ctx ends. Then it lets the workers come to a good point, hands every open
// request back at once and returns nil. An error says that the agent cannot go on, and why.
func (a *Agent) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	a.workCtx = work
	// Nothing is decided before the agent knows which slots are taken and what people have paused.
	slotsKnown, pausesKnown := make(chan struct{}), make(chan struct{})
	group.Go(func() error { return a.slots.Watch(ctx, sync.OnceFunc(func() { close(slotsKnown) }), a.wakeQueued) })
	group.Go(func() error { return a.pauses.Watch(ctx, sync.OnceFunc(func() { close(pausesKnown) }), a.pauseChanged) })
	group.Go(func() error {
		for _, known := range []chan struct{}{slotsKnown, pausesKnown} {
			select {
			case <-known:
			case <-ctx.Done():
				return nil
			}
		}
		return a.intake(ctx, work)
	})
	group.Go(func() error { a.keepAlive(ctx); return nil })
	group.Go(func() error { a.tidy(ctx); return nil })
	group.Go(func() error { a.probeOCP(ctx); return nil })
	group.Go(func() error { a.followPolicy(ctx); return nil })
	<-ctx.Done()
	a.shutdown(stop)
	return group.Wait()
}

// shutdown ends the work and hands every request back.
func (a *Agent) shutdown(stop context.CancelFunc) {
	time.AfterFunc(shutdownGrace, stop)
	a.queue.close()
	for id, acks := range a.roster.close() {
		for _, r := range acks {
			a.handBack(id, r)
		}
	}
}

func (a *Agent) handBack(id string, r ack) {
	if err := r.Nak(); err != nil {
		a.Log.Warn("request not handed back; it goes to another agent after the ack wait", "operation_id", id, "error", err)
	}
}

// keepAlive tells JetStream that the requests are in good hands, three times within the ack wait.
func (a *Agent) keepAlive(ctx context.Context) {
	tick := time.NewTicker(a.AckWait / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, acks := range a.roster.acks() {
			for _, r := range acks {
				// An error means that NATS is away: the journal, not the message, says who holds the operation.
				_ = r.InProgress()
			}
		}
	}
}

// The operations that wait are woken by what they wait for: a slot, people, OCP. Timers are there for everything that
// nobody announces.

// wakeQueued wakes the operations of a cluster that have waited for a slot for longest.
func (a *Agent) wakeQueued(cluster int64) {
	a.queue.requeue(a.roster.queued(cluster, wakeAtOnce)...)
}

// requeueWaiting has the waiting operations that match decided on anew.
func (a *Agent) requeueWaiting(match func(summary) bool) {
	a.generation.Add(1)
	a.queue.requeue(a.roster.waiting(match)...)
}

func (a *Agent) pauseChanged(cluster int64) {
	a.requeueWaiting(func(s summary) bool { return s.heldBack() && (cluster == events.AllClusters || s.cluster == cluster) })
}

// followPolicy has every waiting operation decided on anew whenever another policy is in force.
func (a *Agent) followPolicy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.Policy.Changed():
			a.requeueWaiting(func(summary) bool { return true })
		}
	}
}

// probeOCP has one of the operations that wait for OCP try it now and then while the breaker is open, and all go on at
// once when OCP answers. The client, which lets one request through after each pause, and the request budget keep that
// within bounds.
func (a *Agent) probeOCP(ctx context.Context) {
	for {
		var try <-chan time.Time
		if a.OCP.BreakerOpen() {
			try = time.After(probeEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-a.OCP.BreakerChanged():
			if !a.OCP.BreakerOpen() {
				a.requeueBlockedOnOCP(math.MaxInt)
				a.queue.requeueProcessing() // they may hear at this moment that OCP does not answer
			}
		case <-try:
			a.requeueBlockedOnOCP(1)
		}
	}
}

func (a *Agent) requeueBlockedOnOCP(most int) { a.queue.requeue(a.roster.needOCP(most)...) }

// JournalError is why the latest append to the journal failed, while they do.
func (a *Agent) JournalError() error { return a.journal.Err() }

// handleError deals with an error of the agent's surroundings: an operation's own errors are steps. mail has come and was
// not dealt with.
func (a *Agent) handleError(ctx context.Context, h *held, mail []delivery, err error) {
	log := a.logOf(h)
	switch {
	case errors.Is(err, journal.ErrConflict):
		log.Warn("another agent holds the operation; letting it go", "error", err)
		a.release(h)
	case ctx.Err() != nil: // shutting down: unacknowledged messages are handed back
		a.roster.returnMail(h, mail)
	default:
		log.Error("cannot go on with the operation, trying again", "error", err, "in", operation.RetryAfter)
		h.hand.plan.at = time.Now().Add(operation.RetryAfter)
		for _, d := range mail {
			if err := d.ack.NakWithDelay(operation.RetryAfter); err != nil {
				log.Warn("request not handed back", "error", err)
			}
		}
	}
}

// release drops what is in hand of an operation without touching its request: another agent has it, or it is settled.
func (a *Agent) release(h *held) {
	h.hand = hand{}
	a.publish(h, summary{})
}

// jitter spreads tries of many operations that failed at the same moment.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/4+1))
}
