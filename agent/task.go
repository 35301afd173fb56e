package agent

import (
	"strings"
	"time"

	"obwarden/agent/ocp"
	"obwarden/events"
)

// mergeTask is the document's view of what OCP shows, past being the last one.
// OCP's answers differ in how much they tell: what a poorer answer leaves out is
// kept from the richer one before it.
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

// timeSubtask takes OCP's own times where it tells them, else when the agent saw
// the subtask change. Times of one subtask come from one clock only.
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
		// Not yet, or not again: nothing to measure.
	case !started(past.Status) || !ended && past.Status != next.Status:
		next.Timing = events.TimingObserved
		if !ended {
			next.StartedAt = now.UTC()
		} else {
			next.FinishedAt = now.UTC() // it ran between two looks: nobody saw it start
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

// progress is the share of subtasks that are done.
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
