package facts

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

func TestAnEntryIsTheSameAsBeforeOnlyWhereNothingCanHaveHappened(t *testing.T) {
	t.Parallel()
	known := &events.Task{ID: 7, Status: "RUNNING", Operation: "EXECUTE", Subtasks: []events.Subtask{
		{ID: 1, Status: "SUCCESSFUL", Operation: "EXECUTE"}, {ID: 2, Status: "RUNNING", Operation: "EXECUTE"}}}
	entry := func(change func(*ocp.Task)) ocp.Task {
		task := ocp.Task{ID: 7, Status: "RUNNING", Subtasks: []ocp.Subtask{
			{ID: 2, Status: "RUNNING", Operation: "EXECUTE"}, {ID: 1, Status: "SUCCESSFUL", Operation: "EXECUTE"}}}
		change(&task)
		return task
	}
	for name, tt := range map[string]struct {
		change func(*ocp.Task)
		want   bool
	}{
		"the same, in another order":    {func(*ocp.Task) {}, true},
		"without operations":            {func(t *ocp.Task) { t.Subtasks[0].Operation, t.Subtasks[1].Operation = "", "" }, true},
		"not in the list":               {func(t *ocp.Task) { *t = ocp.Task{} }, false},
		"another status":                {func(t *ocp.Task) { t.Status = "FAILED" }, false},
		"rolled back":                   {func(t *ocp.Task) { t.Operation = "ROLLBACK" }, false},
		"a subtask moved":               {func(t *ocp.Task) { t.Subtasks[0].Status = "SUCCESSFUL" }, false},
		"a subtask does something else": {func(t *ocp.Task) { t.Subtasks[0].Operation = "RETRY" }, false},
		"a subtask more":                {func(t *ocp.Task) { t.Subtasks = append(t.Subtasks, ocp.Subtask{ID: 3, Status: "PENDING"}) }, false},
		"a subtask less":                {func(t *ocp.Task) { t.Subtasks = t.Subtasks[:1] }, false},
		"a subtask in place of another": {func(t *ocp.Task) { t.Subtasks[0].ID = 3 }, false},
		"without subtasks":              {func(t *ocp.Task) { t.Subtasks = nil }, false},
	} {
		if got := sameAsBefore(DigestOf(known), digestOf(entry(tt.change))); got != tt.want {
			t.Errorf("%s: the same is %v", name, got)
		}
	}
	// It may have failed again since: how often it ran is not in a list.
	known.Subtasks[1].Status = "FAILED"
	if sameAsBefore(DigestOf(known), digestOf(entry(func(t *ocp.Task) { t.Subtasks[0].Status = "FAILED" }))) {
		t.Error("a failed subtask counts as unmoved")
	}
}

func TestLooksAreDueTogetherAndNotLate(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for range 10_000 {
		pollMin := time.Duration(1+random.IntN(10_000)) * time.Millisecond
		p := NewTaskPoller(nil, pollMin)
		now := time.Unix(1_800_000_000, random.Int64N(1e9))
		wait := time.Duration(random.Int64N(int64(20 * pollMin)))
		due := p.Due(now.Add(wait), now)
		if due.After(now.Add(wait)) || wait >= pollMin && !due.After(now) {
			t.Fatalf("spacing %s, from %s on: due %s later", wait, now, due.Sub(now))
		}
		// Once in step with the others it stays so, with half of the spacing at least.
		if again := p.Due(due.Add(wait), due).Sub(due); wait >= pollMin && (again < wait/2 || again%pollMin != 0) {
			t.Fatalf("least spacing %s, spacing %s: the look after it is due %s later", pollMin, wait, again)
		}
	}
}
