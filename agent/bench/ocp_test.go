//go:build linux

package bench

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// subtasks of every task.
const subtasks = 8

// fastOCP answers at once, from as little state as possible. The simulator checks and simulates so much that it would
// dominate the measurement. The task of an operation has succeeded as soon as it is started; open makes tasks that run.
type fastOCP struct {
	*httptest.Server
	servers int64 // of each cluster
	posted  func(cluster, server int64)
	posts   atomic.Int64
	reads   atomic.Int64 // all GETs

	zonesOf sync.Map // of a cluster, encoded: they never change, and to encode 60 servers takes its time

	mu    sync.Mutex
	tasks map[int64]*openTask
	shown map[int64]int // how often tasks of a cluster were shown, by cluster
}

type openTask struct {
	id, cluster, server int64
	done                int // subtasks that have ended
}

func newOCP(t testing.TB, servers int64) *fastOCP {
	t.Helper()
	o := &fastOCP{servers: servers, posted: func(int64, int64) {}, tasks: map[int64]*openTask{}, shown: map[int64]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v2/ob/clusters", func(w http.ResponseWriter, _ *http.Request) { o.list(w, nil, 0) })
	mux.HandleFunc("GET /api/v2/ob/clusters/{cluster}/zones", o.zones)
	mux.HandleFunc("GET /api/v2/tasks/instances", o.listTasks)
	mux.HandleFunc("GET /api/v2/tasks/instances/{task}", o.getTask)
	mux.HandleFunc("POST /api/v2/ob/clusters/{cluster}/servers/{server}/{action}", o.operate)
	o.Server = httptest.NewServer(mux)
	t.Cleanup(o.Close)
	return o
}

func (o *fastOCP) operate(w http.ResponseWriter, r *http.Request) {
	cluster, server := number(r.PathValue("cluster")), number(r.PathValue("server"))
	o.posted(cluster, server)
	id := o.posts.Add(1)<<32 | cluster<<16 | server
	o.answer(w, body(&openTask{id: id, cluster: cluster, server: server, done: subtasks}, true))
}

// open makes a task that runs until move moves it on.
func (o *fastOCP) open(cluster, server int64) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := 1<<60 | cluster<<16 | server
	o.tasks[id] = &openTask{id: id, cluster: cluster, server: server}
	return id
}

// move ends the running subtask of an open task.
func (o *fastOCP) move(id int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tasks[id].done++
}

// seen returns how often tasks of each cluster were shown since the last call.
func (o *fastOCP) seen() map[int64]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	shown := o.shown
	o.shown = map[int64]int{}
	return shown
}

func (o *fastOCP) getTask(w http.ResponseWriter, r *http.Request) {
	id := number(r.PathValue("task"))
	o.mu.Lock()
	task := o.tasks[id]
	if task == nil { // one that an operation started
		task = &openTask{id: id, cluster: id >> 16 & 0xffff, server: id & 0xffff, done: subtasks}
	}
	o.shown[task.cluster]++
	shown := body(task, true)
	o.mu.Unlock()
	o.reads.Add(1)
	o.answer(w, shown)
}

func (o *fastOCP) listTasks(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	cluster, statuses := number(query.Get("clusterId")), query.Get("status")
	o.mu.Lock()
	var found []*openTask
	for _, task := range o.tasks {
		if (cluster == 0 || task.cluster == cluster) && (statuses == "" || slices.Contains(strings.Split(statuses, ","), task.status())) {
			found = append(found, task)
		}
	}
	slices.SortFunc(found, func(a, b *openTask) int { return int(b.id - a.id) })
	total, size, page := len(found), max(1, int(number(query.Get("size")))), max(1, int(number(query.Get("page"))))
	found = found[min(total, (page-1)*size):min(total, page*size)]
	entries := []any{}
	for _, task := range found {
		o.shown[task.cluster]++
		entries = append(entries, body(task, false))
	}
	o.mu.Unlock()
	o.reads.Add(1)
	o.answer(w, map[string]any{"contents": entries, "page": map[string]any{"totalElements": total, "totalPages": (total + size - 1) / size, "number": page, "size": size}})
}

func (o *fastOCP) zones(w http.ResponseWriter, r *http.Request) {
	o.reads.Add(1)
	cluster := number(r.PathValue("cluster"))
	if known, ok := o.zonesOf.Load(cluster); ok {
		o.list(w, known, 3)
		return
	}
	var zones []any
	for z := range int64(3) {
		var servers []any
		for s := z + 1; s <= o.servers; s += 3 {
			servers = append(servers, map[string]any{"id": s, "clusterId": cluster, "hostId": s, "ip": fmt.Sprintf("10.0.%d.%d", cluster, s), "port": 2882,
				"sqlPort": 2881, "zoneName": fmt.Sprint("zone", z+1), "status": "RUNNING", "innerStatus": "ACTIVE", "withRootserver": s <= 3})
		}
		zones = append(zones, map[string]any{"name": fmt.Sprint("zone", z+1), "clusterId": cluster, "status": "RUNNING", "innerStatus": "ACTIVE",
			"serverCount": len(servers), "servers": servers})
	}
	encoded, _ := json.Marshal(zones) // cannot fail: strings and numbers
	o.zonesOf.Store(cluster, json.RawMessage(encoded))
	o.list(w, zones, len(zones))
}

func (o *fastOCP) list(w http.ResponseWriter, contents any, n int) {
	o.answer(w, map[string]any{"contents": contents, "page": map[string]any{"totalElements": n, "totalPages": 1, "number": 1, "size": 2000}})
}

func (o *fastOCP) answer(w http.ResponseWriter, data any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the agent is gone: nobody to tell
		"data": data, "successful": true, "status": 200, "duration": 1, "traceId": "340849601d4d4ffe", "server": "10.0.0.1",
		"timestamp": time.Now().Format(time.RFC3339Nano),
	})
}

func (t *openTask) status() string {
	if t.done >= subtasks {
		return "SUCCESSFUL"
	}
	return "RUNNING"
}

// body is a task as OCP shows it. Entries of a list have no edges and no times.
func body(t *openTask, full bool) map[string]any {
	started := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var all []any
	for i := range subtasks {
		status := "PENDING"
		switch {
		case i < t.done:
			status = "SUCCESSFUL"
		case i == t.done:
			status = "RUNNING"
		}
		s := map[string]any{"id": t.id + int64(i) + 1, "name": fmt.Sprint("Step ", i+1), "status": status, "operation": "EXECUTE"}
		if full {
			s["upstreams"], s["downstreams"] = []int64{}, []int64{}
			if i > 0 {
				s["upstreams"] = []int64{t.id + int64(i)}
			}
			s["seriesId"], s["runTime"] = i+1, 1
			if i <= t.done {
				s["startTime"] = started.Add(time.Duration(i) * time.Second)
			}
			if i < t.done {
				s["finishTime"] = started.Add(time.Duration(i+1) * time.Second)
			}
		}
		all = append(all, s)
	}
	task := map[string]any{"id": t.id, "name": "Restart OB server", "status": t.status(), "clusterId": t.cluster, "subtasks": all, "startTime": started}
	if full {
		task["operation"] = "EXECUTE"
		task["context"] = map[string]any{"stringMap": map[string]string{"server_id": fmt.Sprint(t.server)}}
	}
	return task
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64) // nobody else calls it
	return n
}
