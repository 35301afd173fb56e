package ocpsim_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

func TestAdminLog(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	c.do("POST", serverPath(2, "stop")+"?force=true", `{"type":"`+strings.Repeat("x", 5000)+`"}`, "Idempotency-Key", "k", "X-Request-Id", "k.1")
	c.as("nobody").get("/api/v2/ob/clusters")
	c.get("/nowhere")

	var log []ocpsim.LogEntry
	if err := json.Unmarshal([]byte(c.get("/sim/log").body), &log); err != nil {
		t.Fatal(err)
	}
	if len(log) != 3 {
		t.Fatalf("log: got %d entries, want 3 (those under /sim/ do not count): %+v", len(log), log)
	}
	if len(log[0].Body) != 4096 {
		t.Errorf("logged body: got %d bytes, want 4096", len(log[0].Body))
	}
	log[0].Body = ""
	want := ocpsim.LogEntry{Seq: 1, Time: log[0].Time, Method: "POST", Path: serverPath(2, "stop"), Query: "force=true", User: "admin",
		IdempotencyKey: "k", RequestID: "k.1", Endpoint: ocpsim.ServerStop, Cluster: 1, Server: 2, Status: 200, TaskID: c.task().ID}
	if log[0] != want {
		t.Errorf("first entry:\n got %+v\nwant %+v", log[0], want)
	}
	if log[1].User != "" || log[1].Status != 401 || log[2].Endpoint != ocpsim.Unknown || log[2].Status != 404 {
		t.Errorf("later entries: got %+v", log[1:])
	}
	if got := []int{c.sim.Posts(), c.sim.Posts(ocpsim.ServerStop), c.sim.Posts(ocpsim.ServerStart)}; got[0] != 1 || got[1] != 1 || got[2] != 0 {
		t.Errorf("Posts: got %v, want [1 1 0]", got)
	}
	c.want(c.do("DELETE", "/sim/log", ""), 204, 0)
	if got := c.get("/sim/log").body; strings.TrimSpace(got) != "[]" || c.sim.Posts() != 0 {
		t.Errorf("log after DELETE: got %s, %d posts, want none", got, c.sim.Posts())
	}
}

func TestAdminFaults(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	for _, body := range []string{
		`{"match":{"endpoint":"server_stop"},"action":"lose_after","count":1}`,
		`[{"match":{},"action":"delay","delay":"20ms"},{"action":"empty"}]`,
		`"server_stop:fail_subtask,subtask=Stop server"`,
	} {
		c.want(c.do("POST", "/sim/faults", body), 204, 0)
	}
	var faults []ocpsim.FaultState
	if err := json.Unmarshal([]byte(c.get("/sim/faults").body), &faults); err != nil {
		t.Fatal(err)
	}
	if len(faults) != 4 || faults[1].Delay != ocpsim.Duration(20*time.Millisecond) || faults[3].Subtask != "Stop server" {
		t.Errorf("faults: got %+v", faults)
	}
	for _, body := range []string{"", "x", `{"acton":"empty"}`, `{"action":"explode"}`, `[{"action":"empty"},{"action":"explode"}]`,
		`{"action":"empty"} {}`, `"server_stop"`, `{"action":"delay","delay":1}`} {
		if r := c.want(c.do("POST", "/sim/faults", body), 400, 0); r.at("error") == nil {
			t.Errorf("%s: refusal lacks an error: %s", body, r.body)
		}
	}
	if got := len(c.sim.Faults()); got != 4 {
		t.Errorf("faults after refused ones: got %d, want 4", got)
	}
	c.want(c.do("DELETE", "/sim/faults", ""), 204, 0)
	if got := c.get("/sim/faults").body; strings.TrimSpace(got) != "[]" {
		t.Errorf("faults after DELETE: got %s, want none", got)
	}
}

func TestAdminClockAndState(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	c.post(serverPath(2, "stop"))
	c.want(c.do("POST", "/sim/clock", `{"advance":"3m"}`), 204, 0)
	for _, body := range []string{`{"advance":"-1s"}`, `{"advance":"soon"}`, `{}`, `{"advnce":"1s"}`} {
		c.want(c.do("POST", "/sim/clock", body), 400, 0)
	}
	var state ocpsim.State
	if err := json.Unmarshal([]byte(c.get("/sim/state").body), &state); err != nil {
		t.Fatal(err)
	}
	if !state.Now.Equal(noon.Add(3 * time.Minute)) {
		t.Errorf("now: got %s, want %s", state.Now, noon.Add(3*time.Minute))
	}
	if len(state.Tasks) != 1 || state.Tasks[0].Status != "SUCCESSFUL" || len(state.Tasks[0].Subtasks) != 8 {
		t.Errorf("tasks: got %+v", state.Tasks)
	}
	if got := state.Clusters[0].Zones[0].Servers[1]; got.ID != 2 || got.Status != "STOPPED" {
		t.Errorf("server 2: got %+v, want it STOPPED", got)
	}
	c.want(c.get("/sim/nothing"), 404, 0)
}

func TestAdminServers(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	c.want(c.do("POST", "/sim/servers/1/2", `{"status":"UNAVAILABLE","innerStatus":"INACTIVE"}`), 204, 0)
	if got := c.server(2); got != "UNAVAILABLE INACTIVE" {
		t.Errorf("server 2: got %s, want UNAVAILABLE INACTIVE", got)
	}
	c.want(c.do("POST", "/sim/servers/1/1", `{"status":"STOPPED"}`), 204, 0)
	c.want(c.do("POST", "/sim/servers/1/2", `{"status":"STOPPED"}`), 204, 0)
	if got := c.sim.State().Clusters[0].Zones[0].Status; got != "STOPPED" {
		t.Errorf("zone without servers left: got %s, want STOPPED", got)
	}
	for path, body := range map[string]string{
		"/sim/servers/1/99": `{"status":"RUNNING"}`,
		"/sim/servers/9/2":  `{"status":"RUNNING"}`,
		"/sim/servers/x/2":  `{"status":"RUNNING"}`,
		"/sim/servers/1/2":  `{"status":"BROKEN"}`,
		"/sim/servers/1/3":  `{"state":"RUNNING"}`,
	} {
		c.want(c.do("POST", path, body), 400, 0)
	}
}
