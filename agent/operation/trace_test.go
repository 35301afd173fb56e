package operation

import (
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

func TestReconcileFindsTheTaskOfTheCallAndNoOther(t *testing.T) {
	t.Parallel()
	called := time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)
	op := events.Operation{Kind: events.Stop, ClusterID: 1, ServerID: 2, OCPTime: called}
	task := func(id int64, change func(*ocp.Task)) ocp.Task {
		t := ocp.Task{ID: id, Name: "Stop OB server", ClusterID: 1, ServerIDs: []int64{2}, StartedAt: called.Add(time.Second)}
		if change != nil {
			change(&t)
		}
		return t
	}
	unnamed := func(t *ocp.Task) { t.ServerIDs = nil }
	for _, test := range []struct {
		name   string
		status string
		tasks  []ocp.Task
		want   Outcome
		id     int64
	}{
		{"its task", "STOPPING", []ocp.Task{task(7, nil)}, Found, 7},
		{"the earliest of two", "STOPPING", []ocp.Task{task(8, nil), task(7, nil)}, Found, 7},
		{"a task from before the call", "RUNNING", []ocp.Task{task(7, func(t *ocp.Task) { t.StartedAt = called.Add(-3 * time.Second) })}, Nothing, 0},
		{"a task from just before, by clocks that differ a little", "STOPPING", []ocp.Task{task(7, func(t *ocp.Task) { t.StartedAt = called.Add(-time.Second) })}, Found, 7},
		{"another server's", "RUNNING", []ocp.Task{task(7, func(t *ocp.Task) { t.ServerIDs = []int64{3} })}, Nothing, 0},
		{"another cluster's", "RUNNING", []ocp.Task{task(7, func(t *ocp.Task) { t.ClusterID = 2 })}, Nothing, 0},
		{"another operation", "RUNNING", []ocp.Task{task(7, func(t *ocp.Task) { t.Name = "Restart OB server" })}, Nothing, 0},
		{"a zone's", "RUNNING", []ocp.Task{task(7, func(t *ocp.Task) { t.Name = "Stop OB zone" })}, Nothing, 0},
		{"named by its host alone", "STOPPING", []ocp.Task{task(7, func(t *ocp.Task) { t.ServerIDs, t.HostID = nil, 1002 })}, Found, 7},
		{"of another host", "RUNNING", []ocp.Task{task(7, func(t *ocp.Task) { t.ServerIDs, t.HostID = nil, 1003 })}, Nothing, 0},
		{"says no server, and ours is on its way", "STOPPING", []ocp.Task{task(7, unnamed)}, Found, 7},
		{"says no server, and ours runs", "RUNNING", []ocp.Task{task(7, unnamed)}, Unclear, 0},
		{"two that say no server", "STOPPING", []ocp.Task{task(7, unnamed), task(8, unnamed)}, Unclear, 0},
		{"a name in another language, for our server", "STOPPING", []ocp.Task{task(7, func(t *ocp.Task) { t.Name = "停止 OB 服务器" })}, Found, 7},
		{"a name of its own, for our server", "STOPPING", []ocp.Task{task(7, func(t *ocp.Task) { t.Name = "Shut OB server down" })}, Found, 7},
		{"a name of its own, for our server, which runs", "RUNNING", []ocp.Task{task(7, func(t *ocp.Task) { t.Name = "Shut OB server down" })}, Unclear, 0},
		{"a name of its own, for nobody", "STOPPING", []ocp.Task{task(7, func(t *ocp.Task) { t.Name = "Collect logs"; t.ServerIDs = nil })}, InBetween, 0},
		{"one word", "STOPPING", []ocp.Task{task(7, func(t *ocp.Task) { t.Name = "StopObServer" })}, Found, 7},
		{"over before the call, no start time", "STOPPED", []ocp.Task{task(7, func(t *ocp.Task) { t.StartedAt, t.FinishedAt = time.Time{}, called.Add(-time.Hour) })}, Done, 0},
		{"over just before the call", "STOPPED", []ocp.Task{task(7, func(t *ocp.Task) { t.StartedAt, t.FinishedAt = called.Add(-time.Second), called.Add(-time.Millisecond) })}, Done, 0},
		{"created before the call, no start time", "STOPPED", []ocp.Task{task(7, func(t *ocp.Task) { t.StartedAt, t.CreatedAt = time.Time{}, called.Add(-time.Hour) })}, Done, 0},
		{"no time at all, and ours runs", "RUNNING", []ocp.Task{task(7, func(t *ocp.Task) { t.StartedAt = time.Time{} })}, Unclear, 0},
		{"no start time yet", "STOPPING", []ocp.Task{task(7, func(t *ocp.Task) { t.StartedAt = time.Time{} })}, Found, 7},
		{"no task, stopped", "STOPPED", nil, Done, 0},
		{"no task, stopping", "STOPPING", nil, InBetween, 0},
		{"no task, running", "RUNNING", nil, Nothing, 0},
		{"no task, a status unheard of", "DANCING", nil, Nothing, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			topology := []ocp.Zone{{Name: "zone1", Servers: []ocp.Server{{ID: 2, HostID: 1002, Status: test.status}}}}
			got := Trace(op, Evidence{Tasks: test.tasks, Topology: topology})
			if got.Outcome != test.want || got.Task.ID != test.id {
				t.Errorf("got %s, task %d (%s); want %s, task %d", got.Outcome, got.Task.ID, got.Note, test.want, test.id)
			}
		})
	}
}

