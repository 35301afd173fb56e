package main

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/events"
)

func newWatch(a app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch [OPERATION]",
		Short: "Follow all operations, or one to its end",
		Long: `Follow the events of all operations as they come, or the events of one operation from its
first to its last. OPERATION is an operation's id or its idempotency key.

Following one operation ends with the exit code for its end: 0 succeeded, 1 failed,
3 rejected, expired or cancelled.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%q: one argument too many", args[1])
			}
			return nil
		},
	}
	nats, format := natsFlag(cmd), formatFlag(cmd)
	since := cmd.Flags().Duration("since", 0, "begin this long ago, e.g. 1h; a single operation is always shown from its beginning")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *since < 0:
			return usagef("--since: must not be less than 0")
		case len(args) == 1 && *since > 0:
			return usagef("--since: an OPERATION is always shown from its beginning")
		}
		c, err := a.dial(*nats)
		if err != nil {
			return err
		}
		defer c.close()
		out := newUI(a, format.json())
		c.onNotice(out.notice)
		if len(args) == 0 {
			return watchAll(cmd.Context(), c, *since, out)
		}
		last, err := find(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		op, err := follow(cmd.Context(), c.js, followTarget{OperationID: last.OperationID}, out)
		return outcome(c, last.OperationID, op, err)
	}
	return cmd
}

// watchAll prints events until ctx ends, which is no error.
func watchAll(ctx context.Context, c *client, since time.Duration, out *ui) error {
	stream, err := journal(ctx, c.js)
	if err != nil {
		return c.unreachable(err)
	}
	config := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{events.EventSubjects},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    stream.CachedInfo().State.LastSeq + 1,
	}
	if since > 0 {
		from := time.Now().Add(-since)
		config.DeliverPolicy, config.OptStartSeq, config.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &from
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all, err := subscribe(ctx, c.js, config, func(err error) { out.notice(err.Error()) })
	if err != nil {
		return c.unreachable(err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case m, ok := <-all:
			switch {
			case !ok && ctx.Err() == nil:
				return c.unreachable(errors.New("the connection was closed"))
			case !ok:
				return nil
			case out.json:
				out.printJSON(m.body)
			default:
				out.println(out.eventLine(m.Event, true))
			}
		}
	}
}
