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

// ErrRecord means that a record cannot be decoded, or that its bucket is gone: the agent does nothing in the cluster.
// It is no error of an operation.
var ErrRecord = errors.New("its record in the bucket cannot be used")

// fleetKey is the key of the record of all clusters together.
const fleetKey = "fleet"

// Slots are the records of all clusters as this agent knows them. All methods may be called concurrently.
type Slots struct {
	bucket  jetstream.KeyValue
	group   *journal.GroupCommit
	events  jetstream.Stream
	pauses  *Pauses
	log     *slog.Logger
	writers [64]sync.Mutex // by cluster: writers of one agent wait for each other, so that their writes do not conflict

	mu      sync.Mutex
	known   map[string]versioned
	writing map[string]versioned // this agent's latest writes: the watch may show one before its answer comes
	holders map[int64]lastEvents // by cluster and operation, for operations that the record names
	changes map[int64]uint64     // by cluster: changes of what a decision sees, other than new revisions

	generations map[int64]*generation
}

// versioned is a value with its revision in the bucket; revision 0 if there is none.
type versioned struct {
	value    []byte
	revision uint64
	decoded  any // value, decoded when it is first needed: it is needed far more often than it changes
}

// New returns the slots that are kept in bucket, of operations whose events are in stream. Watch fills its cache.
func New(
	bucket jetstream.KeyValue, group *journal.GroupCommit, stream jetstream.Stream, pauses *Pauses, log *slog.Logger,
) *Slots {
	return &Slots{
		bucket: bucket, group: group, events: stream, pauses: pauses, log: log,
		known: map[string]versioned{}, writing: map[string]versioned{}, holders: map[int64]lastEvents{},
		changes: map[int64]uint64{}, generations: map[int64]*generation{},
	}
}

func clusterKey(cluster int64) string { return strconv.FormatInt(cluster, 10) }

// Record returns the record of a cluster as this agent knows it, with the events that it knows folded in.
func (s *Slots) Record(cluster int64) guard.Record {
	v, err := s.view(cluster)
	if err != nil {
		return guard.Record{} // Update returns the error
	}
	return v.record
}

// Fleet returns the record of all clusters together, as this agent knows it.
func (s *Slots) Fleet() guard.Fleet {
	fleet, _, err := knownAs[guard.Fleet](s, fleetKey)
	if err != nil {
		return guard.Fleet{} // UpdateFleet returns the error
	}
	return fleet
}

// Version returns a number that grows with each change of what a decision sees of a cluster: its record, or the last
// events of the operations that it names.
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

// Update changes the record of op's cluster. First it reads events that op's decision rests on, and that it does not
// know, from the journal. change may be called several times, each time with a later folded record, which it may
// change; it reports whether there is anything to write. version is the cluster's Version of exactly the record that
// change saw last, including its own write: after any other change the cluster has another Version.
func (s *Slots) Update(
	ctx context.Context, op events.Operation, change func(*guard.Record) bool,
) (version uint64, err error) {
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
	known := func() (guard.Fleet, uint64, error) { return knownAs[guard.Fleet](s, fleetKey) }
	if _, err := update(ctx, s, fleetKey, known, change); err != nil {
		return fmt.Errorf("record of all clusters: %w", err)
	}
	return nil
}

func (s *Slots) lockCluster(cluster int64) (unlock func()) {
	lock := &s.writers[uint64(cluster)%uint64(len(s.writers))]
	lock.Lock()
	return lock.Unlock
}

// update loads a value, lets change change it and writes it, again and again until no other agent writes in between. It
// returns the revision that it has written; if there was nothing to write, the revision that change saw last.
func update[T any](
	ctx context.Context, s *Slots, key string, load func() (T, uint64, error), change func(*T) bool,
) (revision uint64, err error) {
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

// write replaces the value that has the revision. The error is a conflict if somebody else has replaced it. Writes of
// several clusters at the same time share a flush.
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

// read reads the value of a key from the bucket and learns it.
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

// generationOf returns the generation of a cluster, for a function that has locked s.mu.
func (s *Slots) generationOf(cluster int64) *generation {
	if s.generations[cluster] == nil {
		s.generations[cluster] = &generation{}
	}
	return s.generations[cluster]
}

// knownAs returns the known value of a key, decoded. All callers get the same value, so nobody may change it in place.
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

// learn keeps v if it is later than the known value of the key. It reports whether v is the value that this agent wrote
// last.
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
	deleted := len(v.value) == 0 && len(s.known[key].value) > 0
	if cluster, err := strconv.ParseInt(key, 10, 64); err == nil && deleted {
		s.generationOf(cluster).lost()
	}
	s.known[key] = v
	return own
}

// decodeKnown decodes a value; it returns the zero value if there is none.
func decodeKnown[T any](v versioned) (T, uint64, error) {
	var value T
	if len(v.value) == 0 {
		return value, v.revision, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(v.value))
	decoder.DisallowUnknownFields() // another kind of value must not count as a record without slots
	if err := decoder.Decode(&value); err != nil {
		return value, v.revision, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return value, v.revision, nil
}
