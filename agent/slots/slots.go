package slots

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
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/events"
)

// ErrRecord is a record that cannot be understood, or cannot be kept: nothing is done in its cluster. It is no error of
// an operation.
var ErrRecord = errors.New("it cannot be understood")

// fleetKey is the key of the record of all clusters together.
const fleetKey = "fleet"

// Slots are the records of all clusters as this agent knows them. All methods may be called concurrently.
type Slots struct {
	bucket  jetstream.KeyValue
	group   *journal.GroupCommit
	events  jetstream.Stream
	pauses  *Pauses
	log     *slog.Logger
	writers [64]sync.Mutex // writers of this agent queue instead of failing each other

	mu       sync.Mutex
	known    map[string]versioned
	writing  map[string]versioned          // by this agent: the watch often shows it before the answer to the write comes
	holders  map[int64]map[string]lastSeen // by cluster and operation: of operations that its record names
	versions map[int64]uint64              // of what a decision sees of the cluster; grows with each change

	generations map[int64]generation
}

// versioned is a value with its revision in the bucket; revision 0 where there is none.
type versioned struct {
	value    []byte
	revision uint64
	decoded  any // of value, once somebody has asked: it is asked for far more often than it changes
}

// New returns the slots that are kept in bucket, of operations whose events are in stream. Watch learns them.
func New(bucket jetstream.KeyValue, group *journal.GroupCommit, stream jetstream.Stream, pauses *Pauses, log *slog.Logger) *Slots {
	return &Slots{
		bucket: bucket, group: group, events: stream, pauses: pauses, log: log,
		known: map[string]versioned{}, writing: map[string]versioned{}, holders: map[int64]map[string]lastSeen{}, versions: map[int64]uint64{},
		generations: map[int64]generation{},
	}
}

func clusterKey(cluster int64) string { return strconv.FormatInt(cluster, 10) }

// Record is the record of a cluster as this agent knows it, folded by the events that it knows.
func (s *Slots) Record(cluster int64) guard.Record {
	record, _, err := knownAs[guard.Record](s, clusterKey(cluster))
	if err != nil {
		return guard.Record{} // an update of it meets the error
	}
	return s.fold(cluster, record)
}

// Fleet is the record of all clusters together as this agent knows it.
func (s *Slots) Fleet() guard.Fleet {
	fleet, _, err := knownAs[guard.Fleet](s, fleetKey)
	if err != nil {
		return guard.Fleet{} // an update of it meets the error
	}
	return fleet
}

// Version grows with each change of what a decision sees of a cluster: its record, or the events of its operations.
func (s *Slots) Version(cluster int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.versions[cluster]
}

// Clusters lists the clusters that have a record.
func (s *Slots) Clusters() []int64 {
	s.mu.Lock()
	keys := slices.Collect(maps.Keys(s.known))
	s.mu.Unlock()
	var clusters []int64
	for _, key := range keys {
		if cluster, err := strconv.ParseInt(key, 10, 64); err == nil {
			clusters = append(clusters, cluster)
		}
	}
	return clusters
}

// Update changes the record of op's cluster. It first asks the journal for events that it does not know and that matter
// to op. change may be called several times, each time with a later record, folded, that it may change; it reports
// whether there is anything to write. version is the cluster's Version as change last saw it, its own write included.
func (s *Slots) Update(ctx context.Context, op events.Operation, change func(*guard.Record) bool) (version uint64, err error) {
	defer s.lockCluster(op.ClusterID)()
	written, err := update(ctx, s, clusterKey(op.ClusterID), func(record guard.Record) guard.Record {
		s.verify(ctx, op, record)
		version = s.Version(op.ClusterID)
		return s.fold(op.ClusterID, record)
	}, change)
	if err != nil {
		return version, fmt.Errorf("record of cluster %d: %w", op.ClusterID, err)
	}
	if written {
		version++
	}
	return version, nil
}

