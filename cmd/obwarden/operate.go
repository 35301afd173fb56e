package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/events"
)

// order is the command line of a stop, start or restart.
type order struct {
	app
	kind    events.Kind
	nats    *string
	format  *formatValue
	labels  []string
	freeze  bool
	expires time.Duration
	until   string
	wait    bool
	timeout time.Duration
	request events.Request
}

func newOperate(a app) []*cobra.Command {
	var commands []*cobra.Command
	for _, kind := range events.Kinds() {
		commands = append(commands, newOrder(a, kind))
	}
	return commands
}

func newOrder(a app, kind events.Kind) *cobra.Command {
	o := &order{app: a, kind: kind}
	verb := strings.ToUpper(string(kind[:1])) + string(kind[1:])
	cmd := &cobra.Command{
		Use:   string(kind) + " CLUSTER SERVER",
		Short: verb + " a server",
		Long: fmt.Sprintf(`%s a server: publish a request for an agent to carry out. CLUSTER and SERVER are
OCP's ids. The agent decides whether it is safe, and waits while it is not.

Exit codes: 0 the request is in the stream (with --wait: succeeded), 1 failed,
2 wrong usage, 3 rejected, expired or cancelled, 4 gave up waiting, 5 cannot reach NATS.`, verb),
		Example: fmt.Sprintf(`  obwarden %s 1 2 --reason "replace disk" --wait
  obwarden %s 1 2 --dry-run --wait`, kind, kind),
		Args: exactArgs("CLUSTER", "SERVER"),
	}
	o.nats = natsFlag(cmd)
	o.format = formatFlag(cmd)
	f := cmd.Flags()
	f.SortFlags = false
	r := &o.request
	f.StringVar(&r.IdempotencyKey, "key", "", "idempotency key: however often it is sent, one operation comes of it (default: a new one, printed)")
	f.StringVar(&r.Reason, "reason", "", "why, carried into every event")
	f.StringVar(&r.RequestedBy, "requested-by", "", "who asks (default: user@host)")
	f.StringArrayVar(&o.labels, "label", nil, "name=value, carried into every event; repeatable")
	if kind != events.Start {
		f.BoolVar(&r.Force, "force", false, "OCP's force: do not wait for logs; unsafe")
		f.BoolVar(&o.freeze, "freeze-server", false, "OCP's freezeServer: a minor compaction first (default: as OCP does it)")
	}
	if kind == events.Stop {
		f.StringVar(&r.StopType, "stop-type", "", "OCP's type of stop, e.g. STOP_SERVICE")
	}
	f.BoolVar(&r.DryRun, "dry-run", false, "decide and report, call nothing")
	f.DurationVar(&o.expires, "expires-in", 0, "not submitted to OCP by then: expired, e.g. 10m")
	f.StringVar(&o.until, "expires-at", "", "the same as a time, e.g. 2026-11-24T21:30:00Z; with --key, repeat the request with the same time")
	f.BoolVarP(&o.wait, "wait", "w", false, "follow the operation to its end")
	f.DurationVar(&o.timeout, "timeout", 0, "with --wait: give up waiting after so long; the operation goes on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("freeze-server") {
			r.FreezeServer = &o.freeze
		}
		if err := o.complete(args, cmd.Flags().Changed); err != nil {
			return err
		}
		return o.run(cmd.Context())
	}
	return cmd
}

