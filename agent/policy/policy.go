// Package policy turns a policy file into a Policy: what operations are held to, which
// requests alerts make, and what is silenced meanwhile. Its methods answer what the policy
// says about one request or one moment; whether an operation may be done is decided by
// package guard.
//
// Read policy.go for what people may set, file.go and alertfile.go for how they write it,
// match.go and window.go for how it applies, live.go for the policy in force. The package
// imports events. Its YAML decoder is internal/strict; policytest runs policy tests.
package policy

import (
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/alertmanager/timeinterval"
)

// Policy is what the guard holds requests to, as Load reads it from a file. It never
// changes: a reload makes a new one. All methods may be called concurrently.
type Policy struct {
	Hash     string     // of the file's bytes, the first 12 hex digits of SHA-256; "default" for the built-in one
	Limits   Limits     // of requests that no override matches
	Override []Override // in the order of the file
	// Fleet is the budget of all clusters together.
	Fleet     Budget
	Deny      []Denial
	Approvals []ApprovalRule
	Alerts    []AlertRule  // without any, every alert is refused
	Silence   *SilenceRule // nil: no silences are made
}

// Limits are what the operations of a cluster are held to.
type Limits struct {
	MaxConcurrent int // operations at once, at least 1
	// KeepZones is how many zones must stay whole when a server is taken down; 0: any
	// number will do, Majority: more than half.
	KeepZones          int
	OneZoneAtATime     bool
	KeepRootServer     bool
	Cooldown           Cooldown
	Budget             Budget        // of operations that take a server down
	PauseAfterFailures int           // in a row; 0: never
	MaxWait            time.Duration // 0: no limit
	Supersede          bool
	Allow, Block       []Window // without any Allow: always, but for Block
}

// Majority is the KeepZones of a strict majority. A cluster of one or two zones cannot
// keep one: it needs a number.
const Majority = -1

// Cooldown is how long the guard holds operations back after another one.
type Cooldown struct {
	Server  time.Duration // after an operation of the same kind on the same server
	Zone    time.Duration // after an operation in the same zone
	Failure time.Duration // after a failure in the cluster
}

// Budget is how many operations may start within a window; Operations 0: no limit.
type Budget struct {
	Operations int
	Window     time.Duration
}

// Window is a named set of Alertmanager's time intervals.
type Window struct {
	Name      string
	Intervals []timeinterval.TimeInterval
}

// Override changes the limits of requests that all its matchers match.
type Override struct {
	Matchers labels.Matchers
	Apply    func(*Limits)
}

// Denial rejects requests that all its matchers match.
type Denial struct {
	Matchers labels.Matchers
	Reason   string
}

// ApprovalRule says which requests a person must approve, who may, and for how long an
// approval counts.
type ApprovalRule struct {
	Matchers  labels.Matchers
	Approvers []string // empty: anybody but the requester
	Expires   time.Duration
}
