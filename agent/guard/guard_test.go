package guard

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/alertmanager/timeinterval"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// now is a Tuesday.
var now = time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

// question is about a stop of server 2 in a cluster at rest, which is allowed: servers
// 1 and 2 are in zone1, 3 and 4 in zone2, 5 and 6 in zone3, the odd ones with a root
// service.
func question() *Question {
	return &Question{
		Policy: &policy.Policy{Limits: policy.Limits{MaxConcurrent: 1, KeepZones: policy.Majority, OneZoneAtATime: true, KeepRootServer: true}},
		Facts:  Facts{ClusterID: 1, ClusterName: "trade", Zones: zones(3, 2)},
		Operation: events.Operation{
			OperationID: "me", Kind: events.Stop, ClusterID: 1, ServerID: 2, Source: "nats", RequestSequence: 10,
			Request: events.Request{RequestedBy: "ann", Labels: map[string]string{"team": "db", "zone": "forged"}},
		},
		Now: now,
	}
}

func zones(n, servers int) []ocp.Zone {
	var all []ocp.Zone
	for z := range n {
		zone := ocp.Zone{
			Name: "zone" + string(rune('1'+z)), Status: "RUNNING", InnerStatus: "ACTIVE", Region: "hangzhou", IDC: "hz" + string(rune('1'+z)), ServerCount: servers,
		}
		for s := range servers {
			id := int64(z*servers + s + 1)
			zone.Servers = append(zone.Servers, ocp.Server{
				ID: id, HostID: 1000 + id, IP: "10.0.0." + string(rune('0'+id%10)), Port: 2882, Zone: zone.Name,
				Status: "RUNNING", InnerStatus: "ACTIVE", WithRootServer: s == 0,
			})
		}
		all = append(all, zone)
	}
	return all
}

func server(q *Question, id int64) *ocp.Server {
	for i := range q.Facts.Zones {
		for j := range q.Facts.Zones[i].Servers {
			if s := &q.Facts.Zones[i].Servers[j]; s.ID == id {
				return s
			}
		}
	}
	panic("no such server")
}

func serverStatus(id int64, status string) func(*Question) {
	return func(q *Question) {
		s := server(q, id)
		s.Status = status
		if status != "RUNNING" {
			s.InnerStatus = "INACTIVE"
		}
	}
}

func zoneStatus(zone int, status string) func(*Question) {
	return func(q *Question) { q.Facts.Zones[zone-1].Status = status }
}

func ofKind(k events.Kind) func(*Question) { return func(q *Question) { q.Operation.Kind = k } }
func target(id int64) func(*Question)      { return func(q *Question) { q.Operation.ServerID = id } }
func limit(set func(*policy.Limits)) func(q *Question) {
	return func(q *Question) { set(&q.Policy.Limits) }
}
func concurrent(n int) func(*Question) { return limit(func(l *policy.Limits) { l.MaxConcurrent = n }) }
func keep(n int) func(*Question)       { return limit(func(l *policy.Limits) { l.KeepZones = n }) }
func manyZones() func(*Question)       { return limit(func(l *policy.Limits) { l.OneZoneAtATime = false }) }
func retry(q *Question)                { q.Retry = true; q.Operation.Task = &events.Task{ID: 77} }

func slot(id string, k events.Kind, serverID int64, zone string) func(*Question) {
	return func(q *Question) {
		q.Record.Active = append(q.Record.Active, Slot{OperationID: id, Kind: k, ServerID: serverID, Zone: zone, Since: ago(time.Minute)})
	}
}

func task(t ocp.Task) func(*Question) {
	return func(q *Question) {
		if t.ID == 0 {
			t.ID = 77
		}
		if t.Status == "" {
			t.Status = ocp.StatusRunning
		}
		q.Facts.Tasks = append(q.Facts.Tasks, t)
	}
}

func ticket(id string, sequence uint64, serverID int64) func(*Question) {
	return func(q *Question) { q.Record.Enqueue(Ticket{OperationID: id, Sequence: sequence, ServerID: serverID}) }
}

func ended(id string, k events.Kind, serverID int64, zone string, at time.Time, succeeded bool) func(*Question) {
	return func(q *Question) {
		q.Record.Recent = append(q.Record.Recent, Ended{OperationID: id, Kind: k, ServerID: serverID, Zone: zone, Since: at.Add(-time.Minute), At: at, Succeeded: succeeded})
	}
}

func matching(name string, kind labels.MatchType, value string) labels.Matchers {
	m, err := labels.NewMatcher(kind, name, value)
	if err != nil {
		panic(err)
	}
	return labels.Matchers{m}
}

func deny(name, value string) func(*Question) {
	return func(q *Question) {
		q.Policy.Deny = append(q.Policy.Deny, policy.Denial{Matchers: matching(name, labels.MatchEqual, value), Reason: "as the board says"})
	}
}

func needsApproval(approvers ...string) func(*Question) {
	return func(q *Question) {
		q.Policy.Approvals = append(q.Policy.Approvals, policy.ApprovalRule{
			Matchers: matching("kind", labels.MatchRegexp, "stop|restart"), Approvers: approvers, Expires: 30 * time.Minute,
		})
	}
}

func approvedBy(by string, at time.Time) func(*Question) {
	return func(q *Question) {
		q.Operation.Approvals = append(q.Operation.Approvals, events.Approval{By: by, At: at})
	}
}

func force(q *Question) { q.Operation.Request.Force = true }

// hours is a window of whole hours of the day.
func hours(name, location string, from, to int, days ...int) policy.Window {
	i := timeinterval.TimeInterval{Times: []timeinterval.TimeRange{{StartMinute: from * 60, EndMinute: to * 60}}}
	if location != "" {
		l, err := time.LoadLocation(location)
		if err != nil {
			panic(err)
		}
		i.Location = &timeinterval.Location{Location: l}
	}
	for _, d := range days {
		i.Weekdays = append(i.Weekdays, timeinterval.WeekdayRange{InclusiveRange: timeinterval.InclusiveRange{Begin: d, End: d}})
	}
	return policy.Window{Name: name, Intervals: []timeinterval.TimeInterval{i}}
}

func opens(w policy.Window) func(*Question) {
	return limit(func(l *policy.Limits) { l.Allow = append(l.Allow, w) })
}
func blocks(w policy.Window) func(*Question) {
	return limit(func(l *policy.Limits) { l.Block = append(l.Block, w) })
}

