// Package guard decides whether an operation may be done now. It is one pure function of
// a Question: no I/O and no clock, so that every decision can be explained, tested and
// repeated.
//
// Read rules.go for the list of rules, README.md for what each is for, record.go for what
// agents agree on about a cluster. The package imports events, agent/ocp and agent/policy;
// package agent carries decisions out.
package guard

import (
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// Verdict is a decision in one word.
type Verdict string

// The verdicts.
const (
	Allow     Verdict = "allow"
	Wait      Verdict = "wait"      // it may be allowed later
	Reject    Verdict = "reject"    // it will never be allowed by itself
	Done      Verdict = "done"      // there is nothing to do: succeeds without a call
	Supersede Verdict = "supersede" // ends as cancelled, for a newer request
)

// Decision is a verdict with its reason. The zero Decision means that none was made.
type Decision struct {
	Verdict Verdict
	Rule    string        // the rule that objected; empty for Allow
	Reason  events.Reason // empty for Allow
}

// Facts is what OCP shows of one cluster.
type Facts struct {
	ClusterID   int64
	ClusterName string // empty if the policy does not ask for names
	Zones       ocp.Topology
	// Tasks of the cluster that run or have failed, whoever started them. Hidden
	// means that OCP does not let this user list tasks.
	Tasks       []ocp.Task
	TasksHidden bool
	// Generation is that of the record, as it was known before OCP was asked: facts of an
	// older generation do not show what has been done since.
	Generation uint64
	ReadAt     time.Time // before OCP was asked
}

// Question is everything that a decision depends on.
type Question struct {
	Policy    *policy.Policy
	Control   Control // of all clusters and this one
	Facts     Facts
	Record    Record // of the cluster
	Fleet     Fleet  // operations of all clusters; empty if the policy has no budget for them
	Operation events.Operation
	Now       time.Time
	// Retry asks whether OCP may run the operation's failed task again. The operation itself
	// was allowed before, so only the rules about work under way, pauses and risks are asked.
	Retry bool
}

// Control is what people have paused by hand, which stands above every policy.
type Control struct {
	All     events.Pause
	Cluster events.Pause
	// Revision grows whenever somebody pauses or resumes the cluster. Failures that were
	// counted under an older revision no longer count, nor do failures from before
	// ChangedAt, when the revision was made.
	Revision  uint64
	ChangedAt time.Time
}
