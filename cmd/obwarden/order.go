package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/events"
)

// lookAgain is how often a command looks whether an order was carried out.
const lookAgain = 50 * time.Millisecond

func newCancel(a app) *cobra.Command {
	return newVerb(a, events.Cancel, (*verb).cancel, "Take back an operation that has not been submitted to OCP",
		`  obwarden cancel disk-4711 --reason "wrong server"`)
}

func newApprove(a app) *cobra.Command {
	return newVerb(a, events.Approve, (*verb).approve, "Approve an operation that waits for a person's word",
		`  obwarden approve disk-4711 --reason "seen, go on"`)
}

// newVerb is the command of an order that an agent carries out at once, or refuses.
func newVerb(a app, order events.Verb, carryOut func(*verb, context.Context, *client, *ui) error, short, example string) *cobra.Command {
	v := &verb{app: a, order: events.Order{Verb: order}}
	cmd := v.command(short, example)
	timeout := cmd.Flags().Duration("timeout", time.Minute, "give up waiting for an agent after so long; the order stays in the stream")
	v.run = func(ctx context.Context, c *client, out *ui) error {
		ctx, cancel := context.WithTimeoutCause(ctx, *timeout, gaveUp{after: *timeout})
		defer cancel()
		return carryOut(v, ctx, c, out)
	}
	return cmd
}

func newRetry(a app) *cobra.Command {
	v := &verb{app: a, order: events.Order{Verb: events.Retry}}
	cmd := v.command("Have OCP run the failed task of an operation again", "  obwarden retry disk-4711 --wait")
	wait := cmd.Flags().BoolP("wait", "w", false, "follow the operation to its end")
	timeout := cmd.Flags().Duration("timeout", 0, "with --wait: give up waiting after so long; the operation goes on")
	v.run = func(ctx context.Context, c *client, out *ui) error {
		if *timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, *timeout, gaveUp{after: *timeout})
			defer cancel()
		}
		return v.retry(ctx, c, out, *wait)
	}
	return cmd
}

// verb is the command line of an order about an operation.
type verb struct {
	app
	order events.Order
	run   func(context.Context, *client, *ui) error
}

func (v *verb) command(short, example string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   string(v.order.Verb) + " OPERATION",
		Short: short,
		Long: short + `. OPERATION is an id or an idempotency key.

Exit codes: 0 done, 1 failed or no such operation, 2 wrong usage, 3 the operation
does not take it, 4 gave up waiting, 5 cannot reach NATS.`,
		Example: example,
		Args:    exactArgs("OPERATION"),
	}
	server := natsFlag(cmd)
	format := formatFlag(cmd)
	cmd.Flags().StringVar(&v.order.Reason, "reason", "", "why")
	cmd.Flags().StringVar(&v.order.RequestedBy, "requested-by", "", "who asks (default: user@host)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if v.order.RequestedBy == "" {
			v.order.RequestedBy = whoAsks(v.environ)
		}
		c, err := v.dial(*server)
		if err != nil {
			return err
		}
		defer c.close()
		out := newUI(v.app, format.json())
		c.onNotice(out.notice)
		last, err := find(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		reason, by := v.order.Reason, v.order.RequestedBy
		v.order = events.OrderTo(v.order.Verb, last.Operation)
		v.order.Reason, v.order.RequestedBy = reason, by
		if refusal := last.Accepts(v.order); refusal != nil {
			return v.refused(refusal)
		}
		return v.run(cmd.Context(), c, out)
	}
	return cmd
}

func (v *verb) refused(why error) error {
	return exit(exitRejected, fmt.Errorf("%s %s: %w", v.order.Verb, v.order.OperationID, why))
}

func (v *verb) submit(ctx context.Context, c *client) (uint64, error) {
	sequence, err := v.order.Publish(ctx, c.js)
	if err != nil {
		return 0, c.unreachable(err)
	}
	return sequence, nil
}

// cancel returns once the operation is cancelled, or has gone too far for it.
func (v *verb) cancel(ctx context.Context, c *client, out *ui) error {
	return v.until(ctx, c, out, func(op events.Operation, _ uint64) (bool, error) { return op.State == events.Cancelled, nil })
}

// approve returns once an agent has taken the approval, or has refused it.
func (v *verb) approve(ctx context.Context, c *client, out *ui) error {
	return v.until(ctx, c, out, func(op events.Operation, sequence uint64) (bool, error) {
		for _, a := range op.Approvals {
			if a.Sequence != sequence {
				continue
			}
			if a.Refused != "" {
				return false, errors.New(a.Refused)
			}
			return true, nil
		}
		return false, nil
	})
}

// until gives the order and looks until it is carried out, or refused.
func (v *verb) until(ctx context.Context, c *client, out *ui, carriedOut func(op events.Operation, sequence uint64) (bool, error)) error {
	sequence, err := v.submit(ctx, c)
	if err != nil {
		return err
	}
	for {
		last, err := find(ctx, c, v.order.OperationID)
		if err != nil && ctx.Err() == nil {
			return err
		}
		done, refusal := false, error(nil)
		if err == nil {
			done, refusal = carriedOut(last.Operation, sequence)
		}
		switch {
		case refusal != nil:
			return v.refused(refusal)
		case done:
			if out.json {
				out.printJSON(last.body)
			} else {
				out.println(out.eventLine(last.Event, false))
			}
			return nil
		case err == nil:
			if refusal := last.Accepts(v.order); refusal != nil {
				return v.refused(refusal)
			}
		}
		select {
		case <-ctx.Done():
			return outcome(c, v.order.OperationID, last.Operation, context.Cause(ctx))
		case <-time.After(lookAgain):
		}
	}
}

func (v *verb) retry(ctx context.Context, c *client, out *ui, wait bool) error {
	if !wait {
		if _, err := v.submit(ctx, c); err != nil {
			return err
		}
		out.println("the order is in the stream; follow it: obwarden watch " + v.order.OperationID)
		return nil
	}
	op, err := follow(ctx, c.js, followTarget{
		OperationID: v.order.OperationID,
		Submit:      func(ctx context.Context) (uint64, error) { return v.submit(ctx, c) },
	}, out)
	return outcome(c, v.order.OperationID, op, err)
}
