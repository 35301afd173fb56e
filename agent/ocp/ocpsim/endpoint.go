package ocpsim

// Endpoint names one call of OCP's API, for faults, the log and counts.
type Endpoint string

// AnyEndpoint matches all of them in a fault.
const AnyEndpoint Endpoint = "*"

// The endpoints. Unknown is any request that is none of the others.
const (
	ServerStop      Endpoint = "server_stop"
	ServerStart     Endpoint = "server_start"
	ServerRestart   Endpoint = "server_restart"
	ZoneStop        Endpoint = "zone_stop"
	ZoneStart       Endpoint = "zone_start"
	ZoneRestart     Endpoint = "zone_restart"
	ClusterStop     Endpoint = "cluster_stop"
	ClusterStart    Endpoint = "cluster_start"
	ClusterRestart  Endpoint = "cluster_restart"
	TasksList       Endpoint = "tasks_list"
	TaskGet         Endpoint = "task_get"
	TaskRetry       Endpoint = "task_retry"
	TaskRollback    Endpoint = "task_rollback"
	SubtaskRetry    Endpoint = "subtask_retry"
	SubtaskSkip     Endpoint = "subtask_skip"
	SubtaskCancel   Endpoint = "subtask_cancel"
	SubtaskLog      Endpoint = "subtask_log"
	ClustersList    Endpoint = "clusters_list"
	ZonesList       Endpoint = "zones_list"
	ServersList     Endpoint = "servers_list"
	ZoneServersList Endpoint = "zone_servers_list"
	OCPStatus       Endpoint = "status"
	OCPInfo         Endpoint = "info"
	Unknown         Endpoint = "unknown"
)

// Endpoints are all that a fault may name.
func Endpoints() []Endpoint {
	var all []Endpoint
	for _, r := range routes() {
		all = append(all, r.endpoint)
	}
	return append(all, Unknown)
}

// route binds an endpoint to what serves it. Its handle runs with the simulator locked and settled.
type route struct {
	endpoint   Endpoint
	method     string
	pattern    string
	permission Permission
	open       bool   // needs no user
	scope      string // of an operation: server, zone or cluster
	handle     func(*Sim, *call) answer
}

func routes() []route {
	const (
		cluster = "/api/v2/ob/clusters/{cluster}"
		server  = cluster + "/servers/{server}"
		zone    = cluster + "/zones/{zone}"
		tasks   = "/api/v2/tasks/instances"
		task    = tasks + "/{task}"
		subtask = task + "/subtasks/{subtask}"
	)
	operation := func(e Endpoint, scope, path string, k kind) route {
		return route{endpoint: e, method: "POST", pattern: path + "/" + string(k), permission: PermissionManage, scope: scope,
			handle: func(s *Sim, c *call) answer { return s.operate(c, k) }}
	}
	get := func(e Endpoint, path string, p Permission, handle func(*Sim, *call) answer) route {
		return route{endpoint: e, method: "GET", pattern: path, permission: p, handle: handle}
	}
	post := func(e Endpoint, path string, handle func(*Sim, *call) answer) route {
		return route{endpoint: e, method: "POST", pattern: path, permission: PermissionTaskManager, handle: handle}
	}
	return []route{
		operation(ServerStop, "server", server, kindStop),
		operation(ServerStart, "server", server, kindStart),
		operation(ServerRestart, "server", server, kindRestart),
		operation(ZoneStop, "zone", zone, kindStop),
		operation(ZoneStart, "zone", zone, kindStart),
		operation(ZoneRestart, "zone", zone, kindRestart),
		operation(ClusterStop, "cluster", cluster, kindStop),
		operation(ClusterStart, "cluster", cluster, kindStart),
		operation(ClusterRestart, "cluster", cluster, kindRestart),

		get(TasksList, tasks, PermissionTaskViewer, (*Sim).tasksList),
		get(TaskGet, task, PermissionTaskViewer, (*Sim).taskGet),
		post(TaskRetry, task+"/retry", (*Sim).taskRetry),
		post(TaskRollback, task+"/rollback", (*Sim).taskRollback),
		post(SubtaskRetry, subtask+"/retry", (*Sim).subtaskRetry),
		post(SubtaskSkip, subtask+"/skip", (*Sim).subtaskSkip),
		post(SubtaskCancel, subtask+"/cancel", (*Sim).subtaskCancel),
		get(SubtaskLog, subtask+"/log", PermissionTaskViewer, (*Sim).subtaskLog),

		get(ClustersList, "/api/v2/ob/clusters", PermissionRead, (*Sim).clustersList),
		get(ZonesList, cluster+"/zones", PermissionRead, (*Sim).zonesList),
		get(ServersList, cluster+"/servers", PermissionRead, (*Sim).serversList),
		get(ZoneServersList, zone+"/servers", PermissionRead, (*Sim).zoneServersList),

		{endpoint: OCPStatus, method: "GET", pattern: "/api/status", open: true, handle: (*Sim).status},
		get(OCPInfo, "/api/v2/info", PermissionNone, (*Sim).info),
	}
}
