package ocpsim

import (
	"fmt"
	"strings"
)

// taskBody is a task as answered: one struct for all shapes, each of which leaves some fields out.
type taskBody struct {
	Cluster          *clusterRef   `json:"cluster,omitempty"`
	ClusterID        int64         `json:"clusterId,omitempty"`
	HostID           int64         `json:"hostId,omitempty"`
	Context          any           `json:"context,omitempty"` // string or contextBody
	CreateTime       string        `json:"createTime,omitempty"`
	Creator          any           `json:"creator"` // string or userRef
	Executor         string        `json:"executor,omitempty"`
	FinishTime       string        `json:"finishTime,omitempty"`
	ID               int64         `json:"id"`
	Name             string        `json:"name"`
	Operation        string        `json:"operation,omitempty"`
	ProhibitRollback *bool         `json:"prohibitRollback,omitempty"`
	StartTime        string        `json:"startTime"`
	Status           string        `json:"status"`
	Subtasks         []subtaskBody `json:"subtasks,omitempty"`
	Tasks            []subtaskBody `json:"tasks,omitempty"` // ShapeTasks calls them so, but only in the answer to a POST
	TaskDefinitionID int           `json:"taskDefinitionId,omitempty"`
	Type             string        `json:"type,omitempty"`
}

type clusterRef struct {
	ID          int64  `json:"id"`
	Name        string `json:"name"`
	OBClusterID int64  `json:"obClusterId"`
	Type        string `json:"type,omitempty"`
}

type userRef struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
}

type contextBody struct {
	ListMap     map[string][]string `json:"listMap"`
	Parallel    bool                `json:"parallel"`
	ParallelIdx int                 `json:"parallelIdx"`
	StringMap   map[string]string   `json:"stringMap"`
}

// subtaskBody has three sizes: basic (lists), with edges (a POST in ShapeTasks), and full.
type subtaskBody struct {
	ClassName   string  `json:"className,omitempty"`
	CreateTime  string  `json:"createTime,omitempty"`
	Description string  `json:"description"`
	Downstreams []int64 `json:"downstreams,omitzero"` // omitzero: an empty list is there, an absent one is not
	Executor    string  `json:"executor,omitempty"`
	FinishTime  string  `json:"finishTime,omitempty"`
	ID          int64   `json:"id"`
	Name        string  `json:"name"`
	Operation   string  `json:"operation"`
	StartTime   string  `json:"startTime,omitempty"`
	Status      string  `json:"status"`
	Upstreams   []int64 `json:"upstreams,omitzero"`
	*subtaskDetails
}

type subtaskDetails struct {
	NodeType         string `json:"nodeType"`
	ParallelIdx      int    `json:"parallelIdx"`
	ProhibitRollback bool   `json:"prohibitRollback"`
	RunTime          int    `json:"runTime"`
	SeriesID         int    `json:"seriesId"`
	Timeout          int    `json:"timeout"` // in seconds
}

const (
	taskType           = "MANUAL"
	taskDefinitionNone = -1
	nodeType           = "JAVA_TASK"
	notParallel        = -1
	classPrefix        = "com.alipay.ocp.service.task.business."
	clusterType        = "PRIMARY"
	ocpServer          = "127.0.0.1" // that answers and executes: the simulator is the whole OCP
)

// postedTask is the answer to a POST that starts a task: servers-stop.json, servers-start.json (ShapeTasks),
// servers-restart.json (ShapeSubtasks), and the fields that the page of V4.3 lists (ShapeV43).
func (s *Sim) postedTask(t *task) taskBody {
	b := s.basicTask(t)
	switch s.cfg.Shape {
	case ShapeTasks:
		b.Cluster.Type = ""
		b.Context = t.contextString()
		b.Tasks = t.subtaskBodies(t.linkedSubtask)
	case ShapeSubtasks:
		b.Context = t.contextObject()
		b.Executor, b.Operation = ocpServer, t.operation
		b.TaskDefinitionID, b.Type = taskDefinitionNone, taskType
		b.Subtasks = t.subtaskBodies(func(i int) subtaskBody { return s.detailedSubtask(t, i) })
	case ShapeV43:
		b.CreateTime = stampSecond(t.started)
		b.Executor, b.Operation, b.ProhibitRollback = ocpServer, t.operation, new(bool)
		b.Subtasks = t.subtaskBodies(func(i int) subtaskBody { return s.detailedSubtask(t, i) })
	}
	return b
}

