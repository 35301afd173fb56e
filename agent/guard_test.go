package agent

import (
	"strings"
	"testing"
	"time"

	"obwarden/agent/ocp"
	"obwarden/events"
)

func TestGuard(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)
	topology := []ocp.Zone{
		{Name: "zone1", Servers: []ocp.Server{{ID: 1}, {ID: 2}}},
		{Name: "zone2", Servers: []ocp.Server{{ID: 3}}},
	}
	slot := func(id string, server int64) Slot { return Slot{OperationID: id, Kind: events.Stop, ServerID: server} }
	for _, test := range []struct {
		name    string
		server  int64
		active  []Slot
		max     int
		verdict Verdict
		code    string
		says    string
	}{
		{"a free cluster", 2, nil, 1, Allow, "", ""},
		{"its own slot from before a crash", 2, []Slot{slot("me", 2)}, 1, Allow, "", ""},
		{"an unknown server", 9, nil, 1, Reject, CodeNotFound, "[1 2 3]"},
		{"the server is busy", 2, []Slot{slot("other", 2)}, 2, Wait, CodeServerBusy, "other"},
		{"the cluster is busy", 2, []Slot{slot("other", 3)}, 1, Wait, CodeClusterBusy, "other"},
		{"room for two", 2, []Slot{slot("other", 3)}, 2, Allow, "", ""},
		{"an unknown server in a busy cluster", 9, []Slot{slot("other", 3)}, 1, Reject, CodeNotFound, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := decide(Question{
				Policy: Policy{MaxConcurrent: test.max}, Topology: topology, Record: ClusterRecord{Active: test.active}, Now: now,
				Operation: events.Operation{OperationID: "me", Kind: events.Stop, ClusterID: 1, ServerID: test.server},
			})
			if got.Verdict != test.verdict || got.Reason.Code != test.code || !strings.Contains(got.Reason.Message, test.says) {
				t.Errorf("got %s %+v, want %s %s with %q", got.Verdict, got.Reason, test.verdict, test.code, test.says)
			}
			if got.Verdict == Wait && !got.Reason.Until.After(now) {
				t.Errorf("waits until %s, which is not after %s", got.Reason.Until, now)
			}
		})
	}
}
