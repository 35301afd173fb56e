//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// history collects everything that the run has left behind, and ends the agents.
func (a *arena) history() history {
	h := history{tasks: map[int64]task{}, late: callTimeout + maxOCPHold + slack}
	a.await("requests that are left", patience, func(ctx context.Context) error { return a.readLeft(ctx, &h) })
	for _, p := range a.agents {
		a.shutdowns = append(a.shutdowns, p.close(syscall.SIGTERM))
		h.panics = append(h.panics, p.panics...)
	}
	h.panics = append(h.panics, a.nats.panics...)
	a.await("the journal", patience, func(ctx context.Context) error {
		stream, err := a.js.Stream(ctx, events.OperationStream)
		if err != nil {
			return err
		}
		h.events = h.events[:0]
		reading, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return a.readJournal(reading, 1, stream.CachedInfo().State.LastSeq, func(e event) { h.events = append(h.events, e) })
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.load.mu.Lock()
	defer a.load.mu.Unlock()
	h.requests, h.retries, h.cancels = a.load.requests, a.load.retries, a.load.cancels
	h.pauses, h.ordered, h.mended = a.pauses, a.load.ordered, a.load.mended
	a.harvest(time.Now())
	h.posts = a.posts
	for _, t := range a.sim.Tasks() {
		h.tasks[t.ID] = taskFrom(t)
	}
	return h
}

// readLeft reads what is left in the request stream, which should be nothing, and the slots in the records of clusters.
// A slot stays in its record until somebody takes the next one: the checker says which of them are still held.
func (a *arena) readLeft(ctx context.Context, h *history) error {
	stream, err := a.js.Stream(ctx, events.RequestStream)
	if err != nil {
		return err
	}
	h.open, h.slots = nil, nil
	state := stream.CachedInfo().State
	for next := state.FirstSeq; state.Msgs > 0 && next <= state.LastSeq; {
		msg, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject("ob.server.>")) // the next there is
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return err
		}
		h.open = append(h.open, fmt.Sprintf("%d %s %s", msg.Sequence, msg.Subject, msg.Data))
		next = msg.Sequence + 1
	}
	bucket, err := a.js.KeyValue(ctx, events.ClusterBucket)
	if err != nil {
		return err
	}
	for _, c := range a.clusters {
		entry, err := bucket.Get(ctx, fmt.Sprint(c.ID))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		var record struct {
			Active []slot `json:"active"`
		}
		if err := json.Unmarshal(entry.Value(), &record); err != nil {
			return err
		}
		h.slots = append(h.slots, record.Active...)
	}
	return nil
}

var errJournalGap = errors.New("the journal has a gap")

// readJournal reads the journal from one sequence to another, or for ever if that is 0.
func (a *arena) readJournal(ctx context.Context, from, to uint64, saw func(event)) error {
	try, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	consumer, err := a.js.OrderedConsumer(try, events.OperationStream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for to == 0 || from <= to {
		next, cancel := context.WithTimeout(ctx, 3*time.Second)
		msg, err := messages.Next(jetstream.NextContext(next))
		cancel()
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Stream != from {
			return fmt.Errorf("%w: %d comes after %d", errJournalGap, meta.Sequence.Stream, from-1)
		}
		from++
		e := event{sequence: meta.Sequence.Stream, stored: meta.Timestamp, token: msg.Subject()[strings.LastIndexByte(msg.Subject(), '.')+1:]}
		if err := json.Unmarshal(msg.Data(), &e.document); err != nil {
			return fmt.Errorf("event at sequence %d: %w", meta.Sequence.Stream, err)
		}
		saw(e)
	}
	return nil
}

// harvestEvery is short enough for no entry to be forgotten in between.
const harvestEvery = 20 * time.Second

// harvest copies the calls that change something from OCP's log, which forgets old entries. It stops at a moment that
// is long enough ago for the log to know what became of the calls.
func (a *arena) harvest(until time.Time) {
	kinds := map[ocpsim.Endpoint]string{ocpsim.ServerStop: "stop", ocpsim.ServerStart: "start", ocpsim.ServerRestart: "restart", ocpsim.TaskRetry: "retry"}
	for _, e := range a.sim.Log() {
		if e.Seq <= a.harvested {
			continue
		}
		if e.Time.After(until) {
			return
		}
		if a.harvested > 0 && e.Seq != a.harvested+1 {
			a.t.Errorf("OCP's log lacks %d to %d", a.harvested+1, e.Seq-1)
		}
		a.harvested = e.Seq
		if kind, ok := kinds[e.Endpoint]; ok {
			a.posts = append(a.posts, post{at: e.Time, kind: kind, cluster: e.Cluster, server: e.Server,
				operation: e.IdempotencyKey, request: e.RequestID, task: e.TaskID, fault: e.Fault})
		}
	}
}

func taskFrom(t ocpsim.Task) task {
	one := task{kind: strings.TrimPrefix(string(t.Endpoint), "server_"), cluster: t.Cluster, server: t.Servers[0],
		status: t.Status, started: t.StartTime, finished: t.FinishTime}
	for _, s := range t.Subtasks {
		if s.Operation == "RETRY" {
			one.resumed = s.StartTime
		}
	}
	return one
}

// quantile of sorted durations.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
