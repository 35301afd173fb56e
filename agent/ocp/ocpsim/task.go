package ocpsim

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Statuses of tasks and subtasks, and what is being done to them.
const (
	statusPending    = "PENDING"
	statusReady      = "READY"
	statusRunning    = "RUNNING"
	statusFailed     = "FAILED"
	statusSuccessful = "SUCCESSFUL"

	operationExecute  = "EXECUTE"
	operationRetry    = "RETRY"
	operationRollback = "ROLLBACK"
	operationSkip     = "SKIP"
	operationCancel   = "CANCEL"
)

const (
	readyFor = 400 * time.Millisecond // how long a subtask waits for an executor
	jitter   = 0.1                    // a subtask takes up to this part longer or shorter than its step says
)

// task is one asynchronous task. Only settle and the four things that a person can do to it change it.
type task struct {
	id        int64
	kind      kind
	name      string
	endpoint  Endpoint
	cluster   *cluster
	zone      *zone // nil: all of the cluster
	servers   []*server
	former    []serverState // of servers, for a rollback
	params    params
	creator   string
	creatorID int64
	context   []contextEntry

	started, finished time.Time
	status, operation string
	subtasks          []*subtask // in the DAG's order
	answered          []int      // indices of subtasks in the order that answers give: never the DAG's
	at                int        // the subtask whose turn it is
}

type subtask struct {
	id       int64
	seriesID int
	name     string
	step     step
	takes    time.Duration // of OCP's clock
	queued   time.Duration // of OCP's clock, as READY

	status, operation string
	started, finished time.Time
	due               time.Time // when READY becomes RUNNING, or RUNNING ends
	runTime           int       // OCP's word for the number of executions
	runs              []run     // for the log
	failures, hangs   int       // how many executions faults still spoil
}

// run is one execution of a subtask, as its log tells it.
type run struct {
	operation         string
	started, finished time.Time
	status, cause     string
}

// contextEntry is one of a task's context values: OCP shows them as a string or as an object, by version.
type contextEntry struct{ name, value string }

// create starts a task on servers and puts them, their zones and the cluster in between states.
func (s *Sim) create(c *call, k kind, cl *cluster, z *zone, servers []*server, p params) *task {
	now := s.now()
	t := &task{
		id: s.nextTask, kind: k, endpoint: c.route.endpoint, cluster: cl, zone: z, servers: servers, params: p,
		name: k.verb() + " OB " + c.route.scope, creator: c.user.Name, creatorID: s.userID(c.user),
		started: now, status: statusRunning, operation: operationExecute,
	}
	s.nextTask += 1 + s.rand.Int64N(20) // other people's tasks take ids too
	t.context = t.newContext(c.server)
	for _, srv := range servers {
		t.former = append(t.former, srv.serverState)
		srv.status, srv.updated, srv.task = k.between(), now, t
		srv.zone.status, srv.zone.updated = serverOperating, now
	}
	cl.status = serverOperating
	t.subtasks = s.newSubtasks(k)
	t.answered = s.rand.Perm(len(t.subtasks))
	s.spoil(c, t)
	t.subtasks[0].ready(now)

	s.tasks = append(s.tasks, t)
	s.running = append(s.running, t)
	return t
}

// newSubtasks: ids and series ids follow no order that means anything, as in the samples.
func (s *Sim) newSubtasks(k kind) []*subtask {
	names, steps := k.steps(), stepsByName()
	ids, series := s.rand.Perm(len(names)), s.rand.Perm(len(names))
	subtasks := make([]*subtask, len(names))
	for i, name := range names {
		around := 1 + jitter*(2*s.rand.Float64()-1)
		subtasks[i] = &subtask{
			id: s.nextSub + int64(ids[i]), seriesID: series[i], name: name, step: steps[name],
			takes:  s.scale(time.Duration(around * float64(steps[name].takes))),
			queued: s.scale(readyFor),
			status: statusPending, operation: operationExecute, runTime: 1,
		}
	}
	s.nextSub += int64(len(names)) + s.rand.Int64N(10)
	return subtasks
}

// newContext holds what the samples of the three operations hold. serverID is 0 for a zone or a cluster.
func (t *task) newContext(serverID int64) []contextEntry {
	var all []contextEntry
	add := func(name, value string) { all = append(all, contextEntry{name, value}) }
	if t.kind != kindStop {
		add("cluster_name", t.cluster.Name)
	}
	add("cluster_id", strconv.FormatInt(t.cluster.ID, 10))
	if t.kind != kindStop {
		add("ocpagent_service_name", "agent")
	}
	if t.kind == kindRestart {
		add("prohibit_rollback", "false")
	}
	add("former_cluster_status", t.cluster.status)
	add("target_zone_status", serverRunning)
	if t.zone != nil {
		add("former_zone_status", t.zone.status)
		add("zone_name", t.zone.Name)
	}
	add("target_cluster_status", serverRunning)
	if serverID != 0 {
		add("server_id", strconv.FormatInt(serverID, 10))
	}
	return all
}

// settle plays the task forward to now: each subtask becomes READY, RUNNING and done when its time has come, and
// the next one starts at that very instant, however late anybody looks.
func (t *task) settle(now time.Time) {
	for t.status == statusRunning {
		sub := t.subtasks[t.at]
		if sub.due.After(now) || sub.status == statusRunning && sub.hangs > 0 {
			return
		}
		if sub.status == statusReady {
			sub.run(sub.due)
			continue
		}
		t.complete(sub, sub.due)
	}
}

