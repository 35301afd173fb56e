package ocpsim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxLogBody    = 4 << 10
	maxLogEntries = 100_000 // older ones go: a simulator may run for weeks
)

// LogEntry is one request as it was received, and its result.
type LogEntry struct {
	Seq            int64     `json:"seq"`
	Time           time.Time `json:"time"` // of OCP's clock
	Method         string    `json:"method"`
	Path           string    `json:"path"`
	Query          string    `json:"query,omitempty"`
	Body           string    `json:"body,omitempty"` // its first 4 KiB
	User           string    `json:"user,omitempty"` // empty: not authenticated
	IdempotencyKey string    `json:"idempotencyKey,omitempty"`
	RequestID      string    `json:"requestId,omitempty"`
	Endpoint       Endpoint  `json:"endpoint"`
	Cluster        int64     `json:"cluster,omitempty"`
	Server         int64     `json:"server,omitempty"`
	Status         int       `json:"status"`           // as answered; 0: not answered, or not yet
	TaskID         int64     `json:"taskId,omitempty"` // that the request started or changed, answered or not
	Fault          string    `json:"fault,omitempty"`  // that struck it, in flag syntax, several separated by "; "
}

func (e *LogEntry) addFault(f Fault) {
	if e.Fault != "" {
		e.Fault += "; "
	}
	e.Fault += f.String()
}

func (s *Sim) logRequest(c *call) *LogEntry {
	s.requests++
	e := &LogEntry{
		Seq: s.requests, Time: s.now(), Method: c.request.Method, Path: c.request.URL.EscapedPath(), Query: c.request.URL.RawQuery,
		Body:           string(c.body[:min(len(c.body), maxLogBody)]),
		IdempotencyKey: c.request.Header.Get("Idempotency-Key"), RequestID: c.request.Header.Get("X-Request-Id"),
		Endpoint: c.route.endpoint, Cluster: c.cluster, Server: c.server,
	}
	if c.user != nil {
		e.User = c.user.Name
	}
	if len(s.log) >= maxLogEntries {
		s.log = slices.Delete(s.log, 0, maxLogEntries/10) // a tenth at a time, not one by one
	}
	s.log = append(s.log, e)
	if e.Method == http.MethodPost {
		s.posts[e.Endpoint]++
	}
	return e
}

// Log are the requests received since the start or the last ClearLog, in order of receipt.
func (s *Sim) Log() []LogEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]LogEntry, len(s.log))
	for i, e := range s.log {
		all[i] = *e
	}
	return all
}

// ClearLog forgets the requests, and what Posts has counted.
func (s *Sim) ClearLog() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = nil
	clear(s.posts)
}

// Posts counts the POSTs received by the endpoints, or by all if none is named, whatever became of them.
func (s *Sim) Posts(endpoints ...Endpoint) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for e, count := range s.posts {
		if len(endpoints) == 0 || slices.Contains(endpoints, e) {
			n += count
		}
	}
	return n
}

// State is everything that the simulator knows, in its real order.
type State struct {
	Now      time.Time      `json:"now"` // OCP's clock
	Clusters []ClusterState `json:"clusters"`
	Tasks    []Task         `json:"tasks"`
}

// ClusterState is the state of a cluster.
type ClusterState struct {
	ID     int64       `json:"id"`
	Name   string      `json:"name"`
	Status string      `json:"status"`
	Zones  []ZoneState `json:"zones"`
}

// ZoneState is the state of a zone.
type ZoneState struct {
	Name    string        `json:"name"`
	Status  string        `json:"status"`
	Servers []ServerState `json:"servers"`
}

// ServerState is the state of a server.
type ServerState struct {
	ID          int64  `json:"id"`
	IP          string `json:"ip"`
	Status      string `json:"status"`
	InnerStatus string `json:"innerStatus"`
}

// Task is the state of a task, with its subtasks in the order in which they run.
type Task struct {
	ID           int64     `json:"id"`
	Name         string    `json:"name"`
	Endpoint     Endpoint  `json:"endpoint"` // that started it
	Cluster      int64     `json:"cluster"`
	Zone         string    `json:"zone,omitempty"`
	Servers      []int64   `json:"servers"`
	Force        *bool     `json:"force,omitempty"` // nil: not sent
	FreezeServer *bool     `json:"freezeServer,omitempty"`
	StopType     string    `json:"type,omitempty"`
	Creator      string    `json:"creator"`
	Status       string    `json:"status"`
	Operation    string    `json:"operation"`
	StartTime    time.Time `json:"startTime"`
	FinishTime   time.Time `json:"finishTime,omitzero"`
	Subtasks     []Subtask `json:"subtasks"`
}

// Subtask is the state of a subtask.
type Subtask struct {
	ID         int64     `json:"id"`
	Name       string    `json:"name"`
	Status     string    `json:"status"`
	Operation  string    `json:"operation"`
	RunTime    int       `json:"runTime"`
	StartTime  time.Time `json:"startTime,omitzero"`
	FinishTime time.Time `json:"finishTime,omitzero"`
}

// State is the topology and all tasks.
func (s *Sim) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	state := State{Now: s.now(), Clusters: []ClusterState{}, Tasks: s.taskStates()}
	for _, c := range s.clusters {
		cs := ClusterState{ID: c.ID, Name: c.Name, Status: c.status}
		for _, z := range c.zones {
			zs := ZoneState{Name: z.Name, Status: z.status, Servers: []ServerState{}}
			for _, srv := range z.servers {
				zs.Servers = append(zs.Servers, ServerState{ID: srv.ID, IP: srv.IP, Status: srv.status, InnerStatus: srv.inner})
			}
			cs.Zones = append(cs.Zones, zs)
		}
		state.Clusters = append(state.Clusters, cs)
	}
	return state
}

