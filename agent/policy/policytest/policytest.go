// Package policytest runs policy tests: files that say what a cluster looks like, what is
// requested and what the guard must decide. They are for people who write policies, and
// `obwarden check policy --test` runs them.
//
// Read file.go for how a test is written. The package imports guard and policy.
package policytest

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/agent/policy/internal/strict"
	"github.com/obwarden/obwarden/events"
)

// Result is the outcome of one case of a policy test.
type Result struct {
	File         string
	Line, Column int    // of the case
	Test         string // name of the test
	Request      string // in short: stop 2 force
	Want, Got    string // verdict and code
	Message      string // of the decision
	Findings     []events.Finding
}

// Failed reports whether the guard decided otherwise than expected.
func (r Result) Failed() bool { return r.Want != r.Got }

// Run decides the cases of a file of policy tests and returns their results in order. The
// error is policy.Faults, of that file or of the policy it names, or says why one of them
// cannot be read.
func Run(path string) ([]Result, error) {
	content, err := strict.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("policy tests: %w", err)
	}
	f, err := parseTests(path, content)
	if err != nil {
		return nil, err
	}
	p := policy.Default()
	if name := f.Policy; name != "" {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		if p, err = policy.Load(name); err != nil {
			return nil, err
		}
	}
	var results []Result
	for _, test := range f.Tests {
		for _, c := range test.Cases {
			results = append(results, test.run(path, p, c))
		}
	}
	return results, nil
}

func parseTests(path string, content []byte) (testFile, error) {
	var f testFile
	d := strict.Decode(path, content, &f, nil)
	for i := range f.Tests {
		f.Tests[i].complete(d)
	}
	return f, d.Err()
}