// UpdateFleet changes the record of all clusters, like Update.
func (s *Slots) UpdateFleet(ctx context.Context, change func(*guard.Fleet) bool) error {
	if _, err := update(ctx, s, fleetKey, func(fleet guard.Fleet) guard.Fleet { return fleet }, change); err != nil {
		return fmt.Errorf("record of all clusters: %w", err)
	}
	return nil
}

func (s *Slots) lockCluster(cluster int64) (unlock func()) {
	lock := &s.writers[uint64(cluster)%uint64(len(s.writers))]
	lock.Lock()
	return lock.Unlock
}

func update[T any](ctx context.Context, s *Slots, key string, prepare func(T) T, change func(*T) bool) (written bool, err error) {
	value, revision, err := knownAs[T](s, key)
	for ; ; value, revision, err = readAs[T](ctx, s, key) {
		if err != nil {
			return false, err
		}
		if value = prepare(value); !change(&value) {
			return false, nil
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			return false, fmt.Errorf("encode: %w", err)
		}
		v := versioned{value: encoded, decoded: value}
		s.mu.Lock()
		s.writing[key] = v
		s.mu.Unlock()
		if v.revision, err = s.write(ctx, key, encoded, revision); err == nil {
			s.learn(key, v)
			return true, nil
		}
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			return false, fmt.Errorf("%w: key-value bucket %s is gone (%w)", ErrRecord, s.bucket.Bucket(), err)
		}
		if !journal.IsConflict(err) {
			return false, fmt.Errorf("write: %w", err)
		}
	}
}

// write replaces the value that had the revision; the error is a conflict where somebody else has. Values of several
// clusters that are replaced at the same time share a flush.
func (s *Slots) write(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if revision == 0 {
		return s.bucket.Create(ctx, key, value)
	}
	return s.group.Publish(ctx, 1, func() ([]*nats.Msg, error) {
		msg := nats.NewMsg(events.BucketKey(s.bucket.Bucket(), key))
		msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, fmt.Sprint(revision))
		msg.Data = value
		return []*nats.Msg{msg}, nil
	})
}

func (s *Slots) read(ctx context.Context, key string) (versioned, error) {
	entry, err := s.bucket.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		s.forget(key)
		return versioned{}, nil
	}
	if err != nil {
		return versioned{}, fmt.Errorf("read: %w", err)
	}
	read := versioned{value: entry.Value(), revision: entry.Revision()}
	s.learn(key, read)
	return read, nil
}

func readAs[T any](ctx context.Context, s *Slots, key string) (T, uint64, error) {
	read, err := s.read(ctx, key)
	if err != nil {
		var none T
		return none, 0, err
	}
	return decodeKnown[T](read)
}

// knownAs is the value that is known under a key. Others get the same value: it is never changed in place.
func knownAs[T any](s *Slots, key string) (T, uint64, error) {
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

// learn keeps the later of v and the value that is known.
func (s *Slots) learn(key string, v versioned) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.revision <= s.known[key].revision {
		return
	}
	if own := s.writing[key]; v.decoded == nil && own.decoded != nil && bytes.Equal(v.value, own.value) {
		v.decoded = own.decoded
	}
	had := len(s.known[key].value) > 0
	s.known[key] = v
	s.changed(key, had && len(v.value) == 0)
}

// forget takes in that there is no value under a key any more.
func (s *Slots) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	had := len(s.known[key].value) > 0
	s.known[key] = versioned{}
	s.changed(key, had)
}

// changed counts a change of the record of a cluster. The caller holds the lock of s.
func (s *Slots) changed(key string, lost bool) {
	cluster, err := strconv.ParseInt(key, 10, 64)
	if err != nil {
		return // the record of all clusters
	}
	s.versions[cluster]++
	if lost {
		s.lost(cluster)
	}
}

// decodeKnown reads a value; the zero value where there is none.
func decodeKnown[T any](v versioned) (T, uint64, error) {
	var value T
	if len(v.value) == 0 {
		return value, v.revision, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(v.value))
	decoder.DisallowUnknownFields() // a value that is no record must not pass for a record without slots
	if err := decoder.Decode(&value); err != nil {
		return value, v.revision, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return value, v.revision, nil
}
