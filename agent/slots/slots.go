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

	mu      sync.Mutex
	known   map[string]versioned
	writing map[string]versioned          // by this agent: the watch often shows it before the answer to the write comes
	holders map[int64]map[string]lastSeen // by cluster and operation: of operations that its record names
	changes map[int64]uint64              // by cluster: how often a decision sees another record without a new revision

	generations map[int64]*generation
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
		known: map[string]versioned{}, writing: map[string]versioned{}, holders: map[int64]map[string]lastSeen{}, changes: map[int64]uint64{},
		generations: map[int64]*generation{},
	}
}

func clusterKey(cluster int64) string { return strconv.FormatInt(cluster, 10) }

// Record is the record of a cluster as this agent knows it, folded by the events that it knows.
func (s *Slots) Record(cluster int64) guard.Record {
	v, err := s.view(cluster)
	if err != nil {
		return guard.Record{} // an update of it meets the error
	}
	return v.record
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
	return view{revision: s.known[clusterKey(cluster)].revision, changes: s.changes[cluster]}.version()
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
// whether there is anything to write. version is the cluster's Version of exactly what change last saw, its own write
// included: the cluster's Version differs from it as soon as there is anything else to see.
func (s *Slots) Update(ctx context.Context, op events.Operation, change func(*guard.Record) bool) (version uint64, err error) {
	defer s.lockCluster(op.ClusterID)()
	before := s.Version(op.ClusterID)
	var seen view
	seen.revision, err = update(ctx, s, clusterKey(op.ClusterID), func() (guard.Record, uint64, error) {
		var err error
		seen, err = s.verified(ctx, op)
		return seen.record, seen.revision, err
	}, change)
	if err != nil {
		return before, fmt.Errorf("record of cluster %d: %w", op.ClusterID, err)
	}
	return seen.version(), nil
}

// UpdateFleet changes the record of all clusters, like Update.
func (s *Slots) UpdateFleet(ctx context.Context, change func(*guard.Fleet) bool) error {
	if _, err := update(ctx, s, fleetKey, func() (guard.Fleet, uint64, error) { return knownAs[guard.Fleet](s, fleetKey) }, change); err != nil {
		return fmt.Errorf("record of all clusters: %w", err)
	}
	return nil
}

func (s *Slots) lockCluster(cluster int64) (unlock func()) {
	lock := &s.writers[uint64(cluster)%uint64(len(s.writers))]
	lock.Lock()
	return lock.Unlock
}

// update changes the value that load returns with its revision, and returns the revision of what change saw last, or of
// what it made of that.
func update[T any](ctx context.Context, s *Slots, key string, load func() (T, uint64, error), change func(*T) bool) (revision uint64, err error) {
	for {
		value, revision, err := load()
		if err != nil {
			return revision, err
		}
		if !change(&value) {
			return revision, nil
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			return revision, fmt.Errorf("encode: %w", err)
		}
		v := versioned{value: encoded, decoded: value}
		s.mu.Lock()
		s.writing[key] = v
		s.mu.Unlock()
		if v.revision, err = s.write(ctx, key, encoded, revision); err == nil {
			s.learn(key, v)
			return v.revision, nil
		}
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			return revision, fmt.Errorf("%w: key-value bucket %s is gone (%w)", ErrRecord, s.bucket.Bucket(), err)
		}
		if !journal.IsConflict(err) {
			return revision, fmt.Errorf("write: %w", err)
		}
		if err := s.read(ctx, key); err != nil {
			return revision, err
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

// read learns the value that the bucket has under a key.
func (s *Slots) read(ctx context.Context, key string) error {
	entry, err := s.bucket.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		s.forget(key)
	case err != nil:
		return fmt.Errorf("read: %w", err)
	default:
		s.learn(key, versioned{value: entry.Value(), revision: entry.Revision()})
	}
	return nil
}

// forget drops a value that was deleted by hand.
func (s *Slots) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.known[key]
	s.known[key] = versioned{}
	if cluster, err := strconv.ParseInt(key, 10, 64); err == nil && was.revision > 0 {
		s.changes[cluster] += was.revision + 1 // so that the version grows although the revision is 0
		s.generationOf(cluster).lost()
	}
}

// generationOf is the generation of a cluster, for a function that has locked s.mu.
func (s *Slots) generationOf(cluster int64) *generation {
	if s.generations[cluster] == nil {
		s.generations[cluster] = &generation{}
	}
	return s.generations[cluster]
}

// knownAs is the value that is known under a key. Others get the same value: it is never changed in place.
func knownAs[T any](s *Slots, key string) (T, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return knownLocked[T](s, key)
}

// knownLocked is knownAs for a function that has locked s.mu.
func knownLocked[T any](s *Slots, key string) (T, uint64, error) {
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

// learn keeps the later of v and the value that is known. It reports whether v is what this agent has written last.
func (s *Slots) learn(key string, v versioned) (own bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	written := s.writing[key]
	own = written.decoded != nil && bytes.Equal(v.value, written.value)
	if v.revision <= s.known[key].revision {
		return own
	}
	if v.decoded == nil && own {
		v.decoded = written.decoded
	}
	if cluster, err := strconv.ParseInt(key, 10, 64); err == nil && len(v.value) == 0 && len(s.known[key].value) > 0 {
		s.generationOf(cluster).lost()
	}
	s.known[key] = v
	return own
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
