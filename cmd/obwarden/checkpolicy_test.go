package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/obwarden/obwarden/agent/policy"
)

// command runs a command line that ends by itself.
func command(t *testing.T, environ map[string]string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	code = execute(t.Context(), args, &out, &errs, environ)
	return out.String(), errs.String(), code
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckPolicySaysWhetherAFileIsAPolicy(t *testing.T) {
	t.Parallel()
	good := writeFile(t, "good.yaml", "deny: [{matchers: ['kind=stop'], reason: none today}]\n")
	bad := writeFile(t, "bad.yaml", "defaults: {max_concurrent: none, keep_zone: 1}\n")
	for _, c := range []struct {
		name    string
		environ string
		args    []string
		code    int
		want    []string // in stdout where the code is 0, else in stderr
	}{
		{"a file", "", []string{good}, 0, []string{good + ": OK, hash " + policy.Hash([]byte("deny: [{matchers: ['kind=stop'], reason: none today}]\n")), "deny: 1, approvals: 0"}},
		{"a faulty file", "", []string{bad}, exitUsage, []string{bad + ":1:28: must be a whole number", "\n" + bad + ":1:34: unknown name"}},
		{"the variable's file", bad, nil, exitUsage, []string{bad + ":1:28:"}},
		{"a file rather than the variable's", bad, []string{good}, 0, []string{good}},
		{"nothing", "", nil, 0, []string{"built-in policy: OK"}},
		{"no such file", "", []string{good + "x"}, exitUsage, []string{"no such file"}},
		{"two files", "", []string{good, bad}, exitUsage, []string{"one argument too many"}},
		{"the built-in one and a file", "", []string{"--default", good}, exitUsage, []string{"one argument too many"}},
		{"two flags", "", []string{"--default", "--schema"}, exitUsage, []string{"one of them"}},
		{"no tests", "", []string{"--test"}, exitUsage, []string{"FILE: missing"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := command(t, map[string]string{"OBWARDEN_POLICY_FILE": c.environ}, append([]string{"check", "policy"}, c.args...)...)
			said := stderr
			if c.code == 0 {
				said = stdout
			}
			if code != c.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, c.code, stdout, stderr)
			}
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("got\n%s\nwithout %q", said, want)
				}
			}
		})
	}
}

func TestCheckPolicyPrintsWhatCanBeUsed(t *testing.T) {
	t.Parallel()
	stdout, _, code := command(t, nil, "check", "policy", "--default")
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if _, _, code := command(t, nil, "check", "policy", writeFile(t, "policy.yaml", stdout)); code != 0 {
		t.Errorf("the built-in policy is faulty")
	}
	if stdout, _, code = command(t, nil, "check", "policy", "--schema"); code != 0 || !strings.HasPrefix(stdout, "{\n  \"$schema\"") {
		t.Errorf("exit code %d, schema %.50s", code, stdout)
	}
}

func TestCheckPolicyRunsEveryFileOfTestsAndSaysWhatFailed(t *testing.T) {
	t.Parallel()
	good := writeFile(t, "good.test.yaml", "tests: [{name: in order, cases: [{request: stop 2, expect: allow}]}]\n")
	failing := writeFile(t, "failing.test.yaml", "tests:\n  - name: no server goes\n    cases:\n      - {request: stop 2, expect: allow}\n      - {request: stop 2, expect: wait PAUSED}\n")
	faulty := writeFile(t, "faulty.test.yaml", "tests: [{name: x, cases: [{request: halt 2}]}]\n")

	stdout, _, code := command(t, nil, "check", "policy", "--test", good)
	if want := "✓ " + good + ": all 1 decided as expected\n"; code != 0 || stdout != want {
		t.Errorf("exit code %d, got %q, want %q", code, stdout, want)
	}
	stdout, _, code = command(t, nil, "check", "policy", "--test", failing, good)
	for _, want := range []string{failing + ":5:9: no server goes: stop 2\n    expected  wait PAUSED\n    got       allow\n", "✗ " + failing + ": 1 of 2 cases failed\n", "✓ " + good} {
		if code != exitFailed || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, want %d; got\n%s\nwithout %q", code, exitFailed, stdout, want)
		}
	}
	stdout, stderr, code := command(t, nil, "check", "policy", "--test", faulty, failing, good)
	if code != exitUsage || !strings.Contains(stderr, faulty+`:1:37: "halt 2" is no request`) || !strings.Contains(stdout, "1 of 2 cases failed") || !strings.Contains(stdout, "✓ "+good) {
		t.Errorf("exit code %d, want %d; got\n%s%s", code, exitUsage, stdout, stderr)
	}
}

// Everything that is wrong is said at once, before the agent touches anything.
func TestAFaultyPolicyEndsTheAgentAtItsStart(t *testing.T) {
	t.Parallel()
	bad := writeFile(t, "bad.yaml", "defaults: {max_concurrent: none, keep_zone: 1}\n")
	environ := map[string]string{"OBWARDEN_POLICY_FILE": bad, "OBWARDEN_POLL_MIN": "never", "OBWARDEN_OCP_URL": "http://127.0.0.1:1", "OBWARDEN_DATA_DIR": filepath.Join(t.TempDir(), "data")}
	for _, args := range [][]string{{"run"}, {"check", "config"}} {
		_, stderr, code := command(t, environ, args...)
		if code != exitUsage {
			t.Errorf("%v: exit code %d, want %d", args, code, exitUsage)
		}
		for _, want := range []string{bad + ":1:28:", bad + ":1:34:", "OBWARDEN_POLL_MIN"} {
			if !strings.Contains(stderr, want) {
				t.Errorf("%v: got\n%s\nwithout %q", args, stderr, want)
			}
		}
	}
	if _, err := os.Stat(environ["OBWARDEN_DATA_DIR"]); !os.IsNotExist(err) {
		t.Errorf("something was begun: %v", err)
	}
}
