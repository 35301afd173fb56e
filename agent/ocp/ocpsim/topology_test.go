package ocpsim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDefaultTopology(t *testing.T) {
	t.Parallel()
	if err := validateTopology(DefaultTopology()); err != nil {
		t.Fatal(err)
	}
	clusters := newClusters(DefaultTopology(), time.Unix(0, 0))
	if got := clusters[0].server(2).zone.Name; got != "zone1" {
		t.Errorf("zone of server 2: got %s, want zone1", got)
	}
	if got := clusters[0].server(5); got.zone.Name != "zone3" || !got.WithRootServer || got.HostID != 1005 || got.Port != 2882 {
		t.Errorf("server 5: got %+v", got.ServerConfig)
	}
}

func TestGrid(t *testing.T) {
	t.Parallel()
	clusters, err := Grid(maxGrid, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := validateTopology(clusters); err != nil {
		t.Error(err)
	}
	if got := clusters[1].Zones[1].Servers[2].ID; got != 12 {
		t.Errorf("last server of the second cluster: got id %d, want 12", got)
	}
	for _, n := range [][3]int{{0, 1, 1}, {1, -1, 1}, {1, 1, 251}} {
		if _, err := Grid(n[0], n[1], n[2]); err == nil {
			t.Errorf("Grid(%v): got no error", n)
		}
	}
}

const topologyFile = `{"clusters": [{"id": 7, "name": "orders", "obClusterId": 70, "zones": [
	{"name": "z1", "region": "hz", "idc": "hz1", "servers": [
		{"id": 71, "ip": "10.0.0.1", "port": 12882, "hostId": 9, "status": "STOPPED", "withRootServer": true}]}]}]}`

func TestLoadTopology(t *testing.T) {
	t.Parallel()
	load := func(content string) ([]ClusterConfig, error) {
		path := filepath.Join(t.TempDir(), "topology.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return LoadTopology(path)
	}
	clusters, err := load(topologyFile)
	if err != nil {
		t.Fatal(err)
	}
	c := newClusters(clusters, time.Unix(0, 0))[0]
	if srv := c.server(71); c.OBClusterID != 70 || srv.inner != innerInactive || srv.HostID != 9 || c.status != serverStopped {
		t.Errorf("got cluster %+v, server %+v", c.ClusterConfig, srv.ServerConfig)
	}
	bad := []struct{ replace, by, want string }{
		{`"port"`, `"prot"`, `unknown field "prot"`},
		{`{"clusters"`, `[] {"clusters"`, "cannot unmarshal array"},
		{`}]}]}]}`, `}]}]}]} {}`, "more data"},
		{`"id": 7,`, `"id": 0,`, "id 0"},
		{`"id": 71`, `"id": -1`, "server -1: id"},
		{`"orders"`, `""`, "cluster 7: no name"},
		{`"z1"`, `""`, "a zone without name"},
		{`10.0.0.1`, `10.0.0.x`, `ip "10.0.0.x"`},
		{`12882`, `70000`, "port 70000"},
		{`"hostId": 9`, `"hostId": -9`, "hostId -9"},
		{`STOPPED`, `STOPED`, `status "STOPED"`},
		{`"obClusterId": 70`, `"obClusterId": -70`, "obClusterId -70"},
		{`"clusters": [`, `"clusters": [{"id": 7, "name": "x", "zones": []}, `, "cluster 7 is there twice"},
		{`"zones": [`, `"zones": [{"name": "z1", "servers": [{"id": 71, "ip": "::1"}]},`, `zone "z1" is there twice`},
		{`"zones": [`, `"zones": [{"name": "z0", "servers": [{"id": 71, "ip": "::1"}]},`, "server 71 is there twice"},
		{topologyFile, `{}`, "no clusters"},
	}
	for _, test := range bad {
		content := strings.Replace(topologyFile, test.replace, test.by, 1)
		if _, err := load(content); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s for %s: got error %v, want one with %q", test.by, test.replace, err, test.want)
		}
	}
	if _, err := LoadTopology(filepath.Join(t.TempDir(), "none.json")); err == nil {
		t.Error("missing file: got no error")
	}
}

// FuzzDecodeTopology: whatever is taken makes a simulator.
func FuzzDecodeTopology(f *testing.F) {
	f.Add([]byte(topologyFile))
	f.Add([]byte(`{"clusters":[{"id":1,"name":"a","zones":[{"name":"z","servers":[]}]}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		clusters, err := decodeTopology(raw)
		if err != nil {
			return
		}
		if _, err := New(Config{Clusters: clusters}); err != nil {
			t.Errorf("%s: decoded, but New refuses it: %v", raw, err)
		}
	})
}
