package ocpsim_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

func TestOperationRunsToTheEnd(t *testing.T) {
	t.Parallel()
	tests := []struct {
		verb, before, between, after string
		steps                        []string
	}{
		{"stop", "RUNNING", "STOPPING", "STOPPED INACTIVE", []string{"Prepare stop observer", "Stop server",
			"Stop observer process", "Wait observer stop", "Update observer status", "Update zone status",
			"Sync cluster info", "Update OB cluster status"}},
		{"start", "STOPPED", "STARTING", "RUNNING ACTIVE", []string{"Prepare start observer", "Start observer process",
			"Wait observer active", "Start ocp agent service", "Start server", "Update observer status",
			"Update zone status", "Sync cluster info", "Update OB cluster status"}},
		{"restart", "RUNNING", "RESTARTING", "RUNNING ACTIVE", []string{"Prepare restart observer", "Stop server",
			"Stop observer process", "Start observer process", "Wait observer active", "Start ocp agent service",
			"Start server", "Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}},
	}
	for _, test := range tests {
		t.Run(test.verb, func(t *testing.T) {
			t.Parallel()
			c := start(t, ocpsim.Config{})
			c.setServer(2, test.before)
			posted := c.want(c.post(serverPath(2, test.verb)), 200, 0)

			if got := orderByEdges(t, posted.at("data", "tasks").([]any)); !slices.Equal(got, test.steps) {
				t.Errorf("chain of edges:\n got %q\nwant %q", got, test.steps)
			}
			if got, _, _ := strings.Cut(c.server(2), " "); got != test.between {
				t.Errorf("server at first: got %s, want %s", got, test.between)
			}
			if got := c.sim.State().Clusters[0].Zones[0].Status; got != "OPERATING" {
				t.Errorf("zone at first: got %s, want OPERATING", got)
			}
			seen := map[string]bool{}
			for c.task().Status == "RUNNING" {
				for _, sub := range c.task().Subtasks {
					seen[sub.Status] = true
				}
				c.sim.Advance(300 * time.Millisecond)
			}
			for _, status := range []string{"PENDING", "READY", "RUNNING", "SUCCESSFUL"} {
				if !seen[status] {
					t.Errorf("no subtask was ever %s", status)
				}
			}
			task := c.task()
			if task.Status != "SUCCESSFUL" {
				t.Errorf("task: got %s, want SUCCESSFUL", task.Status)
			}
			if took := task.FinishTime.Sub(task.StartTime); took < 60*time.Second || took > 120*time.Second {
				t.Errorf("task took %s, want one or two minutes", took)
			}
			if got := c.server(2); got != test.after {
				t.Errorf("server at the end: got %s, want %s", got, test.after)
			}
			if got := c.sim.State().Clusters[0]; got.Status != "RUNNING" || got.Zones[0].Status != "RUNNING" {
				t.Errorf("at the end: got cluster %s, zone %s, want both RUNNING", got.Status, got.Zones[0].Status)
			}
		})
	}
}

// orderByEdges follows downstreams from the subtask without upstreams, and insists that the answer's own order is
// another.
func orderByEdges(t *testing.T, subtasks []any) []string {
	t.Helper()
	byID := map[float64]map[string]any{}
	var answered []string
	var at map[string]any
	for _, raw := range subtasks {
		sub := raw.(map[string]any)
		byID[sub["id"].(float64)] = sub
		answered = append(answered, sub["name"].(string))
		if len(sub["upstreams"].([]any)) == 0 {
			at = sub
		}
	}
	var names []string
	for at != nil {
		names = append(names, at["name"].(string))
		down := at["downstreams"].([]any)
		if len(down) == 0 {
			break
		}
		at = byID[down[0].(float64)]
	}
	if slices.Equal(names, answered) {
		t.Error("subtasks are answered in the order of the DAG, want another")
	}
	return names
}

// TestStateDoesNotDependOnWhoLooks: one look at the end finds the same times as many on the way.
func TestStateDoesNotDependOnWhoLooks(t *testing.T) {
	t.Parallel()
	watched, unwatched := start(t, ocpsim.Config{}), start(t, ocpsim.Config{})
	for _, c := range []*client{watched, unwatched} {
		c.post(serverPath(2, "stop"))
	}
	for range 180 {
		watched.sim.Advance(time.Second)
		watched.sim.Tasks()
	}
	unwatched.sim.Advance(toTheEnd)
	got, want := unwatched.get(unwatched.taskPath("")), watched.get(watched.taskPath(""))
	for _, name := range []string{"finishTime", "status"} {
		if got.at("data", name) != want.at("data", name) {
			t.Errorf("%s: unwatched %v, watched %v", name, got.at("data", name), want.at("data", name))
		}
	}
}

func TestSpeedShortensTheWork(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{Speed: 10})
	c.post(serverPath(2, "stop"))
	c.sim.Advance(toTheEnd)
	task := c.task()
	if took := task.FinishTime.Sub(task.StartTime); task.Status != "SUCCESSFUL" || took < 6*time.Second || took > 9*time.Second {
		t.Errorf("at speed 10: got %s after %s, want SUCCESSFUL after about 7s", task.Status, took)
	}
	if got := c.sim.State().Now.Sub(noon); got != toTheEnd/10 {
		t.Errorf("OCP's clock went on by %s, want %s", got, toTheEnd/10)
	}
}

func TestOperationRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path string
		prepare    func(c *client)
		status     int
		code       int
	}{
		{"server busy", serverPath(2, "stop"), func(c *client) { c.post(serverPath(2, "stop")) }, 409, 50002},
		{"other operation on a busy server", serverPath(2, "start"), func(c *client) { c.post(serverPath(2, "stop")) }, 409, 50002},
		{"status in between", serverPath(2, "stop"), func(c *client) { c.setServer(2, "STARTING") }, 409, 50002},
		{"after a failed task", serverPath(2, "stop"), func(c *client) {
			c.fault("server_stop:fail_subtask,subtask=Stop server")
			c.post(serverPath(2, "stop"))
			c.sim.Advance(toTheEnd)
		}, 409, 50002},
		{"stop of a stopped one", serverPath(2, "stop"), func(c *client) { c.setServer(2, "STOPPED") }, 409, 50002},
		{"start of a running one", serverPath(2, "start"), func(*client) {}, 409, 50002},
		{"restart of a stopped one", serverPath(2, "restart"), func(c *client) { c.setServer(2, "STOPPED") }, 409, 50002},
		{"zone with a busy server", "/api/v2/ob/clusters/1/zones/zone1/stop", func(c *client) { c.post(serverPath(2, "stop")) }, 409, 50002},
		{"unknown server", serverPath(99, "stop"), func(*client) {}, 404, 10002},
		{"unknown cluster", "/api/v2/ob/clusters/9/servers/2/stop", func(*client) {}, 404, 10002},
		{"unknown zone", "/api/v2/ob/clusters/1/zones/zone9/stop", func(*client) {}, 404, 10002},
		{"server id no number", "/api/v2/ob/clusters/1/servers/two/stop", func(*client) {}, 404, 10002},
		{"unknown verb", serverPath(2, "explode"), func(*client) {}, 404, 10002},
		{"force no bool", serverPath(2, "stop?force=maybe"), func(*client) {}, 400, 10001},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := start(t, ocpsim.Config{})
			test.prepare(c)
			before := len(c.sim.Tasks())
			c.want(c.post(test.path), test.status, test.code)
			if got := len(c.sim.Tasks()); got != before {
				t.Errorf("tasks: got %d, want %d", got, before)
			}
		})
	}
}

