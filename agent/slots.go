package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
)

// fleetKey is the key of the record of all clusters together.
const fleetKey = "fleet"

// slots are the places for operations in each cluster: one record a cluster, in a
// key-value bucket that all agents share, written by compare-and-set. A slot is
// held by an operation, not by an agent or a timer: it is taken before the intent
// to call OCP is written and given back after the last event, or when the
// operation waits again.
//
// What others write comes by a watch, so that a decision costs no round trip but
// that of its write; a write that rests on something older fails and reads anew.
// All methods may be called concurrently.
type slots struct {
	bucket jetstream.KeyValue
	group  *group
	log    *slog.Logger

	mu      sync.Mutex
	known   map[string]versioned
	writing map[string]versioned // by this agent: the watch often shows it before its answer comes
	// writers of this agent queue instead of failing each other.
	writers [64]sync.Mutex
}

// versioned is a value with its revision in the bucket; 0 where there is none.
type versioned struct {
	value    []byte
	revision uint64
	decoded  any // of value, once somebody has asked: it is asked for far more often than it changes
}

func newSlots(js jetstream.JetStream, bucket jetstream.KeyValue, log *slog.Logger) *slots {
	return &slots{bucket: bucket, group: &group{js: js}, log: log, known: map[string]versioned{}, writing: map[string]versioned{}}
}

func clusterKey(cluster int64) string { return strconv.FormatInt(cluster, 10) }

// record is the record of a cluster as this agent knows it.
func (s *slots) record(cluster int64) guard.Record {
	record, _, err := knownAs[guard.Record](s, clusterKey(cluster))
	if err != nil {
		return guard.Record{} // whoever is to change it meets the error
	}
	return record
}

// fleet is the record of all clusters together as this agent knows it.
func (s *slots) fleet() guard.Fleet {
	fleet, _, err := knownAs[guard.Fleet](s, fleetKey)
	if err != nil {
		return guard.Fleet{} // whoever is to change it meets the error
	}
	return fleet
}

// revision is that of the record of a cluster as this agent knows it.
func (s *slots) revision(cluster int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[clusterKey(cluster)].revision
}

// all are the records of all clusters as this agent knows them.
func (s *slots) all() map[int64]guard.Record {
	s.mu.Lock()
	keys := slices.Collect(maps.Keys(s.known))
	s.mu.Unlock()
	all := map[int64]guard.Record{}
	for _, key := range keys {
		cluster, err := strconv.ParseInt(key, 10, 64)
		if err != nil {
			continue
		}
		if record, _, err := knownAs[guard.Record](s, key); err == nil {
			all[cluster] = record
		}
	}
	return all
}

// update changes the record of a cluster. change may be called several times, each
// time with a later record that it may change; it says whether there is anything to write.
func (s *slots) update(ctx context.Context, cluster int64, change func(*guard.Record) bool) error {
	defer s.queue(cluster)()
	if err := update(ctx, s, clusterKey(cluster), false, change); err != nil {
		return fmt.Errorf("record of cluster %d: %w", cluster, err)
	}
	return nil
}

// updateSurely is update for a change that must not be missed because another agent
// knows more: where there seems to be nothing to write, it looks again.
func (s *slots) updateSurely(ctx context.Context, cluster int64, change func(*guard.Record) bool) error {
	defer s.queue(cluster)()
	if err := update(ctx, s, clusterKey(cluster), true, change); err != nil {
		return fmt.Errorf("record of cluster %d: %w", cluster, err)
	}
	return nil
}

// updateFleet changes the record of all clusters, like update.
func (s *slots) updateFleet(ctx context.Context, change func(*guard.Fleet) bool) error {
	if err := update(ctx, s, fleetKey, false, change); err != nil {
		return fmt.Errorf("record of all clusters: %w", err)
	}
	return nil
}

func (s *slots) queue(cluster int64) (unlock func()) {
	lock := &s.writers[uint64(cluster)%uint64(len(s.writers))]
	lock.Lock()
	return lock.Unlock
}

func update[T any](ctx context.Context, s *slots, key string, sure bool, change func(*T) bool) error {
	value, revision, err := knownAs[T](s, key)
	for ; ; value, revision, err = readAs[T](ctx, s, key) {
		if err != nil {
			return err
		}
		if !change(&value) {
			if !sure {
				return nil
			}
			sure = false
			continue
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		v := versioned{value: encoded, decoded: value}
		s.mu.Lock()
		s.writing[key] = v
		s.mu.Unlock()
		if v.revision, err = s.write(ctx, key, encoded, revision); err == nil {
			s.learn(key, v)
			return nil
		}
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			return fmt.Errorf("%w: key-value bucket %s is gone (%w)", errRecord, s.bucket.Bucket(), err)
		}
		if !isConflict(err) {
			return fmt.Errorf("write: %w", err)
		}
		sure = false
	}
}

