package guard

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// TestResult is what one case of a policy test came to.
type TestResult struct {
	File         string
	Line, Column int    // of the case
	Test         string // its test's name
	Request      string // in short: stop 2 force
	Want, Got    string // verdict and code
	Message      string // of what came
	Findings     []events.Finding
}

// Failed reports whether something else came than was expected.
func (r TestResult) Failed() bool { return r.Want != r.Got }

// RunTests decides the cases of a file of policy tests and returns what each came to,
// in their order. The error is Faults, of that file or of the policy it names, or
// says why one of them cannot be read.
func RunTests(path string) ([]TestResult, error) {
	content, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("policy tests: %w", err)
	}
	f, err := parseTests(path, content)
	if err != nil {
		return nil, err
	}
	policy := Default()
	if name := f.Policy; name != "" {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		if policy, err = Load(name); err != nil {
			return nil, err
		}
	}
	var results []TestResult
	for _, test := range f.Tests {
		for _, c := range test.Cases {
			results = append(results, test.run(path, policy, c))
		}
	}
	return results, nil
}

func parseTests(path string, content []byte) (testFile, error) {
	var f testFile
	d := decode(path, content, &f)
	for i := range f.Tests {
		f.Tests[i].complete(d)
	}
	return f, d.err()
}

// testFile is a file of policy tests as it is written, with as little as a case needs.
type testFile struct {
	Policy string `yaml:"policy"` // beside the file; without it the built-in one
	Tests  tests  `yaml:"tests" required:"true"`
}

type policyTest struct {
	Name      text         `yaml:"name" required:"true"`
	Now       moment       `yaml:"now"`      // RFC 3339; a Wednesday's noon in UTC where nothing is said
	Topology  topologyFile `yaml:"topology"` // three zones of one server, 1 to 3, where nothing is said
	Paused    *pauseFile   `yaml:"paused"`
	Active    []activeFile `yaml:"active"`                       // what is under way from here
	Recent    []recentFile `yaml:"recent"`                       // what has ended
	Tasks     []taskFile   `yaml:"tasks"`                        // that OCP shows
	Elsewhere int          `yaml:"elsewhere" min:"0" max:"4000"` // operations of other clusters, just now
	Cases     cases        `yaml:"cases" required:"true"`
}

type topologyFile struct {
	Cluster clusterFile `yaml:"cluster"`
	Zones   []zoneFile  `yaml:"zones"`
}

type clusterFile struct {
	ID   int64 `yaml:"id" min:"1" max:"9007199254740991"`
	Name text  `yaml:"name"`
}

type zoneFile struct {
	Name        text            `yaml:"name" required:"true"`
	Status      statusWord      `yaml:"status"`
	InnerStatus innerStatusWord `yaml:"inner_status"`
	Region      string          `yaml:"region"`
	IDC         string          `yaml:"idc"`
	Servers     []serverFile    `yaml:"servers" required:"true"`
}

type serverFile struct {
	ID          int64           `yaml:"id" required:"true" min:"1" max:"9007199254740991"`
	Status      statusWord      `yaml:"status"`       // RUNNING where nothing is said
	InnerStatus innerStatusWord `yaml:"inner_status"` // ACTIVE where it is RUNNING, else INACTIVE
	Root        bool            `yaml:"root"`         // runs a root service
	IP          string          `yaml:"ip"`
	Port        int             `yaml:"port" min:"1" max:"65535"`
	At          position
}

type pauseFile struct {
	All    bool   `yaml:"all"` // all clusters, not this one alone
	By     string `yaml:"by"`
	Reason string `yaml:"reason"`
}

type activeFile struct {
	Kind     kindWord `yaml:"kind" required:"true"`
	ServerID int64    `yaml:"server_id" required:"true"`
	Ago      duration `yaml:"ago"` // before now, when it began
	At       position
}

type recentFile struct {
	Kind     kindWord `yaml:"kind" required:"true"`
	ServerID int64    `yaml:"server_id" required:"true"`
	Ago      duration `yaml:"ago"` // before now, when it began and ended
	Failed   bool     `yaml:"failed"`
	Repeat   int      `yaml:"repeat" min:"1" max:"500"`
	At       position
}