func TestZoneAndClusterOperations(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	c.want(c.post("/api/v2/ob/clusters/1/zones/zone2/stop"), 200, 0)
	if got := c.task().Servers; !slices.Equal(got, []int64{3, 4}) {
		t.Errorf("servers of zone2's task: got %v, want [3 4]", got)
	}
	c.sim.Advance(toTheEnd)
	if got := c.sim.State().Clusters[0].Zones[1].Status; got != "STOPPED" {
		t.Errorf("zone2: got %s, want STOPPED", got)
	}
	c.want(c.post("/api/v2/ob/clusters/1/stop"), 200, 0)
	c.sim.Advance(toTheEnd)
	if got := c.sim.State().Clusters[0].Status; got != "STOPPED" {
		t.Errorf("cluster: got %s, want STOPPED", got)
	}
	if got := c.task().Servers; !slices.Equal(got, []int64{1, 2, 5, 6}) {
		t.Errorf("servers of the cluster's task: got %v, want those that were running", got)
	}
}

func TestParameters(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	tests := []struct {
		name, query, body string
		api               ocpsim.API
		status            int
		force, freeze     *bool
		stopType          string
	}{
		{name: "none", status: 200},
		{name: "query", query: "?force=true", status: 200, force: &yes},
		{name: "body", body: `{"force":false,"type":"STOP_SERVICE"}`, status: 200, force: &no, stopType: "STOP_SERVICE"},
		{name: "body no JSON", body: "force", status: 400},
		{name: "v4.3 without freezeServer", api: ocpsim.APIV43, status: 400},
		{name: "v4.3 in the query", api: ocpsim.APIV43, query: "?freezeServer=false&type=STOP_SERVICE", status: 200, freeze: &no, stopType: "STOP_SERVICE"},
		{name: "v4.3 in the body", api: ocpsim.APIV43, body: `{"freezeServer":true}`, status: 200, freeze: &yes},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := start(t, ocpsim.Config{API: test.api})
			c.want(c.do("POST", serverPath(2, "stop")+test.query, test.body), test.status, 0)
			if test.status != 200 {
				return
			}
			got := c.task()
			if !equal(got.Force, test.force) || !equal(got.FreezeServer, test.freeze) || got.StopType != test.stopType {
				t.Errorf("task's parameters: got %+v", got)
			}
		})
	}
}

