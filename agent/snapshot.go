package agent

import (
	"context"
	"time"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

// snapshot replaces the document of an operation that rests while nothing happens; the journal keeps the document. A
// snapshot is small, and enough to see that nothing has happened.
type snapshot struct {
	sequence uint64    // of the last event in the journal
	until    time.Time // when an event is due although nothing has happened; zero: never

	task  facts.TaskDigest // while the operation follows a task
	basis waitBasis        // while the operation waits
}

// waitBasis is what a decision to wait rests on. While the basis stays the same, so does the decision.
type waitBasis struct {
	version    uint64        // of the cluster's slots
	generation uint64        // of policy and pauses
	facts      time.Time     // when the facts were read
	until      time.Time     // when the operation expires; zero: never
	every      time.Duration // between two checks of the basis
}

// evict replaces the document of an operation by a snapshot, if the latest look or decision has changed nothing.
func (a *Agent) evict(h *held) {
	if h.hand.entry == nil {
		return
	}
	op := h.hand.entry.Operation
	kept := &snapshot{sequence: h.hand.entry.Sequence}
	if a.Machine.Refresh > 0 {
		kept.until = op.UpdatedAt.Add(a.Machine.Refresh)
	}
	switch {
	case h.hand.plan.do == operation.Look && h.hand.unmoved && op.State == events.Running:
		kept.task = facts.DigestOf(op.Task)
		if op.Task.StalledAt.IsZero() {
			kept.until = earlier(kept.until, op.Task.MovedAt.Add(a.Machine.StallAfter))
		}
	case h.hand.plan.do == operation.Decide && h.hand.decided != nil && restsOnBasis(op, *h.hand.decided):
		d := h.hand.decided
		kept.basis = waitBasis{
			version: h.hand.version, generation: h.hand.generation, facts: d.FactsAt,
			until: earlier(op.Request.ExpiresAt, d.GiveUp), every: time.Until(d.Reason.Until),
		}
		kept.until = earlier(kept.until, kept.basis.until)
	default:
		return
	}
	h.hand.entry, h.hand.decided, h.hand.snapshot = nil, nil, kept
}

// restsOnBasis reports whether a decision changes only with its basis, and the operation's reason says all that it
// says.
func restsOnBasis(op events.Operation, d operation.Decided) bool {
	was, now := op.Reason, d.Reason
	return guard.RestsOnRecord(d.Decision) && op.State == events.Waiting && op.Policy == d.Policy &&
		was != nil && was.Code == now.Code && was.Message == now.Message && was.Position == now.Position
}

// reload reads the document of an operation that has a snapshot, as of the snapshot's event. If another agent has
// appended a later event, the next append of this agent fails with a conflict.
func (a *Agent) reload(ctx context.Context, h *held) error {
	if h.hand.snapshot == nil {
		return nil
	}
	entry, err := a.journal.At(ctx, h.id, h.hand.snapshot.sequence)
	if err != nil {
		return err
	}
	h.hand.entry, h.hand.snapshot = &entry, nil
	return nil
}

// unchanged reports whether nothing has happened to an operation that has a snapshot. If so, it plans the next check.
func (a *Agent) unchanged(ctx context.Context, h *held) bool {
	kept, p := h.hand.snapshot, &h.hand.plan
	if kept == nil {
		return false
	}
	if !a.JetStream.Conn().IsConnected() { // its document cannot be read, and no event can be appended
		p.at = time.Now().Add(jitter(operation.RetryAfter))
		return true
	}
	if p.at.IsZero() || !kept.until.IsZero() && !time.Now().Before(kept.until) {
		return false
	}
	switch p.do {
	case operation.Look:
		if !a.tasks.Unmoved(ctx, kept.task, p.at, h.hand.full) {
			return false
		}
		now := time.Now()
		h.hand.failures, h.hand.refusals = 0, 0
		p.at = a.tasks.Due(now.Add(a.Machine.Spacing(h.summary.progressed, now)), now)
	case operation.Decide:
		cluster := h.summary.cluster
		if kept.basis.generation != a.generation.Load() || kept.basis.version != a.slots.Version(cluster) ||
			!kept.basis.facts.Equal(a.clusters.ReadAt(cluster)) {
			return false
		}
		p.at = time.Now().Add(kept.basis.every)
	default:
		return false
	}
	p.at = earlier(p.at, kept.until)
	return true
}

// earlier is the earlier of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