type taskFile struct {
	Name      text    `yaml:"name" required:"true"`
	Status    string  `yaml:"status"` // RUNNING where nothing is said
	ServerIDs []int64 `yaml:"server_ids"`
	Zone      string  `yaml:"zone"`
}

type testCase struct {
	Request   requestFile    `yaml:"request" required:"true"`
	Now       moment         `yaml:"at"` // the test's now where nothing is said
	Approvals []approvalWord `yaml:"approvals"`
	Expect    expectation    `yaml:"expect" required:"true"`
	At        position
}

// requestFile is written in full or as `stop 2`.
type requestFile struct {
	words       string
	Kind        kindWord          `yaml:"kind" required:"true"`
	ServerID    int64             `yaml:"server_id" required:"true"`
	Force       bool              `yaml:"force"`
	RequestedBy string            `yaml:"requested_by"`
	Source      string            `yaml:"source"`
	Labels      map[string]string `yaml:"labels"`
}

// approvalWord is written in full or as the name of who approves.
type approvalWord struct {
	By  text     `yaml:"by" required:"true"`
	Ago duration `yaml:"ago"` // before the case's moment
}

// expectation is written in full or as `wait COOLDOWN`. Without a code any will do.
type expectation struct {
	words   string
	Verdict verdictWord `yaml:"verdict" required:"true"`
	Code    string      `yaml:"code"`
}

// A file without tests, or a test without cases, would pass and show nothing.
type (
	tests []policyTest
	cases []testCase
)

func (ts tests) fault() string {
	if len(ts) == 0 {
		return "no test; add one"
	}
	return ""
}

func (cs cases) fault() string {
	if len(cs) == 0 {
		return "no case; add one, e.g. - {request: stop 2, expect: allow}"
	}
	return ""
}

func (s *serverFile) short() any   { return &s.ID }
func (a *approvalWord) short() any { return &a.By }
func (r *requestFile) short() any  { return &r.words }
func (e *expectation) short() any  { return &e.words }

func (r *requestFile) fault() string {
	if r.Kind != "" {
		return ""
	}
	name, id, ok := strings.Cut(r.words, " ")
	n, err := strconv.ParseInt(id, 10, 64)
	if !ok || err != nil || !events.Kind(name).Known() {
		return fmt.Sprintf("%.60q is no request; write e.g. stop 2, or {kind: stop, server_id: 2, force: true}", r.words)
	}
	r.Kind, r.ServerID = kindWord(name), n
	return ""
}

func (e *expectation) fault() string {
	if e.Verdict != "" {
		return ""
	}
	words := strings.Fields(e.words)
	if len(words) == 0 || len(words) > 2 || !known(Verdict(words[0])) {
		return fmt.Sprintf("%.60q is no expectation; write e.g. allow, wait COOLDOWN or reject MAJORITY_AT_RISK", e.words)
	}
	e.Verdict = verdictWord(words[0])
	if len(words) == 2 {
		e.Code = words[1]
	}
	return ""
}

func known(v Verdict) bool {
	return slices.Contains([]Verdict{Allow, Wait, Reject, Done, Supersede}, v)
}

type (
	kindWord        string
	verdictWord     string
	statusWord      string
	innerStatusWord string
)

func (k kindWord) fault() string {
	if !events.Kind(k).Known() {
		return fmt.Sprintf("%.60q is no kind; write stop, start or restart", string(k))
	}
	return ""
}

func (v verdictWord) fault() string {
	if !known(Verdict(v)) {
		return fmt.Sprintf("%.60q is no verdict; write allow, wait, reject, done or supersede", string(v))
	}
	return ""
}

// A word that OCP does not know is a typing error here, and would be tolerated there.
func (s statusWord) fault() string {
	words := strings.Fields("RUNNING STOPPED STOPPING STARTING RESTARTING UNAVAILABLE OPERATING CREATING DELETING DELETED " +
		"SERVICE_STOPPING SERVICE_STOPPED PROCESS_STOPPING PROCESS_STOPPED")
	if !slices.Contains(words, string(s)) {
		return fmt.Sprintf("OCP shows no status %.60q; write one of %s", string(s), strings.Join(words, ", "))
	}
	return ""
}

