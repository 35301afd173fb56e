package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/obwarden/obwarden/events"
)

// listReaders is the number of documents that are fetched at the same time.
const listReaders = 8

// selection is which operations a person wants to see.
type selection struct {
	state   string
	cluster int64
	open    bool
	limit   int
}

func newList(a app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List operations, the newest first",
		Args:  exactArgs(),
	}
	nats, format := natsFlag(cmd), formatFlag(cmd)
	var want selection
	f := cmd.Flags()
	f.StringVar(&want.state, "state", "", "only operations in this state, e.g. waiting")
	f.Int64Var(&want.cluster, "cluster", 0, "only operations of this cluster")
	f.BoolVar(&want.open, "open", false, "only operations that have not ended")
	f.IntVar(&want.limit, "limit", 50, "show at most this many operations; 0: all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := usage(want.check(cmd.Flags().Changed("cluster"))); err != nil {
			return err
		}
		c, err := a.dial(*nats)
		if err != nil {
			return err
		}
		defer c.close()
		all, err := overview(cmd.Context(), c.js)
		if err != nil {
			return c.unreachable(err)
		}
		operations, err := fetch(cmd.Context(), c.js, want.pick(all))
		if err != nil {
			return c.unreachable(err)
		}
		out := newUI(a, format.json())
		if format.json() {
			for _, m := range operations {
				out.printJSON(m.body)
			}
			return nil
		}
		for _, p := range pauses(cmd.Context(), c.js) {
			out.notice(p)
		}
		if len(operations) == 0 {
			out.notice("no operations match; obwarden watch shows new ones as they come")
			return nil
		}
		out.settle(table(operations, out.now(), out.style()))
		return nil
	}
	return cmd
}

// pauses describes each pause in one line. A user who may not read the bucket still sees the operations, which say what
// they wait for.
func pauses(ctx context.Context, js jetstream.JetStream) []string {
	bucket, err := js.KeyValue(ctx, events.ControlBucket)
	if err != nil {
		return nil
	}
	watcher, err := bucket.Watch(ctx, events.PauseKeys)
	if err != nil {
		return nil
	}
	defer func() { _ = watcher.Stop() }() // the connection is about to end anyway
	var lines []string
	for entry := range watcher.Updates() {
		if entry == nil { // that was all
			break
		}
		cluster, p, err := events.DecodePause(entry.Key(), entry.Value())
		if err != nil || !p.Paused || entry.Operation() != jetstream.KeyValuePut {
			continue
		}
		what := "all clusters are"
		if cluster != events.AllClusters {
			what = fmt.Sprintf("cluster %d is", cluster)
		}
		lines = append(lines, fmt.Sprintf("%s paused by %s since %s: %s", what, p.By, p.At.Format(time.RFC3339), p.Reason))
	}
	return lines
}

func (want selection) check(clusterGiven bool) error {
	switch {
	case want.state != "" && !slices.Contains(events.States(), events.State(want.state)):
		var states []string
		for _, s := range events.States() {
			states = append(states, string(s))
		}
		return fmt.Errorf("--state: %q is none of %s", want.state, strings.Join(states, ", "))
	case clusterGiven && want.cluster < 1:
		return fmt.Errorf("--cluster: must be an integer of at least 1")
	case want.limit < 0:
		return fmt.Errorf("--limit: must not be less than 0")
	}
	return nil
}

// entry is what the subjects of an operation's events say, without its document.
type entry struct {
	first, last uint64 // sequences in the journal
	cluster     int64
	state       events.State
	stateAt     uint64 // sequence of the event that state is from
}

