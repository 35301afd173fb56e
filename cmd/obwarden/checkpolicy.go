package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/agent/policy/policytest"
)

func newCheckPolicy(a app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy [FILE | --test FILE...]",
		Short: "Check a policy file, run its tests, or show the built-in policy",
		Long: `Check a policy file and list every fault with its line and column. Without FILE it is
that of OBWARDEN_POLICY_FILE, else the built-in one. With --test the files are policy
tests: each says what a cluster looks like, what is asked and what must be decided.

Exit codes: 0 all is well, 1 a policy test failed, 2 a file is faulty.`,
		Example: `  obwarden check policy --default > policy.yaml
  obwarden check policy policy.yaml
  obwarden check policy --test *.test.yaml`,
	}
	byDefault := cmd.Flags().Bool("default", false, "print the built-in policy, with comments, to be copied and changed")
	schema := cmd.Flags().Bool("schema", false, "print the JSON Schema of a policy file, for editors")
	test := cmd.Flags().Bool("test", false, "run policy tests")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		switch {
		case *byDefault && *schema, *schema && *test, *test && *byDefault:
			return usagef("--default, --schema, --test: one of them")
		case *test && len(args) == 0:
			return usagef("FILE: missing")
		case *test:
			return nil
		case (*byDefault || *schema) && len(args) > 0:
			return usagef("%q: one argument too many", args[0])
		case len(args) > 1:
			return usagef("%q: one argument too many", args[1])
		}
		return nil
	}
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		switch {
		case *byDefault:
			_, err := fmt.Fprint(a.stdout, policy.DefaultFile())
			return err
		case *schema:
			_, err := fmt.Fprint(a.stdout, policy.SchemaFile())
			return err
		case *test:
			return testPolicies(a, args)
		}
		file := a.environ[envPrefix+"POLICY_FILE"]
		if len(args) > 0 {
			file = args[0]
		}
		return checkPolicy(a, file)
	}
	return cmd
}

func checkPolicy(a app, file string) error {
	name := cleanLine(file)
	if file == "" {
		name = "built-in policy"
	}
	p, err := Config{PolicyFile: file}.policy()
	if err != nil {
		fmt.Fprintln(a.stderr, cleanText(err.Error())) // each line begins with its place, as editors like it
		return exitError{code: exitUsage}
	}
	fmt.Fprintf(a.stdout, "%s: OK, hash %s; deny: %d, approvals: %d, overrides: %d, alerts: %d\n", name, p.Hash,
		len(p.Deny), len(p.Approvals), len(p.Override), len(p.Alerts))
	for _, rule := range p.Alerts {
		what := string(rule.Kind)
		if rule.DryRun {
			what += ", dry run"
		}
		fmt.Fprintf(a.stdout, "  alert rule %s: %s after %s of %s\n", rule.Name, what, rule.For,
			cleanLine(rule.Matchers.String()))
	}
	return nil
}

// testPolicies runs all files, even if some of them fail.
func testPolicies(a app, files []string) error {
	s := newUI(a, false).style()
	s.width = 0 // places and reasons must stay whole
	worst := 0
	for _, file := range files {
		results, err := policytest.Run(file)
		if err != nil {
			worst = exitUsage
			fmt.Fprintln(a.stderr, cleanText(err.Error()))
			continue
		}
		failed := 0
		for _, r := range results {
			if r.Failed() {
				failed++
				printFailed(a, s, r)
			}
		}
		if failed > 0 {
			worst = max(worst, exitFailed)
			fmt.Fprintln(a.stdout, s.render(line{{"✗ ", red}, {cleanLine(file), bold},
				{fmt.Sprintf(": %d of %d cases failed", failed, len(results)), ""}}))
			continue
		}
		fmt.Fprintln(a.stdout, s.render(line{{"✓ ", green}, {cleanLine(file), bold},
			{fmt.Sprintf(": all %d decided as expected", len(results)), ""}}))
	}
	if worst != 0 {
		return exitError{code: worst}
	}
	return nil
}

// printFailed shows a case that failed, with what each rule says, so that people see why.
func printFailed(a app, s style, r policytest.Result) {
	print := func(l line) { fmt.Fprintln(a.stdout, s.render(l)) }
	print(line{{fmt.Sprintf("%s:%d:%d: ", cleanLine(r.File), r.Line, r.Column), ""},
		{cleanLine(r.Test + ": " + r.Request), bold}})
	print(line{{"    expected  ", ""}, {cleanLine(r.Want), green}})
	print(line{{"    got       ", ""}, {cleanLine(r.Got), red}})
	if r.Message != "" {
		print(line{{"              " + cleanLine(r.Message), ""}})
	}
	if len(r.Findings) == 0 {
		return
	}
	width := 0
	for _, f := range r.Findings {
		width = max(width, textWidth(f.Rule))
	}
	print(line{{"    rule by rule:", dim}})
	for _, f := range r.Findings {
		colour := yellow
		switch guard.Verdict(f.Verdict) {
		case guard.Allow:
			colour = dim
		case guard.Reject:
			colour = red
		}
		print(line{{"      " + pad(cleanLine(f.Rule), width) + "  ", ""}, {pad(f.Verdict, 9), colour},
			{" " + cleanLine(f.Message), ""}})
	}
}
