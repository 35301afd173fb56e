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

// pause is the command line of the kill switch. It writes where all agents look,
// so that it works while none runs, too.
type pause struct {
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
	return (&pause{app: a, paused: true}).command("pause [CLUSTER]", "Hold back everything that has not been submitted to OCP, in all clusters or one",
		`What OCP was asked to do already goes on, and is followed. Requests are still taken,
and wait. It holds until somebody resumes, also over restarts of all agents, and
works while no agent runs.`,
		`  obwarden pause --reason "moving racks"
  obwarden pause 7 --reason "looks wrong, looking"`)
}

func newResume(a app) *cobra.Command {
	return (&pause{app: a}).command("resume [CLUSTER]", "Let operations go on again, in all clusters or one",
		`A cluster that is held back by too many failures in a row goes on, too.`,
		`  obwarden resume --reason "racks are moved"
  obwarden resume 7`)
}

func (p *pause) command(use, short, long, example string) *cobra.Command {
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
	cmd.Flags().StringVar(&p.reason, "reason", "", "why; everybody who is held back by it reads it")
	cmd.Flags().StringVar(&p.by, "requested-by", "", "who (default: user@host)")
	cmd.Flags().BoolVar(&p.anyway, "anyway", false, "also a cluster that OCP did not show to any agent")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || id < 1 {
				return usagef("CLUSTER: %q is not an integer of at least 1", args[0])
			}
			p.cluster = id
		}
		if p.paused && strings.TrimSpace(p.reason) == "" {
			return usagef("--reason: missing: whoever is held back at night must know why")
		}
		if p.by == "" {
			p.by = whoAsks(p.environ)
		}
		return p.run(cmd.Context())
	}
	return cmd
}

func (p *pause) run(ctx context.Context) error {
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
		return exit(exitUnreachable, fmt.Errorf("key-value bucket %s is not there: no agent has ever run on this NATS server (obwarden run), or somebody deleted it: restart an agent to make it", events.ControlBucket))
	}
	if err != nil {
		return c.unreachable(err)
	}
	if err := p.known(ctx, bucket); err != nil {
		return err
	}
	word := events.Pause{Paused: p.paused, By: p.by, Reason: p.reason, At: time.Now().UTC().Truncate(time.Millisecond)}
	if err := events.SetPause(ctx, bucket, p.cluster, word); err != nil {
		if errors.Is(err, events.ErrRaced) {
			return exit(exitFailed, err)
		}
		return c.unreachable(err)
	}
	if p.format.json() {
		return json.NewEncoder(p.stdout).Encode(struct {
			Cluster int64 `json:"cluster_id,omitempty"`
			events.Pause
		}{p.cluster, word})
	}
	_, err = fmt.Fprintln(p.stdout, p.said())
	return err
}

func (p *pause) said() string {
	what, argument := "all clusters", ""
	if p.cluster != events.AllClusters {
		what, argument = fmt.Sprintf("cluster %d", p.cluster), fmt.Sprintf(" %d", p.cluster)
	}
	if p.paused {
		return fmt.Sprintf("%s paused: nothing more is submitted there; let it go on with: obwarden resume%s", what, argument)
	}
	return what + " resumed"
}

// known refuses a cluster that no agent has seen in OCP: a typing error in a kill
// switch must not look like one that works.
func (p *pause) known(ctx context.Context, bucket jetstream.KeyValue) error {
	if p.cluster == events.AllClusters || p.anyway {
		return nil
	}
	seen, err := events.ReadInventory(ctx, bucket)
	if err != nil || len(seen.Clusters) == 0 { // a pause too many is better than one too few
		fmt.Fprintf(p.stderr, "obwarden: no agent has said yet which clusters there are: whether OCP has a cluster %d was not checked\n", p.cluster)
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
