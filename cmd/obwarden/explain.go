package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
)

// explainTimeout is how long an agent may take to decide on a dry run.
const explainTimeout = 30 * time.Second

func newExplain(a app) *cobra.Command {
	rc := &requestCommand{app: a}
	cmd := &cobra.Command{
		Use:   "explain stop|start|restart CLUSTER SERVER",
		Short: "Say what the guard would decide now, rule by rule",
		Long: `Say what the guard would decide now, rule by rule. The command makes a dry run, which an
agent decides by the cluster as it is now. Nothing is done.

Exit codes: 0 it would be done now, or there is nothing to do, 1 OCP refuses, 2 wrong
usage, 3 it would be rejected, 4 it would wait, or no agent answered, 5 cannot reach NATS.`,
		Example: "  obwarden explain stop 1 2",
		Args:    exactArgs("KIND", "CLUSTER", "SERVER"),
	}
	rc.nats = natsFlag(cmd)
	rc.format = formatFlag(cmd)
	cmd.Flags().BoolVar(&rc.request.Force, "force", false, "decide as for a request with OCP's force")
	cmd.Flags().StringVar(&rc.request.RequestedBy, "requested-by", "", "decide as for a request by somebody else (default: user@host)")
	cmd.Flags().StringArrayVar(&rc.labels, "label", nil, "decide as for a request with the label name=value; repeatable")
	cmd.Flags().DurationVar(&rc.timeout, "timeout", explainTimeout, "give up waiting for an agent after this time")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rc.kind = events.Kind(args[0])
		if !rc.kind.Known() {
			return usagef("KIND: %q is not stop, start or restart", args[0])
		}
		rc.request.DryRun = true
		if err := rc.complete(args[1:], func(string) bool { return false }); err != nil {
			return err
		}
		return rc.explain(cmd.Context())
	}
	return cmd
}

func (rc *requestCommand) explain(ctx context.Context) error {
	c, err := rc.dial(*rc.nats)
	if err != nil {
		return err
	}
	defer c.close()
	ctx, cancel := context.WithTimeoutCause(ctx, rc.timeout, gaveUp{rc.timeout})
	defer cancel()
	silent := rc.app
	silent.stdout = io.Discard
	out := newUI(silent, false)
	c.onNotice(newUI(rc.app, false).notice)
	id := events.OperationID(rc.request.IdempotencyKey)
	op, err := follow(ctx, c.js, followTarget{
		OperationID: id,
		Submit:      func(ctx context.Context) (uint64, error) { return rc.submit(ctx, c) },
	}, out)
	if err != nil || len(op.Decision) == 0 {
		return outcome(c, id, op, err)
	}
	if rc.format.json() {
		err = json.NewEncoder(rc.stdout).Encode(op)
	} else {
		err = printFindings(rc.stdout, cleaned(op))
	}
	if err != nil {
		return err
	}
	return verdictOf(op)
}

// printFindings shows the decision, and below it what each rule says.
func printFindings(w io.Writer, op events.Operation) error {
	fmt.Fprintf(w, "%s server %d of cluster %d, by policy %s: %s\n\n", op.Kind, op.ServerID, op.ClusterID, op.Policy, op.Reason.Message)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range op.Decision {
		fmt.Fprintf(table, "  %s\t%s\t%s\n", f.Verdict, strings.TrimSpace(f.Rule), f.Message)
	}
	return table.Flush()
}

// verdictOf turns the decision into an exit code: the one for the first rule that objects.
func verdictOf(op events.Operation) error {
	i := slices.IndexFunc(op.Decision, func(f events.Finding) bool { return f.Verdict != string(guard.Allow) })
	switch {
	case i < 0:
		return nil
	case op.Decision[i].Verdict == string(guard.Wait):
		return exitError{code: exitGaveUp}
	case op.Decision[i].Verdict == string(guard.Reject):
		return exitError{code: exitRejected}
	}
	return nil
}
