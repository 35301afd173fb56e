package policytest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// The examples that people copy must decide as they say.
func TestTheExamplePolicyDecidesAsItsTestsSay(t *testing.T) {
	t.Parallel()
	results, err := Run("../../../deploy/policy/example.test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(results) < 20 {
		t.Errorf("%d cases", len(results))
	}
	for _, r := range results {
		if r.Failed() {
			t.Errorf("%s:%d: %s: %s: got %s (%s), want %s", r.File, r.Line, r.Test, r.Request, r.Got, r.Message, r.Want)
		}
	}
}

func TestFaultsOfPolicyTestsAreAllListedWithTheirPlace(t *testing.T) {
	t.Parallel()
	datadriven.RunTest(t, "testdata/faults.txt", func(t *testing.T, td *datadriven.TestData) string {
		if _, err := parseTests("policy.test.yaml", []byte(td.Input)); err != nil {
			return err.Error() + "\n"
		}
		return ""
	})
}

func TestAPolicyTestThatIsFaultyOrNamesAFaultyPolicyIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("faulty.yaml", "defaults: {max_concurrent: 0}\n")
	const tests = "tests: [{name: t, cases: [{request: stop 2, expect: allow}]}]\n"
	for content, want := range map[string]string{
		"policy: faulty.yaml\n" + tests: filepath.Join(dir, "faulty.yaml") + ":1:28: must be at least 1",
		"test: []\n":                    "policy.test.yaml:1:1: unknown name",
	} {
		_, err := Run(write("policy.test.yaml", content))
		if _, ok := errors.AsType[policy.Faults](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", content, err, want)
		}
	}
	if _, err := Run(write("policy.test.yaml", "policy: none.yaml\n"+tests)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no policy: got %v", err)
	}
	if _, err := Run(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no tests: got %v", err)
	}
}

// What a test leaves out is a cluster in order; what it says is what the guard is asked.
func TestATestAsksTheGuardWhatItSays(t *testing.T) {
	t.Parallel()
	f, err := parseTests("policy.test.yaml", []byte(`
tests:
  - name: all of it
    now: 2026-03-01T02:00:00+08:00
    topology:
      cluster: {id: 7, name: prod}
      zones:
        - {name: z1, region: east, servers: [1, {id: 2, status: STOPPED, root: true}]}
        - {name: z2, inner_status: INACTIVE, servers: [3]}
    paused: {by: ann, reason: racks}
    active: [{kind: stop, server_id: 1, ago: 1m}]
    recent:
      - {kind: stop, server_id: 3, ago: 10m, failed: true, repeat: 2}
      - {kind: start, server_id: 3, ago: 20m}
    tasks: [{name: Upgrade, zone: z2}]
    elsewhere: 3
    cases:
      - request: {kind: restart, server_id: 3, force: true, requested_by: eve, source: cli, labels: {team: db}}
        at: 2026-03-01T03:00:00+08:00
        approvals: [bob, {by: ann, ago: 5m}]
        expect: {verdict: wait, code: PAUSED}
  - name: nothing
    cases:
      - {request: start 3, expect: allow}
`))
	if err != nil {
		t.Fatal(err)
	}
	test := f.Tests[0]
	q := test.question(policy.Default(), test.Cases[0])
	now := time.Date(2026, 2, 28, 19, 0, 0, 0, time.UTC)
	if !q.Now.Equal(now) || q.Facts.ClusterName != "prod" || q.Operation.ClusterID != 7 || q.Operation.Kind != events.Restart || q.Operation.ServerID != 3 ||
		!q.Operation.Request.Force || q.Operation.Request.RequestedBy != "eve" || q.Operation.Source != "cli" || q.Operation.Request.Labels["team"] != "db" {
		t.Errorf("asked: %+v at %s", q.Operation, q.Now)
	}
	z := q.Facts.Zones
	if len(z) != 2 || z[0].Status != "RUNNING" || z[0].InnerStatus != "ACTIVE" || z[0].ServerCount != 2 || z[0].Region != "east" || z[1].InnerStatus != "INACTIVE" ||
		z[0].Servers[0].Status != "RUNNING" || z[0].Servers[0].InnerStatus != "ACTIVE" || z[0].Servers[1].Status != "STOPPED" || z[0].Servers[1].InnerStatus != "INACTIVE" || !z[0].Servers[1].WithRootServer || z[0].Servers[1].Zone != "z1" || z[0].Servers[1].IP == "" {
		t.Errorf("zones: %+v", z)
	}
	if a := q.Operation.Approvals; len(a) != 2 || a[0].By != "bob" || !a[0].At.Equal(now) || a[1].By != "ann" || !a[1].At.Equal(now.Add(-5*time.Minute)) {
		t.Errorf("approvals: %+v", a)
	}
	r := q.Record
	if len(r.Active) != 1 || r.Active[0].Zone != "z1" || len(r.Recent) != 3 || r.Recent[0].Kind != events.Start || r.Recent[2].Succeeded || r.Recent[2].Zone != "z2" || r.Failures != 2 || r.LastFailure == "" {
		t.Errorf("record: %+v", r)
	}
	if !q.Control.Cluster.Paused || q.Control.All.Paused || q.Control.Cluster.By != "ann" {
		t.Errorf("control: %+v", q.Control)
	}
	if len(q.Facts.Tasks) != 1 || q.Facts.Tasks[0].Status != "RUNNING" || q.Facts.Tasks[0].ZoneName != "z2" {
		t.Errorf("tasks: %+v", q.Facts.Tasks)
	}
	if len(q.Fleet.Taken) != 6 { // 3 elsewhere, 1 active, 2 recent; a start takes nothing
		t.Errorf("fleet: %+v", q.Fleet)
	}
	if e := test.Cases[0].Expect; e.Verdict != "wait" || e.Code != "PAUSED" {
		t.Errorf("expected: %+v", e)
	}

	second := f.Tests[1]
	q = second.question(policy.Default(), second.Cases[0])
	if len(q.Facts.Zones) != 3 || q.Facts.Zones[2].Servers[0].ID != 3 || q.Now.IsZero() || q.Operation.Kind != events.Start || q.Operation.ServerID != 3 || len(q.Record.Active)+len(q.Record.Recent)+len(q.Fleet.Taken) != 0 {
		t.Errorf("by default: %+v", q)
	}
}

func FuzzParseTests(f *testing.F) {
	for _, path := range []string{"../../../deploy/policy/example.test.yaml", "testdata/faults.txt"} {
		content, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for part := range strings.SplitSeq(string(content), "----") {
			f.Add(part)
		}
	}
	f.Fuzz(func(t *testing.T, content string) {
		tests, err := parseTests("f", []byte(content))
		if err != nil {
			if faults, ok := errors.AsType[policy.Faults](err); !ok || len(faults) == 0 {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		for _, test := range tests.Tests { // what is taken can be asked
			for _, c := range test.Cases {
				_ = test.run("f", policy.Default(), c)
			}
		}
	})
}
