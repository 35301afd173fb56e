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

// requestCommand is the command line of a stop, start or restart, and of explain, which is a dry run of one.
type requestCommand struct {
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
		commands = append(commands, newRequestCommand(a, kind))
	}
	return commands
}

func newRequestCommand(a app, kind events.Kind) *cobra.Command {
	rc := &requestCommand{app: a, kind: kind}
	verb := strings.ToUpper(string(kind[:1])) + string(kind[1:])
	cmd := &cobra.Command{
		Use:   string(kind) + " CLUSTER SERVER",
		Short: verb + " a server",
		Long: fmt.Sprintf(`%s a server: publish a request that an agent carries out. CLUSTER and SERVER are OCP's
ids. The agent decides whether the operation is safe, and lets it wait while it is not.

Exit codes: 0 the request is in the stream (with --wait: succeeded), 1 failed,
2 wrong usage, 3 rejected, expired or cancelled, 4 gave up waiting, 5 cannot reach NATS.`, verb),
		Example: fmt.Sprintf(`  obwarden %s 1 2 --reason "replace disk" --wait
  obwarden %s 1 2 --dry-run --wait`, kind, kind),
		Args: exactArgs("CLUSTER", "SERVER"),
	}
	rc.nats = natsFlag(cmd)
	rc.format = formatFlag(cmd)
	f := cmd.Flags()
	f.SortFlags = false
	r := &rc.request
	f.StringVar(&r.IdempotencyKey, "key", "", "idempotency key: requests with the same key start one operation only (default: a new key, which is printed)")
	f.StringVar(&r.Reason, "reason", "", "why; every event shows it")
	f.StringVar(&r.RequestedBy, "requested-by", "", "who asks (default: user@host)")
	f.StringArrayVar(&rc.labels, "label", nil, "name=value; every event shows it; repeatable")
	if kind != events.Start {
		f.BoolVar(&r.Force, "force", false, "OCP's force: do not wait for logs; unsafe")
		f.BoolVar(&rc.freeze, "freeze-server", false, "OCP's freezeServer: run a minor compaction first (default: OCP decides)")
	}
	if kind == events.Stop {
		f.StringVar(&r.StopType, "stop-type", "", "OCP's type of stop, e.g. STOP_SERVICE")
	}
	f.BoolVar(&r.DryRun, "dry-run", false, "decide and report, but do not call OCP")
	f.DurationVar(&rc.expires, "expires-in", 0, "expire the request unless it is submitted to OCP by then, e.g. 10m")
	f.StringVar(&rc.until, "expires-at", "", "the same as a point in time, e.g. 2026-11-24T21:30:00Z; repeat a request with --key with the same time")
	f.BoolVarP(&rc.wait, "wait", "w", false, "follow the operation to its end")
	f.DurationVar(&rc.timeout, "timeout", 0, "with --wait: give up waiting after this time; the operation goes on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("freeze-server") {
			r.FreezeServer = &rc.freeze
		}
		if err := rc.complete(args, cmd.Flags().Changed); err != nil {
			return err
		}
		return rc.run(cmd.Context())
	}
	return cmd
}

// complete builds the request from the command line, or reports all faults of the command line at once.
func (rc *requestCommand) complete(args []string, given func(flag string) bool) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	r := &rc.request
	for i, into := range []*int64{&r.ClusterID, &r.ServerID} {
		id, err := strconv.ParseInt(args[i], 10, 64)
		if err != nil || id < 1 {
			fault("%s: %q is not an integer of at least 1", []string{"CLUSTER", "SERVER"}[i], args[i])
		}
		*into = id
	}
	for _, label := range rc.labels {
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
	case given("expires-in") && rc.expires <= 0:
		fault("--expires-in: must be more than 0")
	case given("expires-in"):
		r.ExpiresAt = time.Now().Add(rc.expires).UTC().Truncate(time.Millisecond)
	case given("expires-at"):
		t, err := time.Parse(time.RFC3339, rc.until)
		if err != nil {
			fault("--expires-at: %q is not RFC 3339, e.g. 2026-11-24T21:30:00Z", rc.until)
		}
		r.ExpiresAt = t.UTC()
	}
	if given("timeout") && !rc.wait {
		fault("--timeout: has a meaning with --wait only")
	} else if given("timeout") && rc.timeout <= 0 {
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
		r.RequestedBy = whoAsks(rc.environ)
	}
	return usage(checkRequest(*r, rc.kind))
}