func equal(a, b *bool) bool { return a == b || a != nil && b != nil && *a == *b }

// failed is a stop that failed at "Stop server".
func failed(t *testing.T, times string) *client {
	t.Helper()
	c := start(t, ocpsim.Config{})
	c.fault("server_stop:fail_subtask,subtask=Stop server" + times)
	c.post(serverPath(2, "stop"))
	c.sim.Advance(toTheEnd)
	if got := c.task().Status; got != "FAILED" {
		t.Fatalf("task: got %s, want FAILED", got)
	}
	return c
}

func TestFailedTask(t *testing.T) {
	t.Parallel()
	c := failed(t, "")
	if got := c.subtask("Stop observer process").Status; got != "PENDING" {
		t.Errorf("subtask after the failed one: got %s, want PENDING", got)
	}
	if got := c.server(2); got != "STOPPING ACTIVE" {
		t.Errorf("server: got %s, want STOPPING ACTIVE", got)
	}
	log := c.get(c.subtaskPath("Stop server", "/log")).at("data", "log").(string)
	lines := strings.Split(strings.TrimSpace(log), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "ERROR") || !strings.Contains(last, "majority of replicas is not in sync") {
		t.Errorf("log's last line: got %q, want an ERROR that names the cause", last)
	}
	if got := c.get(c.subtaskPath("Wait observer stop", "/log")).at("data", "log"); got != "" {
		t.Errorf("log of a subtask that never ran: got %q, want none", got)
	}
}

func TestRetryRunsOn(t *testing.T) {
	t.Parallel()
	for _, whole := range []bool{true, false} {
		c := failed(t, "")
		path := c.taskPath("/retry")
		if !whole {
			path = c.subtaskPath("Stop server", "/retry")
		}
		c.want(c.post(path), 200, 0)
		if got := c.task(); got.Status != "RUNNING" || got.Operation != "RETRY" {
			t.Errorf("task after retry: got %s %s, want RUNNING RETRY", got.Status, got.Operation)
		}
		if got := c.subtask("Stop server"); got.RunTime != 2 || got.Operation != "RETRY" {
			t.Errorf("subtask after retry: got %s, runTime %d, want RETRY, 2", got.Operation, got.RunTime)
		}
		c.want(c.post(path), 400, 20003)
		c.sim.Advance(toTheEnd)
		if got := c.task().Status + " " + c.server(2); got != "SUCCESSFUL STOPPED INACTIVE" {
			t.Errorf("at the end: got %s, want SUCCESSFUL STOPPED INACTIVE", got)
		}
		log := c.get(c.subtaskPath("Stop server", "/log")).at("data", "log").(string)
		if got := strings.Count(log, "############{"); got != 2 {
			t.Errorf("log tells of %d executions, want 2", got)
		}
	}
}

func TestFailureLastsItsTimes(t *testing.T) {
	t.Parallel()
	c := failed(t, ",times=2")
	for _, want := range []string{"FAILED", "SUCCESSFUL"} {
		c.post(c.taskPath("/retry"))
		c.sim.Advance(toTheEnd)
		if got := c.task().Status; got != want {
			t.Errorf("after a retry: got %s, want %s", got, want)
		}
	}
}

