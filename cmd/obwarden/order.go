package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/events"
)

// lookAgain is the time between looks at whether an order has been carried out.
const lookAgain = 50 * time.Millisecond

func newCancel(a app) *cobra.Command {
	return newOrderCommand(a, events.Cancel, (*orderCommand).cancel, "Take back an operation that has not been submitted to OCP",
		`  obwarden cancel disk-4711 --reason "wrong server"`)
}

func newApprove(a app) *cobra.Command {
	return newOrderCommand(a, events.Approve, (*orderCommand).approve, "Approve an operation that waits for a person's approval",
		`  obwarden approve disk-4711 --reason "seen, go on"`)
}

// newOrderCommand is the command for an order that an agent carries out, or refuses, at once.
func newOrderCommand(a app, order events.Verb, carryOut func(*orderCommand, context.Context, *client, *ui) error, short, example string) *cobra.Command {
	oc := &orderCommand{app: a, order: events.Order{Verb: order}}
	cmd := oc.command(short, example)
	timeout := cmd.Flags().Duration("timeout", time.Minute, "give up waiting for an agent after this time; the order stays in the stream")
	oc.run = func(ctx context.Context, c *client, out *ui) error {
		ctx, cancel := context.WithTimeoutCause(ctx, *timeout, gaveUp{after: *timeout})
		defer cancel()
		return carryOut(oc, ctx, c, out)
	}
	return cmd
}

func newRetry(a app) *cobra.Command {
	oc := &orderCommand{app: a, order: events.Order{Verb: events.Retry}}
	cmd := oc.command("Have OCP run the failed task of an operation again", "  obwarden retry disk-4711 --wait")
	wait := cmd.Flags().BoolP("wait", "w", false, "follow the operation to its end")
	timeout := cmd.Flags().Duration("timeout", 0, "with --wait: give up waiting after this time; the operation goes on")
	oc.run = func(ctx context.Context, c *client, out *ui) error {
		if *timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, *timeout, gaveUp{after: *timeout})
			defer cancel()
		}
		return oc.retry(ctx, c, out, *wait)
	}
	return cmd
}

// orderCommand is the command line of an order about an operation.
type orderCommand struct {
	app
	order events.Order
	run   func(context.Context, *client, *ui) error
}

func (oc *orderCommand) command(short, example string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   string(oc.order.Verb) + " OPERATION",
		Short: short,
		Long: short + `. OPERATION is an id or an idempotency key.

Exit codes: 0 done, 1 failed or no such operation, 2 wrong usage, 3 the operation does
not accept the order, 4 gave up waiting, 5 cannot reach NATS.`,
		Example: example,
		Args:    exactArgs("OPERATION"),
	}
	server := natsFlag(cmd)
	format := formatFlag(cmd)
	cmd.Flags().StringVar(&oc.order.Reason, "reason", "", "why")
	cmd.Flags().StringVar(&oc.order.RequestedBy, "requested-by", "", "who asks (default: user@host)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if oc.order.RequestedBy == "" {
			oc.order.RequestedBy = whoAsks(oc.environ)
		}
		c, err := oc.dial(*server)
		if err != nil {
			return err
		}
		defer c.close()
		out := newUI(oc.app, format.json())
		c.onNotice(out.notice)
		last, err := find(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		reason, by := oc.order.Reason, oc.order.RequestedBy
		oc.order = events.OrderTo(oc.order.Verb, last.Operation)
		oc.order.Reason, oc.order.RequestedBy = reason, by
		if refusal := last.Accepts(oc.order); refusal != nil {
			return oc.refused(refusal)
		}
		return oc.run(cmd.Context(), c, out)
	}
	return cmd
}

func (oc *orderCommand) refused(why error) error {
	return exit(exitRejected, fmt.Errorf("%s %s: %w", oc.order.Verb, oc.order.OperationID, why))
}

func (oc *orderCommand) submit(ctx context.Context, c *client) (uint64, error) {
	sequence, err := oc.order.Publish(ctx, c.js)
	if err != nil {
		return 0, c.unreachable(err)
	}
	return sequence, nil
}

// cancel returns once the operation is cancelled, or has gone too far to be cancelled.
func (oc *orderCommand) cancel(ctx context.Context, c *client, out *ui) error {
	return oc.until(ctx, c, out, func(op events.Operation, _ uint64) (bool, error) { return op.State == events.Cancelled, nil })
}

// approve returns once an agent has accepted the approval, or refused it.
func (oc *orderCommand) approve(ctx context.Context, c *client, out *ui) error {
	return oc.until(ctx, c, out, func(op events.Operation, sequence uint64) (bool, error) {
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

// until publishes the order and looks at the operation until the order is carried out or refused.
func (oc *orderCommand) until(ctx context.Context, c *client, out *ui, carriedOut func(op events.Operation, sequence uint64) (bool, error)) error {
	sequence, err := oc.submit(ctx, c)
	if err != nil {
		return err
	}
	for {
		last, err := find(ctx, c, oc.order.OperationID)
		if err != nil && ctx.Err() == nil {
			return err
		}
		done, refusal := false, error(nil)
		if err == nil {
			done, refusal = carriedOut(last.Operation, sequence)
		}
		switch {
		case refusal != nil:
			return oc.refused(refusal)
		case done:
			if out.json {
				out.printJSON(last.body)
			} else {
				out.println(out.eventLine(last.Event, false))
			}
			return nil
		case err == nil:
			if refusal := last.Accepts(oc.order); refusal != nil {
				return oc.refused(refusal)
			}
		}
		select {
		case <-ctx.Done():
			return outcome(c, oc.order.OperationID, last.Operation, context.Cause(ctx))
		case <-time.After(lookAgain):
		}
	}
}

func (oc *orderCommand) retry(ctx context.Context, c *client, out *ui, wait bool) error {
	if !wait {
		if _, err := oc.submit(ctx, c); err != nil {
			return err
		}
		out.println("the order is in the stream; follow it: obwarden watch " + oc.order.OperationID)
		return nil
	}
	op, err := follow(ctx, c.js, followTarget{
		OperationID: oc.order.OperationID,
		Submit:      func(ctx context.Context) (uint64, error) { return oc.submit(ctx, c) },
	}, out)
	return outcome(c, oc.order.OperationID, op, err)
}
