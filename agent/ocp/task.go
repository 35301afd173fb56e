package ocp

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Statuses of tasks (running, failed, successful) and subtasks (all of them), as
// documented. There may be others.
const (
	StatusPending    = "PENDING"
	StatusReady      = "READY"
	StatusRunning    = "RUNNING"
	StatusCanceling  = "CANCELING"
	StatusFailed     = "FAILED"
	StatusSuccessful = "SUCCESSFUL"
)

// Operations of tasks and subtasks: what OCP does with them. ROLLBACK_SKIP comes from
// ocp-express (observed). There may be others.
const (
	OperationExecute      = "EXECUTE"
	OperationRetry        = "RETRY"
	OperationRollback     = "ROLLBACK"
	OperationSkip         = "SKIP"
	OperationCancel       = "CANCEL"
	OperationRollbackSkip = "ROLLBACK_SKIP"
)

// Task is one of OCP's asynchronous tasks. Status and Operation are upper case and
// otherwise as OCP wrote them. Times are by OCP's clock, in UTC; zero means absent or
// never.
type Task struct {
	ID        int64
	Name      string
	Status    string
	Operation string // empty if OCP leaves it out
	Type      string
	Creator   string
	Executor  string

	ClusterID   int64 // OCP's id of the cluster
	OBClusterID int64 // the cluster's own id
	HostID      int64

	// From the context that the task was started with; not every version shows it.
	ContextClusterID int64
	ServerIDs        []int64
	ZoneName         string

	ProhibitRollback bool

	CreatedAt, StartedAt, FinishedAt time.Time

	Subtasks []Subtask // in an order in which they can run, ids unique
}

// Subtask is a step of a task. Its identity is its id: names repeat. Upstreams and
// Downstreams are ids of subtasks of the same task, sorted, and agree with each other.
type Subtask struct {
	ID          int64
	Name        string
	Description string
	Status      string
	Operation   string
	Upstreams   []int64
	Downstreams []int64
	SeriesID    *int64 // nil: unknown
	Runs        int    // executions so far; grows with retries
	NodeType    string
	ParallelIdx int // -1: not parallel
	Timeout     time.Duration

	StartedAt, FinishedAt time.Time
}

// Finished reports whether the task has ended for now. A task with an unknown status has
// not. People can still retry, skip or roll back a failed task.
func (t Task) Finished() bool {
	return t.Status == StatusFailed || t.Status == StatusSuccessful
}

// RolledBack reports whether the task is being undone or has been: SUCCESSFUL then means
// undone. Lists leave the task's operation out, but its subtasks tell.
func (t Task) RolledBack() bool {
	if t.Operation != "" {
		return undoes(t.Operation)
	}
	return slices.ContainsFunc(t.Subtasks, func(s Subtask) bool { return undoes(s.Operation) })
}

func undoes(operation string) bool {
	return operation == OperationRollback || operation == OperationRollbackSkip
}

func (t Task) key() any { return t.ID }

// wireTask is all three published shapes of a task at once, and any mix of them.
type wireTask struct {
	ID               integer       `json:"id"`
	Name             text          `json:"name"`
	Status           word          `json:"status"`
	Operation        word          `json:"operation"`
	Type             text          `json:"type"`
	Creator          named         `json:"creator"`
	Executor         text          `json:"executor"`
	ClusterID        integer       `json:"clusterId"`
	OBClusterID      integer       `json:"obClusterId"`
	HostID           integer       `json:"hostId"`
	Context          taskContext   `json:"context"`
	ProhibitRollback flag          `json:"prohibitRollback"`
	CreateTime       moment        `json:"createTime"`
	StartTime        moment        `json:"startTime"`
	FinishTime       moment        `json:"finishTime"`
	Subtasks         []wireSubtask `json:"subtasks"`
	Tasks            []wireSubtask `json:"tasks"`
	Cluster          struct {
		ID          integer `json:"id"`
		OBClusterID integer `json:"obClusterId"`
	} `json:"cluster"`
}

