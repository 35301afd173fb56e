package ocpsim

import (
	"slices"
	"time"
)

// Statuses of servers, and of the zones and clusters around them.
const (
	serverRunning     = "RUNNING"
	serverStopping    = "STOPPING"
	serverStopped     = "STOPPED"
	serverStarting    = "STARTING"
	serverRestarting  = "RESTARTING"
	serverUnavailable = "UNAVAILABLE"
	serverOperating   = "OPERATING"

	// Newer systems stop the service and the process apart.
	serverServiceStopped = "SERVICE_STOPPED"
	serverProcessStopped = "PROCESS_STOPPED"

	innerActive   = "ACTIVE" // the database's own view
	innerInactive = "INACTIVE"
)

// serverStatuses are all that the contract lists.
func serverStatuses() []string {
	return []string{"CREATING", serverRunning, serverStopping, serverStopped, serverStarting, serverRestarting,
		"DELETING", serverUnavailable, serverOperating, "DELETED", "SERVICE_STOPPING", serverServiceStopped,
		"PROCESS_STOPPING", serverProcessStopped}
}

type cluster struct {
	ClusterConfig
	created time.Time
	status  string
	zones   []*zone
}

type zone struct {
	ZoneConfig
	id      int64 // as idcId: OCP counts its data centres
	status  string
	updated time.Time
	servers []*server
}

type server struct {
	ServerConfig // as configured; what has become of it since is in serverState
	zone         *zone
	task         *task // the last one that took hold of it
	serverState
}

// serverState is what tasks change, and what a rollback brings back.
type serverState struct {
	status, inner    string
	started, stopped time.Time // stopped is zero for "never"
	updated          time.Time
}

// uptimeAtStart: how long everything has been up when the simulator starts.
const uptimeAtStart = 72 * time.Hour

func newClusters(configs []ClusterConfig, now time.Time) []*cluster {
	var all []*cluster
	up := now.Add(-uptimeAtStart).Truncate(time.Second)
	for _, cc := range configs {
		if cc.OBClusterID == 0 {
			cc.OBClusterID = cc.ID
		}
		c := &cluster{ClusterConfig: cc, created: up}
		for i, zc := range cc.Zones {
			z := &zone{ZoneConfig: zc, id: int64(i + 1), updated: up}
			for _, sc := range zc.Servers {
				sc = sc.withDefaults()
				srv := &server{ServerConfig: sc, zone: z, serverState: serverState{
					status: sc.Status, inner: sc.InnerStatus, started: up, updated: up}}
				if sc.Status == serverStopped {
					srv.stopped = up
				}
				z.servers = append(z.servers, srv)
			}
			z.status = z.restingStatus(nil)
			c.zones = append(c.zones, z)
		}
		c.status = c.restingStatus(nil)
		all = append(all, c)
	}
	return all
}

func (c *cluster) servers() []*server {
	var all []*server
	for _, z := range c.zones {
		all = append(all, z.servers...)
	}
	return all
}

func (c *cluster) zone(name string) *zone {
	for _, z := range c.zones {
		if z.Name == name {
			return z
		}
	}
	return nil
}

func (c *cluster) server(id int64) *server {
	for _, srv := range c.servers() {
		if srv.ID == id {
			return srv
		}
	}
	return nil
}

// restingStatus is the zone's status once task t is done with it.
func (z *zone) restingStatus(t *task) string { return restingStatus(z.servers, t) }

// restingStatus is the cluster's status once task t is done with it.
func (c *cluster) restingStatus(t *task) string { return restingStatus(c.servers(), t) }

// restingStatus: OPERATING while another task than t holds a server, STOPPED when no server is left, else RUNNING.
func restingStatus(servers []*server, t *task) string {
	if slices.ContainsFunc(servers, func(s *server) bool { return s.task != t && s.busy() }) {
		return serverOperating
	}
	if len(servers) > 0 && !slices.ContainsFunc(servers, func(s *server) bool { return s.status != serverStopped }) {
		return serverStopped
	}
	return serverRunning
}

// busy reports whether a running task holds the server.
func (s *server) busy() bool { return s.task != nil && s.task.status == statusRunning }

// allows reports whether an operation makes sense in the server's status. Statuses in between allow none, also
// after the task that left them has failed: its retry, skip or rollback is then the way on.
func (s *server) allows(k kind) bool {
	switch k {
	case kindStop, kindRestart:
		return s.status == serverRunning || s.status == serverUnavailable
	case kindStart:
		return slices.Contains([]string{serverStopped, serverUnavailable, serverServiceStopped, serverProcessStopped}, s.status)
	}
	return false
}

func (s *Sim) cluster(id int64) *cluster {
	for _, c := range s.clusters {
		if c.ID == id {
			return c
		}
	}
	return nil
}