// complete ends a subtask's execution: FAILED if a fault says so, else SUCCESSFUL, and the next one starts. Faults do
// not affect a rollback, which is the way out of them.
func (t *task) complete(sub *subtask, at time.Time) {
	if t.operation == operationRollback {
		sub.end(at, statusSuccessful, "")
		t.next(at)
		return
	}
	if sub.failures > 0 {
		sub.failures--
		t.fail(sub, at, sub.step.cause)
		return
	}
	sub.end(at, statusSuccessful, "")
	t.pass(sub, at)
}

// pass applies the effect of a subtask's success and starts the next one.
func (t *task) pass(sub *subtask, at time.Time) {
	if sub.step.effect != nil {
		sub.step.effect(t, at)
	}
	t.next(at)
}

// next goes along the chain, backwards in a rollback, and ends the task at either end of it.
func (t *task) next(at time.Time) {
	if t.operation == operationRollback {
		t.at--
	} else {
		t.at++
	}
	switch {
	case t.at < 0:
		t.undo(at)
		t.end(at, statusSuccessful)
	case t.at == len(t.subtasks):
		t.end(at, statusSuccessful)
	default:
		t.subtasks[t.at].ready(at)
	}
}

// fail leaves the later subtasks PENDING and the servers between two states.
func (t *task) fail(sub *subtask, at time.Time, cause string) {
	sub.end(at, statusFailed, cause)
	t.end(at, statusFailed)
}

func (t *task) end(at time.Time, status string) { t.status, t.finished = status, at }

// undo brings servers, zones and cluster back to where the task found them.
func (t *task) undo(at time.Time) {
	for i, srv := range t.servers {
		srv.serverState = t.former[i]
		srv.updated = at
	}
	t.updateZones(at)
	t.updateCluster(at)
}

func (sub *subtask) ready(at time.Time) {
	sub.status, sub.due = statusReady, at.Add(sub.queued)
	sub.started, sub.finished = time.Time{}, time.Time{}
}

func (sub *subtask) run(at time.Time) {
	sub.status, sub.started, sub.due = statusRunning, at, at.Add(sub.takes)
	sub.runs = append(sub.runs, run{operation: sub.operation, started: at, status: statusRunning})
}

func (sub *subtask) end(at time.Time, status, cause string) {
	sub.status, sub.finished = status, at
	last := &sub.runs[len(sub.runs)-1]
	last.finished, last.status, last.cause = at, status, cause
}

// retryTask runs the failed subtask again. In a chain there is one.
func (s *Sim) retryTask(t *task) *problem {
	if t.status != statusFailed {
		return taskStateInvalid("task %d is %s, not FAILED", t.id, t.status)
	}
	return s.retrySubtask(t, t.subtasks[t.at])
}

func (s *Sim) retrySubtask(t *task, sub *subtask) *problem {
	if sub.status != statusFailed {
		return taskStateInvalid("subtask %d is %s, not FAILED", sub.id, sub.status)
	}
	s.resume(t, operationRetry)
	sub.operation = operationRetry
	sub.runTime++
	sub.ready(s.now())
	return nil
}

// skipSubtask counts a failed subtask as done, effect and all: a person skips what he has done by hand.
func (s *Sim) skipSubtask(t *task, sub *subtask) *problem {
	if sub.status != statusFailed {
		return taskStateInvalid("subtask %d is %s, not FAILED", sub.id, sub.status)
	}
	s.resume(t, operationExecute)
	sub.operation, sub.status = operationSkip, statusSuccessful
	t.pass(sub, s.now())
	return nil
}

// cancelSubtask marks a running subtask failed.
func (s *Sim) cancelSubtask(t *task, sub *subtask, by string) *problem {
	if sub.status != statusRunning {
		return taskStateInvalid("subtask %d is %s, not RUNNING", sub.id, sub.status)
	}
	sub.operation = operationCancel
	sub.hangs = max(sub.hangs-1, 0)
	t.fail(sub, s.now(), "cancelled by "+by)
	return nil
}

// rollbackTask runs back from the failed subtask to the first. SUCCESSFUL then means undone.
func (s *Sim) rollbackTask(t *task) *problem {
	if t.status != statusFailed {
		return taskStateInvalid("task %d is %s, not FAILED", t.id, t.status)
	}
	s.resume(t, operationRollback)
	for _, sub := range t.subtasks[:t.at+1] {
		sub.status, sub.operation = statusPending, operationRollback
		sub.started, sub.finished = time.Time{}, time.Time{}
	}
	t.subtasks[t.at].ready(s.now())
	return nil
}

// resume makes a failed task run again.
func (s *Sim) resume(t *task, operation string) {
	t.status, t.operation, t.finished = statusRunning, operation, time.Time{}
	s.running = append(s.running, t)
}

func taskStateInvalid(format string, args ...any) *problem {
	return &problem{status: http.StatusBadRequest, Code: codeTaskState, Message: "task state invalid: " + fmt.Sprintf(format, args...)}
}

func (s *Sim) task(id int64) *task {
	i, found := slices.BinarySearchFunc(s.tasks, id, func(t *task, id int64) int { return cmp.Compare(t.id, id) })
	if !found {
		return nil
	}
	return s.tasks[i]
}

func (t *task) subtask(id int64) *subtask {
	for _, sub := range t.subtasks {
		if sub.id == id {
			return sub
		}
	}
	return nil
}