// complete makes the request of the command line, or says all that is wrong with it.
func (o *order) complete(args []string, given func(flag string) bool) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	r := &o.request
	for i, into := range []*int64{&r.ClusterID, &r.ServerID} {
		id, err := strconv.ParseInt(args[i], 10, 64)
		if err != nil || id < 1 {
			fault("%s: %q is not an integer of at least 1", []string{"CLUSTER", "SERVER"}[i], args[i])
		}
		*into = id
	}
	for _, label := range o.labels {
		name, value, ok := strings.Cut(label, "=")
		if !ok || name == "" {
			fault("--label: %q is not of the form name=value", label)
			continue
		}
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		if _, twice := r.Labels[name]; twice {
			fault("--label: %q is given twice", name)
		}
		r.Labels[name] = value
	}
	switch {
	case given("expires-in") && given("expires-at"):
		fault("--expires-in, --expires-at: give one of them")
	case given("expires-in") && o.expires <= 0:
		fault("--expires-in: must be more than 0")
	case given("expires-in"):
		r.ExpiresAt = time.Now().Add(o.expires).UTC().Truncate(time.Millisecond)
	case given("expires-at"):
		t, err := time.Parse(time.RFC3339, o.until)
		if err != nil {
			fault("--expires-at: %q is not RFC 3339, e.g. 2026-11-24T21:30:00Z", o.until)
		}
		r.ExpiresAt = t.UTC()
	}
	if given("timeout") && !o.wait {
		fault("--timeout: has a meaning with --wait only")
	} else if given("timeout") && o.timeout <= 0 {
		fault("--timeout: must be more than 0")
	}
	if given("key") && r.IdempotencyKey == "" {
		fault("--key: must not be empty")
	}
	if len(faults) > 0 {
		return usage(errors.Join(faults...))
	}
	if r.IdempotencyKey == "" {
		r.IdempotencyKey = "cli-" + strings.ToLower(rand.Text())
	}
	if r.RequestedBy == "" {
		r.RequestedBy = whoAsks(o.environ)
	}
	return usage(checkRequest(*r, o.kind))
}

// checkRequest asks what the agent will: does it read this request as valid?
func checkRequest(r events.Request, kind events.Kind) error {
	msg, err := r.Message(kind, "cli")
	if err != nil {
		return err
	}
	_, err = events.DecodeRequest(msg.Subject, msg.Header, msg.Data, "")
	return err
}

// whoAsks is user@host.
func whoAsks(environ map[string]string) string {
	name := cmp.Or(environ["USER"], "unknown")
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

func (o *order) run(ctx context.Context) error {
	c, err := o.dial(*o.nats)
	if err != nil {
		return err
	}
	defer c.close()
	if !o.wait {
		sequence, err := o.submit(ctx, c)
		if err != nil {
			return err
		}
		return o.printSubmitted(sequence)
	}
	out := newUI(o.app, o.format.json())
	c.onNotice(out.notice)
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, gaveUp{o.timeout})
		defer cancel()
	}
	id := events.OperationID(o.request.IdempotencyKey)
	op, err := follow(ctx, c.js, followTarget{
		OperationID: id,
		Submit: func(ctx context.Context) (uint64, error) {
			sequence, err := o.submit(ctx, c)
			if err == nil && !out.json && !out.live {
				out.println(o.submitted(sequence))
			}
			return sequence, err
		},
	}, out)
	return outcome(c, id, op, err)
}

// submit publishes the request.
func (o *order) submit(ctx context.Context, c *client) (uint64, error) {
	publish, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	defer context.AfterFunc(c.refused, cancel)()
	sequence, err := o.request.Publish(publish, c.js, o.kind, "cli")
	switch {
	case err == nil:
		return sequence, nil
	case errors.Is(err, events.ErrNoStream):
		return 0, exit(exitUnreachable, fmt.Errorf("NATS at %s: %w", c.url, err))
	case c.refusal() != nil, errors.As(err, new(jetstream.JetStreamError)): // a definite no, e.g. the stream is full
		return 0, c.unreachable(err)
	}
	err = c.unreachable(err)
	return 0, exit(exitCode(err), fmt.Errorf("%w\nit may have arrived all the same: repeat it with --key %s, which never starts a second operation", err, o.request.IdempotencyKey))
}

func (o *order) submitted(sequence uint64) string {
	id := events.OperationID(o.request.IdempotencyKey)
	return fmt.Sprintf("request %d to %s server %d of cluster %d is in the stream: operation %s, key %s; follow it: obwarden watch %s",
		sequence, o.kind, o.request.ServerID, o.request.ClusterID, id, o.request.IdempotencyKey, id)
}

func (o *order) printSubmitted(sequence uint64) error {
	if !o.format.json() {
		_, err := fmt.Fprintln(o.stdout, o.submitted(sequence))
		return err
	}
	return json.NewEncoder(o.stdout).Encode(struct {
		OperationID    string `json:"operation_id"`
		IdempotencyKey string `json:"idempotency_key"`
		Subject        string `json:"subject"`
		Sequence       uint64 `json:"sequence"`
	}{
		events.OperationID(o.request.IdempotencyKey), o.request.IdempotencyKey,
		events.TargetRequestSubject(o.kind, o.request.ClusterID, o.request.ServerID), sequence,
	})
}