func (s innerStatusWord) fault() string {
	if s != "ACTIVE" && s != "INACTIVE" {
		return fmt.Sprintf("the database shows no status %.60q; write ACTIVE or INACTIVE", string(s))
	}
	return ""
}

// moment is a time as RFC 3339 writes it.
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

// complete fills in what the test leaves out and finds servers that are not there.
func (t *policyTest) complete(d *document) {
	if time.Time(t.Now).IsZero() {
		t.Now = moment(time.Date(2026, time.January, 7, 12, 0, 0, 0, time.UTC))
	}
	t.Topology.Cluster.ID = cmp.Or(t.Topology.Cluster.ID, 1)
	t.Topology.Cluster.Name = cmp.Or(t.Topology.Cluster.Name, "test")
	if t.Topology.Zones == nil {
		for i := range 3 {
			t.Topology.Zones = append(t.Topology.Zones, zoneFile{Name: text(fmt.Sprintf("zone%d", i+1)), Servers: []serverFile{{ID: int64(i + 1)}}})
		}
	}
	seen := map[int64]bool{}
	for _, z := range t.Topology.Zones {
		for _, s := range z.Servers {
			if seen[s.ID] {
				d.faultf(s.At, "server %d is there twice; leave one out", s.ID)
			}
			seen[s.ID] = true
		}
	}
	missing := func(id int64, at position) {
		if !seen[id] {
			d.faultf(at, "no server %d in the topology; add it or name another", id)
		}
	}
	for _, a := range t.Active {
		missing(a.ServerID, a.At)
	}
	for _, r := range t.Recent {
		missing(r.ServerID, r.At)
	}
}

// run asks the guard about one case.
func (t *policyTest) run(path string, policy *Policy, c testCase) TestResult {
	q := t.question(policy, c)
	d := Decide(q)
	result := TestResult{
		File: path, Line: c.At.line, Column: c.At.column, Test: string(t.Name), Request: c.Request.String(),
		Want: strings.TrimSpace(string(c.Expect.Verdict) + " " + c.Expect.Code),
		Got:  strings.TrimSpace(string(d.Verdict) + " " + d.Reason.Code), Message: d.Reason.Message,
		Findings: Explain(q),
	}
	if c.Expect.Code == "" && d.Verdict == Verdict(c.Expect.Verdict) {
		result.Want = result.Got
	}
	return result
}

func (r requestFile) String() string {
	s := fmt.Sprintf("%s %d", r.Kind, r.ServerID)
	if r.Force {
		s += " force"
	}
	if r.RequestedBy != "" {
		s += " by " + r.RequestedBy
	}
	return s
}

func (t *policyTest) question(policy *Policy, c testCase) *Question {
	now := time.Time(c.Now)
	if now.IsZero() {
		now = time.Time(t.Now)
	}
	cluster := t.Topology.Cluster
	q := &Question{
		Policy: policy, Now: now,
		Facts: Facts{ClusterID: cluster.ID, ClusterName: string(cluster.Name), Zones: t.zones(), Tasks: t.tasks(), ReadAt: now},
		Operation: events.Operation{
			Schema: events.OperationSchema, OperationID: "case", N: 1, Steps: 1, State: events.Accepted, RequestSequence: 1,
			Kind: events.Kind(c.Request.Kind), ClusterID: cluster.ID, ServerID: c.Request.ServerID, Source: cmp.Or(c.Request.Source, "nats"),
			RequestedAt: now, UpdatedAt: now,
			Request: events.Request{
				IdempotencyKey: "case", ClusterID: cluster.ID, ServerID: c.Request.ServerID, Force: c.Request.Force,
				RequestedBy: c.Request.RequestedBy, Labels: c.Request.Labels,
			},
		},
	}
	for _, a := range c.Approvals {
		q.Operation.Approvals = append(q.Operation.Approvals, events.Approval{By: string(a.By), At: now.Add(-time.Duration(a.Ago))})
	}
	if p := t.Paused; p != nil {
		pause := events.Pause{Paused: true, By: cmp.Or(p.By, "somebody"), Reason: cmp.Or(p.Reason, "the test says so"), At: time.Time(t.Now)}
		if p.All {
			q.Control.All = pause
		} else {
			q.Control.Cluster = pause
		}
	}
	t.remember(q)
	return q
}

