package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"
)

// slots are the places for operations in each cluster: one record a cluster, in a
// key-value bucket that all agents share, written by compare-and-set. A slot is
// held by an operation, not by an agent or a timer: it is taken before the intent
// to call OCP is written and given back after the last event.
type slots struct {
	bucket jetstream.KeyValue
	ended  func(ctx context.Context, operationID string) bool
}

func clusterKey(cluster int64) string { return strconv.FormatInt(cluster, 10) }

// read returns the record of a cluster and its revision; 0 where there is none.
func (s slots) read(ctx context.Context, cluster int64) (ClusterRecord, uint64, error) {
	entry, err := s.bucket.Get(ctx, clusterKey(cluster))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return ClusterRecord{}, 0, nil
	}
	if err != nil {
		return ClusterRecord{}, 0, fmt.Errorf("read record of cluster %d: %w", cluster, err)
	}
	var record ClusterRecord
	decoder := json.NewDecoder(bytes.NewReader(entry.Value()))
	decoder.DisallowUnknownFields() // what is no record must not pass for one without slots
	if err := decoder.Decode(&record); err != nil {
		return ClusterRecord{}, 0, fmt.Errorf("read record of cluster %d: %w", cluster, err)
	}
	return record, entry.Revision(), nil
}

// take decides on the record as it is and, where the word is Allow and hold is
// set, writes the slot into it. Two agents never get the last slot both: whose
// write comes second decides anew. It never takes a slot out: an agent that decides
// on what another has under way must not give that one's slot away.
func (s slots) take(ctx context.Context, cluster int64, slot Slot, hold bool, decide func(ClusterRecord) Decision) (Decision, error) {
	for {
		record, revision, err := s.read(ctx, cluster)
		if err != nil {
			return Decision{}, err
		}
		decision := decide(record)
		if decision.Verdict == Wait {
			if s.dropEnded(ctx, &record) {
				decision = decide(record)
			}
		}
		if decision.Verdict != Allow || !hold || record.holds(slot.OperationID) {
			return decision, nil
		}
		record.Active = append(record.Active, slot)
		if err = s.write(ctx, cluster, record, revision); !errors.Is(err, jetstream.ErrKeyExists) {
			return decision, err
		}
	}
}

// dropEnded takes out slots of operations that have ended. There are none unless
// somebody deleted requests or events by hand; a lock without a holder must not block for ever.
func (s slots) dropEnded(ctx context.Context, record *ClusterRecord) bool {
	active := slices.DeleteFunc(slices.Clone(record.Active), func(slot Slot) bool { return s.ended(ctx, slot.OperationID) })
	dropped := len(active) < len(record.Active)
	record.Active = active
	return dropped
}

// give takes the slot of an operation that has ended out of the record, if it is there.
func (s slots) give(ctx context.Context, cluster int64, operationID string) error {
	for {
		record, revision, err := s.read(ctx, cluster)
		if err != nil || !record.holds(operationID) {
			return err
		}
		record.Active = slices.DeleteFunc(record.Active, func(slot Slot) bool { return slot.OperationID == operationID })
		if err = s.write(ctx, cluster, record, revision); !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
	}
}

// write replaces the record that had the revision; ErrKeyExists where somebody else has.
func (s slots) write(ctx context.Context, cluster int64, record ClusterRecord, revision uint64) error {
	value, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("write record of cluster %d: %w", cluster, err)
	}
	if _, err = s.bucket.Update(ctx, clusterKey(cluster), value, revision); err != nil {
		return fmt.Errorf("write record of cluster %d: %w", cluster, err)
	}
	return nil
}

// watch calls changed for each cluster whose record changes, until ctx ends.
func (s slots) watch(ctx context.Context, changed func(cluster int64)) error {
	watcher, err := s.bucket.WatchAll(ctx, jetstream.UpdatesOnly(), jetstream.MetaOnly())
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("watch key-value bucket: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, open := <-watcher.Updates():
			if !open {
				return nil
			}
			if entry == nil {
				continue // the mark between what was there and what comes
			}
			if cluster, err := strconv.ParseInt(entry.Key(), 10, 64); err == nil {
				changed(cluster)
			}
		}
	}
}
