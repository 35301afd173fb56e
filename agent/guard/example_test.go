package guard_test

import (
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// exampleQuestion asks about a stop of server 2, in a cluster of three zones with one server
// each whose first server is not available.
func exampleQuestion() *guard.Question {
	var zones ocp.Topology
	for id, status := range []string{ocp.ServerUnavailable, ocp.ServerRunning, ocp.ServerRunning} {
		name := fmt.Sprintf("zone%d", id+1)
		zones = append(zones, ocp.Zone{
			Name: name, Status: ocp.ServerRunning, ServerCount: 1,
			Servers: []ocp.Server{{ID: int64(id + 1), Zone: name, Status: status}},
		})
	}
	return &guard.Question{
		Policy:    policy.Default(),
		Facts:     guard.Facts{ClusterID: 1, Zones: zones},
		Operation: events.Operation{OperationID: "op", Kind: events.Stop, ClusterID: 1, ServerID: 2},
		Now:       time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC),
	}
}

// The first rule that objects decides.
func ExampleDecide() {
	q := exampleQuestion()
	d := guard.Decide(q)
	fmt.Println(d.Verdict, d.Rule, d.Reason.Code)
	fmt.Println(d.Reason.Message)

	q.Facts.Zones[0].Servers[0].Status = ocp.ServerRunning
	fmt.Println(guard.Decide(q).Verdict)
	// Output:
	// reject majority MAJORITY_AT_RISK
	// without server 2 only 1 of 3 zones stay whole (zone3), and 2 must; bring back first: zone1
	// allow
}

// Explain returns what every rule says, also the ones that consent.
func ExampleExplain() {
	for _, f := range guard.Explain(exampleQuestion())[:3] {
		fmt.Printf("%s: %s: %s\n", f.Rule, f.Verdict, f.Message)
	}
	// Output:
	// target: allow: server 2 of cluster 1 is in zone2
	// deny: allow: none of 0 denials matches
	// pause: allow: nobody has paused the cluster
}