// overview reads, for each operation, the subject of the last event of each state, without the documents: a few hundred
// bytes for an operation instead of tens of thousands.
func overview(ctx context.Context, js jetstream.JetStream) ([]entry, error) {
	byID := map[string]*entry{}
	err := read(ctx, js, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{events.EventSubjects},
		DeliverPolicy:  jetstream.DeliverLastPerSubjectPolicy,
		HeadersOnly:    true,
	}, func(msg jetstream.Msg) error {
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		tokens := strings.Split(msg.Subject(), ".")
		if len(tokens) != 8 {
			return nil
		}
		e := byID[tokens[4]]
		if e == nil {
			e = &entry{first: meta.Sequence.Stream}
			byID[tokens[4]] = e
		}
		e.add(meta.Sequence.Stream, tokens)
		return nil
	})
	all := make([]entry, 0, len(byID))
	for e := range maps.Values(byID) {
		all = append(all, *e)
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(b.first, a.first) })
	return all, err
}

func (e *entry) add(sequence uint64, tokens []string) {
	e.first, e.last = min(e.first, sequence), max(e.last, sequence)
	e.cluster, _ = strconv.ParseInt(tokens[5], 10, 64)
	state := events.State(tokens[7])
	switch state {
	case events.Duplicate, events.Approved:
		return // these say nothing about the state
	case events.Progress, events.Stalled:
		state = events.Running
	}
	if sequence > e.stateAt {
		e.state, e.stateAt = state, sequence
	}
}

// pick returns the operations to show. All of them come newest first.
func (want selection) pick(all []entry) []entry {
	var picked []entry
	for _, e := range all {
		if want.limit > 0 && len(picked) == want.limit {
			break
		}
		if want.state != "" && string(e.state) != want.state ||
			want.cluster != 0 && e.cluster != want.cluster ||
			want.open && e.state.Final() {
			continue
		}
		picked = append(picked, e)
	}
	return picked
}

// fetch reads the last event of each operation.
func fetch(ctx context.Context, js jetstream.JetStream, entries []entry) ([]message, error) {
	stream, err := journal(ctx, js)
	if err != nil {
		return nil, err
	}
	messages := make([]message, len(entries))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(listReaders)
	for i, e := range entries {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			msg, err := stream.GetMsg(ctx, e.last)
			if err != nil {
				return err
			}
			decoded, err := events.DecodeEvent(msg.Subject, msg.Data)
			messages[i] = message{Event: decoded, body: msg.Data, sequence: msg.Sequence}
			return err
		})
	}
	return messages, group.Wait()
}

// table aligns the operations in columns. The last column takes the room that is left.
func table(operations []message, now time.Time, s style) []string {
	rows := [][]span{{{"OPERATION", dim}, {"KIND", dim}, {"CLUSTER", dim}, {"SERVER", dim}, {"STATE", dim}, {"PROGRESS", dim}, {"AGE", dim}, {"TOOK", dim}, {"REASON", dim}}}
	for _, m := range operations {
		op := cleaned(m.Operation)
		end := now
		if op.State.Final() {
			end = op.EndedAt
		}
		progress := ""
		if op.Task != nil {
			progress = fmt.Sprintf("%d of %d", done(*op.Task), len(op.Task.Subtasks))
		}
		reason := op.Request.Reason
		if op.Reason != nil {
			reason = op.Reason.Code + ": " + op.Reason.Message
		}
		rows = append(rows, []span{
			{op.OperationID, ""}, {string(op.Kind), ""}, {fmt.Sprint(op.ClusterID), ""}, {fmt.Sprint(op.ServerID), ""},
			{string(op.State), stateInk(op.State)}, {progress, ""},
			{wholeDuration(now.Sub(op.RequestedAt)), dim}, {wholeDuration(end.Sub(op.RequestedAt)), ""}, {reason, ""},
		})
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], textWidth(cell.text))
		}
	}
	right := map[int]bool{2: true, 3: true, 6: true, 7: true} // numbers and durations
	lines := make([]string, len(rows))
	for n, row := range rows {
		var l line
		for i, cell := range row {
			text := pad(cell.text, widths[i])
			if right[i] {
				text = padLeft(cell.text, widths[i])
			}
			l = l.with(text, cell.ink)
			if i < len(row)-1 {
				l = l.with("  ", "")
			}
		}
		lines[n] = s.render(l)
	}
	return lines
}
