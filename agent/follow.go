package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/operation"
)

// look is the stage that looks once at the task that an operation follows. If the task has failed, it also reads the
// log of the subtask that failed.
func (a *Agent) look(ctx context.Context, h *held) (operation.Input, error) {
	known := h.hand.entry.Operation.Task
	task, unmoved, began, err := a.tasks.Look(ctx, known, h.hand.plan.at, h.hand.full)
	if err == nil && !unmoved && task.ID != known.ID {
		err = fmt.Errorf("asked OCP for task %d, it answered with task %d", known.ID, task.ID)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return a.lookFailed(h, began, err), nil
	}
	h.hand.failures, h.hand.refusals = 0, 0
	if !unmoved {
		h.hand.full = began
	}
	in := operation.Looked{Task: task, Unmoved: unmoved, Since: h.hand.since}
	if task.Status == ocp.StatusFailed {
		in.Log = a.failureLog(ctx, h, task)
	}
	in.Age = time.Since(began)
	return in, ctx.Err()
}

func (a *Agent) lookFailed(h *held, began time.Time, err error) operation.Looked {
	h.hand.failures++
	if ocp.ClassOf(err) != ocp.Refused {
		h.hand.refusals = 0
	} else if h.hand.refusals++; h.hand.refusals == 1 {
		h.hand.refused = began
	}
	a.logOf(h).Warn("look at OCP's task failed",
		"task", h.hand.entry.Operation.Task.ID, "in_a_row", h.hand.failures, "error", err)
	return operation.Looked{
		Err: err, Failures: h.hand.failures, Refusals: h.hand.refusals, Refused: time.Since(h.hand.refused),
	}
}

// failureLog returns the log of the first failed subtask. It is empty if OCP does not show it: the operation fails
// without the log, too.
func (a *Agent) failureLog(ctx context.Context, h *held, task ocp.Task) string {
	for _, s := range task.Subtasks {
		if s.Status != ocp.StatusFailed {
			continue
		}
		log, err := a.OCP.SubtaskLog(ctx, task.ID, s.ID)
		if err != nil {
			a.logOf(h).Warn("no log of the failed subtask", "task", task.ID, "subtask", s.ID, "error", err)
		}
		return log
	}
	return ""
}
