package ocp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
)

var errNoID = errors.New("the entry has no id or name")

// Cluster is an OceanBase cluster.
type Cluster struct {
	ID          int64 // OCP's id, which calls take
	OBClusterID int64 // the cluster's own id
	Name        string
	Status      string
	Type        string // PRIMARY or STANDBY
	Version     string
}

// Zone is a zone of a cluster.
type Zone struct {
	Name        string
	Status      string // OCP's view
	InnerStatus string // the database's own view
	Region      string
	IDC         string
	ClusterID   int64
	ServerCount int
	Servers     []Server
}

// Server is an OceanBase server.
type Server struct {
	ID                  int64
	ClusterID           int64
	HostID              int64
	IP                  string
	Port, SQLPort       int
	Zone                string
	Status              string // OCP's view
	InnerStatus         string // the database's own view
	Version             string
	WithRootServer      bool
	AvailableOperations []string // newer versions only
}

// Statuses of a server in OCP (observed; there may be others). The statuses of a zone
// are RUNNING and those of a zone on its way to another status, most often OPERATING.
const (
	ServerRunning         = "RUNNING"
	ServerStopped         = "STOPPED"
	ServerStopping        = "STOPPING"
	ServerStarting        = "STARTING"
	ServerRestarting      = "RESTARTING"
	ServerUnavailable     = "UNAVAILABLE"
	ServerOperating       = "OPERATING"
	ServerCreating        = "CREATING"
	ServerDeleting        = "DELETING"
	ServerDeleted         = "DELETED"
	ServerServiceStopping = "SERVICE_STOPPING"
	ServerServiceStopped  = "SERVICE_STOPPED" // its process still runs
	ServerProcessStopping = "PROCESS_STOPPING"
	ServerProcessStopped  = "PROCESS_STOPPED"
)

// Statuses of a zone or server in the database's own view.
const (
	InnerActive   = "ACTIVE"
	InnerInactive = "INACTIVE"
)

// ServerStatuses are the statuses of a server that are known.
func ServerStatuses() []string {
	return []string{
		ServerRunning, ServerStopped, ServerStopping, ServerStarting, ServerRestarting, ServerUnavailable, ServerOperating,
		ServerCreating, ServerDeleting, ServerDeleted,
		ServerServiceStopping, ServerServiceStopped, ServerProcessStopping, ServerProcessStopped,
	}
}

// Running reports whether the server runs for OCP and, if OCP shows it, for the database.
func (s Server) Running() bool {
	return s.Status == ServerRunning && (s.InnerStatus == "" || s.InnerStatus == InnerActive)
}

// Stopped reports whether the server, or at least its service, is stopped.
func (s Server) Stopped() bool {
	return s.Status == ServerStopped || s.Status == ServerServiceStopped || s.Status == ServerProcessStopped
}

// Moving reports whether the server is on its way from one status to another.
func (s Server) Moving() bool { return moving(s.Status) }

// Exists reports whether the server is there to be operated on: it is not being created,
// being deleted, or deleted.
func (s Server) Exists() bool {
	return s.Status != ServerCreating && s.Status != ServerDeleting && s.Status != ServerDeleted
}

// Moving reports whether the zone is on its way from one status to another. Its servers
// may be, even if the zone is not.
func (z Zone) Moving() bool { return moving(z.Status) }

// Running reports whether the zone runs, as far as OCP shows its statuses.
func (z Zone) Running() bool {
	return (z.Status == "" || z.Status == ServerRunning) && (z.InnerStatus == "" || z.InnerStatus == InnerActive)
}

func moving(status string) bool {
	switch status {
	case ServerStopping, ServerStarting, ServerRestarting, ServerOperating, ServerServiceStopping, ServerProcessStopping,
		ServerCreating, ServerDeleting:
		return true
	}
	return false
}

// Topology is the zones of a cluster with their servers.
type Topology []Zone

// Server finds a server by OCP's id, and its zone.
func (t Topology) Server(id int64) (Server, Zone, bool) {
	for i := range t {
		for j := range t[i].Servers {
			if t[i].Servers[j].ID == id {
				return t[i].Servers[j], t[i], true
			}
		}
	}
	return Server{}, Zone{}, false
}

// ZoneOf returns the name of a server's zone; empty if there is no such server.
func (t Topology) ZoneOf(id int64) string {
	for i := range t {
		for j := range t[i].Servers {
			if t[i].Servers[j].ID == id {
				return t[i].Name
			}
		}
	}
	return ""
}

// InBetween reports whether a zone or server is on its way from one status to another.
func (t Topology) InBetween() bool {
	return slices.ContainsFunc(t, func(z Zone) bool {
		return z.Moving() || slices.ContainsFunc(z.Servers, Server.Moving)
	})
}

func (c Cluster) key() any { return c.ID }
func (z Zone) key() any    { return z.Name }
func (s Server) key() any  { return s.ID }

type wireCluster struct {
	ID          integer `json:"id"`
	OBClusterID integer `json:"obClusterId"`
	Name        text    `json:"name"`
	Status      word    `json:"status"`
	Type        text    `json:"type"`
	OBVersion   text    `json:"obVersion"`
}

type wireZone struct {
	Name        text         `json:"name"`
	Status      word         `json:"status"`
	InnerStatus word         `json:"innerStatus"`
	RegionName  text         `json:"regionName"`
	IDCName     text         `json:"idcName"`
	ClusterID   integer      `json:"clusterId"`
	ServerCount *integer     `json:"serverCount"`
	Servers     []wireServer `json:"servers"`
}

