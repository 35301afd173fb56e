package ocpsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
)

// Ports of an observer: internal communication (the "port" of OCP's lists) and SQL.
const (
	defaultPort = 2882
	sqlPort     = 2881
)

// maxGrid bounds each dimension of Grid: one byte of an IPv4 address each.
const maxGrid = 250

// ClusterConfig is one cluster. OBClusterID 0 means ID.
type ClusterConfig struct {
	ID          int64        `json:"id"`
	Name        string       `json:"name"`
	OBClusterID int64        `json:"obClusterId,omitempty"`
	Zones       []ZoneConfig `json:"zones"`
}

// ZoneConfig is one zone of a cluster.
type ZoneConfig struct {
	Name    string         `json:"name"`
	Region  string         `json:"region,omitempty"`
	IDC     string         `json:"idc,omitempty"`
	Servers []ServerConfig `json:"servers"`
}

// ServerConfig is one server. Its id is unique in the whole OCP, as in the real one. Zero values: Port 2882,
// HostID 1000 + ID, Status RUNNING, InnerStatus ACTIVE or, for a server that is not running, INACTIVE.
type ServerConfig struct {
	ID             int64  `json:"id"`
	IP             string `json:"ip"`
	Port           int    `json:"port,omitempty"`
	HostID         int64  `json:"hostId,omitempty"`
	Status         string `json:"status,omitempty"`
	InnerStatus    string `json:"innerStatus,omitempty"`
	WithRootServer bool   `json:"withRootServer,omitempty"`
}

// DefaultTopology is cluster 1, "obdemo": zone1 with servers 1 and 2, zone2 with 3 and 4, zone3 with 5 and 6, the
// first server of each zone a root server.
func DefaultTopology() []ClusterConfig { return grid(1, 3, 2) }

// Grid is a topology from numbers: clusters 1, 2, … with zones zone1, zone2, … each, and server ids that count
// through all of them.
func Grid(clusters, zones, serversPerZone int) ([]ClusterConfig, error) {
	var errs []error
	for _, d := range []struct {
		name string
		n    int
	}{{"clusters", clusters}, {"zones", zones}, {"servers per zone", serversPerZone}} {
		if d.n < 1 || d.n > maxGrid {
			errs = append(errs, fmt.Errorf("%d %s: want 1 to %d", d.n, d.name, maxGrid))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return grid(clusters, zones, serversPerZone), nil
}

func grid(clusters, zones, serversPerZone int) []ClusterConfig {
	var id int64
	var all []ClusterConfig
	for c := 1; c <= clusters; c++ {
		cluster := ClusterConfig{ID: int64(c), Name: "obdemo"}
		if c > 1 {
			cluster.Name = fmt.Sprintf("obdemo%d", c)
		}
		for z := 1; z <= zones; z++ {
			zone := ZoneConfig{Name: fmt.Sprintf("zone%d", z), Region: "hangzhou", IDC: fmt.Sprintf("hz%d", z)}
			for n := 1; n <= serversPerZone; n++ {
				id++
				zone.Servers = append(zone.Servers, ServerConfig{
					ID: id, IP: fmt.Sprintf("10.%d.%d.%d", c, z, n), WithRootServer: n == 1,
				})
			}
			cluster.Zones = append(cluster.Zones, zone)
		}
		all = append(all, cluster)
	}
	return all
}

// LoadTopology reads {"clusters": […]} from a JSON file, and refuses fields that it does not know.
func LoadTopology(path string) ([]ClusterConfig, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("topology: %w", err)
	}
	clusters, err := decodeTopology(raw)
	if err != nil {
		return nil, fmt.Errorf("topology %s: %w", path, err)
	}
	return clusters, nil
}

func decodeTopology(raw []byte) ([]ClusterConfig, error) {
	var file struct {
		Clusters []ClusterConfig `json:"clusters"`
	}
	if err := decodeStrict(raw, &file); err != nil {
		return nil, err
	}
	return file.Clusters, validateTopology(file.Clusters)
}

// decodeStrict takes exactly one JSON value without unknown fields: a typo must not pass for a default.
func decodeStrict(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more data after the JSON value")
	}
	return nil
}

// validateTopology lists everything that is wrong: a topology file is mended in one go.
func validateTopology(clusters []ClusterConfig) error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(clusters) == 0 {
		wrong("no clusters")
	}
	clusterIDs, serverIDs := map[int64]bool{}, map[int64]bool{}
	for _, c := range clusters {
		switch {
		case c.ID < 1:
			wrong("cluster %q: id %d: want 1 or more", c.Name, c.ID)
		case clusterIDs[c.ID]:
			wrong("cluster %d is there twice", c.ID)
		}
		clusterIDs[c.ID] = true
		if c.Name == "" {
			wrong("cluster %d: no name", c.ID)
		}
		if c.OBClusterID < 0 {
			wrong("cluster %d: obClusterId %d: want 1 or more, or none", c.ID, c.OBClusterID)
		}
		if len(c.Zones) == 0 {
			wrong("cluster %d: no zones", c.ID)
		}
		zones := map[string]bool{}
		for _, z := range c.Zones {
			switch {
			case z.Name == "":
				wrong("cluster %d: a zone without name", c.ID)
			case zones[z.Name]:
				wrong("cluster %d: zone %q is there twice", c.ID, z.Name)
			}
			zones[z.Name] = true
			for _, srv := range z.Servers {
				if serverIDs[srv.ID] {
					wrong("server %d is there twice", srv.ID)
				}
				serverIDs[srv.ID] = true
				if err := srv.validate(); err != nil {
					wrong("cluster %d: zone %q: server %d: %w", c.ID, z.Name, srv.ID, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (c ServerConfig) validate() error {
	var errs []error
	if c.ID < 1 {
		errs = append(errs, errors.New("id: want 1 or more"))
	}
	if _, err := netip.ParseAddr(c.IP); err != nil {
		errs = append(errs, fmt.Errorf("ip %q: not an IP address", c.IP))
	}
	if c.Port < 0 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("port %d: want 1 to 65535, or none", c.Port))
	}
	if c.HostID < 0 {
		errs = append(errs, fmt.Errorf("hostId %d: want 1 or more, or none", c.HostID))
	}
	if c.Status != "" && !slices.Contains(serverStatuses(), c.Status) {
		errs = append(errs, fmt.Errorf("status %q: want one of %q", c.Status, serverStatuses()))
	}
	if c.InnerStatus != "" && c.InnerStatus != innerActive && c.InnerStatus != innerInactive {
		errs = append(errs, fmt.Errorf("innerStatus %q: want %s or %s", c.InnerStatus, innerActive, innerInactive))
	}
	return errors.Join(errs...)
}

// withDefaults fills in what the configuration left out.
func (c ServerConfig) withDefaults() ServerConfig {
	if c.Port == 0 {
		c.Port = defaultPort
	}
	if c.HostID == 0 {
		c.HostID = 1000 + c.ID
	}
	if c.Status == "" {
		c.Status = serverRunning
	}
	if c.InnerStatus == "" {
		c.InnerStatus = innerInactive
		if c.Status == serverRunning {
			c.InnerStatus = innerActive
		}
	}
	return c
}
