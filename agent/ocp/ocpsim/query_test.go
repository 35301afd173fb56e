package ocpsim_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// TestTasksList: six tasks, one a server, the third failed, the last two still running.
func TestTasksList(t *testing.T) {
	t.Parallel()
	grid, err := ocpsim.Grid(2, 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, ocpsim.Config{Clusters: grid})
	c.fault("server_stop:fail_subtask,subtask=Stop server,server=3")
	c.setServer(1, "STOPPED")
	for server, path := range map[int]string{1: serverPath(1, "start"), 2: serverPath(2, "stop"), 3: serverPath(3, "stop")} {
		if r := c.post(path); r.status != 200 {
			t.Fatalf("server %d: %s", server, r.body)
		}
	}
	c.post("/api/v2/ob/clusters/2/servers/4/stop")
	c.sim.Advance(toTheEnd)
	c.post("/api/v2/ob/clusters/2/servers/5/stop")
	c.post("/api/v2/ob/clusters/2/servers/6/restart")

	tests := []struct {
		query           string
		entries, total  int
		pages, pageSize int
	}{
		{"", 6, 6, 1, 10},
		{"clusterId=1", 3, 3, 1, 10},
		{"clusterId=2", 3, 3, 1, 10},
		{"clusterId=3", 0, 0, 0, 10},
		{"hostId=1006", 1, 1, 1, 10},
		{"status=RUNNING", 2, 2, 1, 10},
		{"status=RUNNING,FAILED", 3, 3, 1, 10},
		{"status=RUNNING&status=FAILED", 3, 3, 1, 10},
		{"status=", 6, 6, 1, 10},
		{"name=stop", 4, 4, 1, 10},
		{"name=OB+server", 6, 6, 1, 10},
		{"name=start", 2, 2, 1, 10},
		{"type=MANUAL", 6, 6, 1, 10},
		{"type=SCHEDULED", 0, 0, 0, 10},
		{"page=1&size=4", 4, 6, 2, 4},
		{"page=2&size=4", 2, 6, 2, 4},
		{"page=3&size=4", 0, 6, 2, 4},
		{"page=9223372036854775807&size=2000", 0, 6, 1, 2000},
		{"size=2000", 6, 6, 1, 2000},
		{"clusterId=2&status=SUCCESSFUL", 1, 1, 1, 10},
	}
	for _, test := range tests {
		r := c.want(c.get("/api/v2/tasks/instances?"+test.query), 200, 0)
		contents, _ := r.at("data", "contents").([]any)
		got := fmt.Sprint(len(contents), r.at("data", "page", "totalElements"), r.at("data", "page", "totalPages"), r.at("data", "page", "size"))
		if want := fmt.Sprint(test.entries, test.total, test.pages, test.pageSize); got != want {
			t.Errorf("%s: got entries, total, pages, size %s, want %s", test.query, got, want)
		}
	}
	for _, query := range []string{"size=2001", "size=0", "page=0", "page=-1", "page=x", "clusterId=one", "hostId=x", "sort=name,asc"} {
		c.want(c.get("/api/v2/tasks/instances?"+query), 400, 10001)
	}
}

func TestTasksListOrder(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	for server := 1; server <= 3; server++ {
		c.post(serverPath(server, "stop"))
	}
	for sort, ascending := range map[string]bool{"": false, "id,desc": false, "id,asc": true} {
		contents := c.get("/api/v2/tasks/instances?sort="+url.QueryEscape(sort)).at("data", "contents").([]any)
		first, last := contents[0].(map[string]any)["id"].(float64), contents[2].(map[string]any)["id"].(float64)
		if (first < last) != ascending {
			t.Errorf("sort %q: got ids from %v to %v", sort, first, last)
		}
	}
}

func TestClustersList(t *testing.T) {
	t.Parallel()
	grid, err := ocpsim.Grid(3, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, ocpsim.Config{Clusters: grid})
	for query, want := range map[string]int{"": 3, "?name=obdemo2": 1, "?status=RUNNING": 3, "?status=STOPPED": 0, "?page=2&size=2": 1} {
		contents, _ := c.get("/api/v2/ob/clusters"+query).at("data", "contents").([]any)
		if len(contents) != want {
			t.Errorf("%q: got %d clusters, want %d", query, len(contents), want)
		}
	}
	c.want(c.get("/api/v2/ob/clusters?size=5000"), 400, 10001)
}

func TestUnknownTopology(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	for _, path := range []string{"9/zones", "9/servers", "9/zones/zone1/servers", "1/zones/zone9/servers", "one/zones"} {
		c.want(c.get("/api/v2/ob/clusters/"+path), 404, 10002)
	}
}

func TestServerTimes(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	stopTime := func() any {
		contents := c.get("/api/v2/ob/clusters/1/servers").at("data", "contents").([]any)
		return contents[1].(map[string]any)["stopTime"]
	}
	if got, want := stopTime(), "1970-01-01T08:00:00+08:00"; got != want {
		t.Errorf("stop time of a running server: got %v, want %s", got, want)
	}
	c.post(serverPath(2, "stop"))
	c.sim.Advance(toTheEnd)
	stopped, err := time.Parse(time.RFC3339, fmt.Sprint(stopTime()))
	if err != nil || stopped.Before(noon) || stopped.After(noon.Add(time.Minute)) {
		t.Errorf("stop time of a stopped server: got %s, %v, want soon after %s", stopped, err, noon)
	}
	c.post(serverPath(2, "start"))
	c.sim.Advance(toTheEnd)
	if got, want := stopTime(), "1970-01-01T08:00:00+08:00"; got != want {
		t.Errorf("stop time of a server started again: got %v, want %s", got, want)
	}
}

func TestAvailableOperations(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{API: ocpsim.APIV43})
	c.setServer(1, "STOPPED")
	contents := c.get("/api/v2/ob/clusters/1/servers").at("data", "contents").([]any)
	for i, want := range []string{"[START]", "[STOP RESTART]"} {
		if got := fmt.Sprint(contents[i].(map[string]any)["availableOperations"]); got != want {
			t.Errorf("server %d: got %s, want %s", i+1, got, want)
		}
	}
}
