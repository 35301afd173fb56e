// Package agent operates OceanBase servers: it takes requests from NATS, decides on them, calls OCP once for each,
// follows the task and writes every step to the journal.
//
// A message becomes a delivery (intake.go) and waits in the inbox of its operation (roster.go). The queue (queue.go)
// gives the operation to a worker, which has it in hand (held.go), admits the message (admit.go, orders.go) and carries
// out what the step function says (stage.go): decide.go, submit.go, follow.go, finish.go. observe.go writes metrics and
// log lines. Package operation is the life of an operation as a pure function. README.md describes the walk of a
// request through these files.
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
	// wakeAtOnce is how many operations that wait for a slot are woken when one becomes free. More than one, because
	// the first may wait for something else by then.
	wakeAtOnce = 4
	// probeEvery is how often the agent tries OCP while the breaker is open.
	probeEvery = time.Second
	// shutdownGrace is how long the workers may take to end by themselves when the agent shuts down. If a call to OCP
	// is cut off then, the next agent reconciles it.
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

// Agent holds operations from their request to their end. Run may be called once. Its parts have locks of their own;
// the agent has none.
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
	orders     map[events.Verb]prepareOrder
	generation atomic.Uint64   // grows whenever somebody changes the policy, pauses or resumes
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

// Run carries out requests until ctx ends. Then it lets the workers end the actions under way, hands every open request
// back and returns nil. An error says why the agent cannot go on.
func (a *Agent) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	a.workCtx = work
	// The agent decides nothing before it knows which slots are taken and which clusters are paused.
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

// shutdown ends the work and hands every open request back.
func (a *Agent) shutdown(stop context.CancelFunc) {
	time.AfterFunc(shutdownGrace, stop)
	a.queue.close()
	for _, r := range a.roster.close() {
		a.handBack(r.id, r.ack)
	}
}

func (a *Agent) handBack(id string, r ack) {
	if err := r.Nak(); err != nil {
		a.Log.Warn("request not handed back; it goes to another agent after the ack wait",
			"operation_id", id, "error", err)
	}
}

// keepAlive tells JetStream, three times within the ack wait, that this agent still works on its requests.
func (a *Agent) keepAlive(ctx context.Context) {
	tick := time.NewTicker(a.AckWait / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, r := range a.roster.requests() {
			// An error means that NATS is away: the journal, not the message, says who holds the operation.
			_ = r.InProgress()
		}
	}
}

// An operation that waits is woken as soon as a slot becomes free, a person changes a pause or the policy, or OCP
// answers again. For all other changes it has a timer, so that a lost wake-up only makes it late.

// wakeQueued wakes the first operations in the queue of a cluster, because a slot or a place in the queue became free.
// Slots.Watch calls it after events of other agents, and step after the events of this one.
func (a *Agent) wakeQueued(cluster int64) {
	a.queue.requeue(a.roster.queued(cluster, wakeAtOnce)...)
}

// requeueWaiting asks the guard again about the waiting operations that match.
func (a *Agent) requeueWaiting(match func(summary) bool) {
	a.generation.Add(1)
	a.queue.requeue(a.roster.waiting(match)...)
}

func (a *Agent) pauseChanged(cluster int64) {
	a.requeueWaiting(func(s summary) bool {
		return s.waitsForResume() && (cluster == events.AllClusters || s.cluster == cluster)
	})
}

// followPolicy asks the guard again about every waiting operation whenever another policy is in force.
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

// probeOCP wakes one of the operations that wait for OCP every probeEvery while the breaker is open, and all of them
// once OCP answers. The client lets one request through after each pause, and its request budget limits the rest.
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
				a.queue.requeueProcessing() // one of these may learn at this moment that OCP does not answer
			}
		case <-try:
			a.requeueBlockedOnOCP(1)
		}
	}
}

func (a *Agent) requeueBlockedOnOCP(most int) { a.queue.requeue(a.roster.needOCP(most)...) }

// JournalError returns why the latest append to the journal failed; nil if it did not.
func (a *Agent) JournalError() error { return a.journal.Err() }

// handleError handles an error that is no input of the step function, such as a failed append. mail is the messages
// that were not admitted.
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

// release drops the hand without touching the request: another agent holds the operation, or its request is settled.
func (a *Agent) release(h *held) {
	h.hand = hand{}
	a.publish(h, summary{})
}

// jitter spreads the next tries of operations that failed at the same moment.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/4+1))
}
