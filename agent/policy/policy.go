package policy

import (
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/alertmanager/timeinterval"
)

// Policy is what the guard holds requests to, as Load reads it from a file. It does not change once it is made:
// a reload makes another. All methods may be called concurrently.
type Policy struct {
	Hash     string // of the file's bytes, the first 12 hex digits of SHA-256; "default" for the built-in one
	Limits   Limits // of a cluster that no override matches
	Override []Override
	// Fleet is the budget of all clusters together.
	Fleet     Budget
	Deny      []Denial
	Approvals []ApprovalRule
	Alerts    []AlertRule  // none: every alert is refused
	Silence   *SilenceRule // nil: none are made
}

// Limits are what a cluster's operations are held to.
type Limits struct {
	MaxConcurrent int // operations at once, at least 1
	// KeepZones is how many zones must stay whole when a server is taken down; 0:
	// no matter, Majority: more than half.
	KeepZones          int
	OneZoneAtATime     bool
	KeepRootServer     bool
	Cooldown           Cooldown
	Budget             Budget        // of operations that take a server down
	PauseAfterFailures int           // in a row; 0: never
	MaxWait            time.Duration // 0: no limit
	Supersede          bool
	Allow, Block       []Window // Allow empty: always
}

// Majority is the KeepZones of a strict majority, which a cluster of one or two
// zones cannot keep: it needs a number.
const Majority = -1

// Cooldown is how long nothing is done after something was.
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

// Override replaces limits where its matchers match.
type Override struct {
	Matchers labels.Matchers
	Apply    func(*Limits)
}

// Denial is a rule that rejects.
type Denial struct {
	Matchers labels.Matchers
	Reason   string
}

// ApprovalRule says what a person must approve, who may, and for how long that counts.
type ApprovalRule struct {
	Matchers  labels.Matchers
	Approvers []string // empty: anybody but who asked
	Expires   time.Duration
}
