package agent

import (
	"context"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// aside is what is kept of an operation in the place of its document while it is parked
// and nothing happens: the journal has the document. It is enough to see that nothing
// has happened.
type aside struct {
	sequence uint64    // of its last event in the journal
	until    time.Time // when there is something to say although nothing has happened; zero: never

	task int64 // that is followed
	seen listed
}

// grounds are what a decision to wait rests on that stays the same until they change.
type grounds struct {
	record uint64    // revision of the cluster's
	facts  time.Time // when these were read
	until  time.Time // when it ends for the time alone; zero: never
	every  time.Duration
}

// setAside has the document of an operation forgotten with which nothing happened when
// it was last looked at or decided on. The caller holds a.mu.
func (a *Agent) setAside(h *held) {
	if h.entry == nil {
		return
	}
	op := h.entry.Operation
	kept := &aside{sequence: h.entry.Sequence}
	if a.Machine.Refresh > 0 {
		kept.until = op.UpdatedAt.Add(a.Machine.Refresh)
	}
	switch {
	case h.do == Look && h.unmoved && op.State == events.Running:
		kept.task, kept.seen = op.Task.ID, seenOf(op.Task)
		if op.Task.StalledAt.IsZero() {
			kept.until = earlier(kept.until, op.Task.MovedAt.Add(a.Machine.StallAfter))
		}
	case h.do == Decide && h.grounds != nil && op.State == events.Waiting:
		kept.until = earlier(kept.until, h.grounds.until)
	default:
		return
	}
	h.entry, h.aside = nil, kept
}

// recall reads the document of an operation again that was set aside: it goes on from
// that event, and whatever others have written since is met by whoever appends to it.
func (a *Agent) recall(ctx context.Context, h *held) error {
	if h.aside == nil {
		return nil
	}
	entry, err := a.journal.At(ctx, h.id, h.aside.sequence)
	if err != nil {
		return err
	}
	h.entry, h.aside = &entry, nil
	return nil
}

// nothingNew reports whether it is with an operation that was set aside as it was, and
// says then when it is its turn again.
func (a *Agent) nothingNew(ctx context.Context, h *held) bool {
	kept := h.aside
	if kept != nil && !a.JetStream.Conn().IsConnected() { // it cannot be recalled, nor anything be written of it
		h.at = time.Now().Add(jitter(retryAfter))
		return true
	}
	if kept == nil || h.at.IsZero() || !kept.until.IsZero() && !time.Now().Before(kept.until) {
		return false
	}
	switch h.do {
	case Look:
		if !a.looks.unmoved(ctx, kept.task, kept.seen, h.at, h.full) {
			return false
		}
		now := time.Now()
		h.failures, h.refusals = 0, 0
		h.at = a.looks.due(now.Add(a.Machine.spacing(h.position.moved, now)), now)
	case Decide:
		cluster := h.position.cluster
		if h.news != a.news.Load() || h.grounds.record != a.slots.revision(cluster) || !h.grounds.facts.Equal(a.facts.readAt(cluster)) {
			return false
		}
		h.at = time.Now().Add(h.grounds.every)
	default:
		return false
	}
	h.at = earlier(h.at, kept.until)
	return true
}

// groundsOf are what decided rests on, where the agent is told of all that it rests on
// and the operation's reason says no less.
func groundsOf(op events.Operation, decided Decided, record uint64) *grounds {
	was, now := op.Reason, decided.Reason
	if !guard.RestsOnRecord(decided.Decision) || op.State != events.Waiting || op.Policy != decided.Policy ||
		was == nil || was.Code != now.Code || was.Message != now.Message || was.Position != now.Position {
		return nil
	}
	return &grounds{record: record, facts: decided.FactsAt, until: earlier(op.Request.ExpiresAt, decided.GiveUp), every: time.Until(now.Until)}
}

// earlier is the earlier of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// seenOf is what an entry of a list would say of a task.
func seenOf(t *events.Task) listed {
	seen := listed{status: word(t.Status), operation: word(t.Operation), subtasks: make([]listedSubtask, 0, len(t.Subtasks))}
	for _, s := range t.Subtasks {
		seen.subtasks = append(seen.subtasks, listedSubtask{s.ID, word(s.Status), word(s.Operation)})
	}
	return seen
}

// word is one of OCP's words, of which there is one copy for all tasks.
func word(s string) string {
	for _, w := range []string{
		ocp.StatusPending, ocp.StatusReady, ocp.StatusRunning, ocp.StatusCanceling, ocp.StatusFailed, ocp.StatusSuccessful,
		ocp.OperationExecute, ocp.OperationRetry, ocp.OperationRollback, ocp.OperationSkip, ocp.OperationCancel, ocp.OperationRollbackSkip,
	} {
		if s == w {
			return w
		}
	}
	return s
}
