package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/events"
)

// pauseCommand is the command line of the kill switch. It writes to the bucket that all agents watch, so that it works
// even while no agent runs.
type pauseCommand struct {
	app
	paused  bool
	anyway  bool
	nats    *string
	format  *formatValue
	reason  string
	by      string
	cluster int64
}

func newPause(a app) *cobra.Command {
	return (&pauseCommand{app: a, paused: true}).command("pause [CLUSTER]", "Hold back all operations that have not been submitted to OCP, in all clusters or one",
		`Operations that are in OCP's hands already go on, and are followed to their end. New
requests are accepted and wait. A pause lasts until somebody resumes, also across restarts
of all agents, and it can be set while no agent runs.`,
		`  obwarden pause --reason "moving racks"
  obwarden pause 7 --reason "looks wrong, looking"`)
}

func newResume(a app) *cobra.Command {
	return (&pauseCommand{app: a}).command("resume [CLUSTER]", "Let operations go on again, in all clusters or one",
		`Resuming also releases a cluster that is held back after too many failures in a row.`,
		`  obwarden resume --reason "racks are moved"
  obwarden resume 7`)
}

func (p *pauseCommand) command(use, short, long, example string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long: short + ".\n" + long + `

Exit codes: 0 done, 2 wrong usage, 3 OCP knows no such cluster, 5 cannot reach NATS.`,
		Example: example,
		Args:    cobra.MaximumNArgs(1),
	}
	p.nats = natsFlag(cmd)
	p.format = formatFlag(cmd)
	cmd.Flags().StringVar(&p.reason, "reason", "", "why; everybody whose operation is held back reads it")
	cmd.Flags().StringVar(&p.by, "requested-by", "", "who (default: user@host)")
	cmd.Flags().BoolVar(&p.anyway, "anyway", false, "accept a cluster that no agent has seen in OCP")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || id < 1 {
				return usagef("CLUSTER: %q is not an integer of at least 1", args[0])
			}
			p.cluster = id
		}
		if p.paused && strings.TrimSpace(p.reason) == "" {
			return usagef("--reason: missing; whoever is held back at night must know why")
		}
		if p.by == "" {
			p.by = whoAsks(p.environ)
		}
		return p.run(cmd.Context())
	}
	return cmd
}

func (p *pauseCommand) run(ctx context.Context) error {
	c, err := p.dial(*p.nats)
	if err != nil {
		return err
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	defer context.AfterFunc(c.refused, cancel)()
	bucket, err := c.js.KeyValue(ctx, events.ControlBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return exit(exitUnreachable, fmt.Errorf("key-value bucket %s does not exist: no agent has ever run on this NATS server (obwarden run), or somebody deleted the bucket; restart an agent to create it", events.ControlBucket))
	}
	if err != nil {
		return c.unreachable(err)
	}
	if err := p.checkCluster(ctx, bucket); err != nil {
		return err
	}
	value := events.Pause{Paused: p.paused, By: p.by, Reason: p.reason, At: time.Now().UTC().Truncate(time.Millisecond)}
	if err := events.SetPause(ctx, bucket, p.cluster, value); err != nil {
		if errors.Is(err, events.ErrRaced) {
			return exit(exitFailed, err)
		}
		return c.unreachable(err)
	}
	if p.format.json() {
		return json.NewEncoder(p.stdout).Encode(struct {
			Cluster int64 `json:"cluster_id,omitempty"`
			events.Pause
		}{p.cluster, value})
	}
	_, err = fmt.Fprintln(p.stdout, p.message())
	return err
}

func (p *pauseCommand) message() string {
	what, argument := "all clusters", ""
	if p.cluster != events.AllClusters {
		what, argument = fmt.Sprintf("cluster %d", p.cluster), fmt.Sprintf(" %d", p.cluster)
	}
	if p.paused {
		return fmt.Sprintf("%s paused: nothing more is submitted to OCP; to go on: obwarden resume%s", what, argument)
	}
	return what + " resumed"
}

// checkCluster refuses a cluster that no agent has seen in OCP: a typing error in a kill
// switch must not look like one that works.
func (p *pauseCommand) checkCluster(ctx context.Context, bucket jetstream.KeyValue) error {
	if p.cluster == events.AllClusters || p.anyway {
		return nil
	}
	seen, err := events.ReadInventory(ctx, bucket)
	if err != nil || len(seen.Clusters) == 0 { // a pause too many is better than one too few
		fmt.Fprintf(p.stderr, "obwarden: no agent has recorded yet which clusters OCP has, so the existence of cluster %d was not checked\n", p.cluster)
		return nil
	}
	if slices.ContainsFunc(seen.Clusters, func(c events.KnownCluster) bool { return c.ID == p.cluster }) {
		return nil
	}
	var names []string
	for _, c := range seen.Clusters[:min(len(seen.Clusters), 20)] {
		names = append(names, fmt.Sprintf("%d (%s)", c.ID, c.Name))
	}
	if more := len(seen.Clusters) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return exit(exitRejected, fmt.Errorf("OCP knows no cluster %d, as of %s; it has %s; if you know better, repeat with --anyway",
		p.cluster, seen.At.Format(time.RFC3339), strings.Join(names, ", ")))
}
