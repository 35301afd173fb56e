package ocpsim

import "time"

// kind is what an operation does to its servers.
type kind string

const (
	kindStop    kind = "stop"
	kindStart   kind = "start"
	kindRestart kind = "restart"
)

// verb is how task names begin: "Stop OB server".
func (k kind) verb() string {
	return map[kind]string{kindStop: "Stop", kindStart: "Start", kindRestart: "Restart"}[k]
}

// between is the servers' status while the task runs.
func (k kind) between() string {
	return map[kind]string{kindStop: serverStopping, kindStart: serverStarting, kindRestart: serverRestarting}[k]
}

// target is the servers' status at the task's end.
func (k kind) target() string {
	if k == kindStop {
		return serverStopped
	}
	return serverRunning
}

// steps are the names of a task's subtasks, each the upstream of the next: the DAGs of servers-stop.json,
// servers-start.json and servers-restart.json are chains. Zones and clusters run through the same ones.
func (k kind) steps() []string {
	switch k {
	case kindStop:
		return []string{"Prepare stop observer", "Stop server", "Stop observer process", "Wait observer stop",
			"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}
	case kindStart:
		return []string{"Prepare start observer", "Start observer process", "Wait observer active",
			"Start ocp agent service", "Start server",
			"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}
	case kindRestart:
		return []string{"Prepare restart observer", "Stop server", "Stop observer process",
			"Start observer process", "Wait observer active", "Start ocp agent service", "Start server",
			"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}
	}
	return nil
}

// step is what a subtask of one name is, in whichever task.
type step struct {
	class   string                      // below com.alipay.ocp.service.task.business
	timeout time.Duration               // servers-restart.json
	takes   time.Duration               // at speed 1; a stop takes 70 s in all
	does    string                      // what its log says that it does
	cause   string                      // what its log says when a fault makes it fail
	effect  func(t *task, at time.Time) // what its success changes in the topology, if anything
}

// stepsByName is every subtask that the simulator knows.
func stepsByName() map[string]step {
	const s = time.Second
	return map[string]step{
		"Prepare stop observer": {
			class: "server.PrepareStopObServerTask", timeout: 300 * s, takes: 2 * s,
			does:  "Checking that a majority of replicas stays without the server",
			cause: "majority check failed: unit of tenant sys has no other replica in sync",
		},
		"Prepare start observer": {
			class: "server.PrepareStartObServerTask", timeout: 300 * s, takes: 2 * s,
			does:  "Checking host and data directories",
			cause: "host is not online: OCP agent did not answer",
		},
		"Prepare restart observer": {
			class: "server.PrepareRestartObServerTask", timeout: 300 * s, takes: 2 * s,
			does:  "Checking that a majority of replicas stays without the server",
			cause: "majority check failed: unit of tenant sys has no other replica in sync",
		},
		"Stop server": {
			class: "server.StopObServerTask", timeout: 300 * s, takes: 12 * s,
			does:   "Executing ALTER SYSTEM STOP SERVER",
			cause:  "ALTER SYSTEM STOP SERVER: log sync check failed, a majority of replicas is not in sync",
			effect: (*task).stopService,
		},
		"Stop observer process": {
			class: "server.StopObServerProcessTask", timeout: 1200 * s, takes: 8 * s,
			does:   "Sending SIGTERM to observer",
			cause:  "observer did not exit on SIGTERM: process still there",
			effect: (*task).deactivate,
		},
		"Wait observer stop": {
			class: "server.WaitObServerStopTask", timeout: 1800 * s, takes: 20 * s,
			does:  "Waiting for the database to see the server INACTIVE",
			cause: "timed out waiting for the server to become INACTIVE",
		},
		"Start observer process": {
			class: "server.StartObServerProcessTask", timeout: 1200 * s, takes: 6 * s,
			does:   "Starting observer",
			cause:  "observer exited at once: no space left on device for the redo log",
			effect: (*task).startProcess,
		},
		"Wait observer active": {
			class: "server.WaitObServerActiveTask", timeout: 1800 * s, takes: 30 * s,
			does:   "Waiting for the database to see the server ACTIVE",
			cause:  "timed out waiting for the server to become ACTIVE",
			effect: (*task).activate,
		},
		"Start ocp agent service": {
			class: "obagent.StartOcpAgentServiceTask", timeout: 1800 * s, takes: 6 * s,
			does:  "Starting OCP agent service agent",
			cause: "OCP agent did not answer: connection refused",
		},
		"Start server": {
			class: "server.StartObServerTask", timeout: 300 * s, takes: 8 * s,
			does:   "Executing ALTER SYSTEM START SERVER",
			cause:  "ALTER SYSTEM START SERVER: server is not alive",
			effect: (*task).startService,
		},
		"Update observer status": {
			class: "server.UpdateObServerStatusTask", timeout: 300 * s, takes: 3 * s,
			does:   "Updating server status",
			cause:  "could not update server status: lock wait timeout exceeded in the meta database",
			effect: (*task).updateServers,
		},
		"Update zone status": {
			class: "zone.UpdateObZoneStatusTask", timeout: 1800 * s, takes: 3 * s,
			does:   "Updating zone status",
			cause:  "could not update zone status: lock wait timeout exceeded in the meta database",
			effect: (*task).updateZones,
		},
		"Sync cluster info": {
			class: "cluster.SyncClusterInfoTask", timeout: 30 * s, takes: 18 * s,
			does:  "Reading servers, zones and parameters from the database",
			cause: "could not connect to the sys tenant: connection refused",
		},
		"Update OB cluster status": {
			class: "cluster.UpdateObClusterStatusTask", timeout: 30 * s, takes: 4 * s,
			does:   "Updating cluster status",
			cause:  "could not update cluster status: lock wait timeout exceeded in the meta database",
			effect: (*task).updateCluster,
		},
	}
}

// stopService: the database takes no more traffic on the servers and says since when.
func (t *task) stopService(at time.Time) {
	t.eachServer(at, func(s *server) { s.stopped = at })
}

func (t *task) deactivate(at time.Time) {
	t.eachServer(at, func(s *server) { s.inner = innerInactive })
}

func (t *task) startProcess(at time.Time) {
	t.eachServer(at, func(s *server) { s.started = at })
}

func (t *task) activate(at time.Time) {
	t.eachServer(at, func(s *server) { s.inner = innerActive })
}

// startService: the servers take traffic again, and their stop time is "never" again.
func (t *task) startService(at time.Time) {
	t.eachServer(at, func(s *server) { s.stopped = time.Time{} })
}

func (t *task) updateServers(at time.Time) {
	t.eachServer(at, func(s *server) { s.status = t.kind.target() })
}

func (t *task) updateZones(at time.Time) {
	for _, s := range t.servers {
		s.zone.status, s.zone.updated = s.zone.restingStatus(t), at
	}
}

func (t *task) updateCluster(time.Time) { t.cluster.status = t.cluster.restingStatus(t) }

func (t *task) eachServer(at time.Time, change func(*server)) {
	for _, s := range t.servers {
		change(s)
		s.updated = at
	}
}