// fullTask is tasks-get.json, with the cluster and the context as the shape has them.
func (s *Sim) fullTask(t *task) taskBody {
	b := s.basicTask(t)
	switch s.cfg.Shape {
	case ShapeTasks:
		b.Context = t.contextString()
	case ShapeSubtasks:
		b.Context = t.contextObject()
	}
	b.CreateTime = stampSecond(t.started)
	b.Executor, b.Operation, b.ProhibitRollback = ocpServer, t.operation, new(bool)
	b.TaskDefinitionID, b.Type = taskDefinitionNone, taskType
	b.Subtasks = t.subtaskBodies(func(i int) subtaskBody { return s.fullSubtask(t, i) })
	return b
}

// listedTask is an entry of tasks-list.json: subtasks without edges and times, and no word of the servers.
func (s *Sim) listedTask(t *task) taskBody {
	b := s.basicTask(t)
	b.Subtasks = t.subtaskBodies(t.basicSubtask)
	return b
}

// basicTask is what all answers have in common.
func (s *Sim) basicTask(t *task) taskBody {
	b := taskBody{ID: t.id, Name: t.name, Status: t.status, StartTime: stamp(t.started), FinishTime: stamp(t.finished)}
	if s.cfg.Shape == ShapeTasks {
		b.Cluster = &clusterRef{ID: t.cluster.ID, Name: t.cluster.Name, OBClusterID: t.cluster.OBClusterID, Type: clusterType}
		b.Creator = userRef{ID: t.creatorID, Name: t.creator}
		return b
	}
	b.ClusterID, b.Creator = t.cluster.ID, t.creator
	if s.cfg.Shape == ShapeV43 && len(t.servers) == 1 {
		b.HostID = t.servers[0].HostID
	}
	return b
}

// subtaskBodies are in the order that this task always answers in.
func (t *task) subtaskBodies(body func(i int) subtaskBody) []subtaskBody {
	all := make([]subtaskBody, 0, len(t.subtasks))
	for _, i := range t.answered {
		all = append(all, body(i))
	}
	return all
}

func (t *task) basicSubtask(i int) subtaskBody {
	sub := t.subtasks[i]
	return subtaskBody{Description: sub.name, ID: sub.id, Name: sub.name, Operation: sub.operation, Status: sub.status}
}

func (t *task) linkedSubtask(i int) subtaskBody {
	b := t.basicSubtask(i)
	b.Upstreams, b.Downstreams = []int64{}, []int64{}
	if i > 0 {
		b.Upstreams = append(b.Upstreams, t.subtasks[i-1].id)
	}
	if i < len(t.subtasks)-1 {
		b.Downstreams = append(b.Downstreams, t.subtasks[i+1].id)
	}
	return b
}

// detailedSubtask is a subtask of servers-restart.json: all but times and executor. Only that sample names classes.
func (s *Sim) detailedSubtask(t *task, i int) subtaskBody {
	b, sub := t.linkedSubtask(i), t.subtasks[i]
	if s.cfg.Shape == ShapeSubtasks {
		b.ClassName = classPrefix + sub.step.class
	}
	b.subtaskDetails = &subtaskDetails{NodeType: nodeType, ParallelIdx: notParallel, RunTime: sub.runTime,
		SeriesID: sub.seriesID, Timeout: int(sub.step.timeout.Seconds())}
	return b
}

// fullSubtask is a subtask of tasks-get.json, and subtasks-retry.json.
func (s *Sim) fullSubtask(t *task, i int) subtaskBody {
	b, sub := s.detailedSubtask(t, i), t.subtasks[i]
	b.CreateTime, b.StartTime, b.FinishTime = stampSecond(t.started), stamp(sub.started), stamp(sub.finished)
	b.Executor = ocpServer
	return b
}

// contextString is the context as Java prints it.
func (t *task) contextString() string {
	pairs := make([]string, len(t.context))
	for i, e := range t.context {
		pairs[i] = e.name + "=" + e.value
	}
	return fmt.Sprintf("Context(parallelIdx=%d, stringMap={%s}, listMap={server_ids=[%s]})",
		notParallel, strings.Join(pairs, ", "), strings.Join(t.serverIDs(), ", "))
}

func (t *task) contextObject() contextBody {
	values := make(map[string]string, len(t.context))
	for _, e := range t.context {
		values[e.name] = e.value
	}
	return contextBody{ListMap: map[string][]string{"server_ids": t.serverIDs()}, ParallelIdx: notParallel, StringMap: values}
}

func (t *task) serverIDs() []string {
	ids := make([]string, len(t.servers))
	for i, srv := range t.servers {
		ids[i] = fmt.Sprint(srv.ID)
	}
	return ids
}