type wireServer struct {
	ID                  integer `json:"id"`
	ClusterID           integer `json:"clusterId"`
	HostID              integer `json:"hostId"`
	IP                  text    `json:"ip"`
	Port                integer `json:"port"`
	SQLPort             integer `json:"sqlPort"`
	ZoneName            text    `json:"zoneName"`
	Status              word    `json:"status"`
	InnerStatus         word    `json:"innerStatus"`
	Version             text    `json:"version"`
	WithRootserver      flag    `json:"withRootserver"`
	AvailableOperations []text  `json:"availableOperations"`
}

func decodeCluster(data []byte) (Cluster, error) {
	var wire wireCluster
	if err := decode(data, &wire); err != nil {
		return Cluster{}, err
	}
	if wire.ID < 1 {
		return Cluster{}, errNoID
	}
	return Cluster{
		ID:          int64(wire.ID),
		OBClusterID: int64(wire.OBClusterID),
		Name:        string(wire.Name),
		Status:      string(wire.Status),
		Type:        string(wire.Type),
		Version:     string(wire.OBVersion),
	}, nil
}

// decodeZone leaves ServerCount at -1 if the answer has none.
func decodeZone(data []byte) (Zone, error) {
	var wire wireZone
	if err := decode(data, &wire); err != nil {
		return Zone{}, err
	}
	if wire.Name == "" {
		return Zone{}, errNoID
	}
	zone := Zone{
		Name:        string(wire.Name),
		Status:      string(wire.Status),
		InnerStatus: string(wire.InnerStatus),
		Region:      string(wire.RegionName),
		IDC:         string(wire.IDCName),
		ClusterID:   int64(wire.ClusterID),
		ServerCount: -1,
	}
	if wire.ServerCount != nil {
		zone.ServerCount = max(0, wire.ServerCount.count())
	}
	for _, s := range wire.Servers {
		if s.ID > 0 {
			zone.Servers = append(zone.Servers, s.server())
		}
	}
	return zone, nil
}

func decodeServer(data []byte) (Server, error) {
	var wire wireServer
	if err := decode(data, &wire); err != nil {
		return Server{}, err
	}
	if wire.ID < 1 {
		return Server{}, errNoID
	}
	return wire.server(), nil
}

func (w wireServer) server() Server {
	server := Server{
		ID:             int64(w.ID),
		ClusterID:      int64(w.ClusterID),
		HostID:         int64(w.HostID),
		IP:             string(w.IP),
		Port:           w.Port.count(),
		SQLPort:        w.SQLPort.count(),
		Zone:           string(w.ZoneName),
		Status:         string(w.Status),
		InnerStatus:    string(w.InnerStatus),
		Version:        string(w.Version),
		WithRootServer: bool(w.WithRootserver),
	}
	for _, operation := range w.AvailableOperations {
		server.AvailableOperations = append(server.AvailableOperations, string(operation))
	}
	return server
}

// Clusters returns all clusters.
func (c *Client) Clusters(ctx context.Context) ([]Cluster, error) {
	return list(ctx, c, clustersCall(), true, decodeCluster, nil)
}

// Cluster returns one cluster. OCP documents no call for that, so it looks in the list. If
// the cluster is not there, the error is Refused with status 404.
func (c *Client) Cluster(ctx context.Context, id int64) (Cluster, error) {
	clusters, err := c.Clusters(ctx)
	if err != nil {
		return Cluster{}, err
	}
	for _, cluster := range clusters {
		if cluster.ID == id {
			return cluster, nil
		}
	}
	failure := clustersCall().failure(Refused, nil)
	failure.Status = http.StatusNotFound
	failure.Message = fmt.Sprintf("cluster %d is not in the list", id)
	return Cluster{}, failure
}

func clustersCall() call { return get("clusters_list", "/api/v2/ob/clusters") }

// Zones returns the zones of a cluster with their servers. That is one call, and a second
// one if a zone comes without its servers.
func (c *Client) Zones(ctx context.Context, clusterID int64) (Topology, error) {
	call := get("zones_list", "/api/v2/ob/clusters/%d/zones", clusterID)
	zones, err := list(ctx, c, call, false, decodeZone, nil)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(zones, Zone.incomplete) {
		servers, err := c.Servers(ctx, clusterID)
		if err != nil {
			return nil, err
		}
		for i := range zones {
			if zones[i].incomplete() {
				zones[i].Servers = serversOf(zones[i].Name, servers)
			}
		}
	}
	for i := range zones {
		zones[i].settle(clusterID)
	}
	return zones, nil
}

// incomplete reports whether the zone has servers that its answer does not show.
func (z Zone) incomplete() bool {
	return len(z.Servers) < z.ServerCount || z.ServerCount < 0 && len(z.Servers) == 0
}

func serversOf(zone string, servers []Server) []Server {
	var found []Server
	for _, s := range servers {
		if s.Zone == zone {
			found = append(found, s)
		}
	}
	return found
}

// settle fills in the fields of the zone and its servers that follow from the call.
func (z *Zone) settle(clusterID int64) {
	z.ClusterID = cmp.Or(z.ClusterID, clusterID)
	if z.ServerCount < 0 {
		z.ServerCount = len(z.Servers)
	}
	for i := range z.Servers {
		s := &z.Servers[i]
		s.ClusterID = cmp.Or(s.ClusterID, z.ClusterID)
		s.Zone = cmp.Or(s.Zone, z.Name)
	}
}

// Servers returns the servers of a cluster.
func (c *Client) Servers(ctx context.Context, clusterID int64) ([]Server, error) {
	call := get("servers_list", "/api/v2/ob/clusters/%d/servers", clusterID)
	servers, err := list(ctx, c, call, false, decodeServer, nil)
	for i := range servers {
		servers[i].ClusterID = cmp.Or(servers[i].ClusterID, clusterID)
	}
	return servers, err
}
