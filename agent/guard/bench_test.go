package guard

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// busyQuestion is about a cluster of 100 servers with much going on, under a policy that
// uses everything, and passes every rule but the last.
func busyQuestion() *Question {
	q := question()
	q.Facts.Zones = zones(5, 20)
	for _, set := range (sets{
		concurrent(3), slot("a", events.Stop, 3, "zone1"), slot("b", events.Restart, 4, "zone1"), serverStatus(3, "STOPPING"), zoneStatus(1, "OPERATING"),
		task(ocp.Task{ID: 1, Name: "Stop OB server", ServerIDs: []int64{3}, ZoneName: "zone1"}),
		task(ocp.Task{ID: 2, Name: "Backup cluster data"}), task(ocp.Task{ID: 3, Name: "Generate workload report"}),
		task(ocp.Task{ID: 4, Name: "Stop OB server", Status: ocp.StatusFailed, ServerIDs: []int64{90}, ZoneName: "zone5"}),
		deny("requested_by", "mallory"), deny("zone", "zone9"), needsApproval("bob"), approvedBy("bob", now),
		opens(hours("night", "Asia/Shanghai", 6, 8)), blocks(hours("sale", "Europe/Berlin", 12, 13)),
		cooldown(policy.Cooldown{Server: time.Minute, Zone: time.Minute, Failure: time.Minute}), budget(500), pauseAfter(4, 5),
		func(q *Question) {
			q.Policy.Fleet = policy.Budget{Operations: 500, Window: time.Hour}
			q.Policy.Override = []policy.Override{
				{Matchers: matching("cluster", labels.MatchRegexp, "tr.*"), Apply: func(l *policy.Limits) { l.PauseAfterFailures = 9 }},
				{Matchers: matching("cluster", labels.MatchRegexp, "pay.*"), Apply: func(l *policy.Limits) { l.MaxConcurrent = 1 }},
			}
		},
	}) {
		set(q)
	}
	for i := range 100 {
		id := fmt.Sprint("past", i)
		ended(id, events.Restart, int64(i+1), fmt.Sprint("zone", i/20+1), ago(time.Duration(101-i)*time.Minute), true)(q)
		q.Fleet.Take(id, ago(30*time.Minute))
	}
	for i := range MaxQueue {
		ticket(fmt.Sprint("later", i), uint64(20+i), int64(40+i%50))(q)
	}
	return q
}

func TestADecisionCostsFewAllocations(t *testing.T) { // not parallel: it counts what the whole program allocates
	q := busyQuestion()
	if d := Decide(q); d.Verdict != Allow {
		t.Fatalf("got %+v, want it allowed, so that every rule is asked", d)
	}
	if n := testing.AllocsPerRun(100, func() { Decide(q) }); n > 20 {
		t.Errorf("%v allocations, at most 20 may be", n)
	}
	q.Record.Active[0].ServerID = q.Operation.ServerID
	if n := testing.AllocsPerRun(100, func() { Decide(q) }); n > 20 {
		t.Errorf("%v allocations of an objection, at most 20 may be", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	q := busyQuestion()
	b.ReportAllocs()
	for b.Loop() {
		Decide(q)
	}
}

func BenchmarkExplain(b *testing.B) {
	q := busyQuestion()
	b.ReportAllocs()
	for b.Loop() {
		Explain(q)
	}
}