func TestSkipCountsAsSuccess(t *testing.T) {
	t.Parallel()
	c := failed(t, "")
	c.want(c.post(c.subtaskPath("Update zone status", "/skip")), 400, 20003)
	c.want(c.post(c.subtaskPath("Stop server", "/skip")), 200, 0)
	if got := c.subtask("Stop server"); got.Status != "SUCCESSFUL" || got.Operation != "SKIP" {
		t.Errorf("skipped subtask: got %s %s, want SUCCESSFUL SKIP", got.Status, got.Operation)
	}
	c.sim.Advance(toTheEnd)
	if got := c.task().Status + " " + c.server(2); got != "SUCCESSFUL STOPPED INACTIVE" {
		t.Errorf("at the end: got %s, want SUCCESSFUL STOPPED INACTIVE", got)
	}
}

func TestRollbackUndoes(t *testing.T) {
	t.Parallel()
	c := failed(t, "")
	c.want(c.post(c.taskPath("/rollback")), 200, 0)
	c.sim.Advance(toTheEnd)
	task := c.task()
	if task.Status != "SUCCESSFUL" || task.Operation != "ROLLBACK" {
		t.Errorf("task: got %s %s, want SUCCESSFUL ROLLBACK", task.Status, task.Operation)
	}
	first, second, third := task.Subtasks[0], task.Subtasks[1], task.Subtasks[2]
	if first.Operation != "ROLLBACK" || !second.FinishTime.Before(first.FinishTime) {
		t.Errorf("rollback: got %s at %s after %s, want it to run backwards", first.Operation, first.FinishTime, second.FinishTime)
	}
	if third.Operation != "EXECUTE" || third.Status != "PENDING" {
		t.Errorf("subtask that never ran: got %s %s, want EXECUTE PENDING", third.Operation, third.Status)
	}
	if got := c.server(2); got != "RUNNING ACTIVE" {
		t.Errorf("server: got %s, want RUNNING ACTIVE", got)
	}
	if got := c.sim.State().Clusters[0]; got.Status != "RUNNING" || got.Zones[0].Status != "RUNNING" {
		t.Errorf("cluster %s, zone %s, want both RUNNING", got.Status, got.Zones[0].Status)
	}
	c.want(c.post(serverPath(2, "stop")), 200, 0)
}

func TestCancelEndsAHang(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	c.fault("server_stop:hang_subtask,subtask=Wait observer stop")
	c.post(serverPath(2, "stop"))
	c.sim.Advance(24 * time.Hour)
	if got := c.subtask("Wait observer stop").Status; got != "RUNNING" {
		t.Fatalf("hanging subtask after a day: got %s, want RUNNING", got)
	}
	c.want(c.post(c.subtaskPath("Stop server", "/cancel")), 400, 20003)
	c.want(c.post(c.subtaskPath("Wait observer stop", "/cancel")), 200, 0)
	if got := c.task().Status + " " + c.subtask("Wait observer stop").Status; got != "FAILED FAILED" {
		t.Errorf("task and subtask after cancel: got %s, want FAILED FAILED", got)
	}
	c.post(c.taskPath("/retry"))
	c.sim.Advance(toTheEnd)
	if got := c.task().Status; got != "SUCCESSFUL" {
		t.Errorf("after a retry: got %s, want SUCCESSFUL", got)
	}
}

func TestUnknownTasks(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	c.post(serverPath(2, "stop"))
	c.want(c.get("/api/v2/tasks/instances/1"), 404, 20000)
	c.want(c.get("/api/v2/tasks/instances/x"), 404, 20000)
	c.want(c.post("/api/v2/tasks/instances/1/retry"), 404, 20000)
	c.want(c.post(c.taskPath("/retry")), 400, 20003)
	c.want(c.post(c.taskPath("/rollback")), 400, 20003)
	c.want(c.get(c.taskPath("/subtasks/1/log")), 404, 20000)
	c.want(c.post(c.taskPath("/subtasks/1/skip")), 404, 20000)
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	for _, honour := range []bool{false, true} {
		c := start(t, ocpsim.Config{HonourIdempotencyKey: honour})
		first := c.do("POST", serverPath(2, "stop"), "", "Idempotency-Key", "k1")
		second := c.do("POST", serverPath(2, "stop"), "", "Idempotency-Key", "k1")
		if !honour {
			c.want(second, 409, 50002)
			continue
		}
		c.want(second, 200, 0)
		if got, want := second.at("data", "id"), first.at("data", "id"); got != want {
			t.Errorf("same key: got task %v, want %v", got, want)
		}
		c.want(c.do("POST", serverPath(2, "stop"), "", "Idempotency-Key", "k2"), 409, 50002)
	}
}
