package policy

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/obwarden/obwarden/agent/policy/internal/strict"
)

// What the issue and the README promise. Numbers here and in policy.yaml are apart on
// purpose.
func TestTheBuiltInPolicyIsTheDocumentedOne(t *testing.T) {
	t.Parallel()
	want := &Policy{
		Hash: "default",
		Limits: Limits{
			MaxConcurrent: 1, KeepZones: Majority, OneZoneAtATime: true, KeepRootServer: true,
			Cooldown:           Cooldown{Server: 10 * time.Minute, Failure: time.Minute},
			Budget:             Budget{Operations: 30, Window: time.Hour},
			PauseAfterFailures: 5, MaxWait: 24 * time.Hour,
		},
		Fleet: Budget{Operations: 300, Window: time.Hour},
	}
	if got := Default(); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

// A policy that says nothing of its own must be no laxer than the built-in one.
func TestWhatAFileLeavesOutIsAsInTheBuiltInPolicy(t *testing.T) {
	t.Parallel()
	want := Default()
	for _, content := range []string{"{}", "defaults: {}", "defaults: {cooldown: {}, budget: {}, windows: {}}\nfleet_budget: {}\n", DefaultFile()} {
		got, err := Parse("policy.yaml", []byte(content))
		if err != nil {
			t.Errorf("%q: %v", content, err)
			continue
		}
		if got.Hash != Hash([]byte(content)) {
			t.Errorf("%q: got hash %s", content, got.Hash)
		}
		got.Hash = want.Hash
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got\n%+v\nwant\n%+v", content, got, want)
		}
	}
}

// The embedded file is what a person starts from: it must name everything there is.
func TestTheBuiltInPolicyNamesEveryField(t *testing.T) {
	t.Parallel()
	for _, field := range allFields(reflect.TypeFor[policyFile]()) {
		if !strings.Contains(DefaultFile(), field+":") {
			t.Errorf("policy.yaml does not name %s", field)
		}
	}
}

func allFields(t reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		if name := strict.FieldName(f); name != "" && !strings.HasPrefix(t.PkgPath(), "github.com/") {
			names = append(append(names, name), allFields(f.Type)...)
		}
	}
	return names
}

// The examples in comments are copied by people: uncommented they must be valid.
func TestTheBuiltInPolicysExamplesAreValid(t *testing.T) {
	t.Parallel()
	var lines []string
	sections := 0
	for line := range strings.Lines(DefaultFile()) {
		switch {
		case strings.HasPrefix(line, "# - ") || strings.HasPrefix(line, "#   ") && sections > 0:
			line = strings.TrimPrefix(line, "# ")
		case strings.HasSuffix(line, ": []\n") && !strings.HasPrefix(line, " "):
			line = strings.Replace(line, " []", "", 1)
			sections++
		case strings.HasPrefix(line, "#"):
			continue
		}
		if strings.HasPrefix(line, "  cluster, ") || strings.HasPrefix(line, "  server, ") || strings.HasPrefix(line, "  zone, ") ||
			strings.HasPrefix(line, "  kind  ") || strings.HasPrefix(line, "  force  ") || strings.HasPrefix(line, "  requested_by,") {
			continue // the table of labels
		}
		lines = append(lines, line)
	}
	p, err := Parse("policy.yaml", []byte(strings.Join(lines, "")))
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(lines, ""))
	}
	if sections != 5 || len(p.Deny) != 1 || len(p.Approvals) != 1 || len(p.Override) != 2 || len(p.Alerts) != 1 {
		t.Errorf("got %d sections, %d denials, %d approvals, %d overrides, %d alert rules", sections, len(p.Deny), len(p.Approvals), len(p.Override), len(p.Alerts))
	}
}

func TestFaultsAreAllListedWithTheirPlace(t *testing.T) {
	t.Parallel()
	datadriven.RunTest(t, "testdata/faults.txt", func(t *testing.T, td *datadriven.TestData) string {
		p, err := Parse("policy.yaml", []byte(td.Input))
		if err == nil {
			return ""
		}
		if p != nil {
			t.Errorf("%s: a faulty policy was returned", td.Pos)
		}
		if _, ok := errors.AsType[Faults](err); !ok {
			t.Errorf("%s: %T is no list of faults", td.Pos, err)
		}
		return err.Error() + "\n"
	})
}

// saysMuch is a policy that uses everything there is.
const saysMuch = `time_intervals:
  - name: night
    time_intervals:
      - times: [{start_time: "01:00", end_time: "05:00"}]
        location: Asia/Shanghai
  - {name: freeze, time_intervals: [{months: [december], days_of_month: ["-7:-1"]}]}
defaults:
  max_concurrent: 3
  keep_zones: 2
  one_zone_at_a_time: false
  cooldown: {server: 0, zone: 1h30m}
  windows: {allow: [night], block: [freeze]}
fleet_budget: {operations: 0}
deny:
  - matchers: ['cluster="billing",kind!="start"', 'zone=~"zone[12]"']
    reason: by hand
approvals:
  - {matchers: ['kind="restart"'], approvers: [ann, bob], expires: 30m}
  - {matchers: ['kind="stop"']}
overrides:
  - matchers: ['cluster="staging"']
    keep_zones: majority
    budget: {operations: 5}
    windows: {allow: []}
`