// complete fills in everything that the test leaves out, and finds servers that it names
// without having them.
func (t *policyTest) complete(d *strict.Document) {
	if time.Time(t.Now).IsZero() {
		t.Now = moment(time.Date(2026, time.January, 7, 12, 0, 0, 0, time.UTC))
	}
	t.Topology.Cluster.ID = cmp.Or(t.Topology.Cluster.ID, 1)
	t.Topology.Cluster.Name = cmp.Or(t.Topology.Cluster.Name, "test")
	if t.Topology.Zones == nil {
		for i := range 3 {
			t.Topology.Zones = append(t.Topology.Zones, zoneFile{Name: strict.Text(fmt.Sprintf("zone%d", i+1)),
				Servers: []serverFile{{ID: int64(i + 1)}}})
		}
	}
	seen := map[int64]bool{}
	for _, z := range t.Topology.Zones {
		for _, s := range z.Servers {
			if seen[s.ID] {
				d.Faultf(s.At, "server %d is there twice; leave one out", s.ID)
			}
			seen[s.ID] = true
		}
	}
	missing := func(id int64, at strict.Position) {
		if !seen[id] {
			d.Faultf(at, "no server %d in the topology; add it or name another", id)
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
func (t *policyTest) run(path string, p *policy.Policy, c testCase) Result {
	q := t.question(p, c)
	d := guard.Decide(q)
	result := Result{
		File: path, Line: c.At.Line, Column: c.At.Column, Test: string(t.Name), Request: c.Request.String(),
		Want: strings.TrimSpace(string(c.Expect.Verdict) + " " + c.Expect.Code),
		Got:  strings.TrimSpace(string(d.Verdict) + " " + d.Reason.Code), Message: d.Reason.Message,
		Findings: guard.Explain(q),
	}
	if c.Expect.Code == "" && d.Verdict == guard.Verdict(c.Expect.Verdict) {
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

func (t *policyTest) question(p *policy.Policy, c testCase) *guard.Question {
	now := time.Time(c.Now)
	if now.IsZero() {
		now = time.Time(t.Now)
	}
	cluster := t.Topology.Cluster
	q := &guard.Question{
		Policy: p, Now: now,
		Facts: guard.Facts{ClusterID: cluster.ID, ClusterName: string(cluster.Name), Zones: t.zones(), Tasks: t.tasks(),
			ReadAt: now},
		Operation: events.Operation{
			Schema: events.OperationSchema, OperationID: "case", N: 1, Steps: 1, State: events.Accepted, RequestSequence: 1,
			Kind: events.Kind(c.Request.Kind), ClusterID: cluster.ID, ServerID: c.Request.ServerID,
			Source:      cmp.Or(c.Request.Source, "nats"),
			RequestedAt: now, UpdatedAt: now,
			Request: events.Request{
				IdempotencyKey: "case", ClusterID: cluster.ID, ServerID: c.Request.ServerID, Force: c.Request.Force,
				RequestedBy: c.Request.RequestedBy, Labels: c.Request.Labels,
			},
		},
	}
	for _, a := range c.Approvals {
		q.Operation.Approvals = append(q.Operation.Approvals, events.Approval{By: string(a.By),
			At: now.Add(-time.Duration(a.Ago))})
	}
	if p := t.Paused; p != nil {
		pause := events.Pause{Paused: true, By: cmp.Or(p.By, "somebody"), Reason: cmp.Or(p.Reason, "the test says so"),
			At: time.Time(t.Now)}
		if p.All {
			q.Control.All = pause
		} else {
			q.Control.Cluster = pause
		}
	}
	t.remember(q)
	return q
}

func (t *policyTest) zones() ocp.Topology {
	var zones ocp.Topology
	for _, z := range t.Topology.Zones {
		zone := ocp.Zone{
			Name: string(z.Name), Status: string(cmp.Or(z.Status, ocp.ServerRunning)),
			InnerStatus: string(cmp.Or(z.InnerStatus, ocp.InnerActive)),
			Region:      z.Region, IDC: z.IDC, ClusterID: t.Topology.Cluster.ID, ServerCount: len(z.Servers),
		}
		for _, s := range z.Servers {
			inner := innerStatusWord(ocp.InnerActive)
			if cmp.Or(s.Status, ocp.ServerRunning) != ocp.ServerRunning {
				inner = ocp.InnerInactive
			}
			zone.Servers = append(zone.Servers, ocp.Server{
				ID: s.ID, ClusterID: t.Topology.Cluster.ID, Zone: zone.Name, Status: string(cmp.Or(s.Status, ocp.ServerRunning)),
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
			ID: int64(i + 1), Name: string(task.Name), Status: cmp.Or(task.Status, ocp.StatusRunning),
			ClusterID: t.Topology.Cluster.ID,
			ServerIDs: task.ServerIDs, ZoneName: task.Zone, CreatedAt: time.Time(t.Now), StartedAt: time.Time(t.Now),
		})
	}
	return tasks
}

// remember fills in the record that agents would have of active and recent operations.
func (t *policyTest) remember(q *guard.Question) {
	now := time.Time(t.Now)
	taken := func(id string, k strict.Kind, at time.Time) {
		if events.Kind(k) != events.Start {
			q.Fleet.Taken = append(q.Fleet.Taken, guard.Taken{OperationID: id, At: at})
		}
	}
	for i := range t.Elsewhere {
		taken(fmt.Sprintf("elsewhere-%d", i+1), strict.Kind(events.Stop), now)
	}
	for i, a := range t.Active {
		slot := guard.Slot{
			OperationID: fmt.Sprintf("active-%d", i+1), Kind: events.Kind(a.Kind), ServerID: a.ServerID,
			Zone: t.zoneOf(a.ServerID), Since: now.Add(-time.Duration(a.Ago)), Steps: 1,
		}
		q.Record.Active = append(q.Record.Active, slot)
		taken(slot.OperationID, a.Kind, slot.Since)
	}
	for i, r := range t.Recent {
		for n := range max(r.Repeat, 1) {
			at := now.Add(-time.Duration(r.Ago))
			ended := guard.Ended{
				OperationID: fmt.Sprintf("recent-%d-%d", i+1, n+1), Kind: events.Kind(r.Kind), ServerID: r.ServerID,
				Zone: t.zoneOf(r.ServerID), Since: at, At: at, Succeeded: !r.Failed,
			}
			q.Record.Recent = append(q.Record.Recent, ended)
			taken(ended.OperationID, r.Kind, at)
		}
	}
	slices.SortStableFunc(q.Record.Recent, func(a, b guard.Ended) int { return a.At.Compare(b.At) })
	slices.SortStableFunc(q.Fleet.Taken, func(a, b guard.Taken) int { return a.At.Compare(b.At) })
	for _, ended := range q.Record.Recent { // failures in a row
		q.Record.Failures++
		q.Record.LastFailure = ended.OperationID
		if ended.Succeeded {
			q.Record.Failures, q.Record.LastFailure = 0, ""
		}
	}
}
