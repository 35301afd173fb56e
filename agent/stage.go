package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/events"
)

// stage carries out an action for the operation in hand and returns the outcome: the next input of the step function,
// or nil if there is no next step.
type stage func(a *Agent, ctx context.Context, h *held) (operation.Input, error)

// stages returns the stage of each action. No stage calls another.
func stages() map[operation.Action]stage {
	return map[operation.Action]stage{
		operation.Decide:    (*Agent).decide,
		operation.Submit:    (*Agent).submit,
		operation.Reconcile: (*Agent).reconcile,
		operation.Look:      (*Agent).look,
		operation.Readmit:   (*Agent).readmit,
		operation.RetryTask: (*Agent).retryTask,
		operation.Finish:    (*Agent).finish,
	}
}

// work is what a worker does with an operation: it admits messages and carries out actions until the next action is due
// later, or belongs to another lane than l. woken means that the operation acts now, whatever it waits for.
func (a *Agent) work(id string, l lane, woken bool) turn {
	ctx, h := a.workCtx, a.roster.get(id)
	if h == nil {
		return turn{over: true}
	}
	if woken {
		h.hand.plan.at = time.Time{}
	}
	for {
		now := time.Now()
		mail := !h.hand.plan.urgent() && a.roster.hasMail(h, now)
		due := h.owned() && !now.Before(h.hand.plan.at)
		next := h.hand.plan.lane()
		if mail {
			next = acting
		}
		switch {
		case ctx.Err() != nil || a.queue.closing():
			return turn{at: now.Add(time.Hour), lane: l} // the agent starts nothing any more
		case !mail && !due:
			return a.rest(h, now)
		case next != l:
			return turn{lane: next}
		}
		if mail {
			inbox := a.roster.takeMail(h, now)
			if left, err := a.admit(ctx, h, inbox); err != nil {
				a.handleError(ctx, h, left, err)
			}
			continue
		}
		if err := a.act(ctx, h); err != nil {
			a.handleError(ctx, h, nil, err)
		}
	}
}

// rest leaves an operation until its next action is due.
func (a *Agent) rest(h *held, now time.Time) turn {
	a.evict(h)
	if needs := h.needsOCP(); needs != h.summary.needsOCP {
		s := h.summary
		s.needsOCP = needs
		a.publish(h, s)
	}
	at, over := a.roster.rest(h, h.owned(), h.hand.plan.at, now)
	return turn{at: at, lane: h.hand.plan.lane(), over: over}
}

// act carries out the planned action, and takes the step that follows from its outcome. If the action may be started
// only once, the plan is already the one for a lost outcome when it starts.
func (a *Agent) act(ctx context.Context, h *held) error {
	if a.unchanged(ctx, h) {
		return nil
	}
	if err := a.reload(ctx, h); err != nil {
		return err
	}
	do, before := h.hand.plan.do, h.hand.entry.Sequence
	if lost := h.hand.plan.ifLost; lost != "" {
		h.hand.plan = plan{do: lost}
	}
	carryOut := a.stages[do]
	if carryOut == nil {
		return fmt.Errorf("operation %s has nothing to do: this is a bug", h.id)
	}
	in, err := carryOut(a, ctx, h)
	if err != nil || in == nil {
		return err
	}
	if err := a.step(ctx, h, in); err != nil {
		return err
	}
	h.hand.unmoved = do == operation.Look && h.hand.failures == 0 && h.hand.entry.Sequence == before
	if do == operation.Decide && h.hand.plan.do == operation.Decide && a.decidedOnOld(h) {
		h.hand.plan.at = time.Time{} // decide again
	}
	return nil
}

// decidedOnOld reports whether a slot became free, or people changed something, while an operation was decided on. Nobody
// wakes an operation for that before its summary says that it waits.
func (a *Agent) decidedOnOld(h *held) bool {
	return a.slots.Version(h.summary.cluster) != h.hand.version || a.generation.Load() != h.hand.generation
}

// step calls the step function and appends the events that follow. If other agents have recorded nothing but duplicates
// meanwhile, it takes the step again, from the last of these.
func (a *Agent) step(ctx context.Context, h *held, in operation.Input) error {
	for {
		now := time.Now()
		entry := *h.hand.entry
		effects := a.Machine.Step(entry.Operation, in, now)
		after, err := a.journal.Append(ctx, entry, effects.Append)
		if errors.Is(err, journal.ErrConflict) {
			if last, again := a.catchUp(ctx, h.id, after, in); again {
				h.hand.entry = &last
				continue
			}
		}
		if err != nil {
			return err
		}
		h.hand.entry = &after
		a.observe(entry.Operation, effects.Append)
		if len(effects.Append) > 0 {
			if h.owned() {
				a.publishEntry(h)
			}
			if a.slots.Saw(after) {
				a.wakeQueued(after.Operation.ClusterID)
			}
		}
		if effects.Do != "" {
			h.hand.plan = plan{do: effects.Do, at: effects.At, ifLost: effects.IfLost}
			h.hand.intended = now
			if effects.Do == operation.Look {
				h.hand.plan.at = a.tasks.Due(effects.At, now)
			}
		}
		return nil
	}
}

// catchUp returns the operation as the journal has it, and whether the step may be taken again from there, because this
// agent still holds the operation. An order to retry is never taken again: it counts for one event only.
func (a *Agent) catchUp(
	ctx context.Context, id string, after journal.Entry, in operation.Input,
) (last journal.Entry, again bool) {
	if o, ordered := in.(operation.Ordered); ordered && o.Verb == events.Retry || after.Sequence == 0 {
		return after, false
	}
	last, err := a.journal.Last(ctx, id)
	return last, err == nil && operation.SameHolder(after.Operation, last.Operation)
}
