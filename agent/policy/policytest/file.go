package policytest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy/internal/strict"
	"github.com/obwarden/obwarden/events"
)

// testFile is a file of policy tests as people write it. Nearly everything may be left out.
type testFile struct {
	Policy string `yaml:"policy"` // path, relative to the file; empty: the built-in policy
	Tests  tests  `yaml:"tests" required:"true"`
}

type policyTest struct {
	Name      strict.Text  `yaml:"name" required:"true"`
	Now       moment       `yaml:"now"`      // RFC 3339; if left out, noon of a Wednesday, in UTC
	Topology  topologyFile `yaml:"topology"` // if left out, three zones with one server each, 1 to 3
	Paused    *pauseFile   `yaml:"paused"`
	Active    []activeFile `yaml:"active"`                       // operations of ours under way
	Recent    []recentFile `yaml:"recent"`                       // operations of ours that have ended
	Tasks     []taskFile   `yaml:"tasks"`                        // tasks that OCP shows
	Elsewhere int          `yaml:"elsewhere" min:"0" max:"4000"` // operations of other clusters, just now
	Cases     cases        `yaml:"cases" required:"true"`
}

type topologyFile struct {
	Cluster clusterFile `yaml:"cluster"`
	Zones   []zoneFile  `yaml:"zones"`
}

type clusterFile struct {
	ID   int64       `yaml:"id" min:"1" max:"9007199254740991"`
	Name strict.Text `yaml:"name"`
}

type zoneFile struct {
	Name        strict.Text     `yaml:"name" required:"true"`
	Status      statusWord      `yaml:"status"`
	InnerStatus innerStatusWord `yaml:"inner_status"`
	Region      string          `yaml:"region"`
	IDC         string          `yaml:"idc"`
	Servers     []serverFile    `yaml:"servers" required:"true"`
}

type serverFile struct {
	ID          int64           `yaml:"id" required:"true" min:"1" max:"9007199254740991"`
	Status      statusWord      `yaml:"status"`       // if left out, RUNNING
	InnerStatus innerStatusWord `yaml:"inner_status"` // if left out, ACTIVE for RUNNING, else INACTIVE
	Root        bool            `yaml:"root"`         // runs a root service
	IP          string          `yaml:"ip"`
	Port        int             `yaml:"port" min:"1" max:"65535"`
	At          strict.Position
}

type pauseFile struct {
	All    bool   `yaml:"all"` // all clusters, not this one alone
	By     string `yaml:"by"`
	Reason string `yaml:"reason"`
}

type activeFile struct {
	Kind     strict.Kind     `yaml:"kind" required:"true"`
	ServerID int64           `yaml:"server_id" required:"true"`
	Ago      strict.Duration `yaml:"ago"` // before now, when it began
	At       strict.Position
}

type recentFile struct {
	Kind     strict.Kind     `yaml:"kind" required:"true"`
	ServerID int64           `yaml:"server_id" required:"true"`
	Ago      strict.Duration `yaml:"ago"` // before now, when it began and ended
	Failed   bool            `yaml:"failed"`
	Repeat   int             `yaml:"repeat" min:"1" max:"500"`
	At       strict.Position
}

type taskFile struct {
	Name      strict.Text `yaml:"name" required:"true"`
	Status    string      `yaml:"status"` // if left out, RUNNING
	ServerIDs []int64     `yaml:"server_ids"`
	Zone      string      `yaml:"zone"`
}

type testCase struct {
	Request   requestFile    `yaml:"request" required:"true"`
	Now       moment         `yaml:"at"` // if left out, the now of the test
	Approvals []approvalWord `yaml:"approvals"`
	Expect    expectation    `yaml:"expect" required:"true"`
	At        strict.Position
}

