package ocp

import (
	"slices"
	"testing"
)

func TestATasksNameSaysWhatIsDoneToWhat(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, kind string // name and type of the task
		action     Action
		scope      string
		structural Answer
	}{
		{"Stop OB server", "", Stop, "server", Yes},
		{"Start OB server", "", Start, "server", Yes},
		{"Restart OB server", "", Restart, "server", Yes},
		{"StopObServer", "", Stop, "server", Yes},
		{"stop observer", "", Stop, "server", Yes},
		{"STOP OB ZONE", "", Stop, "zone", Yes},
		{"Restart OB cluster", "", Restart, "cluster", Yes},
		{"Restart server of zone", "", Restart, "server", Yes},
		{"Stop OB tenant", "", Stop, "tenant", No},
		{"Restart host agent", "", Restart, "host", No},
		{"Restart OB agent", "", Restart, "agent", No},
		{"Restart OBProxy server", "", Restart, "server", No},
		{"Restart OBProxy", "", Restart, "proxy", No},
		{"Restart", "", Restart, "", Yes},
		{"Shut OB server down", "", "", "server", Unknown},
		{"停止 OB 服务器", "", "", "", Unknown},
		{"", "", "", "", Unknown},
		{"", "STOP_SERVER", "", "", Yes}, // what a type says is no action: only names are known to
		{"Add OB server", "", "", "server", Yes},
		{"Delete zone", "", "", "zone", Yes},
		{"Replace server", "", "", "server", Yes},
		{"Upgrade OB cluster", "", "", "cluster", Yes},
		{"Rolling upgrade", "", "", "", Yes},
		{"Scale out", "", "", "", Yes},
		{"Switch over", "", "", "", Yes},
		{"Failover standby cluster", "", "", "cluster", Yes},
		{"Create cluster", "", "", "cluster", Yes},
		{"Take over cluster", "", "", "cluster", Yes},
		{"Inspect cluster", "", "", "cluster", No},
		{"Backup cluster data", "", "", "cluster", No},
		{"Start backup", "", Start, "", No},
		{"Collect logs of server", "", "", "server", No},
		{"Generate workload report", "", "", "", No},
		{"Major compaction", "", "", "", No},
		{"Modify tenant parameter", "", "", "tenant", No},
		{"Move host", "", "", "host", Unknown},
	} {
		got := Task{Name: test.name, Type: test.kind}.Subject()
		if got.Action != test.action || got.Scope != test.scope || got.Structural != test.structural {
			t.Errorf("%q, type %q: got action %q, scope %q, structural %d, want %q, %q, %d",
				test.name, test.kind, got.Action, got.Scope, got.Structural, test.action, test.scope, test.structural)
		}
	}
}

func TestATaskDoesWhatItsNameSays(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][3]Answer{ // of stop, start and restart
		"Stop OB server":      {Yes, No, No},
		"Restart OB server":   {No, No, Yes},
		"Start observer":      {No, Yes, No},
		"Stop OB zone":        {No, No, No},
		"Restart":             {No, No, Unknown},
		"Shut OB server down": {Unknown, Unknown, Unknown},
		"停止 OB 服务器":           {Unknown, Unknown, Unknown},
	} {
		s := Task{Name: name}.Subject()
		if got := [3]Answer{s.Does(Stop), s.Does(Start), s.Does(Restart)}; got != want {
			t.Errorf("%q: got %v, want %v", name, got, want)
		}
	}
}

