package ocpsim

import (
	"fmt"
	"net/url"
	"time"
)

// clusterBody is an entry of clusters-list.json.
type clusterBody struct {
	AlarmSummaries  []alarmSummary  `json:"alarmSummaries"`
	CreateTime      string          `json:"createTime"`
	Creator         string          `json:"creator"`
	ID              int64           `json:"id"`
	Name            string          `json:"name"`
	OBClusterID     int64           `json:"obClusterId"`
	OBVersion       string          `json:"obVersion"`
	RegionCount     int             `json:"regionCount"`
	RootServers     []rootServer    `json:"rootServers"`
	ServerCount     int             `json:"serverCount"`
	StandbyClusters []clusterRef    `json:"standbyClusters"`
	Status          string          `json:"status"`
	TenantCount     int             `json:"tenantCount"`
	Type            string          `json:"type"`
	Zones           []zoneOfCluster `json:"zones"`
}

type alarmSummary struct {
	Count       int    `json:"count"`
	Level       int    `json:"level"`
	LinkDataURL string `json:"linkDataUrl"`
	LinkURL     string `json:"linkUrl"`
}

type rootServer struct {
	Address string `json:"address"`
	Role    string `json:"role"`
	SQLPort int    `json:"sql_port"` // so, among all the camel case
}

// zoneOfCluster is a zone in the list of clusters, whose servers stay empty there.
type zoneOfCluster struct {
	IDCID         int64        `json:"idcId"`
	IDCName       string       `json:"idcName"`
	InnerStatus   string       `json:"innerStatus"`
	Name          string       `json:"name"`
	OperateStatus string       `json:"operateStatus"`
	RegionName    string       `json:"regionName"`
	ServerCount   int          `json:"serverCount"`
	Servers       []serverBody `json:"servers"`
	Status        string       `json:"status"`
}

// zoneBody is an entry of zones-list.json.
type zoneBody struct {
	ClusterID        int64        `json:"clusterId"`
	CompactionStatus string       `json:"compactionStatus"`
	CreateTime       string       `json:"createTime"`
	HostCount        int          `json:"hostCount"`
	IDCID            int64        `json:"idcId"`
	IDCName          string       `json:"idcName"`
	InnerStatus      string       `json:"innerStatus"`
	Name             string       `json:"name"`
	OBClusterID      int64        `json:"obClusterId"`
	RegionName       string       `json:"regionName"`
	RootServer       *rootServer  `json:"rootServer,omitempty"`
	ServerCount      int          `json:"serverCount"`
	Servers          []serverBody `json:"servers"`
	Status           string       `json:"status"`
	UpdateTime       string       `json:"updateTime"`
}

// serverBody is an entry of servers-list.json; HostTypeName, IDCName and RegionName only come with zones-list.json.
type serverBody struct {
	AvailableOperations []string `json:"availableOperations,omitempty"` // newer versions
	ClusterID           int64    `json:"clusterId"`
	HostID              int64    `json:"hostId"`
	HostTypeName        string   `json:"hostTypeName,omitempty"`
	ID                  int64    `json:"id"`
	IDCName             string   `json:"idcName,omitempty"`
	InnerStatus         string   `json:"innerStatus"`
	IP                  string   `json:"ip"`
	Port                int      `json:"port"`
	RegionName          string   `json:"regionName,omitempty"`
	SQLPort             int      `json:"sqlPort"`
	StartTime           string   `json:"startTime"`
	Status              string   `json:"status"`
	StopTime            string   `json:"stopTime"`
	UpdateTime          string   `json:"updateTime"`
	Version             string   `json:"version"`
	WithRootserver      bool     `json:"withRootserver"`
	ZoneName            string   `json:"zoneName"`
}

const (
	roleLeader   = "LEADER"
	roleFollower = "FOLLOWER"
	alarmLevels  = 5
)

// obVersion is the database's version, short and as observers report it.
func (s *Sim) obVersion() (short, long string) {
	if s.cfg.API == APIV43 {
		return "4.2.1", "4.2.1.8_108000022024072217-3149c25ca2dadbb7707686ad02a1367b1b43e0b5(Jul 23 2024 02:01:35)"
	}
	return "3.1.0", "3.1.0_20210412122703-1c10f0b3ad39105cd5d12eb566ebe3a374ea38f5(Apr 12 2021 12:57:39)" // zones-list.json
}

