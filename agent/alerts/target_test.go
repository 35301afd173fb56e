package alerts_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// topology has two clusters of one name, two servers on one host, and a server on the host that is called localhost.
func topology() []ocpsim.ClusterConfig {
	cluster := func(id int64, name string, servers ...ocpsim.ServerConfig) ocpsim.ClusterConfig {
		return ocpsim.ClusterConfig{ID: id, Name: name, Zones: []ocpsim.ZoneConfig{{Name: "zone1", Servers: servers}}}
	}
	return []ocpsim.ClusterConfig{
		cluster(1, "pay", ocpsim.ServerConfig{ID: 11, IP: "10.0.0.1"}, ocpsim.ServerConfig{ID: 12, IP: "10.0.0.2"},
			ocpsim.ServerConfig{ID: 13, IP: "10.0.0.2", Port: 3882}),
		cluster(2, "risk", ocpsim.ServerConfig{ID: 21, IP: "10.0.0.1"}, ocpsim.ServerConfig{ID: 22, IP: "127.0.0.1"}),
		cluster(3, "twin", ocpsim.ServerConfig{ID: 31, IP: "10.0.3.1"}),
		cluster(4, "twin", ocpsim.ServerConfig{ID: 41, IP: "10.0.4.1"}),
	}
}

func TestAnAlertNamesExactlyOneServerOrIsRefused(t *testing.T) {
	t.Parallel()
	byIDs := policy.AlertTarget{ClusterID: "cid", ServerID: "sid"}
	byAddress := policy.AlertTarget{Cluster: "c", Address: "a"}
	byHost := policy.AlertTarget{Cluster: "c", Host: "a"}
	anywhere := policy.AlertTarget{Host: "a"}
	for i, test := range []struct {
		target policy.AlertTarget
		labels string
		want   string // cluster/server, or what the refusal says
	}{
		{byIDs, "cid=1 sid=2", "1/2"}, // whether they exist is the guard's question
		{byIDs, "cid=1", "no label sid"},
		{byIDs, "sid=1", "no label cid"},
		{byIDs, "cid=0 sid=2", "not an integer of at least 1"},
		{byIDs, "cid=1 sid=+2", "not an integer of at least 1"},
		{byIDs, "cid=1 sid=99999999999999999999", "not an integer of at least 1"},
		{policy.AlertTarget{Cluster: "c", ServerID: "sid"}, "c=risk sid=21", "2/21"},

		{byAddress, "c=pay a=10.0.0.1:2882", "1/11"},
		{byAddress, "c=risk a=10.0.0.1:2882", "2/21"},
		{byAddress, "c=risk a=10.0.0.1:2881", "2/21"}, // the port of SQL
		{byAddress, "c=risk a=localhost:2882", "2/22"},
		{byAddress, "c=risk a=[::ffff:10.0.0.1]:2882", "2/21"},
		{byAddress, "c=pay a=10.0.0.2:3882", "1/13"},
		{byAddress, "c=pay a=10.0.0.2:2881", "ambiguous"}, // both have that port for SQL
		{byAddress, "c=pay a=10.0.0.1:9100", "no server with the address"},
		{byAddress, "c=pay a=10.0.0.1", "not of the form ip:port"},
		{byAddress, "c=pay a=10.0.0.1:0", "not of the form ip:port"},
		{byAddress, "c=pay a=10.0.0.1:99999", "not of the form ip:port"},
		{byAddress, "c=pay a=:2882", "no such host"},
		{byAddress, "c=twin a=10.0.3.1:2882", "ambiguous"},
		{byAddress, "c=none a=10.0.0.1:2882", "no cluster with the name"},
		{policy.AlertTarget{ClusterID: "cid", Address: "a"}, "cid=4 a=10.0.4.1:2882", "4/41"},

		{byHost, "c=pay a=10.0.0.1:9100", "1/11"}, // an exporter's port
		{byHost, "c=pay a=10.0.0.1", "1/11"},
		{byHost, "c=pay a=10.0.0.2", "ambiguous"},
		{byHost, "c=risk a=localhost", "2/22"},
		{byHost, "c=pay a=localhost", "no server with the address"},
		{byHost, "c=pay a=no..host", "no such host"},

		{anywhere, "a=10.0.4.1", "4/41"},
		{anywhere, "a=10.0.0.1", "ambiguous"},
		{anywhere, "a=192.0.2.1", "no server with the address"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			rule := down(t)
			rule.Target = test.target
			r := newRig(t, ocpsim.Config{Clusters: topology()}, rule)
			a := firing("", time.Now())
			a.Labels = map[string]string{"alertname": "ObserverDown"}
			for pair := range strings.FieldsSeq(test.labels) {
				name, value, _ := strings.Cut(pair, "=")
				a.Labels[name] = value
			}
			got := r.send(200, a)[0]
			cluster, server, _ := strings.Cut(test.want, "/")
			switch want := fmt.Sprintf("%s server %s of cluster %s", events.Stop, server, cluster); {
			case got.Result == "requested" && got.Message != want:
				t.Errorf("%s: %s, want %s", test.labels, got.Message, test.want)
			case got.Result == "refused" && !strings.Contains(got.Message, test.want):
				t.Errorf("%s: %s, want %q", test.labels, got.Message, test.want)
			case got.Result != "requested" && got.Result != "refused":
				t.Errorf("%s: %+v", test.labels, got)
			}
		})
	}
}