func TestATasksIDsSayWhichClusterAndServerItIsAbout(t *testing.T) {
	t.Parallel()
	const cluster, server, host = 1, 2, 1002
	for _, test := range []struct {
		name              string
		task              Task
		inCluster, server Answer
		withoutHost       Answer // the same if the server's host is not known
	}{
		{"nothing", Task{}, Unknown, Unknown, Unknown},
		{"the cluster", Task{ClusterID: 1}, Yes, Unknown, Unknown},
		{"the cluster in the context alone", Task{ContextClusterID: 1}, Yes, Unknown, Unknown},
		{"the cluster and another", Task{ClusterID: 9, ContextClusterID: 1}, Yes, Unknown, Unknown},
		{"another cluster", Task{ClusterID: 9}, No, No, No},
		{"the server in another cluster", Task{ContextClusterID: 9, ServerIDs: []int64{2}}, No, No, No},
		{"the server", Task{ServerIDs: []int64{2}}, Unknown, Yes, Yes},
		{"the server among others", Task{ClusterID: 1, ServerIDs: []int64{3, 2}}, Yes, Yes, Yes},
		{"another server", Task{ClusterID: 1, ServerIDs: []int64{3}}, Yes, No, No},
		{"another server on the same host", Task{ServerIDs: []int64{3}, HostID: 1002}, Unknown, No, No},
		{"the host", Task{ClusterID: 1, HostID: 1002}, Yes, Yes, Unknown},
		{"another host", Task{HostID: 1003}, Unknown, No, Unknown},
	} {
		s := test.task.Subject()
		if got := s.InCluster(cluster); got != test.inCluster {
			t.Errorf("%s: cluster: got %d, want %d", test.name, got, test.inCluster)
		}
		if got := s.OnServer(cluster, server, host); got != test.server {
			t.Errorf("%s: server: got %d, want %d", test.name, got, test.server)
		}
		if got := s.OnServer(cluster, server, 0); got != test.withoutHost {
			t.Errorf("%s: server, host unknown: got %d, want %d", test.name, got, test.withoutHost)
		}
	}
}

func TestEachStatusOfAServerSaysWhetherItRunsIsStoppedMovesOrExists(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]string{
		"RUNNING": "running exists", "STOPPED": "stopped exists", "SERVICE_STOPPED": "stopped exists", "PROCESS_STOPPED": "stopped exists",
		"STOPPING": "moving exists", "STARTING": "moving exists", "RESTARTING": "moving exists", "OPERATING": "moving exists",
		"SERVICE_STOPPING": "moving exists", "PROCESS_STOPPING": "moving exists",
		"UNAVAILABLE": "exists", "CREATING": "moving", "DELETING": "moving", "DELETED": "",
		"DANCING": "exists", "": "exists", // a status unheard of
	} {
		s, got := Server{Status: status}, ""
		for _, is := range []struct {
			word string
			so   bool
		}{{"running", s.Running()}, {"stopped", s.Stopped()}, {"moving", s.Moving()}, {"exists", s.Exists()}} {
			if is.so {
				got += " " + is.word
			}
		}
		if got != "" {
			got = got[1:]
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", status, got, want)
		}
		if z := (Zone{Status: status}); z.Moving() != s.Moving() || z.Running() != (status == "" || status == "RUNNING") {
			t.Errorf("zone %s: moving %t, running %t", status, z.Moving(), z.Running())
		}
	}
	if len(slices.Compact(slices.Sorted(slices.Values(ServerStatuses())))) != 14 {
		t.Errorf("got %v", ServerStatuses())
	}
	if (Server{Status: "RUNNING", InnerStatus: "INACTIVE"}).Running() || !(Server{Status: "RUNNING", InnerStatus: "ACTIVE"}).Running() {
		t.Error("what the database says of a server does not count")
	}
	if (Zone{Status: "RUNNING", InnerStatus: "INACTIVE"}).Running() {
		t.Error("what the database says of a zone does not count")
	}
}

func TestATopologyFindsServersAndSaysWhetherAnyMoves(t *testing.T) {
	t.Parallel()
	topology := func(zone, server string) Topology {
		return Topology{
			{Name: "z1", Status: "RUNNING", Servers: []Server{{ID: 1, Status: "RUNNING"}}},
			{Name: "z2", Status: zone, Servers: []Server{{ID: 2, Status: "RUNNING"}, {ID: 3, Status: server}}},
		}
	}
	all := topology("RUNNING", "STOPPED")
	for id, want := range map[int64]string{1: "z1", 2: "z2", 3: "z2", 4: ""} {
		server, zone, found := all.Server(id)
		if zone.Name != want || all.ZoneOf(id) != want || found != (want != "") || found && server.ID != id {
			t.Errorf("server %d: got %d in %q (%q), %t, want %q", id, server.ID, zone.Name, all.ZoneOf(id), found, want)
		}
	}
	for _, test := range []struct {
		zone, server string
		want         bool
	}{{"RUNNING", "STOPPED", false}, {"OPERATING", "STOPPED", true}, {"RUNNING", "STOPPING", true}} {
		if got := topology(test.zone, test.server).InBetween(); got != test.want {
			t.Errorf("zone %s, server %s: got %t", test.zone, test.server, got)
		}
	}
	if Topology(nil).InBetween() {
		t.Error("no zones are in between")
	}
}