type wireSubtask struct {
	ID          integer   `json:"id"`
	Name        text      `json:"name"`
	Description text      `json:"description"`
	Status      word      `json:"status"`
	Operation   word      `json:"operation"`
	Upstreams   []integer `json:"upstreams"`
	Upstream    []integer `json:"upstream"`
	Downstreams []integer `json:"downstreams"`
	Downstream  []integer `json:"downstream"` // documented once
	SeriesID    *integer  `json:"seriesId"`
	RunTime     integer   `json:"runTime"`
	NodeType    text      `json:"nodeType"`
	ParallelIdx *integer  `json:"parallelIdx"`
	ParalleIdx  *integer  `json:"paralleIdx"` // documented so
	Timeout     integer   `json:"timeout"`    // seconds
	StartTime   moment    `json:"startTime"`
	FinishTime  moment    `json:"finishTime"`
}

// DecodeTask reads a task, the data of an envelope, in any of OCP's shapes. It fails if the
// data is not JSON or has no id; every other field may be missing or odd.
func DecodeTask(data []byte) (Task, error) {
	var wire wireTask
	if isNull(data) {
		return Task{}, errNoTask
	}
	if err := decode(data, &wire); err != nil {
		return Task{}, fmt.Errorf("task: %w", err)
	}
	if wire.ID < 1 {
		return Task{}, errNoTask
	}
	return Task{
		ID:               int64(wire.ID),
		Name:             short(wire.Name),
		Status:           string(wire.Status),
		Operation:        string(wire.Operation),
		Type:             string(wire.Type),
		Creator:          string(wire.Creator),
		Executor:         string(wire.Executor),
		ClusterID:        int64(firstKnown(wire.ClusterID, wire.Cluster.ID)),
		OBClusterID:      int64(firstKnown(wire.OBClusterID, wire.Cluster.OBClusterID)),
		HostID:           int64(wire.HostID),
		ContextClusterID: parseInteger(wire.Context.strings["cluster_id"]),
		ServerIDs:        wire.Context.serverIDs(),
		ZoneName:         wire.Context.strings["zone_name"],
		ProhibitRollback: bool(wire.ProhibitRollback),
		CreatedAt:        wire.CreateTime.Time,
		StartedAt:        wire.StartTime.Time,
		FinishedAt:       wire.FinishTime.Time,
		Subtasks:         arrange(merge(wire.Subtasks, wire.Tasks)),
	}, nil
}

// firstKnown returns the first id that is at least 1, else 0.
func firstKnown(ids ...integer) integer {
	for _, id := range ids {
		if id > 0 {
			return id
		}
	}
	return 0
}

// merge collects the subtasks of several lists, each id once: within a list the first
// entry counts, between lists the entry that says more.
func merge(lists ...[]wireSubtask) []Subtask {
	type place struct{ list, in int }
	var best []*wireSubtask
	places := map[integer]place{}
	for number, list := range lists {
		for i := range list {
			s := &list[i]
			if s.ID < 1 {
				continue
			}
			p, known := places[s.ID]
			switch {
			case !known:
				p.in = len(best)
				best = append(best, s)
			case p.list == number:
				continue
			case s.detail() > best[p.in].detail():
				best[p.in] = s
			}
			places[s.ID] = place{number, p.in}
		}
	}
	subtasks := make([]Subtask, len(best))
	for i, s := range best {
		subtasks[i] = s.subtask()
	}
	return subtasks
}

// detail counts the fields that only the fuller shapes have.
func (w *wireSubtask) detail() int {
	n := 0
	for _, present := range []bool{
		w.Status != "",
		w.Upstreams != nil || w.Upstream != nil,
		w.Downstreams != nil || w.Downstream != nil,
		w.SeriesID != nil,
		w.RunTime != 0,
		w.Timeout != 0,
		!w.StartTime.IsZero(),
		!w.FinishTime.IsZero(),
	} {
		if present {
			n++
		}
	}
	return n
}

func (w *wireSubtask) subtask() Subtask {
	parallelIdx := -1
	for _, idx := range []*integer{w.ParalleIdx, w.ParallelIdx} {
		if idx != nil {
			parallelIdx = idx.count()
		}
	}
	return Subtask{
		ID:          int64(w.ID),
		Name:        short(w.Name),
		Description: short(w.Description),
		Status:      string(w.Status),
		Operation:   string(w.Operation),
		Upstreams:   ids(w.Upstreams, w.Upstream),
		Downstreams: ids(w.Downstreams, w.Downstream),
		SeriesID:    (*int64)(w.SeriesID),
		Runs:        max(0, w.RunTime.count()),
		NodeType:    string(w.NodeType),
		ParallelIdx: parallelIdx,
		Timeout:     time.Duration(max(0, w.Timeout.count())) * time.Second,
		StartedAt:   w.StartTime.Time,
		FinishedAt:  w.FinishTime.Time,
	}
}

