package operation

import (
	"fmt"
	"strings"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// The steps that follow OCP's task.

// looked appends an event for each change since the last look, and the last event if the task has ended.
func (m Machine) looked(op events.Operation, in Looked, now time.Time) Effects {
	if in.Err != nil {
		return m.lookFailed(op, in, now)
	}
	// After a retry OCP may show the old failure for a moment.
	called := op.RetriedAt
	if in.Since.After(called) {
		called = in.Since
	}
	retried := !op.RetriedAt.IsZero() && op.Task.Status == ocp.StatusFailed && now.Add(-in.Age).Sub(called) < m.Settle
	effects := Effects{Do: Look}
	if !in.Unmoved {
		effects.Append = m.progress(&op, mergeTask(op.Task, in.Task, now), now)
	}
	switch {
	case in.Task.Status == ocp.StatusFailed && retried && len(effects.Append) == 0:
	case in.Task.Finished():
		end := m.end(op, in, now)
		effects.Append = append(effects.Append, end.Append...)
		effects.Do = end.Do
		return effects
	case len(effects.Append) == 0 && op.Task.StalledAt.IsZero() && now.Sub(op.Task.MovedAt) >= m.StallAfter:
		task := *op.Task
		task.StalledAt = now.UTC()
		op.Task = &task
		effects.Append = m.event(&op, events.Stalled, now)
	case len(effects.Append) == 0:
		effects.Append = m.refresh(&op, now)
	}
	effects.At = now.Add(m.Spacing(op.Task.MovedAt, now))
	return effects
}

func (m Machine) lookFailed(op events.Operation, in Looked, now time.Time) Effects {
	if ocp.ClassOf(in.Err) == ocp.Refused && in.Refusals >= refusalsUntilFailed && in.Refused >= m.Settle {
		e := Failure(events.CodeOutcomeUnknown, in.Err)
		e.Message = fmt.Sprintf("OCP took the %s as task %d, but does not show it: %s; "+
			"does the user have TASK_VIEWER? Look at the task in OCP", op.Kind, op.Task.ID, e.Message)
		return m.failed(op, e, now)
	}
	wait := m.PollMin
	for range in.Failures {
		wait = min(2*wait, m.PollMax)
	}
	return Effects{Append: m.refresh(&op, now), Do: Look, At: now.Add(wait)}
}

// progress moves op's task to next, one event for each change.
func (m Machine) progress(op *events.Operation, next events.Task, now time.Time) []events.Event {
	changes := difference(op.Task, next)
	if len(changes) == 0 {
		// Changes that nobody waits for (times, ids of edges) go into the next event.
		op.Task = &next
		return nil
	}
	next.MovedAt, next.StalledAt = now.UTC(), time.Time{}
	if len(changes) > maxEventsALook {
		op.Task = &next
		return m.event(op, events.Progress, now, changes...)
	}
	var appended []events.Event
	for i, c := range changes {
		step := next
		if i < len(changes)-1 {
			step = taskBefore(next, *op.Task, changes[i+1:])
		}
		task := step
		op.Task = &task
		appended = append(appended, m.event(op, events.Progress, now, c)...)
	}
	return appended
}

// taskBefore returns task as it was before the pending changes.
func taskBefore(task, past events.Task, pending []events.Change) events.Task {
	was := make(map[int64]events.Subtask, len(past.Subtasks))
	for _, s := range past.Subtasks {
		was[s.ID] = s
	}
	task.Subtasks = append([]events.Subtask(nil), task.Subtasks...)
	for _, c := range pending {
		if c.SubtaskID == 0 {
			task.Status, task.Operation, task.FinishedAt = past.Status, past.Operation, past.FinishedAt
			continue
		}
		for i := range task.Subtasks {
			s := &task.Subtasks[i]
			if s.ID != c.SubtaskID {
				continue
			}
			if old, ok := was[s.ID]; ok {
				*s = old
			} else {
				*s = events.Subtask{ID: s.ID, Name: s.Name, Status: ocp.StatusPending, Upstreams: s.Upstreams}
			}
		}
	}
	task.Status = past.Status
	task.FinishedAt = past.FinishedAt
	task.Progress = progress(task.Subtasks)
	return task
}

// difference lists the changes: of subtasks in topological order, then of the task itself.
func difference(past *events.Task, next events.Task) []events.Change {
	was := make(map[int64]events.Subtask, len(past.Subtasks))
	for _, s := range past.Subtasks {
		was[s.ID] = s
	}
	var changes []events.Change
	for _, s := range next.Subtasks {
		old := was[s.ID]
		if s.Status != old.Status || s.Operation != old.Operation || s.Runs > old.Runs && old.Runs > 0 {
			changes = append(changes, events.Change{SubtaskID: s.ID, Name: s.Name, From: old.Status, To: s.Status})
		}
	}
	ended := next.Status == ocp.StatusSuccessful || next.Status == ocp.StatusFailed // the final event says so
	if !ended && (next.Status != past.Status || next.Operation != past.Operation && past.Operation != "") {
		changes = append(changes, events.Change{Name: next.Name, From: past.Status, To: next.Status})
	}
	return changes
}

// end appends the last event, which says how OCP's task ended.
func (m Machine) end(op events.Operation, in Looked, now time.Time) Effects {
	switch {
	case in.Task.Status == ocp.StatusFailed:
		return m.failed(op, taskFailure(op, in), now)
	case in.Task.RolledBack():
		return m.failed(op, events.Error{Code: events.CodeRolledBack, Message: fmt.Sprintf(
			"task %d was rolled back in OCP: the %s is undone", op.Task.ID, op.Kind)}, now)
	case in.Task.Operation == ocp.OperationCancel:
		return m.failed(op, events.Error{Code: events.CodeTaskCancelled, Message: fmt.Sprintf(
			"task %d was cancelled in OCP: look there how far the %s came", op.Task.ID, op.Kind)}, now)
	}
	op.Reason = nil
	return Effects{Append: m.event(&op, events.Succeeded, now), Do: Finish}
}

func taskFailure(op events.Operation, in Looked) events.Error {
	message := fmt.Sprintf("task %d (%s) failed in OCP", in.Task.ID, in.Task.Name)
	e := events.Error{Code: events.CodeSubtaskFailed, Message: message}
	for _, s := range op.Task.Subtasks {
		if s.Status == ocp.StatusFailed {
			e.SubtaskID, e.Subtask, e.Log = s.ID, s.Name, excerpt(in.Log)
			e.Message = fmt.Sprintf("subtask %q (%d) of task %d failed in OCP", s.Name, s.ID, in.Task.ID)
			break
		}
	}
	if line := lastLine(e.Log); line != "" {
		e.Message += ": " + line
	}
	return e
}

// excerpt returns the end of a log, because the last lines say what went wrong.
func excerpt(log string) string {
	log = strings.ToValidUTF8(strings.TrimSpace(log), "\uFFFD")
	if len(log) <= logExcerptBytes {
		return log
	}
	log = log[len(log)-logExcerptBytes:]
	if _, rest, ok := strings.Cut(log, "\n"); ok {
		return rest
	}
	return strings.ToValidUTF8(log, "")
}

func lastLine(log string) string {
	line := log[strings.LastIndexByte(log, '\n')+1:]
	if len(line) > 300 {
		line = strings.ToValidUTF8(line[:300], "") + "…"
	}
	return line
}

// mergeTask returns OCP's task as the document shows it. Some answers of OCP leave fields out that others have: these
// keep their value in past, the previous view.
func mergeTask(past *events.Task, seen ocp.Task, now time.Time) events.Task {
	if past == nil {
		past = &events.Task{ID: seen.ID, MovedAt: now.UTC()}
	}
	next := events.Task{
		ID:         past.ID,
		Name:       either(seen.Name, past.Name),
		Status:     either(seen.Status, past.Status),
		Operation:  either(seen.Operation, past.Operation),
		StartedAt:  eitherTime(seen.StartedAt, past.StartedAt),
		FinishedAt: seen.FinishedAt.UTC(),
		MovedAt:    past.MovedAt,
		StalledAt:  past.StalledAt,
	}
	if next.FinishedAt.IsZero() && seen.Finished() {
		next.FinishedAt = eitherTime(past.FinishedAt, now)
	}
	was := make(map[int64]events.Subtask, len(past.Subtasks))
	for _, s := range past.Subtasks {
		was[s.ID] = s
	}
	for _, s := range seen.Subtasks {
		next.Subtasks = append(next.Subtasks, mergeSubtask(was[s.ID], s, now))
	}
	if len(next.Subtasks) == 0 {
		next.Subtasks = past.Subtasks
	}
	next.Progress = progress(next.Subtasks)
	return next
}

func mergeSubtask(past events.Subtask, seen ocp.Subtask, now time.Time) events.Subtask {
	next := events.Subtask{
		ID:        seen.ID,
		Name:      either(seen.Name, either(seen.Description, past.Name)),
		Status:    either(seen.Status, past.Status),
		Operation: either(seen.Operation, past.Operation),
		Upstreams: append([]int64{}, seen.Upstreams...),
		Runs:      max(seen.Runs, past.Runs),
	}
	timeSubtask(&next, past, seen, now)
	return next
}

// timeSubtask sets the times of a subtask: OCP's own if it shows them, otherwise the times at which the agent saw the
// subtask change. All times of one subtask come from one clock.
func timeSubtask(next *events.Subtask, past events.Subtask, seen ocp.Subtask, now time.Time) {
	ended := next.Status == ocp.StatusSuccessful || next.Status == ocp.StatusFailed
	switch {
	case !seen.StartedAt.IsZero():
		next.Timing = events.TimingOCP
		next.StartedAt = seen.StartedAt.UTC()
		if ended {
			next.FinishedAt = seen.FinishedAt.UTC()
		}
	case past.Timing == events.TimingOCP && past.Status == next.Status:
		next.Timing, next.StartedAt, next.FinishedAt = past.Timing, past.StartedAt, past.FinishedAt
	case !started(next.Status):
		// The subtask does not run: nothing to measure.
	case !started(past.Status) || !ended && past.Status != next.Status:
		next.Timing = events.TimingObserved
		if !ended {
			next.StartedAt = now.UTC()
		} else {
			next.FinishedAt = now.UTC() // it started and ended between two looks: its start is not known
		}
	default:
		next.Timing, next.StartedAt, next.FinishedAt = past.Timing, past.StartedAt, past.FinishedAt
		if ended && next.FinishedAt.IsZero() {
			next.FinishedAt = now.UTC()
		}
	}
	if !next.StartedAt.IsZero() && next.FinishedAt.After(next.StartedAt) {
		next.DurationSeconds = next.FinishedAt.Sub(next.StartedAt).Round(time.Millisecond).Seconds()
	}
}

func started(status string) bool {
	return status != "" && status != ocp.StatusPending && status != ocp.StatusReady
}

// progress returns the share of subtasks that are done.
func progress(subtasks []events.Subtask) float64 {
	if len(subtasks) == 0 {
		return 0
	}
	done := 0
	for _, s := range subtasks {
		if s.Status == ocp.StatusSuccessful {
			done++
		}
	}
	return float64(done) / float64(len(subtasks))
}

func either(a, b string) string {
	if strings.TrimSpace(a) != "" {
		return a
	}
	return b
}

func eitherTime(a, b time.Time) time.Time {
	if !a.IsZero() {
		return a.UTC()
	}
	return b.UTC()
}
