package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/events"
)

func newGet(a app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get OPERATION",
		Short: "Show everything that is known about an operation",
		Long: `Show an operation as it is now. OPERATION is its id or its idempotency key. With --events,
show its events instead, one on each line.`,
		Args: exactArgs("OPERATION"),
	}
	nats, format := natsFlag(cmd), formatFlag(cmd)
	trail := cmd.Flags().Bool("events", false, "show the audit trail instead")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.dial(*nats)
		if err != nil {
			return err
		}
		defer c.close()
		last, err := find(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		out := newUI(a, format.json())
		switch {
		case *trail:
			return c.unreachable(read(cmd.Context(), c.js, jetstream.OrderedConsumerConfig{
				FilterSubjects: []string{events.OperationSubjects(last.OperationID)},
			}, func(msg jetstream.Msg) error { return printTrail(msg, out) }))
		case format.json():
			var indented bytes.Buffer
			if err := json.Indent(&indented, last.body, "", "  "); err != nil {
				return fmt.Errorf("operation %s: %w", last.OperationID, err)
			}
			out.println(indented.String())
			return nil
		}
		s := out.style()
		s.full = true
		out.settle(renderTree(last.Operation, out.now(), s))
		return nil
	}
	return cmd
}

func printTrail(msg jetstream.Msg, out *ui) error {
	m, err := decode(msg)
	switch {
	case out.json:
		out.printJSON(msg.Data())
	case err != nil: // written by a newer agent: the trail has no gaps
		out.println(fmt.Sprintf("sequence %d: %s", m.sequence, cleanLine(err.Error())))
	default:
		s := out.style()
		op := cleaned(m.Operation)
		l := line{}.with(padLeft(fmt.Sprint(op.N), 3)+"  ", dim).
			with(op.UpdatedAt.UTC().Format("2006-01-02T15:04:05.000Z")+"  ", dim).
			with(pad(cleanLine(string(m.Token)), 12), stateInk(m.Token)).
			with(eventText(events.Event{Operation: op, Token: m.Token}, true), "").
			with("  agent "+op.Agent, dim)
		s.width = 0
		out.println(s.render(l))
	}
	return nil
}
