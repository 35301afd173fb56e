package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/metrics"
)

func newCheckAlert(a app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alert FILE",
		Short: "Show what the policy's rules make of a webhook body; changes nothing",
		Long: `Show which rule matches each alert of a webhook body, which server it is about and
what would be asked for, or why it would be refused. OCP is asked where the server
is; nothing is changed. FILE is a body as Alertmanager sends it.

Exit codes: 0 all would be taken, 1 one would be refused, 2 wrong configuration or no
webhook body, 5 OCP cannot be reached.`,
		Example: "  obwarden check alert body.json",
		Args:    exactArgs("FILE"),
	}
	format := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return checkAlert(cmd.Context(), a, args[0], format.json())
	}
	return cmd
}

func checkAlert(ctx context.Context, a app, file string, asJSON bool) error {
	c, err := loadConfig(a.environ)
	policy, policyErr := c.policy()
	body, fileErr := os.ReadFile(file)
	if err = errors.Join(err, c.checkOCP(), policyErr, fileErr); err != nil {
		return exit(exitUsage, err)
	}
	var health ocpHealth
	m := metrics.New(prometheus.NewRegistry(), "", "", metrics.Scraped{})
	client, err := newOCPClient(c, m, &health, slog.New(slog.DiscardHandler))
	if err != nil {
		return exit(exitUsage, err)
	}
	defer client.Close()
	previews, err := alerts.PreviewBody(ctx, policy, facts.NewDirectory(client), body, time.Now())
	if err != nil {
		return exit(exitUsage, fmt.Errorf("%s: %w", file, err))
	}
	if asJSON {
		if err := json.NewEncoder(a.stdout).Encode(previews); err != nil {
			return err
		}
	}
	worst := 0
	s := newUI(a, false).style()
	s.width = 0 // keys and reasons must stay whole
	for _, p := range previews {
		mark := span{"✓ ", green}
		switch {
		case p.Failed():
			mark, worst = span{"✗ ", red}, exitUnreachable
		case p.Refused():
			mark, worst = span{"✗ ", red}, max(worst, exitFailed)
		}
		if !asJSON {
			printPreview(a, s, mark, p)
		}
	}
	if worst != 0 {
		return exitError{code: worst}
	}
	return nil
}

func printPreview(a app, s style, mark span, p alerts.Preview) {
	print := func(l line) { fmt.Fprintln(a.stdout, s.render(l)) }
	name := strings.TrimSpace(cleanLine(p.Alert) + " " + p.Fingerprint)
	if name == "" {
		name = "alert"
	}
	said := p.Result
	if p.Rule != "" {
		said = "rule " + p.Rule + ", " + said
	}
	print(line{mark, {name, bold}, {": " + said + ": " + cleanLine(p.Message), ""}})
	if p.Request == nil {
		return
	}
	print(line{{"    reason  " + cleanLine(p.Request.Reason), dim}})
	for _, label := range slices.Sorted(maps.Keys(p.Request.Labels)) {
		print(line{{"    label   " + cleanLine(label+"="+p.Request.Labels[label]), dim}})
	}
	print(line{{"    key     " + p.Request.IdempotencyKey, dim}})
	if p.Request.DryRun {
		print(line{{"    dry run: nothing would be called", dim}})
	}
}
