// Package slots keeps the record of each cluster that all agents share: which operations took slots and when, which
// operations are queued, and recent history. It also knows which clusters people have paused.
//
// An operation holds a slot; an agent or a timer does not. An operation takes its slot before the agent writes the
// intent to call OCP. The slot is free once the last event of its operation in the journal says waiting or an end: no
// second write frees it. slots.go reads and writes records, holders.go knows those last events, watch.go watches what
// other agents write, and pauses.go what people pause. The package imports events, agent/guard and agent/journal.
package slots

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
)

// stopTimeout is how long the watch of events may take to end. An agent that is told to end does not wait for longer.
const stopTimeout = time.Second

// Watch watches what other agents write until ctx ends, and calls changed for each cluster in which a slot or a place
// in the queue may have become free. It calls ready once it knows every record. Events of this agent are no news to it:
// Saw reports what they free.
func (s *Slots) Watch(ctx context.Context, ready func(), changed func(cluster int64)) error {
	group, ctx := errgroup.WithContext(ctx)
	// The watch announces events from here on. The first decision that needs an earlier event reads it from the
	// journal.
	follow, err := s.followEvents(ctx, changed)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	group.Go(follow)
	group.Go(func() error { return s.watchRecords(ctx, ready, changed) })
	return group.Wait()
}

// followEvents watches events that may free a slot. The function that it returns waits for the end of ctx.
func (s *Slots) followEvents(ctx context.Context, changed func(cluster int64)) (func() error, error) {
	info, err := s.events.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", events.OperationStream, err)
	}
	var subjects []string
	for _, token := range events.States() {
		if token == events.Waiting || token.Final() {
			subjects = append(subjects, events.TokenSubjects(token))
		}
	}
	consumer, err := s.events.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		FilterSubjects: subjects, HeadersOnly: true,
		// A start by sequence, so that a consumer that has to be created again goes on where it was.
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: info.State.LastSeq + 1,
	})
	if err != nil {
		return nil, fmt.Errorf("watch events in stream %s: %w", events.OperationStream, err)
	}
	consuming, err := consumer.Consume(func(msg jetstream.Msg) {
		if a, err := announcementOf(msg); err == nil && s.noteEvent(a) {
			changed(a.cluster)
		}
	}, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		s.log.Debug("watch of events", "error", err) // the consumer recovers by itself
	}))
	if err != nil {
		return nil, fmt.Errorf("watch events in stream %s: %w", events.OperationStream, err)
	}
	return func() error {
		<-ctx.Done()
		ended := make(chan struct{})
		go func() {
			consuming.Stop() // waits for NATS, for up to 10 s, where the consumer is just being made anew
			<-consuming.Closed()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(stopTimeout):
		}
		return nil
	}, nil
}

// announcementOf reads an event without its body.
func announcementOf(msg jetstream.Msg) (announcement, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return announcement{}, err
	}
	id, cluster, err := events.EventOperation(msg.Subject())
	if err != nil {
		return announcement{}, err
	}
	_, n, _ := strings.Cut(msg.Headers().Get(nats.MsgIdHdr), ".") // the event's number is at least its step
	steps, err := strconv.Atoi(n)
	if err != nil {
		steps = math.MaxInt
	}
	holder := guard.Holder{State: events.EventToken(msg.Subject()), Steps: steps}
	return announcement{cluster: cluster, id: id, holder: holder, sequence: meta.Sequence.Stream}, nil
}

func (s *Slots) watchRecords(ctx context.Context, ready func(), changed func(cluster int64)) error {
	before := map[int64]int{} // slots and tickets in the record that the watch showed last
	return watch(ctx, s.bucket, ">", ready, func(entry jetstream.KeyValueEntry) {
		v := versioned{value: entry.Value(), revision: entry.Revision()}
		if entry.Operation() != jetstream.KeyValuePut {
			v.value = nil // deleted by hand
		}
		own := s.learn(entry.Key(), v)
		cluster, err := strconv.ParseInt(entry.Key(), 10, 64)
		if err != nil {
			return
		}
		// This may be a later record that this agent wrote: its decisions rest on the later one anyway.
		record, _, err := knownAs[guard.Record](s, entry.Key())
		if err != nil {
			s.log.Error("the record of a cluster cannot be used: nothing is done in the cluster",
				"bucket", events.ClusterBucket, "cluster", cluster, "error", err)
		}
		s.prune(cluster, record)
		// A record that this agent wrote frees a place only if it names fewer operations than before. In another
		// agent's record the holders of slots may have ended already: the next decisions read their events.
		taken := len(record.Active) + len(record.Queue)
		if err != nil || !own || taken < before[cluster] {
			changed(cluster)
		}
		before[cluster] = taken
	})
}

// watch calls learn for each value of a bucket under keys and for each change, until ctx ends. It calls ready after the
// last value that existed at the start.
func watch(
	ctx context.Context, bucket jetstream.KeyValue, keys string, ready func(), learn func(jetstream.KeyValueEntry),
) error {
	watcher, err := bucket.Watch(ctx, keys)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("watch key-value bucket %s: %w", bucket.Bucket(), err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, open := <-watcher.Updates():
			switch {
			case !open:
				return nil
			case entry == nil: // the mark between the values that existed and the changes
				ready()
			default:
				learn(entry)
			}
		}
	}
}