// Tasks are all tasks, oldest first.
func (s *Sim) Tasks() []Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	return s.taskStates()
}

func (s *Sim) taskStates() []Task {
	all := make([]Task, 0, len(s.tasks))
	for _, t := range s.tasks {
		all = append(all, t.state())
	}
	return all
}

func (t *task) state() Task {
	state := Task{
		ID: t.id, Name: t.name, Endpoint: t.endpoint, Cluster: t.cluster.ID, Force: t.params.force, FreezeServer: t.params.freezeServer,
		StopType: t.params.stopType, Creator: t.creator, Status: t.status, Operation: t.operation, StartTime: t.started, FinishTime: t.finished,
	}
	if t.zone != nil {
		state.Zone = t.zone.Name
	}
	for _, srv := range t.servers {
		state.Servers = append(state.Servers, srv.ID)
	}
	for _, sub := range t.subtasks {
		state.Subtasks = append(state.Subtasks, Subtask{ID: sub.id, Name: sub.name, Status: sub.status, Operation: sub.operation,
			RunTime: sub.runTime, StartTime: sub.started, FinishTime: sub.finished})
	}
	return state
}

// SetServer sets a server's statuses by hand, without any task; an empty one stays as it is. Its zone and cluster
// follow.
func (s *Sim) SetServer(clusterID, serverID int64, status, innerStatus string) error {
	if err := (ServerConfig{ID: 1, IP: "::", Status: status, InnerStatus: innerStatus}).validate(); err != nil {
		return fmt.Errorf("set server %d of cluster %d: %w", serverID, clusterID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	c := s.cluster(clusterID)
	if c == nil {
		return fmt.Errorf("set server %d of cluster %d: no such cluster", serverID, clusterID)
	}
	srv := c.server(serverID)
	if srv == nil {
		return fmt.Errorf("set server %d of cluster %d: no such server", serverID, clusterID)
	}
	if status != "" {
		srv.status = status
	}
	if innerStatus != "" {
		srv.inner = innerStatus
	}
	srv.updated = s.now()
	srv.zone.status, srv.zone.updated = srv.zone.restingStatus(nil), srv.updated
	c.status = c.restingStatus(nil)
	return nil
}

// addAdmin serves the methods above under /sim/, to anybody: neither logged nor spoiled by faults.
func (s *Sim) addAdmin(mux *http.ServeMux) {
	get := func(path string, what func() any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, what()) })
	}
	change := func(pattern string, do func(r *http.Request, body []byte) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
			if err == nil {
				err = do(r, body)
			}
			if err != nil {
				writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	get("/sim/log", func() any { return s.Log() })
	get("/sim/faults", func() any { return s.Faults() })
	get("/sim/state", func() any { return s.State() })
	change("DELETE /sim/log", func(*http.Request, []byte) error { s.ClearLog(); return nil })
	change("DELETE /sim/faults", func(*http.Request, []byte) error { s.ClearFaults(); return nil })
	change("POST /sim/faults", func(_ *http.Request, body []byte) error { return s.addFaults(body) })
	change("POST /sim/clock", func(_ *http.Request, body []byte) error { return s.advanceClock(body) })
	change("POST /sim/servers/{cluster}/{server}", s.setServer)
	mux.HandleFunc("/sim/", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusNotFound, map[string]string{"error": r.Method + " " + r.URL.Path + " is not there"})
	})
}

// addFaults takes one fault, as an object or as a string in flag syntax, or a list of objects: all or none.
func (s *Sim) addFaults(body []byte) error {
	var faults []Fault
	switch text := strings.TrimSpace(string(body)); {
	case strings.HasPrefix(text, "["):
		if err := decodeStrict(body, &faults); err != nil {
			return err
		}
	case strings.HasPrefix(text, `"`):
		var flag string
		if err := decodeStrict(body, &flag); err != nil {
			return err
		}
		f, err := ParseFault(flag)
		if err != nil {
			return err
		}
		faults = []Fault{f}
	default:
		faults = make([]Fault, 1)
		if err := decodeStrict(body, &faults[0]); err != nil {
			return err
		}
	}
	var errs []error
	for _, f := range faults {
		errs = append(errs, f.validate())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, f := range faults {
		if err := s.AddFault(f); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sim) advanceClock(body []byte) error {
	var clock struct {
		Advance Duration `json:"advance"`
	}
	if err := decodeStrict(body, &clock); err != nil {
		return err
	}
	if clock.Advance <= 0 {
		return fmt.Errorf("advance %s: want more than 0", time.Duration(clock.Advance))
	}
	s.Advance(time.Duration(clock.Advance))
	return nil
}

func (s *Sim) setServer(r *http.Request, body []byte) error {
	var set struct {
		Status      string `json:"status"`
		InnerStatus string `json:"innerStatus"`
	}
	clusterID, errCluster := strconv.ParseInt(r.PathValue("cluster"), 10, 64)
	serverID, errServer := strconv.ParseInt(r.PathValue("server"), 10, 64)
	if err := errors.Join(errCluster, errServer, decodeStrict(body, &set)); err != nil {
		return err
	}
	return s.SetServer(clusterID, serverID, set.Status, set.InnerStatus)
}

func writeJSON(w http.ResponseWriter, status int, what any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(what) // our own structs; what can fail is a client that has gone
}