func (s *Sim) clusterBody(c *cluster, host string) clusterBody {
	short, _ := s.obVersion()
	b := clusterBody{
		CreateTime: stampSecond(c.created), Creator: s.cfg.Users[0].Name, ID: c.ID, Name: c.Name,
		OBClusterID: c.OBClusterID, OBVersion: short, RootServers: []rootServer{}, ServerCount: len(c.servers()),
		StandbyClusters: []clusterRef{}, Status: c.status, Type: clusterType,
	}
	for level := 1; level <= alarmLevels; level++ {
		query := fmt.Sprintf("isSubscribedByMe=false&page=1&size=10&level=%d&category=OB&status=Active&obCluster=%s", level, url.QueryEscape(c.Name))
		b.AlarmSummaries = append(b.AlarmSummaries, alarmSummary{Level: level,
			LinkDataURL: "http://" + host + "/api/v2/alarm/alarms?" + query,
			LinkURL:     "http://" + host + "/alarm/event?" + query})
	}
	regions := map[string]bool{}
	for _, z := range c.zones {
		regions[z.Region] = true
		if r := c.rootServer(z); r != nil {
			b.RootServers = append(b.RootServers, *r)
		}
		b.Zones = append(b.Zones, zoneOfCluster{IDCID: z.id, IDCName: z.IDC, InnerStatus: z.inner(), Name: z.Name,
			OperateStatus: "NORMAL", RegionName: z.Region, ServerCount: len(z.servers), Servers: []serverBody{}, Status: z.status})
	}
	b.RegionCount = len(regions)
	return b
}

func (s *Sim) zoneBody(c *cluster, z *zone) zoneBody {
	b := zoneBody{
		ClusterID: c.ID, CompactionStatus: "IDLE", CreateTime: stampSecond(c.created), HostCount: len(z.servers),
		IDCID: z.id, IDCName: z.IDC, InnerStatus: z.inner(), Name: z.Name, OBClusterID: c.OBClusterID, RegionName: z.Region,
		RootServer: c.rootServer(z), ServerCount: len(z.servers), Servers: []serverBody{}, Status: z.status, UpdateTime: stampSecond(z.updated),
	}
	for _, srv := range z.servers {
		sb := s.serverBody(c, srv)
		sb.HostTypeName, sb.IDCName, sb.RegionName = "forge", z.IDC, z.Region
		// This list alone gives the database's own times: UTC, to the microsecond.
		sb.StartTime, sb.StopTime = databaseStamp(srv.started), databaseStamp(srv.stopped)
		b.Servers = append(b.Servers, sb)
	}
	return b
}

func (s *Sim) serverBody(c *cluster, srv *server) serverBody {
	_, long := s.obVersion()
	b := serverBody{
		ClusterID: c.ID, HostID: srv.HostID, ID: srv.ID, InnerStatus: srv.inner, IP: srv.IP, Port: srv.Port,
		SQLPort: sqlPort, StartTime: stampSecond(srv.started), Status: srv.status, StopTime: stampSecond(orNever(srv.stopped)),
		UpdateTime: stampSecond(srv.updated), Version: long, WithRootserver: srv.WithRootServer, ZoneName: srv.zone.Name,
	}
	if s.cfg.API == APIV43 && !srv.busy() {
		b.AvailableOperations = srv.availableOperations()
	}
	return b
}

// availableOperations: the field is documented, its values are not.
func (s *server) availableOperations() []string {
	var all []string
	for _, o := range []struct {
		kind kind
		name string
	}{{kindStop, "STOP"}, {kindStart, "START"}, {kindRestart, "RESTART"}} {
		if s.allows(o.kind) {
			all = append(all, o.name)
		}
	}
	return all
}

// inner is the database's view of a zone.
func (z *zone) inner() string {
	if z.status == serverStopped {
		return innerInactive
	}
	return innerActive
}

// rootServer is the zone's, the first zone's being the leader.
func (c *cluster) rootServer(z *zone) *rootServer {
	role := roleFollower
	if z == c.zones[0] {
		role = roleLeader
	}
	for _, srv := range z.servers {
		if srv.WithRootServer {
			return &rootServer{Address: fmt.Sprintf("%s:%d", srv.IP, srv.Port), Role: role, SQLPort: sqlPort}
		}
	}
	return nil
}

// orNever: "never" is the epoch.
func orNever(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0)
	}
	return t
}

func databaseStamp(t time.Time) string {
	return orNever(t).UTC().Format("2006-01-02T15:04:05.999999Z07:00")
}
