package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// command runs a command to its end and returns its exit code and what it printed.
func (s site) command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := startProcess(t, s.environ, args...)
	code = p.Wait()
	return code, p.Stdout.String(), p.Stderr.String()
}

func TestTheKillSwitchByCommand(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{Speed: 500})
	startProcess(t, s.environ, "run")
	s.ready(t)
	s.inventory(t)
	for _, test := range []struct {
		args []string
		code int
		want string // in what is printed
	}{
		{[]string{"pause"}, exitUsage, "--reason"},
		{[]string{"pause", "one", "--reason", "x"}, exitUsage, "CLUSTER"},
		{[]string{"pause", "9", "--reason", "x"}, exitRejected, "OCP knows no cluster 9"},
		{[]string{"resume", "9"}, exitRejected, "it has 1 (obdemo)"},
		{[]string{"pause", "9", "--reason", "x", "--anyway"}, 0, "cluster 9 paused"},
		{[]string{"pause", "1", "--reason", "racks", "--requested-by", "ann"}, 0, "obwarden resume 1"},
	} {
		if code, stdout, stderr := s.command(t, test.args...); code != test.code || !strings.Contains(stdout+stderr, test.want) {
			t.Errorf("%v: exit code %d, printed %q and %q, want %d and %q", test.args, code, stdout, stderr, test.code, test.want)
		}
	}
	js := s.connect(t)
	publish(t, js, events.Request{IdempotencyKey: "k", ClusterID: 1, ServerID: 2})
	awaitState(t, js, events.OperationID("k"), events.Waiting)
	if code, stdout, _ := s.command(t, "explain", "restart", "1", "3"); code != exitGaveUp || !strings.Contains(stdout, "ann") {
		t.Errorf("explain: exit code %d, printed\n%s", code, stdout)
	}
	if code, stdout, stderr := s.command(t, "list"); code != 0 || !strings.Contains(stdout, "PAUSED") || !strings.Contains(stderr, "cluster 1 is paused by ann") {
		t.Errorf("list: exit code %d, printed\n%s\n%s", code, stdout, stderr)
	}
	if code, stdout, _ := s.command(t, "resume", "1", "-o", "json"); code != 0 || !strings.Contains(stdout, `"paused":false`) {
		t.Errorf("resume: exit code %d, printed %q", code, stdout)
	}
	if op := awaitEnd(t, js, "k"); op.State != events.Succeeded {
		t.Errorf("ended %s: %+v", op.State, op.Reason)
	}
}

func TestAnApprovalByCommand(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{Speed: 500})
	startProcess(t, s.environ, "run")
	s.ready(t)
	js := s.connect(t)
	publish(t, js, events.Request{IdempotencyKey: "k", ClusterID: 1, ServerID: 2, Force: true, RequestedBy: "ann"})
	awaitState(t, js, events.OperationID("k"), events.Waiting)
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"approve", "nothing"}, exitFailed, "nothing"},
		{[]string{"approve", "k", "--requested-by", "ann"}, exitRejected, "ann"},
		{[]string{"approve", "k", "--requested-by", "bob", "--reason", "seen"}, 0, ""},
	} {
		if code, stdout, stderr := s.command(t, test.args...); code != test.code || !strings.Contains(stdout+stderr, test.want) {
			t.Errorf("%v: exit code %d, printed %q and %q, want %d and %q", test.args, code, stdout, stderr, test.code, test.want)
		}
	}
	if op := awaitEnd(t, js, "k"); op.State != events.Succeeded {
		t.Errorf("ended %s: %+v", op.State, op.Reason)
	}
	if code, _, stderr := s.command(t, "approve", "k", "--requested-by", "bob"); code != exitRejected || !strings.Contains(stderr, "succeeded") {
		t.Errorf("approval of what has ended: exit code %d, %q", code, stderr)
	}
}

func TestExplainSaysEachRule(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{Speed: 500})
	startProcess(t, s.environ, "run")
	s.ready(t)
	code, stdout, stderr := s.command(t, "explain", "stop", "1", "2")
	if code != 0 || !strings.Contains(stdout, "would stop server 2 of cluster 1 now") || !strings.Contains(stdout, "majority") {
		t.Errorf("exit code %d, printed\n%s\n%s", code, stdout, stderr)
	}
	var document events.Operation
	if code, stdout, _ := s.command(t, "explain", "stop", "1", "2", "-o", "json"); code != 0 || json.Unmarshal([]byte(stdout), &document) != nil || len(document.Decision) < 10 {
		t.Errorf("as JSON: exit code %d, printed\n%s", code, stdout)
	}
	if code, stdout, _ := s.command(t, "explain", "stop", "1", "99"); code != exitRejected || !strings.Contains(stdout, string(guard.Reject)) {
		t.Errorf("a server that is not there: exit code %d, printed\n%s", code, stdout)
	}
	if code, _, stderr := s.command(t, "explain", "halt", "1", "2"); code != exitUsage || !strings.Contains(stderr, "KIND") {
		t.Errorf("exit code %d, printed %q", code, stderr)
	}
	if posts := s.sim.Posts(ocpsim.ServerStop); posts != 0 {
		t.Errorf("%d calls", posts)
	}
}