// isConflict: somebody else has written the key. Streams with several copies have a code
// of their own for that.
func isConflict(err error) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (e.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || e.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// write replaces the value that had the revision; see isConflict where somebody else has.
// Values of several clusters that are replaced at the same time share a flush.
func (s *slots) write(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if revision == 0 {
		return s.bucket.Create(ctx, key, value)
	}
	return s.group.append(ctx, 1, func() ([]*nats.Msg, error) {
		msg := nats.NewMsg(events.BucketKey(s.bucket.Bucket(), key))
		msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, fmt.Sprint(revision))
		msg.Data = value
		return []*nats.Msg{msg}, nil
	})
}

func (s *slots) read(ctx context.Context, key string) (versioned, error) {
	entry, err := s.bucket.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.known[key] = versioned{}
		return versioned{}, nil
	}
	if err != nil {
		return versioned{}, fmt.Errorf("read: %w", err)
	}
	read := versioned{value: entry.Value(), revision: entry.Revision()}
	s.learn(key, read)
	return read, nil
}

func readAs[T any](ctx context.Context, s *slots, key string) (T, uint64, error) {
	read, err := s.read(ctx, key)
	if err != nil {
		var none T
		return none, 0, err
	}
	return decodeKnown[T](read)
}

// knownAs is what is known under a key. Others get the same: it is never changed in place.
func knownAs[T any](s *slots, key string) (T, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.known[key]
	if value, ok := v.decoded.(T); ok {
		return value, v.revision, nil
	}
	value, revision, err := decodeKnown[T](v)
	if err == nil && revision > 0 {
		v.decoded = value
		s.known[key] = v
	}
	return value, revision, err
}

// learn keeps the later of what it knows and v.
func (s *slots) learn(key string, v versioned) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.revision <= s.known[key].revision {
		return
	}
	if own := s.writing[key]; v.decoded == nil && own.decoded != nil && bytes.Equal(v.value, own.value) {
		v.decoded = own.decoded
	}
	s.known[key] = v
}

// decodeKnown reads a value; the zero value where there is none.
func decodeKnown[T any](v versioned) (T, uint64, error) {
	var value T
	if len(v.value) == 0 {
		return value, v.revision, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(v.value))
	decoder.DisallowUnknownFields() // what is no record must not pass for one without slots
	if err := decoder.Decode(&value); err != nil {
		return value, v.revision, fmt.Errorf("%w: %w", errRecord, err)
	}
	return value, v.revision, nil
}

// errRecord is a record that cannot be understood, or not be kept: nothing is done in
// its cluster, which is no error of an operation.
var errRecord = errors.New("it cannot be understood")

// watch learns what others write until ctx ends, and calls changed for each cluster
// in which a slot was taken or given back, by this agent too. It calls ready once it
// knows everything that is there.
func (s *slots) watch(ctx context.Context, ready func(), changed func(cluster int64)) error {
	type state struct {
		generation uint64
		queue      int
	}
	shown := map[int64]state{} // what changed was called with: what is known has this agent's own writes already
	return watch(ctx, s.bucket, ">", ready, func(entry jetstream.KeyValueEntry) {
		v := versioned{value: entry.Value(), revision: entry.Revision()}
		if entry.Operation() != jetstream.KeyValuePut {
			v.value = nil // deleted by hand
		}
		s.learn(entry.Key(), v)
		cluster, err := strconv.ParseInt(entry.Key(), 10, 64)
		if err != nil {
			return
		}
		// Perhaps a later one, by this agent: what is done about it rests on that anyway.
		record, _, err := knownAs[guard.Record](s, entry.Key())
		if err != nil {
			s.log.Error("the record of a cluster cannot be understood: nothing is done in it", "bucket", events.ClusterBucket, "cluster", cluster, "error", err)
		}
		now := state{record.Generation, len(record.Queue)}
		if err != nil || now != shown[cluster] {
			changed(cluster)
		}
		shown[cluster] = now
	})
}

// watch calls learn for each value of a bucket under keys and for each change, until
// ctx ends; ready when all that was there has been shown.
func watch(ctx context.Context, bucket jetstream.KeyValue, keys string, ready func(), learn func(jetstream.KeyValueEntry)) error {
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
			case entry == nil: // the mark between what was there and what comes
				ready()
			default:
				learn(entry)
			}
		}
	}
}