// requestFile is written in full or as `stop 2`.
type requestFile struct {
	words       string
	Kind        strict.Kind       `yaml:"kind" required:"true"`
	ServerID    int64             `yaml:"server_id" required:"true"`
	Force       bool              `yaml:"force"`
	RequestedBy string            `yaml:"requested_by"`
	Source      string            `yaml:"source"`
	Labels      map[string]string `yaml:"labels"`
}

// approvalWord is written in full or as the name of who approves.
type approvalWord struct {
	By  strict.Text     `yaml:"by" required:"true"`
	Ago strict.Duration `yaml:"ago"` // before the case's moment
}

// expectation is written in full or as `wait COOLDOWN`. Without a code any will do.
type expectation struct {
	words   string
	Verdict verdictWord `yaml:"verdict" required:"true"`
	Code    string      `yaml:"code"`
}

// tests and cases must not be empty: a file without tests, or a test without cases, would
// pass and show nothing.
type (
	tests []policyTest
	cases []testCase
)

func (ts tests) Fault() string {
	if len(ts) == 0 {
		return "no test; add one"
	}
	return ""
}

func (cs cases) Fault() string {
	if len(cs) == 0 {
		return "no case; add one, e.g. - {request: stop 2, expect: allow}"
	}
	return ""
}

func (s *serverFile) Short() any   { return &s.ID }
func (a *approvalWord) Short() any { return &a.By }
func (r *requestFile) Short() any  { return &r.words }
func (e *expectation) Short() any  { return &e.words }

func (r *requestFile) Fault() string {
	if r.Kind != "" {
		return ""
	}
	name, id, ok := strings.Cut(r.words, " ")
	n, err := strconv.ParseInt(id, 10, 64)
	if !ok || err != nil || !events.Kind(name).Known() {
		return fmt.Sprintf("%.60q is no request; write e.g. stop 2, or {kind: stop, server_id: 2, force: true}", r.words)
	}
	r.Kind, r.ServerID = strict.Kind(name), n
	return ""
}

func (e *expectation) Fault() string {
	if e.Verdict != "" {
		return ""
	}
	words := strings.Fields(e.words)
	if len(words) == 0 || len(words) > 2 || !known(guard.Verdict(words[0])) {
		return fmt.Sprintf("%.60q is no expectation; write e.g. allow, wait COOLDOWN or reject MAJORITY_AT_RISK", e.words)
	}
	e.Verdict = verdictWord(words[0])
	if len(words) == 2 {
		e.Code = words[1]
	}
	return ""
}

func known(v guard.Verdict) bool {
	return slices.Contains([]guard.Verdict{guard.Allow, guard.Wait, guard.Reject, guard.Done, guard.Supersede}, v)
}

type (
	verdictWord     string
	statusWord      string
	innerStatusWord string
)

func (v verdictWord) Fault() string {
	if !known(guard.Verdict(v)) {
		return fmt.Sprintf("%.60q is no verdict; write allow, wait, reject, done or supersede", string(v))
	}
	return ""
}

// Fault finds statuses that OCP does not have. The guard tolerates such a status; in a test
// it is a typing error.
func (s statusWord) Fault() string {
	words := ocp.ServerStatuses()
	if !slices.Contains(words, string(s)) {
		return fmt.Sprintf("OCP shows no status %.60q; write one of %s", string(s), strings.Join(words, ", "))
	}
	return ""
}

func (s innerStatusWord) Fault() string {
	if s != ocp.InnerActive && s != ocp.InnerInactive {
		return fmt.Sprintf("the database shows no status %.60q; write ACTIVE or INACTIVE", string(s))
	}
	return ""
}

// moment is a time in RFC 3339.
type moment time.Time

func (m *moment) UnmarshalYAML(unmarshal func(any) error) error {
	var s string
	if err := unmarshal(&s); err != nil {
		return err
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return fmt.Errorf("%.60q is no time; write one like 2026-01-07T12:00:00Z or 2026-01-07T20:00:00+08:00", s)
	}
	*m = moment(t)
	return nil
}