func cooldown(c policy.Cooldown) func(*Question) {
	return limit(func(l *policy.Limits) { l.Cooldown = c })
}

func pauseAfter(limit int, under uint64) func(*Question) {
	return func(q *Question) {
		q.Policy.Limits.PauseAfterFailures = limit
		q.Record.Failures, q.Record.FailuresUnder, q.Record.LastFailure = 3, under, "broken"
		q.Control.Revision = 5
	}
}

func supersede(q *Question) {
	q.Policy.Limits.Supersede = true
	q.Record.Announce(Ticket{OperationID: "newer", ServerID: 2, Sequence: 11})
}

func budget(operations int) func(*Question) {
	return limit(func(l *policy.Limits) { l.Budget = policy.Budget{Operations: operations, Window: 4 * time.Hour} })
}

type decisionCase struct {
	name    string
	set     []func(*Question)
	verdict Verdict
	rule    string
	code    string
	says    string    // a part of the message
	until   time.Time // zero: any moment after now
}

type sets = []func(*Question)

func decisionCases() []decisionCase {
	const allow = Allow
	return []decisionCase{
		{name: "a cluster at rest", verdict: allow},
		{name: "its own slot from before a crash", set: sets{slot("me", events.Stop, 2, "zone1")}, verdict: allow},
		{name: "an attempt that did not arrive", set: sets{func(q *Question) { q.Operation.Attempt = 2 }}, verdict: allow},

		{name: "no such server", set: sets{target(9)}, verdict: Reject, rule: "target", code: events.CodeNotFound, says: "[1 2 3 4 5 6]"},
		{name: "no such server among many", set: sets{target(99), func(q *Question) { q.Facts.Zones = zones(5, 5) }}, verdict: Reject, rule: "target", code: events.CodeNotFound, says: "20] and 5 more"},
		{name: "no servers at all", set: sets{func(q *Question) { q.Facts.Zones = nil }}, verdict: Reject, rule: "target", code: events.CodeNotFound},
		{name: "no such server in a cluster that is paused and busy", set: sets{target(9), slot("o", events.Stop, 1, "zone1"), func(q *Question) { q.Control.All.Paused = true }},
			verdict: Reject, rule: "target", code: events.CodeNotFound},

		{name: "denied by cluster", set: sets{deny("cluster", "trade")}, verdict: Reject, rule: "deny", code: events.CodeDenied, says: `{cluster="trade"}: as the board says`},
		{name: "denied by cluster id", set: sets{deny("cluster_id", "1")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by server id", set: sets{deny("server_id", "2")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by address", set: sets{deny("server", "10.0.0.2:2882")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by zone, which a request's label cannot forge", set: sets{deny("zone", "zone1")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "not denied by a forged label", set: sets{deny("zone", "forged")}, verdict: allow},
		{name: "denied by region", set: sets{deny("region", "hangzhou")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by idc", set: sets{deny("idc", "hz1")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by kind", set: sets{deny("kind", "stop")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by force", set: sets{deny("force", "false")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by requester", set: sets{deny("requested_by", "ann")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by source", set: sets{deny("source", "nats")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied by the request's label", set: sets{deny("team", "db")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "a label that is not there is empty", set: sets{deny("ticket", "")}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "denied without a reason", set: sets{deny("cluster", "trade"), func(q *Question) { q.Policy.Deny[0].Reason = "" }}, verdict: Reject, rule: "deny", code: events.CodeDenied, says: "gives no reason"},
		{name: "no address is known", set: sets{deny("server", ""), func(q *Question) { server(q, 2).IP = "" }}, verdict: Reject, rule: "deny", code: events.CodeDenied},
		{name: "a denial of others", set: sets{deny("cluster", "pay")}, verdict: allow},
		{name: "a retry is denied too", set: sets{retry, deny("cluster", "trade")}, verdict: Reject, rule: "deny", code: events.CodeDenied},

		{name: "all paused", set: sets{func(q *Question) {
			q.Control.All = events.Pause{Paused: true, By: "ann", Reason: "moving racks", At: now}
		}}, verdict: Wait, rule: "pause", code: events.CodePaused, says: "by ann since 2026-11-24 22:00:00Z: moving racks; lift it with obwarden resume"},
		{name: "the cluster paused", set: sets{func(q *Question) { q.Control.Cluster = events.Pause{Paused: true, By: "ann", At: now} }},
			verdict: Wait, rule: "pause", code: events.CodePaused, says: "cluster 1 is paused by ann"},
		{name: "a pause names what lifts it", set: sets{func(q *Question) { q.Control.Cluster.Paused = true }}, verdict: Wait, rule: "pause", code: events.CodePaused, says: "obwarden resume 1"},
		{name: "a pause holds up a start and a retry too", set: sets{retry, ofKind(events.Start), func(q *Question) { q.Control.Cluster.Paused = true }}, verdict: Wait, rule: "pause", code: events.CodePaused},

		{name: "three failures in a row", set: sets{pauseAfter(3, 5)}, verdict: Wait, rule: "failures", code: events.CodeFailing, says: "the last is broken; see why (obwarden get broken), then lift it with obwarden resume 1"},
		{name: "three failures of four", set: sets{pauseAfter(4, 5)}, verdict: allow},
		{name: "failures do not count", set: sets{pauseAfter(0, 5)}, verdict: allow},
		{name: "somebody has resumed the cluster since", set: sets{pauseAfter(3, 4)}, verdict: allow},
		{name: "failures do not hold up a retry", set: sets{retry, pauseAfter(3, 5)}, verdict: allow},

		{name: "a newer request for the server", set: sets{supersede}, verdict: Supersede, rule: "newest", code: events.CodeSuperseded, says: "newer"},
		{name: "a newer request where the policy lets both wait", set: sets{supersede, limit(func(l *policy.Limits) { l.Supersede = false })}, verdict: allow},
		{name: "a newer request for another server", set: sets{supersede, target(1)}, verdict: allow},

		{name: "another operation on the server", set: sets{concurrent(2), slot("other", events.Restart, 2, "zone1")}, verdict: Wait, rule: "server_slot", code: events.CodeServerBusy, says: "restart of server 2 (operation other)", until: now.Add(5 * time.Second)},
		{name: "a task on the server", set: sets{concurrent(2), task(ocp.Task{ID: 78, Name: "Stop OB server", Creator: "joe", ServerIDs: []int64{2}, ZoneName: "zone1"})}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy, says: "OCP's task 78 (Stop OB server) of joe on server 2"},
		{name: "a task on the server in an unknown status", set: sets{concurrent(2), task(ocp.Task{Name: "Stop OB server", Status: "PAUSED", ServerIDs: []int64{2}})}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy},
		{name: "a task on the server's host", set: sets{concurrent(2), task(ocp.Task{Name: "Stop OB server", HostID: 1002})}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy},
		{name: "a task on the server that has an unknown name", set: sets{concurrent(2), task(ocp.Task{Name: "重启", ServerIDs: []int64{2}})}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy},
		{name: "a task on the server's host that has an unknown name", set: sets{concurrent(2), task(ocp.Task{Name: "重启", HostID: 1002})}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy},
		{name: "a task on a host that is none of the cluster's", set: sets{task(ocp.Task{Name: "重启", HostID: 7})}, verdict: allow},
		{name: "a task on the server's zone", set: sets{concurrent(2), task(ocp.Task{Name: "Restart OB zone", ZoneName: "zone1"})}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy},
		{name: "a task that has succeeded", set: sets{task(ocp.Task{Name: "Stop OB server", Status: ocp.StatusSuccessful, ServerIDs: []int64{2}})}, verdict: allow},
		{name: "a task of another cluster", set: sets{task(ocp.Task{Name: "Stop OB server", ClusterID: 9, ServerIDs: []int64{2}})}, verdict: allow},
		{name: "its own task", set: sets{retry, task(ocp.Task{Name: "Stop OB server", ServerIDs: []int64{2}})}, verdict: allow},
		{name: "a failed task that left nothing behind", set: sets{task(ocp.Task{Name: "Stop OB server", Status: ocp.StatusFailed, ServerIDs: []int64{2}, ZoneName: "zone1"})}, verdict: allow},
		{name: "a failed task that left the server behind", set: sets{task(ocp.Task{Name: "Stop OB server", Status: ocp.StatusFailed, ServerIDs: []int64{2}}), serverStatus(2, "STOPPING")},
			verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy, says: "has failed and left it halfway: retry or roll it back in OCP"},
		{name: "a failed task that left the zone behind", set: sets{task(ocp.Task{Name: "Stop OB server", Status: ocp.StatusFailed, ServerIDs: []int64{2}, ZoneName: "zone1"}), zoneStatus(1, "OPERATING")},
			verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy},
		{name: "a failed task of long ago does not explain a zone that another server does", set: sets{concurrent(2),
			task(ocp.Task{Name: "Stop OB server", Status: ocp.StatusFailed, ServerIDs: []int64{2}, ZoneName: "zone1"}), zoneStatus(1, "OPERATING"), serverStatus(1, "STOPPING"), slot("o", events.Stop, 1, "zone1")}, verdict: allow},
		{name: "the server is on its way with no task", set: sets{serverStatus(2, "STOPPING")}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy, says: "STOPPING"},
		{name: "the zone is on its way with no task", set: sets{zoneStatus(1, "OPERATING")}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy, says: "zone1 is OPERATING"},
		{name: "a retry of what left server and zone on their way", set: sets{retry, serverStatus(2, "STOPPING"), zoneStatus(1, "OPERATING"), task(ocp.Task{Name: "Stop OB server", Status: ocp.StatusFailed, ServerIDs: []int64{2}}),
			task(ocp.Task{ID: 70, Name: "Restart OB server", Status: ocp.StatusFailed, ServerIDs: []int64{2}, ZoneName: "zone1"})}, verdict: allow},
		{name: "a retry while somebody else's task runs on the server", set: sets{retry, task(ocp.Task{ID: 78, Name: "Start OB server", ServerIDs: []int64{2}})}, verdict: Wait, rule: "server_in_ocp", code: events.CodeServerBusy},

		{name: "a stop of a stopped server", set: sets{serverStatus(2, "STOPPED")}, verdict: Done, rule: "state", code: events.CodeAlreadyStopped},
		{name: "a stop of a stopped server in a busy cluster", set: sets{serverStatus(2, "PROCESS_STOPPED"), slot("o", events.Stop, 1, "zone1")}, verdict: Done, rule: "state", code: events.CodeAlreadyStopped},
		{name: "a stop of a server whose service is stopped", set: sets{serverStatus(2, "SERVICE_STOPPED")}, verdict: allow},
		{name: "a stop of a service that is stopped", set: sets{serverStatus(2, "SERVICE_STOPPED"), func(q *Question) { q.Operation.Request.StopType = "STOP_SERVICE" }}, verdict: Done, rule: "state", code: events.CodeAlreadyStopped},
		{name: "a start of a running server", set: sets{ofKind(events.Start)}, verdict: Done, rule: "state", code: events.CodeAlreadyRunning},
		{name: "a start of a server that runs for OCP alone", set: sets{ofKind(events.Start), func(q *Question) { server(q, 2).InnerStatus = "INACTIVE" }}, verdict: allow},
		{name: "a restart of a stopped server", set: sets{ofKind(events.Restart), serverStatus(2, "STOPPED")}, verdict: Reject, rule: "state", code: events.CodeWrongState, says: "start it instead"},
		{name: "a start of a stopped server", set: sets{ofKind(events.Start), serverStatus(2, "STOPPED")}, verdict: allow},
		{name: "a restart of a server that OCP cannot reach", set: sets{ofKind(events.Restart), serverStatus(2, "UNAVAILABLE")}, verdict: allow},
		{name: "a server that is being created", set: sets{serverStatus(2, "CREATING")}, verdict: Reject, rule: "state", code: events.CodeWrongState},
		{name: "a server that is being deleted", set: sets{serverStatus(2, "DELETING")}, verdict: Reject, rule: "state", code: events.CodeWrongState},
		{name: "a server that is deleted", set: sets{ofKind(events.Start), serverStatus(2, "DELETED")}, verdict: Reject, rule: "state", code: events.CodeWrongState},
		{name: "a status that nobody knows", set: sets{serverStatus(2, "MOONWALKING")}, verdict: allow},
		{name: "a retry of a stop that left the server stopped", set: sets{retry, serverStatus(2, "STOPPED")}, verdict: allow},

		{name: "the only slot is taken", set: sets{slot("other", events.Stop, 1, "zone1")}, verdict: Wait, rule: "cluster_slots", code: events.CodeClusterBusy, says: "1 of 1 operation under way: stop of server 1 (operation other)"},
		{name: "the slot of an operation on a server that is gone", set: sets{slot("other", events.Stop, 99, "zone9")}, verdict: Wait, rule: "cluster_slots", code: events.CodeClusterBusy},
		{name: "one slot of two is taken", set: sets{concurrent(2), slot("other", events.Stop, 1, "zone1")}, verdict: allow},
		{name: "a slot and its own task are one", set: sets{concurrent(2), slot("other", events.Stop, 1, "zone1"), serverStatus(1, "STOPPING"), zoneStatus(1, "OPERATING"),
			task(ocp.Task{Name: "Stop OB server", ServerIDs: []int64{1}, ZoneName: "zone1"})}, verdict: allow},
		{name: "somebody's stop of another server of the zone", set: sets{task(ocp.Task{Name: "Stop OB server", ServerIDs: []int64{1}})}, verdict: Wait, rule: "cluster_in_ocp", code: events.CodeClusterBusy},
		{name: "a task on two servers is one", set: sets{concurrent(2), func(q *Question) { q.Facts.Zones = zones(3, 3) }, task(ocp.Task{Name: "Stop OB server", ServerIDs: []int64{1, 3}})}, verdict: allow},
		{name: "somebody's stop, no task shown", set: sets{serverStatus(1, "STOPPING"), func(q *Question) { q.Facts.TasksHidden = true }}, verdict: Wait, rule: "cluster_in_ocp", code: events.CodeClusterBusy, says: "server 1 is STOPPING in OCP"},
		{name: "an upgrade of the cluster", set: sets{concurrent(9), task(ocp.Task{Name: "Upgrade OB cluster"})}, verdict: Wait, rule: "cluster_in_ocp", code: events.CodeClusterBusy},
		{name: "a switchover", set: sets{concurrent(9), task(ocp.Task{Name: "Switchover"})}, verdict: Wait, rule: "cluster_in_ocp", code: events.CodeClusterBusy},
		{name: "the cluster is taken over", set: sets{concurrent(9), task(ocp.Task{Name: "Take over OB cluster"})}, verdict: Wait, rule: "cluster_in_ocp", code: events.CodeClusterBusy},
		{name: "a server is added", set: sets{concurrent(9), task(ocp.Task{Name: "Add OB server"})}, verdict: Wait, rule: "cluster_in_ocp", code: events.CodeClusterBusy},
		{name: "a stop that does not say of what", set: sets{concurrent(9), task(ocp.Task{Name: "Stop OB server"})}, verdict: Wait, rule: "cluster_in_ocp", code: events.CodeClusterBusy},
		{name: "a failed task that does not say of what", set: sets{task(ocp.Task{Name: "Stop OB server", Status: ocp.StatusFailed})}, verdict: allow},
		{name: "a cluster-wide failed task", set: sets{task(ocp.Task{Name: "Upgrade OB cluster", Status: ocp.StatusFailed})}, verdict: allow},
		{name: "a backup", set: sets{task(ocp.Task{Name: "Backup cluster data"})}, verdict: allow},
		{name: "a tenant", set: sets{task(ocp.Task{Name: "Create tenant"})}, verdict: allow},
		{name: "a report", set: sets{task(ocp.Task{Name: "Generate workload report"})}, verdict: allow},
		{name: "a proxy", set: sets{task(ocp.Task{Name: "Restart OBProxy server"})}, verdict: allow},
		{name: "an inspection of this very server", set: sets{task(ocp.Task{Name: "Inspect OB server", ServerIDs: []int64{2}})}, verdict: allow},
		{name: "nobody knows what, on nothing", set: sets{task(ocp.Task{Name: "Frobnicate"})}, verdict: allow},
		{name: "a retry while the slot is taken", set: sets{retry, slot("other", events.Stop, 1, "zone1")}, verdict: Wait, rule: "cluster_slots", code: events.CodeClusterBusy},

		{name: "another came first", set: sets{ticket("first", 9, 5)}, verdict: Wait, rule: "turn", code: events.CodeClusterBusy, says: "next is operation first of server 5"},
		{name: "another came later", set: sets{ticket("later", 11, 5)}, verdict: allow},
		{name: "its own ticket", set: sets{ticket("me", 10, 2)}, verdict: allow},
		{name: "another of the zone came first and two slots are free", set: sets{concurrent(2), ticket("first", 9, 1)}, verdict: allow},
		{name: "who came first is about another zone", set: sets{concurrent(3), ticket("first", 9, 5)}, verdict: Wait, rule: "turn", code: events.CodeClusterBusy, says: "it goes when zone1 is quiet"},
		{name: "who came first is about another zone, which does not matter", set: sets{concurrent(3), manyZones(), ticket("first", 9, 5)}, verdict: allow},
		{name: "a start lets nobody wait for a zone", set: sets{ofKind(events.Start), serverStatus(2, "STOPPED"), concurrent(3), ticket("first", 9, 5)}, verdict: allow},
		{name: "two came first and two slots are free", set: sets{concurrent(2), ticket("first", 9, 5), ticket("second", 8, 6)}, verdict: Wait, rule: "turn", code: events.CodeClusterBusy, says: "operation second"},
		{name: "who came first waits for a server that is busy", set: sets{concurrent(2), slot("o", events.Stop, 1, "zone1"), ticket("first", 9, 1)}, verdict: allow},
		{name: "a retry does not queue", set: sets{retry, ticket("first", 9, 5)}, verdict: allow},

		{name: "an operation in another zone", set: sets{concurrent(2), keep(0), slot("other", events.Stop, 3, "zone2")}, verdict: Wait, rule: "active_zone", code: events.CodeOtherZoneActive, says: "zone1 waits for zone2"},
		{name: "somebody's task in another zone", set: sets{concurrent(2), keep(0), task(ocp.Task{Name: "Stop OB server", HostID: 1003})}, verdict: Wait, rule: "active_zone", code: events.CodeOtherZoneActive},
		{name: "a server on its way in another zone", set: sets{concurrent(2), keep(0), serverStatus(3, "STARTING")}, verdict: Wait, rule: "active_zone", code: events.CodeOtherZoneActive},
		{name: "a server in work that no zone is known of", set: sets{concurrent(2), task(ocp.Task{Name: "Add OB server", ServerIDs: []int64{44}})}, verdict: Wait, rule: "active_zone", code: events.CodeOtherZoneActive},
		{name: "an operation in another zone, a start", set: sets{concurrent(2), ofKind(events.Start), serverStatus(2, "STOPPED"), slot("other", events.Stop, 3, "zone2")}, verdict: allow},
		{name: "an operation in another zone, where the policy allows it", set: sets{concurrent(2), keep(1), manyZones(), slot("other", events.Stop, 3, "zone2")}, verdict: allow},
		{name: "a stopped server in another zone", set: sets{keep(1), serverStatus(3, "STOPPED")}, verdict: Wait, rule: "stopped_zone", code: events.CodeOtherZoneActive, says: "start it first (obwarden start 1 3)"},
		{name: "a stopped service in another zone", set: sets{keep(1), serverStatus(3, "SERVICE_STOPPED")}, verdict: Wait, rule: "stopped_zone", code: events.CodeOtherZoneActive},
		{name: "a stopped server in another zone, a retry", set: sets{retry, keep(1), serverStatus(3, "STOPPED")}, verdict: Wait, rule: "stopped_zone", code: events.CodeOtherZoneActive},
		{name: "a stopped server in another zone, where the policy allows it", set: sets{keep(1), manyZones(), serverStatus(3, "STOPPED")}, verdict: allow},
		{name: "a stopped server in the same zone", set: sets{serverStatus(1, "STOPPED")}, verdict: allow},

		{name: "a server of another zone is down", set: sets{serverStatus(3, "UNAVAILABLE")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk, says: "only 1 of 3 zones stay whole (zone3), and 2 must; bring back first: zone2"},
		{name: "a server of another zone is stopped", set: sets{serverStatus(3, "STOPPED")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "the database sees a server inactive", set: sets{func(q *Question) { server(q, 3).InnerStatus = "INACTIVE" }}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "the database's view is not shown", set: sets{func(q *Question) { server(q, 3).InnerStatus = "" }}, verdict: allow},
		{name: "the database sees a zone inactive", set: sets{func(q *Question) { q.Facts.Zones[1].InnerStatus = "INACTIVE" }}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "the zones' own words are not shown", set: sets{func(q *Question) { q.Facts.Zones[1].InnerStatus, q.Facts.Zones[1].Status = "", "" }}, verdict: allow},
		{name: "a zone is stopped for OCP", set: sets{zoneStatus(2, "STOPPED")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a zone is on its way for OCP", set: sets{concurrent(2), manyZones(), zoneStatus(2, "OPERATING")}, verdict: Wait, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a zone does not show all servers", set: sets{func(q *Question) { q.Facts.Zones[1].ServerCount = 3 }}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a zone shows no server", set: sets{func(q *Question) { q.Facts.Zones[1].Servers, q.Facts.Zones[1].ServerCount = nil, 0 }}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a deleted server costs nothing", set: sets{serverStatus(3, "DELETED")}, verdict: allow},
		{name: "one more server of a broken zone", set: sets{serverStatus(1, "UNAVAILABLE")}, verdict: allow},
		{name: "the majority is lost already", set: sets{serverStatus(1, "UNAVAILABLE"), serverStatus(3, "UNAVAILABLE")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a restart of what is down, while the majority is lost", set: sets{ofKind(events.Restart), serverStatus(2, "UNAVAILABLE"), serverStatus(3, "UNAVAILABLE")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a start while the majority is lost", set: sets{ofKind(events.Start), serverStatus(2, "UNAVAILABLE"), serverStatus(3, "UNAVAILABLE")}, verdict: allow},
		{name: "a stop under way elsewhere", set: sets{concurrent(2), manyZones(), slot("other", events.Stop, 3, "zone2")}, verdict: Wait, rule: "majority", code: events.CodeMajorityAtRisk, says: "under way in the others: zone2"},
		{name: "somebody's restart under way elsewhere", set: sets{concurrent(2), manyZones(), serverStatus(3, "RESTARTING")}, verdict: Wait, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a start under way elsewhere, which may bring the zone back", set: sets{concurrent(2), manyZones(), serverStatus(3, "STOPPED"), slot("other", events.Start, 3, "zone2")}, verdict: Wait, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a start under way that the database has not seen yet", set: sets{concurrent(2), manyZones(), func(q *Question) { server(q, 3).InnerStatus = "INACTIVE" }, slot("other", events.Start, 3, "zone2")}, verdict: Wait, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a stop under way and another zone broken", set: sets{concurrent(2), manyZones(), serverStatus(3, "UNAVAILABLE"), slot("other", events.Stop, 5, "zone3")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "a retry while another zone is down", set: sets{retry, serverStatus(3, "UNAVAILABLE")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "five zones, one down", set: sets{func(q *Question) { q.Facts.Zones = zones(5, 2) }, serverStatus(3, "UNAVAILABLE")}, verdict: allow},
		{name: "four zones, one down", set: sets{func(q *Question) { q.Facts.Zones = zones(4, 2) }, serverStatus(3, "UNAVAILABLE")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},
		{name: "one zone", set: sets{func(q *Question) { q.Facts.Zones = zones(1, 2) }}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk, says: "keep_zones: 0"},
		{name: "two zones", set: sets{func(q *Question) { q.Facts.Zones = zones(2, 2) }}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk, says: "keep_zones: 1"},
		{name: "one zone, as the policy says", set: sets{keep(0), func(q *Question) { q.Facts.Zones = zones(1, 2) }}, verdict: allow},
		{name: "two zones, as the policy says", set: sets{keep(1), func(q *Question) { q.Facts.Zones = zones(2, 2) }}, verdict: allow},
		{name: "two zones, as the policy says, and one is down", set: sets{keep(1), func(q *Question) { q.Facts.Zones = zones(2, 2) }, serverStatus(3, "UNAVAILABLE")}, verdict: Reject, rule: "majority", code: events.CodeMajorityAtRisk},

		{name: "the last root service", set: sets{target(1), func(q *Question) { server(q, 3).WithRootServer, server(q, 5).WithRootServer = false, false }}, verdict: Reject, rule: "root_server", code: events.CodeLastRootServer, says: "keep_root_server: false"},
		{name: "the last root service that runs", set: sets{target(1), keep(0), serverStatus(3, "UNAVAILABLE"), serverStatus(5, "UNAVAILABLE")}, verdict: Reject, rule: "root_server", code: events.CodeLastRootServer},
		{name: "the last root service but for one in work", set: sets{target(1), keep(0), manyZones(), concurrent(2), func(q *Question) { server(q, 5).WithRootServer = false }, slot("o", events.Stop, 3, "zone2")}, verdict: Wait, rule: "root_server", code: events.CodeLastRootServer, says: "server 3"},
		{name: "the last root service, where the policy does not mind", set: sets{target(1), func(q *Question) { server(q, 3).WithRootServer, server(q, 5).WithRootServer = false, false }, limit(func(l *policy.Limits) { l.KeepRootServer = false })}, verdict: allow},
		{name: "one root service of three", set: sets{target(1)}, verdict: allow},
		{name: "nobody shows a root service", set: sets{func(q *Question) {
			for _, id := range []int64{1, 3, 5} {
				server(q, id).WithRootServer = false
			}
		}}, verdict: allow},

		{name: "force without an approval", set: sets{force}, verdict: Wait, rule: "approval", code: events.CodeNeedsApproval, says: "anybody but the requester may give it with obwarden approve me"},
		{name: "force with an approval", set: sets{force, approvedBy("bob", ago(59*time.Minute))}, verdict: allow},
		{name: "force with an approval of an hour ago", set: sets{force, approvedBy("bob", ago(time.Hour))}, verdict: Wait, rule: "approval", code: events.CodeNeedsApproval, says: "the one by bob expired"},
		{name: "a rule that does not say for how long approvals count", set: sets{needsApproval(), approvedBy("bob", ago(59*time.Minute)), func(q *Question) { q.Policy.Approvals[0].Expires = 0 }}, verdict: allow},
		{name: "force approved by who asked", set: sets{force, approvedBy("ann", ago(0))}, verdict: Wait, rule: "approval", code: events.CodeNeedsApproval},
		{name: "the policy asks for an approval", set: sets{needsApproval("bob", "carl")}, verdict: Wait, rule: "approval", code: events.CodeNeedsApproval, says: "bob, carl"},
		{name: "approved by who may", set: sets{needsApproval("bob", "carl"), approvedBy("carl", ago(29*time.Minute))}, verdict: allow},
		{name: "approved by who may not", set: sets{needsApproval("bob", "carl"), approvedBy("dan", ago(0))}, verdict: Wait, rule: "approval", code: events.CodeNeedsApproval},
		{name: "approved too long ago", set: sets{needsApproval("bob", "carl"), approvedBy("carl", ago(30*time.Minute))}, verdict: Wait, rule: "approval", code: events.CodeNeedsApproval},
		{name: "approved by who asked, though the policy lists them", set: sets{needsApproval("ann"), approvedBy("ann", ago(0))}, verdict: Wait, rule: "approval", code: events.CodeNeedsApproval},
		{name: "an approval that was refused", set: sets{needsApproval(), func(q *Question) {
			q.Operation.Approvals = []events.Approval{{By: "bob", At: now, Refused: "it had ended"}}
		}}, verdict: Wait, rule: "approval", code: events.CodeNeedsApproval},
		{name: "a kind that needs no approval", set: sets{ofKind(events.Start), serverStatus(2, "STOPPED"), needsApproval()}, verdict: allow},

		{name: "before the window opens", set: sets{opens(hours("night", "", 23, 24))}, verdict: Wait, rule: "window", code: events.CodeOutsideWindow, says: "outside of night; the next window opens at 2026-11-24 23:00:00Z", until: now.Add(time.Hour)},
		{name: "long before the window opens", set: sets{opens(hours("noon", "", 12, 13))}, verdict: Wait, rule: "window", code: events.CodeOutsideWindow, says: "2026-11-25 12:00:00Z", until: now.Add(time.Hour)},
		{name: "before a window of another place", set: sets{opens(hours("night", "Asia/Shanghai", 7, 9))}, verdict: Wait, rule: "window", code: events.CodeOutsideWindow, until: now.Add(time.Hour)},
		{name: "inside a window of another place", set: sets{opens(hours("night", "Asia/Shanghai", 6, 7))}, verdict: allow},
		{name: "inside one of two windows", set: sets{opens(hours("day", "", 8, 9)), opens(hours("night", "", 22, 23))}, verdict: allow},
		{name: "inside a window that blocks", set: sets{opens(hours("always", "", 0, 24)), blocks(hours("sale", "", 21, 23))}, verdict: Wait, rule: "window", code: events.CodeOutsideWindow, says: "inside of sale, which blocks; the next window opens at 2026-11-24 23:00:00Z"},
		{name: "a window on Saturdays", set: sets{opens(hours("weekend", "", 2, 4, 6))}, verdict: Wait, rule: "window", code: events.CodeOutsideWindow, says: "2026-11-28 02:00:00Z"},
		{name: "a window that is over for good", set: sets{opens(policy.Window{Name: "past", Intervals: []timeinterval.TimeInterval{{Years: []timeinterval.YearRange{{InclusiveRange: timeinterval.InclusiveRange{Begin: 2020, End: 2021}}}}}})},
			verdict: Wait, rule: "window", code: events.CodeOutsideWindow, says: "within a year", until: now.Add(time.Hour)},
		{name: "a start outside of windows", set: sets{ofKind(events.Start), serverStatus(2, "STOPPED"), opens(hours("noon", "", 12, 13))}, verdict: allow},
		{name: "a retry outside of windows", set: sets{retry, opens(hours("noon", "", 12, 13))}, verdict: allow},

		{name: "cooldown of the server", set: sets{cooldown(policy.Cooldown{Server: 10 * time.Minute}), ended("old", events.Stop, 2, "zone1", ago(4*time.Minute), true)}, verdict: Wait, rule: "cooldown", code: events.CodeCooldown, says: "10m0s after an operation of the same kind on the same server", until: now.Add(6 * time.Minute)},
		{name: "cooldown of the server is over", set: sets{cooldown(policy.Cooldown{Server: 10 * time.Minute}), ended("old", events.Stop, 2, "zone1", ago(10*time.Minute), true)}, verdict: allow},
		{name: "no cooldown of another kind of operation", set: sets{cooldown(policy.Cooldown{Server: 10 * time.Minute}), ended("old", events.Restart, 2, "zone1", ago(4*time.Minute), true)}, verdict: allow},
		{name: "cooldown of another server", set: sets{cooldown(policy.Cooldown{Server: 10 * time.Minute}), ended("old", events.Restart, 1, "zone1", ago(4*time.Minute), true)}, verdict: allow},
		{name: "cooldown of the zone", set: sets{cooldown(policy.Cooldown{Zone: 10 * time.Minute}), ended("old", events.Restart, 1, "zone1", ago(4*time.Minute), true)}, verdict: Wait, rule: "cooldown", code: events.CodeCooldown, says: "in the same zone"},
		{name: "cooldown of another zone", set: sets{cooldown(policy.Cooldown{Zone: 10 * time.Minute}), ended("old", events.Restart, 3, "zone2", ago(4*time.Minute), true)}, verdict: allow},
		{name: "cooldown after a failure", set: sets{cooldown(policy.Cooldown{Failure: 10 * time.Minute}), ended("old", events.Restart, 3, "zone2", ago(4*time.Minute), false)}, verdict: Wait, rule: "cooldown", code: events.CodeCooldown, says: "that failed in the cluster"},
		{name: "no cooldown of failures after a success", set: sets{cooldown(policy.Cooldown{Failure: 10 * time.Minute}), ended("old", events.Restart, 3, "zone2", ago(4*time.Minute), true)}, verdict: allow},
		{name: "cooldown of hours is looked at again within one", set: sets{cooldown(policy.Cooldown{Server: 10 * time.Hour}), ended("old", events.Stop, 2, "zone1", ago(4*time.Minute), true)}, verdict: Wait, rule: "cooldown", code: events.CodeCooldown, until: now.Add(time.Hour)},
		{name: "a start that undoes a stop", set: sets{ofKind(events.Start), serverStatus(2, "STOPPED"), cooldown(policy.Cooldown{Server: time.Hour, Zone: time.Hour, Failure: time.Hour}),
			ended("stop", events.Stop, 2, "zone1", ago(time.Minute), false)}, verdict: allow},
		{name: "a start that undoes a stop after another's failure", set: sets{ofKind(events.Start), serverStatus(2, "STOPPED"), cooldown(policy.Cooldown{Server: time.Hour, Zone: time.Hour, Failure: time.Hour}),
			ended("stop", events.Stop, 2, "zone1", ago(time.Minute), true), ended("other", events.Stop, 1, "zone1", ago(time.Minute), false)}, verdict: Wait, rule: "cooldown", code: events.CodeCooldown, says: "failed"},
		{name: "a start that undoes nothing", set: sets{ofKind(events.Start), serverStatus(2, "UNAVAILABLE"), cooldown(policy.Cooldown{Server: time.Hour}),
			ended("stop", events.Stop, 2, "zone1", ago(2*time.Minute), true), ended("start", events.Start, 2, "zone1", ago(time.Minute), true)}, verdict: Wait, rule: "cooldown", code: events.CodeCooldown},
		{name: "its own end before it was decided on anew", set: sets{cooldown(policy.Cooldown{Server: time.Hour, Zone: time.Hour, Failure: time.Hour}), ended("me", events.Stop, 2, "zone1", ago(time.Minute), false)}, verdict: allow},
		{name: "a retry while a cooldown runs", set: sets{retry, cooldown(policy.Cooldown{Server: time.Hour, Zone: time.Hour, Failure: time.Hour}), ended("me", events.Stop, 2, "zone1", ago(time.Minute), false)}, verdict: allow},

		{name: "the budget is used up", set: sets{budget(2), ended("a", events.Stop, 1, "zone1", ago(3*time.Hour), true), ended("b", events.Restart, 3, "zone2", ago(2*time.Hour), true)},
			verdict: Wait, rule: "budget", code: events.CodeBudget, says: "2 operations of cluster 1 that take a server down began within 4h0m0s, and the limit is 2; the next may begin at 2026-11-24 22:59:00Z", until: now.Add(59 * time.Minute)},
		{name: "the budget is more than used up", set: sets{budget(1), ended("a", events.Stop, 1, "zone1", ago(3*time.Hour), true), ended("b", events.Restart, 3, "zone2", ago(2*time.Hour), true)},
			verdict: Wait, rule: "budget", code: events.CodeBudget, says: "2026-11-24 23:59:00Z"},
		{name: "what is under way counts", set: sets{concurrent(2), budget(1), slot("o", events.Stop, 1, "zone1")}, verdict: Wait, rule: "budget", code: events.CodeBudget},
		{name: "what runs again counts once", set: sets{concurrent(2), budget(2), slot("o", events.Stop, 1, "zone1"), ended("o", events.Stop, 1, "zone1", ago(time.Hour), false)}, verdict: allow},
		{name: "starts cost nothing", set: sets{budget(1), ended("a", events.Start, 1, "zone1", ago(time.Hour), true)}, verdict: allow},
		{name: "it does not count itself", set: sets{budget(1), slot("me", events.Stop, 2, "zone1"), ended("me", events.Stop, 2, "zone1", ago(time.Hour), true)}, verdict: allow},
		{name: "what began before the budget's window", set: sets{budget(1), ended("a", events.Stop, 1, "zone1", ago(4*time.Hour-time.Minute), true)}, verdict: allow},
		{name: "a start when the budget is used up", set: sets{ofKind(events.Start), serverStatus(2, "STOPPED"), budget(1), ended("a", events.Stop, 1, "zone1", ago(time.Hour), true)}, verdict: allow},
		{name: "the budget of all clusters is used up", set: sets{func(q *Question) {
			q.Policy.Fleet = policy.Budget{Operations: 1, Window: 10 * time.Minute}
			q.Fleet.Take("elsewhere", ago(time.Minute))
			q.Fleet.Take("me", now)
		}}, verdict: Wait, rule: "budget", code: events.CodeBudget, says: "all clusters", until: now.Add(9 * time.Minute)},
		{name: "the budget of all clusters is free again", set: sets{func(q *Question) {
			q.Policy.Fleet = policy.Budget{Operations: 1, Window: 10 * time.Minute}
			q.Fleet.Take("elsewhere", ago(10*time.Minute))
		}}, verdict: allow},

		{name: "an override in the place of the limits", set: sets{slot("o", events.Stop, 1, "zone1"), func(q *Question) {
			q.Policy.Override = []policy.Override{{Matchers: matching("cluster", labels.MatchRegexp, "tr.*"), Apply: func(l *policy.Limits) { l.MaxConcurrent = 2 }}}
		}}, verdict: allow},
		{name: "an override of other clusters", set: sets{slot("o", events.Stop, 1, "zone1"), func(q *Question) {
			q.Policy.Override = []policy.Override{{Matchers: matching("cluster", labels.MatchNotRegexp, "tr.*"), Apply: func(l *policy.Limits) { l.MaxConcurrent = 2 }}}
		}}, verdict: Wait, rule: "cluster_slots", code: events.CodeClusterBusy},
	}
}

func (c decisionCase) question() *Question {
	q := question()
	for _, set := range c.set {
		set(q)
	}
	return q
}

// wrong says what is wrong with a decision; empty: nothing.
func (c decisionCase) wrong(d Decision) string {
	r := d.Reason
	switch {
	case d.Verdict != c.verdict || d.Rule != c.rule || r.Code != c.code:
		return "want " + string(c.verdict) + " " + c.rule + " " + c.code
	case !strings.Contains(r.Message, c.says):
		return "want a message with " + c.says
	case !c.until.IsZero() && !r.Until.Equal(c.until):
		return "want it to wait until " + c.until.String()
	case d.Verdict == Wait && (!r.Until.After(now) || r.Until.After(now.Add(time.Hour))):
		return "want it to look again within an hour"
	case d.Verdict != Wait && !r.Until.IsZero():
		return "want no time to look again"
	case (d.Verdict == Allow) != (r.Message == ""):
		return "want a message where it objects, and only there"
	}
	return ""
}

func TestDecideAnswersEachCaseOfTheTable(t *testing.T) {
	t.Parallel()
	for _, c := range decisionCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if d := Decide(c.question()); c.wrong(d) != "" {
				t.Errorf("got %s %s %+v, %s", d.Verdict, d.Rule, d.Reason, c.wrong(d))
			}
		})
	}
}

// Whatever Decide says, Explain shows why: the first rule of its list that objects.
func TestExplainAgreesWithDecide(t *testing.T) {
	t.Parallel()
	for _, c := range decisionCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			q := c.question()
			d, findings := Decide(q), Explain(q)
			at := slices.IndexFunc(findings, func(f events.Finding) bool { return f.Verdict != string(Allow) })
			for _, f := range findings {
				if f.Message == "" {
					t.Errorf("rule %s does not say what it rests on", f.Rule)
				}
			}
			switch {
			case at < 0 && d.Verdict == Allow && len(findings) > 0:
			case at < 0 || d.Rule != findings[at].Rule || string(d.Verdict) != findings[at].Verdict ||
				d.Reason.Code != findings[at].Code || d.Reason.Message != findings[at].Message:
				t.Errorf("decided %+v, explained %+v", d, findings)
			}
		})
	}
}

func TestExplainSaysWhatAConsentRestsOn(t *testing.T) {
	t.Parallel()
	for _, f := range Explain(question()) {
		if f.Rule == "majority" {
			if want := "2 of 3 zones stay whole (zone2, zone3), and 2 must"; f.Message != want {
				t.Errorf("got %q, want %q", f.Message, want)
			}
			return
		}
	}
	t.Error("the majority rule says nothing")
}

// Old facts may hold up, never let through, and only where they do not matter.
func TestOldFactsCountOnlyForAWaitThatDoesNotRestOnThem(t *testing.T) {
	t.Parallel()
	counts := map[string]bool{
		"pause": true, "failures": true, "server_slot": true, "cluster_slots": true, "approval": true, "window": true, "cooldown": true, "budget": true,
	}
	for _, c := range decisionCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d, ok := DecideOnOld(c.question())
			if want := c.verdict == Wait && counts[c.rule]; ok != want {
				t.Errorf("%s by %s counts: %t, want %t", d.Verdict, d.Rule, ok, want)
			}
			if ok && c.wrong(d) != "" {
				t.Errorf("got %+v, %s", d, c.wrong(d))
			}
		})
	}
}

func TestARequestThatWaitsForASlotHasAPlaceInTheQueue(t *testing.T) {
	t.Parallel()
	for _, c := range decisionCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			q := c.question()
			for _, set := range (sets{ticket("a", 3, 5), ticket("b", 4, 5), ticket("late", 11, 5)}) {
				set(q)
			}
			d := Decide(q)
			waits := d.Verdict == Wait && slices.Contains([]string{events.CodePaused, events.CodeFailing, events.CodeServerBusy, events.CodeClusterBusy}, d.Reason.Code) && !q.Retry
			waits = waits || d.Rule == "active_zone" && !q.Retry
			if waits != (d.Reason.Position > 0) || waits && d.Reason.Position < 3 {
				t.Errorf("%s by %s: position %d", d.Verdict, d.Rule, d.Reason.Position)
			}
		})
	}
}

func TestOnlyListedPeopleMayApproveAndNeverTheRequester(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, by, says string
		set            sets
	}{
		{"anybody", "bob", "", sets{force}},
		{"before it is needed", "bob", "", nil},
		{"nobody", "", "must say who", sets{force}},
		{"who asked", "ann", "somebody else must approve", sets{force}},
		{"who asked, though listed", "ann", "somebody else must approve", sets{needsApproval("ann", "bob")}},
		{"who is listed", "bob", "", sets{needsApproval("ann", "bob")}},
		{"who is not listed", "dan", `unknown approver "dan": ann, bob may approve`, sets{needsApproval("ann", "bob")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := ""
			if err := (decisionCase{set: c.set}).question().MayApprove(c.by); err != nil {
				got = err.Error()
			}
			if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
				t.Errorf("got %q, want %q", got, c.says)
			}
		})
	}
}