func (t *policyTest) zones() []ocp.Zone {
	var zones []ocp.Zone
	for _, z := range t.Topology.Zones {
		zone := ocp.Zone{
			Name: string(z.Name), Status: string(cmp.Or(z.Status, "RUNNING")), InnerStatus: string(cmp.Or(z.InnerStatus, "ACTIVE")),
			Region: z.Region, IDC: z.IDC, ClusterID: t.Topology.Cluster.ID, ServerCount: len(z.Servers),
		}
		for _, s := range z.Servers {
			inner := innerStatusWord("ACTIVE")
			if cmp.Or(s.Status, "RUNNING") != "RUNNING" {
				inner = "INACTIVE"
			}
			zone.Servers = append(zone.Servers, ocp.Server{
				ID: s.ID, ClusterID: t.Topology.Cluster.ID, Zone: zone.Name, Status: string(cmp.Or(s.Status, "RUNNING")),
				InnerStatus: string(cmp.Or(s.InnerStatus, inner)), WithRootServer: s.Root,
				IP: cmp.Or(s.IP, fmt.Sprintf("10.0.0.%d", s.ID)), Port: cmp.Or(s.Port, 2882),
			})
		}
		zones = append(zones, zone)
	}
	return zones
}

func (t *policyTest) zoneOf(server int64) string {
	for _, z := range t.Topology.Zones {
		if slices.ContainsFunc(z.Servers, func(s serverFile) bool { return s.ID == server }) {
			return string(z.Name)
		}
	}
	return ""
}

func (t *policyTest) tasks() []ocp.Task {
	var tasks []ocp.Task
	for i, task := range t.Tasks {
		tasks = append(tasks, ocp.Task{
			ID: int64(i + 1), Name: string(task.Name), Status: cmp.Or(task.Status, ocp.StatusRunning), ClusterID: t.Topology.Cluster.ID,
			ServerIDs: task.ServerIDs, ZoneName: task.Zone, CreatedAt: time.Time(t.Now), StartedAt: time.Time(t.Now),
		})
	}
	return tasks
}

// remember fills in what agents would have agreed on.
func (t *policyTest) remember(q *Question) {
	now := time.Time(t.Now)
	taken := func(id string, k kindWord, at time.Time) {
		if events.Kind(k) != events.Start {
			q.Fleet.Taken = append(q.Fleet.Taken, Taken{OperationID: id, At: at})
		}
	}
	for i := range t.Elsewhere {
		taken(fmt.Sprintf("elsewhere-%d", i+1), kindWord(events.Stop), now)
	}
	for i, a := range t.Active {
		slot := Slot{
			OperationID: fmt.Sprintf("active-%d", i+1), Kind: events.Kind(a.Kind), ServerID: a.ServerID,
			Zone: t.zoneOf(a.ServerID), Since: now.Add(-time.Duration(a.Ago)), Steps: 1,
		}
		q.Record.Active = append(q.Record.Active, slot)
		taken(slot.OperationID, a.Kind, slot.Since)
	}
	for i, r := range t.Recent {
		for n := range max(r.Repeat, 1) {
			at := now.Add(-time.Duration(r.Ago))
			ended := Ended{
				OperationID: fmt.Sprintf("recent-%d-%d", i+1, n+1), Kind: events.Kind(r.Kind), ServerID: r.ServerID,
				Zone: t.zoneOf(r.ServerID), Since: at, At: at, Succeeded: !r.Failed,
			}
			q.Record.Recent = append(q.Record.Recent, ended)
			taken(ended.OperationID, r.Kind, at)
		}
	}
	slices.SortStableFunc(q.Record.Recent, func(a, b Ended) int { return a.At.Compare(b.At) })
	slices.SortStableFunc(q.Fleet.Taken, func(a, b Taken) int { return a.At.Compare(b.At) })
	for _, ended := range q.Record.Recent { // failures in a row
		q.Record.Failures++
		q.Record.LastFailure = ended.OperationID
		if ended.Succeeded {
			q.Record.Failures, q.Record.LastFailure = 0, ""
		}
	}
}