func ids(lists ...[]integer) []int64 {
	var all []int64
	for _, list := range lists {
		for _, id := range list {
			all = append(all, int64(id))
		}
	}
	return all
}

// Task returns one task with everything that OCP knows of its subtasks. The id is the one
// in the answer: check it.
func (c *Client) Task(ctx context.Context, id int64) (Task, error) {
	call := get("task_get", "/api/v2/tasks/instances/%d", id)
	envelope, err := c.read(ctx, call)
	if err != nil {
		return Task{}, err
	}
	return call.task(envelope)
}

// TaskQuery selects tasks; its zero value selects all.
type TaskQuery struct {
	ClusterID int64
	Since     time.Time // leaves out tasks that started before, by OCP's clock
	Status    []string
	Name      string // matched loosely by OCP
	// Decode, if set, reads each entry instead of DecodeTask. It may leave out fields that
	// are not needed: lists are long.
	Decode func([]byte) (Task, error)
}

// Tasks returns the tasks that match, newest first. Entries are basic: subtasks come
// without edges and times. A task that has not started is never too old. If the list has
// more than 1000 pages, the oldest tasks are missing.
func (c *Client) Tasks(ctx context.Context, query TaskQuery) ([]Task, error) {
	call := get("tasks_list", "/api/v2/tasks/instances")
	call.query = url.Values{"sort": {"id,desc"}}
	if query.ClusterID > 0 {
		call.query.Set("clusterId", strconv.FormatInt(query.ClusterID, 10))
	}
	if len(query.Status) > 0 {
		call.query.Set("status", strings.Join(query.Status, ","))
	}
	if query.Name != "" {
		call.query.Set("name", query.Name)
	}
	decode := DecodeTask
	if query.Decode != nil {
		decode = query.Decode
	}
	tasks, err := list(ctx, c, call, true, decode, query.past)
	if err != nil {
		return nil, err
	}
	tasks = slices.DeleteFunc(tasks, query.tooOld)
	slices.SortFunc(tasks, newestFirst)
	return tasks, nil
}

func (q TaskQuery) tooOld(t Task) bool {
	return !t.StartedAt.IsZero() && t.StartedAt.Before(q.Since)
}

// past reports whether no page after this one can have a task of the query. A page that is
// not sorted proves nothing: OCP has ignored the sort parameter then.
func (q TaskQuery) past(page []Task) bool {
	return slices.IsSortedFunc(page, newestFirst) &&
		!slices.ContainsFunc(page, func(t Task) bool { return !q.tooOld(t) })
}

func newestFirst(a, b Task) int { return cmp.Compare(b.ID, a.ID) }

// SubtaskLog returns the log of a subtask, of all its executions.
func (c *Client) SubtaskLog(ctx context.Context, taskID, subtaskID int64) (string, error) {
	call := get("subtask_log", "/api/v2/tasks/instances/%d/subtasks/%d/log", taskID, subtaskID)
	envelope, err := c.read(ctx, call)
	if err != nil {
		return "", err
	}
	var wire struct {
		Log string `json:"log"`
	}
	if !isObject(envelope.Data) || decode(envelope.Data, &wire) != nil {
		return "", call.unexpected(envelope, errNoLog)
	}
	return wire.Log, nil
}

// RetryTask asks OCP to run the failed subtasks of a task again. It is one POST,
// never repeated.
func (c *Client) RetryTask(ctx context.Context, taskID int64) error {
	_, err := c.post(ctx, post("task_retry", "/api/v2/tasks/instances/%d/retry", taskID))
	return err
}

// task reads the task in the answer to a call.
func (c call) task(envelope Envelope) (Task, error) {
	task, err := DecodeTask(envelope.Data)
	if err != nil {
		return Task{}, c.unexpected(envelope, err)
	}
	return task, nil
}
