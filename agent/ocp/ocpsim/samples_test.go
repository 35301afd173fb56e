package ocpsim_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// TestAnswersHaveTheSamplesStructure holds each answer against the documentation's sample: every path of keys that
// the sample has is there with the same type, and no other, but for those that a row gives a reason for.
func TestAnswersHaveTheSamplesStructure(t *testing.T) {
	t.Parallel()
	const failing = "server_stop:fail_subtask,subtask=Stop server"
	tests := []struct {
		sample  string
		shape   ocpsim.Shape
		answer  func(c *client) reply
		missing []string // prefixes of paths that only the sample has
		extra   []string // prefixes of paths that only we have
	}{
		{sample: "servers-stop", shape: 1, answer: func(c *client) reply { return c.post(serverPath(2, "stop")) }},
		{sample: "servers-start", shape: 1, answer: func(c *client) reply {
			c.setServer(2, "STOPPED")
			return c.post(serverPath(2, "start"))
		}},
		{sample: "servers-restart", shape: 2, answer: func(c *client) reply { return c.post(serverPath(2, "restart")) }},
		{sample: "tasks-get", shape: 1, answer: func(c *client) reply {
			c.post(serverPath(2, "stop"))
			c.sim.Advance(toTheEnd)
			return c.get(c.taskPath(""))
		}, extra: []string{"data.cluster", "data.context"}}, // the sample's task is a host's, ours a server's
		{sample: "tasks-list", shape: 1, answer: func(c *client) reply {
			c.post(serverPath(2, "stop"))
			c.sim.Advance(toTheEnd)
			return c.get("/api/v2/tasks/instances")
		}, missing: []string{"data.contents[].tenant"}}, // we have no tenants
		{sample: "tasks-retry", shape: 1, answer: func(c *client) reply {
			c.fault(failing)
			c.post(serverPath(2, "stop"))
			c.sim.Advance(toTheEnd)
			return c.post(c.taskPath("/retry"))
		}, missing: []string{"data.finishTime"}, // the sample's is long over
			extra: []string{"data.cluster", "data.context"}},
		{sample: "subtasks-retry", shape: 1, answer: func(c *client) reply {
			c.fault(failing)
			c.post(serverPath(2, "stop"))
			c.sim.Advance(toTheEnd)
			return c.post(c.subtaskPath("Stop server", "/retry"))
		}, missing: []string{"data.startTime", "data.finishTime"}}, // the sample's is long over
		{sample: "subtasks-skip", shape: 1, answer: func(c *client) reply {
			c.fault(failing)
			c.post(serverPath(2, "stop"))
			c.sim.Advance(toTheEnd)
			return c.post(c.subtaskPath("Stop server", "/skip"))
		}},
		{sample: "subtasks-cancel", shape: 1, answer: func(c *client) reply {
			c.post(serverPath(2, "stop"))
			c.sim.Advance(time.Second)
			return c.post(c.subtaskPath("Prepare stop observer", "/cancel"))
		}},
		{sample: "subtasks-log", shape: 1, answer: func(c *client) reply {
			c.post(serverPath(2, "stop"))
			c.sim.Advance(toTheEnd)
			return c.get(c.subtaskPath("Stop server", "/log"))
		}},
		{sample: "clusters-list", answer: func(c *client) reply { return c.get("/api/v2/ob/clusters") }},
		{sample: "zones-list", answer: func(c *client) reply { return c.get("/api/v2/ob/clusters/1/zones") }},
		{sample: "servers-list", answer: func(c *client) reply { return c.get("/api/v2/ob/clusters/1/servers") }},
		{sample: "zone-servers-list", answer: func(c *client) reply { return c.get("/api/v2/ob/clusters/1/zones/zone1/servers") }},
		{sample: "application-info", answer: func(c *client) reply { return c.get("/api/v2/info") }},
	}
	for _, test := range tests {
		t.Run(test.sample, func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(filepath.Join("testdata", test.sample+".json"))
			if err != nil {
				t.Fatal(err)
			}
			c := start(t, ocpsim.Config{Shape: test.shape})
			answer := c.want(test.answer(c), 200, 0).body
			compareStructure(t, string(raw), answer, test.missing, test.extra)
		})
	}
}

func (c client) setServer(id int64, status string) {
	c.t.Helper()
	if err := c.sim.SetServer(1, id, status, ""); err != nil {
		c.t.Fatal(err)
	}
}

func compareStructure(t *testing.T, sample, answer string, missing, extra []string) {
	t.Helper()
	want, got := structure(t, sample), structure(t, answer)
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] == "" && !hasAnyPrefix(path, missing) {
			t.Errorf("answer lacks %s (%s)", path, want[path])
		}
		if got[path] != "" && got[path] != want[path] {
			t.Errorf("%s: got %s, want %s", path, got[path], want[path])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if want[path] == "" && !hasAnyPrefix(path, extra) {
			t.Errorf("answer has %s (%s), which the sample lacks", path, got[path])
		}
	}
}

func hasAnyPrefix(path string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(path, p) })
}

// structure is the type at each path of keys, all elements of an array taken together.
func structure(t *testing.T, raw string) map[string]string {
	t.Helper()
	var root any
	if err := json.Unmarshal([]byte(raw), &root); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	types := map[string]string{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		types[path] = fmt.Sprintf("%T", v)
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				walk(strings.TrimPrefix(path+"."+key, "."), value)
			}
		case []any:
			for _, value := range v {
				walk(path+"[]", value)
			}
		}
	}
	walk("", root)
	return types
}

// TestShapeV43 has no sample: the page lists the fields.
func TestShapeV43(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{Shape: ocpsim.ShapeV43, API: ocpsim.APIV43})
	r := c.want(c.post(serverPath(2, "stop")+"?freezeServer=true"), 200, 0)
	for _, path := range [][]string{{"clusterId"}, {"hostId"}, {"creator"}, {"executor"}, {"operation"}, {"prohibitRollback"}, {"subtasks"}} {
		if r.at("data", path[0]) == nil {
			t.Errorf("answer lacks data.%s: %s", path[0], r.body)
		}
	}
	for _, name := range []string{"context", "cluster", "tasks"} {
		if r.at("data", name) != nil {
			t.Errorf("answer has data.%s: %s", name, r.body)
		}
	}
	if got := r.at("data", "hostId"); got != 1002.0 {
		t.Errorf("hostId: got %v, want 1002", got)
	}
}

func TestEnvelope(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	r := c.get("/api/v2/ob/clusters/9/zones")
	c.want(r, 404, 10002)
	if got, want := r.at("timestamp"), "2026-01-02T12:00:00.678+08:00"; got != want {
		t.Errorf("timestamp: got %v, want %v", got, want)
	}
	if got, _ := r.at("traceId").(string); len(got) != 16 || strings.Trim(got, "0123456789abcdef") != "" {
		t.Errorf("traceId: got %q, want 16 hex digits", got)
	}
	if got := r.at("status"); got != 404.0 {
		t.Errorf("status in the envelope: got %v, want 404", got)
	}
	if r.at("data") != nil {
		t.Errorf("a refusal has data: %s", r.body)
	}
	if got := c.get("/api/status"); got.status != 200 || got.body != "okay" {
		t.Errorf("/api/status: got %d %q, want 200 okay", got.status, got.body)
	}
}
