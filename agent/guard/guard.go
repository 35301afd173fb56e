// Package guard decides whether an operation may be done now. It is one pure
// function over what it is given: no I/O, no clock, so that every decision can be
// explained, tested and repeated.
//
// Read rules.go for what it objects to, record.go for what agents agree on about
// a cluster, policy.go for what people may set. The package imports events and
// agent/ocp; carrying decisions out is the agent's.
package guard

import (
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// Verdict is the guard's word in one word.
type Verdict string

// The verdicts.
const (
	Allow     Verdict = "allow"
	Wait      Verdict = "wait"      // it may be different later
	Reject    Verdict = "reject"    // it will not be different by itself
	Done      Verdict = "done"      // there is nothing to do: succeeds without a call
	Supersede Verdict = "supersede" // ends as cancelled, for a newer request
)

// Decision is a verdict with its reason. The zero Decision is none.
type Decision struct {
	Verdict Verdict
	Rule    string        // that objected; empty for Allow
	Reason  events.Reason // empty for Allow
}

// Facts is what OCP shows of one cluster.
type Facts struct {
	ClusterID   int64
	ClusterName string // empty where the policy does not ask for names
	Zones       ocp.Topology
	// Tasks of the cluster that run or have failed, whoever started them. Hidden
	// means that OCP does not let this user list tasks.
	Tasks       []ocp.Task
	TasksHidden bool
	// Generation is the record's as it was known before OCP was asked: facts of an
	// older generation do not show what was done since.
	Generation uint64
	ReadAt     time.Time // before OCP was asked
}

// Question is everything that a decision rests on.
type Question struct {
	Policy    *policy.Policy
	Control   Control // of all clusters and this one
	Facts     Facts
	Record    Record // of the cluster
	Fleet     Fleet  // operations of all clusters; empty where the policy has no budget for them
	Operation events.Operation
	Now       time.Time
	// Retry asks whether OCP may run the operation's failed task again. It has been
	// decided on before: only what is under way, paused or at risk counts.
	Retry bool
}

// Control is what people have said by hand, which stands above all policy.
type Control struct {
	All     events.Pause
	Cluster events.Pause
	// Revision grows whenever somebody pauses or resumes the cluster. Failures
	// counted under an older one are forgiven.
	Revision uint64
}
