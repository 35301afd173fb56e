package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
)

// look is one look at the task that h follows. Where the task has failed, it brings
// the end of the log that says why.
func (a *Agent) look(ctx context.Context, h *held) Looked {
	id := h.entry.Operation.Task.ID
	task, unmoved, began, err := a.looks.task(ctx, h.entry.Operation.Task, h.at, h.full)
	if err == nil && !unmoved && task.ID != id {
		err = fmt.Errorf("asked OCP for task %d, it answered with task %d", id, task.ID)
	}
	if err != nil {
		h.failures++
		if ocp.ClassOf(err) != ocp.Refused {
			h.refusals = 0
		} else if h.refusals++; h.refusals == 1 {
			h.refused = began
		}
		if ctx.Err() == nil {
			a.logOf(h).Warn("look at OCP's task failed", "task", id, "in_a_row", h.failures, "error", err)
		}
		return Looked{Err: err, Failures: h.failures, Refusals: h.refusals, Refused: time.Since(h.refused)}
	}
	h.failures, h.refusals = 0, 0
	if !unmoved {
		h.full = began
	}
	in := Looked{Task: task, Unmoved: unmoved, Since: h.since}
	if task.Status == ocp.StatusFailed {
		in.Log = a.failureLog(ctx, h, task)
	}
	in.Age = time.Since(began)
	return in
}

// failureLog is the log of the first failed subtask; empty where OCP does not
// give it: the failure is news enough without.
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