// checkRequest decodes the request as the agent will, and reports whether it is valid.
func checkRequest(r events.Request, kind events.Kind) error {
	msg, err := r.Message(kind, "cli")
	if err != nil {
		return err
	}
	_, err = events.DecodeRequest(msg.Subject, msg.Header, msg.Data, "")
	return err
}

// whoAsks is user@host, the default for who makes a request.
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

func (rc *requestCommand) run(ctx context.Context) error {
	c, err := rc.dial(*rc.nats)
	if err != nil {
		return err
	}
	defer c.close()
	if !rc.wait {
		sequence, err := rc.submit(ctx, c)
		if err != nil {
			return err
		}
		return rc.printSubmitted(sequence)
	}
	out := newUI(rc.app, rc.format.json())
	c.onNotice(out.notice)
	if rc.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, rc.timeout, gaveUp{rc.timeout})
		defer cancel()
	}
	id := events.OperationID(rc.request.IdempotencyKey)
	op, err := follow(ctx, c.js, followTarget{
		OperationID: id,
		Submit: func(ctx context.Context) (uint64, error) {
			sequence, err := rc.submit(ctx, c)
			if err == nil && !out.json && !out.live {
				out.println(rc.submitted(sequence))
			}
			return sequence, err
		},
	}, out)
	return outcome(c, id, op, err)
}

// submit publishes the request.
func (rc *requestCommand) submit(ctx context.Context, c *client) (uint64, error) {
	publish, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	defer context.AfterFunc(c.refused, cancel)()
	sequence, err := rc.request.Publish(publish, c.js, rc.kind, "cli")
	switch {
	case err == nil:
		return sequence, nil
	case errors.Is(err, events.ErrNoStream):
		return 0, exit(exitUnreachable, fmt.Errorf("NATS at %s: %w", c.url, err))
	case c.refusal() != nil, errors.As(err, new(jetstream.JetStreamError)): // a definite no, e.g. the stream is full
		return 0, c.unreachable(err)
	}
	err = c.unreachable(err)
	return 0, exit(exitCode(err), fmt.Errorf("%w\nthe request may have arrived all the same: repeat it with --key %s, which never starts a second operation", err, rc.request.IdempotencyKey))
}

// submitted is the message about a request that is in the stream.
func (rc *requestCommand) submitted(sequence uint64) string {
	id := events.OperationID(rc.request.IdempotencyKey)
	return fmt.Sprintf("request %d to %s server %d of cluster %d is in the stream: operation %s, key %s; follow it: obwarden watch %s",
		sequence, rc.kind, rc.request.ServerID, rc.request.ClusterID, id, rc.request.IdempotencyKey, id)
}

func (rc *requestCommand) printSubmitted(sequence uint64) error {
	if !rc.format.json() {
		_, err := fmt.Fprintln(rc.stdout, rc.submitted(sequence))
		return err
	}
	return json.NewEncoder(rc.stdout).Encode(struct {
		OperationID    string `json:"operation_id"`
		IdempotencyKey string `json:"idempotency_key"`
		Subject        string `json:"subject"`
		Sequence       uint64 `json:"sequence"`
	}{
		events.OperationID(rc.request.IdempotencyKey), rc.request.IdempotencyKey,
		events.TargetRequestSubject(rc.kind, rc.request.ClusterID, rc.request.ServerID), sequence,
	})
}
