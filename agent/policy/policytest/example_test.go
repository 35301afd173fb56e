package policytest_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/obwarden/obwarden/agent/policy/policytest"
)

// A test says what differs from a cluster in order: three zones with one server each, all
// running, nothing under way.
func ExampleRun() {
	dir, err := os.MkdirTemp("", "policytest")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "policy.test.yaml")
	if err := os.WriteFile(path, []byte(`
tests:
  - name: another zone is down
    topology:
      zones:
        - {name: zone1, servers: [{id: 1, status: UNAVAILABLE}]}
        - {name: zone2, servers: [2]}
        - {name: zone3, servers: [3]}
    cases:
      - {request: stop 2, expect: reject MAJORITY_AT_RISK}
      - {request: restart 3, expect: allow}
`), 0o600); err != nil {
		panic(err)
	}
	results, err := policytest.Run(path)
	if err != nil {
		panic(err)
	}
	for _, r := range results {
		fmt.Printf("line %d: %s: failed: %t, want %s, got %s\n", r.Line, r.Request, r.Failed(), r.Want, r.Got)
	}
	fmt.Println(results[0].Message)
	// Output:
	// line 10: stop 2: failed: false, want reject MAJORITY_AT_RISK, got reject MAJORITY_AT_RISK
	// line 11: restart 3: failed: true, want allow, got reject MAJORITY_AT_RISK
	// without server 2 only 1 of 3 zones stay whole (zone3), and 2 must; bring back first: zone1
}
