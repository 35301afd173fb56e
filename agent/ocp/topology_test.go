package ocp

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestPublishedTopologiesAreDecoded(t *testing.T) {
	t.Parallel()
	rec := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		name := map[string]string{
			"/api/v2/ob/clusters":                      "clusters-list",
			"/api/v2/ob/clusters/12000001/zones":       "zones-list",
			"/api/v2/ob/clusters/1000002/servers":      "servers-list",
			"/api/v2/tasks/instances/1/subtasks/2/log": "subtasks-log",
			"/api/v2/info":                             "application-info",
		}[r.URL.Path]
		reply(w, http.StatusOK, string(sample(t, name)))
	})
	client := newClient(t, rec.URL)

	cluster, err := client.Cluster(t.Context(), 1000002)
	want := Cluster{ID: 1000002, OBClusterID: 4, Name: "test", Status: "RUNNING", Type: "PRIMARY", Version: "2.2.73"}
	if err != nil || cluster != want {
		t.Errorf("cluster:\n got %+v, %v\nwant %+v", cluster, err, want)
	}

	_, err = client.Cluster(t.Context(), 7)
	if failure, ok := errors.AsType[*Error](err); !ok || failure.Class != Refused || failure.Status != http.StatusNotFound {
		t.Errorf("cluster 7: got %v", err)
	}

	zones, err := client.Zones(t.Context(), 12000001)
	wantZones := Topology{{
		Name: "zone1", Status: "RUNNING", InnerStatus: "ACTIVE", Region: "hangzhou", IDC: "hz3", ClusterID: 12000001, ServerCount: 1,
		Servers: []Server{{
			ID: 12000001, ClusterID: 12000001, HostID: 4000003, IP: "xxx.xxx.xxx.xxx", Port: 2882, SQLPort: 2881, Zone: "zone1",
			Status: "RUNNING", InnerStatus: "ACTIVE", WithRootServer: true,
			Version: "3.1.0_20210412122703-1c10f0b3ad39105cd5d12eb566ebe3a374ea38f5(Apr 12 2021 12:57:39)",
		}},
	}}
	if err != nil || !reflect.DeepEqual(zones, wantZones) {
		t.Errorf("zones:\n got %+v, %v\nwant %+v", zones, err, wantZones)
	}

	servers, err := client.Servers(t.Context(), 1000002)
	if err != nil || len(servers) != 1 || servers[0].ID != 1000001 || servers[0].Zone != "zone1" {
		t.Errorf("servers: got %+v, %v", servers, err)
	}

	log, err := client.SubtaskLog(t.Context(), 1, 2)
	if err != nil || !strings.HasPrefix(log, "############{EXECUTE}") || !strings.HasSuffix(log, "SUCCESSFUL\n") {
		t.Errorf("log: got %q, %v", log, err)
	}

	info, err := client.Info(t.Context())
	if want := (Info{Version: "2.5.0-SNAPSHOT", Name: "ocp-server"}); err != nil || info != want {
		t.Errorf("info: got %+v, %v, want %+v", info, err, want)
	}
}

func TestZonesThatComeWithoutServersGetThem(t *testing.T) {
	t.Parallel()
	rec := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if strings.HasSuffix(r.URL.Path, "/servers") {
			reply(w, http.StatusOK, `{"data":{"contents":[{"id":1,"zoneName":"z1"},{"id":2,"zoneName":"z2","availableOperations":["STOP"]}]}}`)
			return
		}
		reply(w, http.StatusOK, `{"data":[{"name":"z1","serverCount":1,"servers":[]},{"name":"z2"},{"name":"z3","serverCount":0}]}`)
	})
	got, err := newClient(t, rec.URL).Zones(t.Context(), 9)
	want := Topology{
		{Name: "z1", ClusterID: 9, ServerCount: 1, Servers: []Server{{ID: 1, ClusterID: 9, Zone: "z1"}}},
		{Name: "z2", ClusterID: 9, ServerCount: 1, Servers: []Server{{ID: 2, ClusterID: 9, Zone: "z2", AvailableOperations: []string{"STOP"}}}},
		{Name: "z3", ClusterID: 9},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v, %v\nwant %+v", got, err, want)
	}
	if n := len(rec.got()); n != 2 {
		t.Errorf("requests: got %d, want 2", n)
	}
}

// Neither list has pages in the documentation: where one has them all the same, their
// size is not the one that is asked for.
func TestListsThatHavePagesAfterAllAreReadInFull(t *testing.T) {
	t.Parallel()
	const servers = 30
	rec := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if !strings.HasSuffix(r.URL.Path, "/servers") {
			reply(w, http.StatusOK, `{"data":[{"name":"z1"}]}`)
			return
		}
		number, size := 1, 10
		for name, value := range map[string]*int{"page": &number, "size": &size} {
			if n, err := strconv.Atoi(r.URL.Query().Get(name)); err == nil {
				*value = n
			}
		}
		var entries []string
		for id := (number-1)*size + 1; id <= min(servers, number*size); id++ {
			entries = append(entries, fmt.Sprintf(`{"id":%d,"zoneName":"z1"}`, id))
		}
		reply(w, http.StatusOK, fmt.Sprintf(`{"data":{"contents":[%s],"page":{"totalElements":%d,"totalPages":%d}}}`,
			strings.Join(entries, ","), servers, (servers+size-1)/size))
	})
	got, err := newClient(t, rec.URL).Zones(t.Context(), 9)
	if err != nil || len(got) != 1 || len(got[0].Servers) != servers {
		t.Errorf("got %+v, %v, want %d servers", got, err, servers)
	}
}

func TestStatusIsWhatOCPSaysOfItself(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]error{
		"okay":       nil,
		"\"okay\"\n": nil,
		"OK":         nil,
		"bad":        errUnwell,
		"bad: meta":  errUnwell,
		"<html>":     errNoState,
		"":           errNoState,
	} {
		rec := serve(t, always(http.StatusOK, body))
		if err := newClient(t, rec.URL).Status(t.Context()); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", body, err, want)
		}
	}
	rec := serve(t, always(http.StatusForbidden, "no"))
	if err := newClient(t, rec.URL).Status(t.Context()); ClassOf(err) != Refused || err == nil {
		t.Errorf("forbidden: got %v", err)
	}
}

func TestInfoIsReadWithAndWithoutAnEnvelope(t *testing.T) {
	t.Parallel()
	for body, ok := range map[string]bool{
		`{"successful":true,"data":{"buildVersion":"4.3.1","name":"ocp"}}`: true,
		`{"buildVersion":"4.3.1","name":"ocp"}`:                            true,
		`{"name":"ocp"}`:                                                   false,
		`<html>`:                                                           false,
		`{}`:                                                               false,
	} {
		rec := serve(t, always(http.StatusOK, body))
		info, err := newClient(t, rec.URL).Info(t.Context())
		if (err == nil) != ok || ok && info != (Info{Version: "4.3.1", Name: "ocp"}) {
			t.Errorf("%s: got %+v, %v", body, info, err)
		}
	}
}