func TestWhatAPolicySaysIsWhatItMeans(t *testing.T) {
	t.Parallel()
	p, err := Parse("policy.yaml", []byte(saysMuch))
	if err != nil {
		t.Fatal(err)
	}
	l := p.Limits
	if l.MaxConcurrent != 3 || l.KeepZones != 2 || l.OneZoneAtATime || !l.KeepRootServer {
		t.Errorf("limits: got %+v", l)
	}
	if want := (Cooldown{Zone: 90 * time.Minute, Failure: time.Minute}); l.Cooldown != want {
		t.Errorf("cooldown: got %+v, want %+v", l.Cooldown, want)
	}
	if want := (Budget{Window: time.Hour}); p.Fleet != want {
		t.Errorf("fleet: got %+v, want %+v", p.Fleet, want)
	}
	if len(l.Allow) != 1 || l.Allow[0].Name != "night" || len(l.Block) != 1 || l.Block[0].Name != "freeze" {
		t.Fatalf("windows: got %+v and %+v", l.Allow, l.Block)
	}
	at := func(s string) time.Time {
		parsed, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	night, freeze := l.Allow[0].Intervals[0], l.Block[0].Intervals[0]
	if !night.ContainsTime(at("2026-06-01T17:00:00Z")) || night.ContainsTime(at("2026-06-01T21:00:00Z")) {
		t.Error("the night is not from one to five in Shanghai")
	}
	if !freeze.ContainsTime(at("2026-12-25T00:00:00Z")) || freeze.ContainsTime(at("2026-12-24T00:00:00Z")) {
		t.Error("the freeze is not the last week of December")
	}
	if len(p.Deny) != 1 || p.Deny[0].Reason != "by hand" || p.Deny[0].Matchers.String() != `{cluster="billing",kind!="start",zone=~"zone[12]"}` {
		t.Errorf("deny: got %+v", p.Deny)
	}
	if len(p.Approvals) != 2 || p.Approvals[0].Expires != 30*time.Minute || len(p.Approvals[0].Approvers) != 2 || p.Approvals[1].Expires != time.Hour {
		t.Errorf("approvals: got %+v", p.Approvals)
	}
	changed := p.Limits
	p.Override[0].Apply(&changed)
	want := p.Limits
	want.KeepZones, want.Budget.Operations, want.Allow = Majority, 5, nil
	if !reflect.DeepEqual(changed, want) {
		t.Errorf("override: got\n%+v\nwant\n%+v", changed, want)
	}
}

func TestLoadReadsAFileAndSaysWhyItCannot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "policy.yaml")
	write := func(content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("defaults: {max_concurrent: 2}\n"))
	if p, err := Load(path); err != nil || p.Limits.MaxConcurrent != 2 || len(p.Hash) != 12 {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := Load(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory is a policy")
	}
	write([]byte("\ufeffdefaults: {max_concurrent: 2}\r\n")) // as some editors write it
	if p, err := Load(path); err != nil || p.Limits.MaxConcurrent != 2 {
		t.Errorf("byte order mark: got %+v, %v", p, err)
	}
	write(bytes.Repeat([]byte("a: |\n  b\n"), strict.MaxFileBytes/9)) // would cost the parser a minute
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "more than 1000 names") {
		t.Errorf("many names: got %.100v", err)
	}
	write(bytes.Repeat([]byte("# comment\n"), strict.MaxFileBytes/10+1))
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes") {
		t.Errorf("a large file: got %v", err)
	}
	write([]byte("defaults: {}\n# \xff\n"))
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path+":2:1: not UTF-8") {
		t.Errorf("not UTF-8: got %v", err)
	}
}

// Whatever a file holds: no panic, a policy or faults with a place in the file.
func FuzzParse(f *testing.F) {
	f.Add([]byte(DefaultFile()))
	content, err := os.ReadFile("testdata/faults.txt")
	if err != nil {
		f.Fatal(err)
	}
	for part := range bytes.SplitSeq(content, []byte("policy\n")) {
		part, _, _ = bytes.Cut(part, []byte("----"))
		f.Add(part)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		p, err := Parse("f", content)
		faults, ok := errors.AsType[Faults](err)
		if (p == nil) != ok || ok && len(faults) == 0 {
			t.Fatalf("got %v, %v", p, err)
		}
		lines := 1 + bytes.Count(content, []byte("\n")) + bytes.Count(content, []byte("\r"))
		for _, fault := range faults {
			if fault.Line < 1 || fault.Line > lines || fault.Column < 1 || fault.Message == "" {
				t.Errorf("%q of %d lines", fault, lines)
			}
		}
		if p != nil && (p.Limits.MaxConcurrent < 1 || p.Limits.KeepZones < Majority || p.Limits.Budget.Window <= 0 || p.Limits.Cooldown.Server < 0) {
			t.Errorf("%+v", p.Limits)
		}
	})
}
