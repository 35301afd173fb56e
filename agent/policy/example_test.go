package policy_test

import (
	"fmt"

	"github.com/obwarden/obwarden/agent/policy"
)

// A policy file says only what differs from the built-in policy.
func ExampleParse() {
	p, err := policy.Parse("policy.yaml", []byte(`
defaults:
  cooldown: {server: 30m}
deny:
  - {matchers: ['cluster="billing"'], reason: by hand only}
overrides:
  - matchers: ['cluster=~"staging.*"']
    max_concurrent: 3
`))
	if err != nil {
		panic(err)
	}
	staging := func(label string) string { return map[string]string{"cluster": "staging-1"}[label] }
	billing := func(label string) string { return map[string]string{"cluster": "billing"}[label] }
	fmt.Println(p.LimitsFor(staging).MaxConcurrent, p.LimitsFor(billing).MaxConcurrent, p.Limits.Cooldown.Server)
	fmt.Println(p.DenialOf(staging) != nil, p.DenialOf(billing).Reason)
	// Output:
	// 3 1 30m0s
	// false by hand only
}

// All faults of a file are listed at once, each with its place and what to do.
func ExampleParse_faults() {
	_, err := policy.Parse("policy.yaml", []byte(`
defaults:
  max_concurent: 2
  keep_zones: most
`))
	fmt.Println(err)
	// Output:
	// policy.yaml:3:3: unknown name "max_concurent"; here may be: max_concurrent, keep_zones, one_zone_at_a_time, keep_root_server, cooldown, budget, pause_after_failures, max_wait, supersede, windows
	// policy.yaml:4:15: "most" is no number of zones; write majority, or a number from 0 to 1000
}

// Whoever reloads the policy sets it; whoever decides loads it.
func ExampleLive() {
	live := policy.NewLive(policy.Default())
	p, err := policy.Parse("policy.yaml", []byte("defaults: {max_concurrent: 2}"))
	if err != nil {
		panic(err)
	}
	live.Set(p)
	<-live.Changed()
	fmt.Println(live.Load().Limits.MaxConcurrent)
	// Output:
	// 2
}