func TestOnlyTheWantedStatusIsAsGoodAsATask(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		kind           events.Kind
		status         string
		inner, asked   string // the database's view, and the type of stop
		wanted, moving bool
	}{
		{events.Stop, "STOPPED", "INACTIVE", "", true, false},
		{events.Stop, "process_stopped", "", "", true, false},
		{events.Stop, "service_stopped", "", "STOP_SERVICE", true, false},
		{events.Stop, "service_stopped", "", "", false, true}, // it was so before the call, perhaps
		{events.Restart, "SERVICE_STOPPED", "", "", false, false},
		{events.Stop, "RUNNING", "", "", false, false},
		{events.Start, "RUNNING", "", "", true, false},
		{events.Start, "RUNNING", "active", "", true, false},
		{events.Start, "RUNNING", "INACTIVE", "", false, true},
		{events.Start, "STOPPED", "", "", false, false},
		{events.Restart, "RUNNING", "", "", false, false},
		{events.Restart, "RESTARTING", "", "", false, true},
		{events.Stop, "UNAVAILABLE", "", "", false, false},
		{events.Stop, "", "", "", false, false},
	} {
		op := events.Operation{Kind: test.kind, Request: events.Request{StopType: test.asked}}
		if wanted, moving := wantedStatus(op, ocp.Server{Status: test.status, InnerStatus: test.inner}); wanted != test.wanted || moving != test.moving {
			t.Errorf("%s, server %q: wanted %v, moving %v; want %v, %v", test.kind, test.status, wanted, moving, test.wanted, test.moving)
		}
	}
}

// OCP may show the ends of tasks in whole seconds, and a task may have ended in the second of the call.
func TestATaskThatWasOverInTheSecondOfTheCallMayBeTheCalls(t *testing.T) {
	t.Parallel()
	called := time.Date(2026, 11, 24, 22, 0, 11, int(300*time.Millisecond), time.UTC)
	at := func(second int, rest time.Duration) time.Time {
		return time.Date(2026, 11, 24, 22, 0, second, int(rest), time.UTC)
	}
	for _, test := range []struct {
		started, finished time.Time
		want              ocp.Answer
	}{
		{at(11, 0), at(11, 0), ocp.Unknown},
		{time.Time{}, at(11, 0), ocp.Unknown},
		{at(10, 0), at(10, 0), ocp.No},
		{at(11, 0), at(11, 200*time.Millisecond), ocp.No}, // OCP tells fractions: it was over before
		{at(11, 350*time.Millisecond), at(11, 900*time.Millisecond), ocp.Yes},
		{at(5, 0), at(11, 0), ocp.No},
		{at(11, 0), at(12, 0), ocp.Yes},
	} {
		if got := startedSince(ocp.Task{StartedAt: test.started, FinishedAt: test.finished}, called); got != test.want {
			t.Errorf("from %s to %s: got %v, want %v", test.started, test.finished, got, test.want)
		}
	}
}
