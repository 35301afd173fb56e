package agent

import (
	"fmt"
	"slices"
	"time"

	"obwarden/agent/ocp"
	"obwarden/events"
)

// Codes of the guard's reasons.
const (
	CodeNotFound    = "NOT_FOUND"
	CodeServerBusy  = "SERVER_BUSY"
	CodeClusterBusy = "CLUSTER_BUSY"
)

// lookAgainAfter is when a request that waits for a slot is decided on again even
// if nobody told the agent that one is free.
const lookAgainAfter = 5 * time.Second

// Verdict is the guard's word in one word.
type Verdict string

// The verdicts. Fail is not the guard's but what comes of facts that OCP refuses to show.
const (
	Allow  Verdict = "allow"
	Wait   Verdict = "wait"
	Reject Verdict = "reject"
	Fail   Verdict = "fail"
)

// Decision is a verdict with its reason; Reason is empty for Allow, Error is set
// for Fail alone.
type Decision struct {
	Verdict Verdict
	Reason  events.Reason
	Error   *events.Error
}

// Policy is what the guard holds requests to.
type Policy struct {
	MaxConcurrent int // operations at once in one cluster
}

// DefaultPolicy is the built-in one.
func DefaultPolicy() Policy { return Policy{MaxConcurrent: 1} }

// Slot is the place that one operation holds in its cluster from the moment it
// is allowed until it has ended.
type Slot struct {
	OperationID string      `json:"operation_id"`
	Kind        events.Kind `json:"kind"`
	ServerID    int64       `json:"server_id"`
	Since       time.Time   `json:"since"`
}

// ClusterRecord is what the agents have agreed on about one cluster.
type ClusterRecord struct {
	Active []Slot `json:"active"`
}

func (r ClusterRecord) holds(operationID string) bool {
	return slices.ContainsFunc(r.Active, func(s Slot) bool { return s.OperationID == operationID })
}

// Question is everything that a decision rests on.
type Question struct {
	Policy    Policy
	Topology  []ocp.Zone // the cluster's, fresh from OCP
	Record    ClusterRecord
	Operation events.Operation
	Now       time.Time
}

// others are the slots that operations other than the one in question hold.
func (q Question) others() []Slot {
	return slices.DeleteFunc(slices.Clone(q.Record.Active), func(s Slot) bool { return s.OperationID == q.Operation.OperationID })
}

// rules are asked in this order; the first that objects decides.
func rules() []func(Question) *Decision {
	return []func(Question) *Decision{
		targetExists,
		oneOperationAServer,
		maxConcurrentACluster,
	}
}

// decideOnRecord is the guard's word as far as the record alone gives it: most of
// those that wait, wait for a slot, and OCP need not be asked to find that out.
func decideOnRecord(q Question) Decision {
	for _, rule := range []func(Question) *Decision{oneOperationAServer, maxConcurrentACluster} {
		if d := rule(q); d != nil {
			return *d
		}
	}
	return Decision{Verdict: Allow}
}

// decide is the guard: pure, so that every decision can be explained and tested.
func decide(q Question) Decision {
	for _, rule := range rules() {
		if d := rule(q); d != nil {
			return *d
		}
	}
	return Decision{Verdict: Allow}
}

func targetExists(q Question) *Decision {
	if _, ok := findServer(q.Topology, q.Operation.ServerID); ok {
		return nil
	}
	return &Decision{Verdict: Reject, Reason: events.Reason{Code: CodeNotFound, Message: fmt.Sprintf(
		"cluster %d has no server %d; it has %v", q.Operation.ClusterID, q.Operation.ServerID, serverIDs(q.Topology))}}
}

func oneOperationAServer(q Question) *Decision {
	for _, slot := range q.others() {
		if slot.ServerID == q.Operation.ServerID {
			return q.wait(CodeServerBusy, "server %d of cluster %d is in operation %s (%s)",
				slot.ServerID, q.Operation.ClusterID, slot.OperationID, slot.Kind)
		}
	}
	return nil
}

func maxConcurrentACluster(q Question) *Decision {
	if others := q.others(); len(others) >= q.Policy.MaxConcurrent {
		return q.wait(CodeClusterBusy, "cluster %d has %d of %d operations under way: %s of server %d (%s)",
			q.Operation.ClusterID, len(others), q.Policy.MaxConcurrent, others[0].Kind, others[0].ServerID, others[0].OperationID)
	}
	return nil
}

func (q Question) wait(code, format string, args ...any) *Decision {
	return &Decision{Verdict: Wait, Reason: events.Reason{
		Code: code, Message: fmt.Sprintf(format, args...), Until: q.Now.Add(lookAgainAfter).UTC(),
	}}
}

func findServer(zones []ocp.Zone, id int64) (ocp.Server, bool) {
	for _, z := range zones {
		for _, s := range z.Servers {
			if s.ID == id {
				return s, true
			}
		}
	}
	return ocp.Server{}, false
}

func serverIDs(zones []ocp.Zone) []int64 {
	var ids []int64
	for _, z := range zones {
		for _, s := range z.Servers {
			ids = append(ids, s.ID)
		}
	}
	slices.Sort(ids)
	return ids[:min(len(ids), 20)]
}
