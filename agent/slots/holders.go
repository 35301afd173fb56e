package slots

import (
	"context"
	"slices"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/events"
)

const (
	// verifyEvery is how long an operation counts as the holder of its slot before a decision reads the journal again.
	// The agent watches events that free a slot: this is for events that the watch has missed.
	verifyEvery = 5 * time.Second
	// verifyTickets is the number of tickets whose operations a decision verifies: from the head of the queue, as far as
	// their operations may still wait.
	verifyTickets = 4
	// firstEventGrace is how long a slot counts as held although the journal does not have its operation. Agents of
	// versions up to 2026-11 take a slot while the first event is on its way.
	firstEventGrace = 10 * time.Second
)

// lastEvent is the last event of an operation, as far as this agent knows.
type lastEvent struct {
	id string // of the operation
	guard.Holder
	sequence  uint64    // in the journal
	announced uint64    // sequence of a later event that the watch has shown, and that nobody has read yet
	readAt    time.Time // zero: never
}

// lastEvents are those of the operations that one record names: few, so that a list is smaller than a map, and as quick.
type lastEvents []lastEvent

// of returns the last event of an operation; a zero one if none is known.
func (l lastEvents) of(id string) lastEvent {
	for i := range l {
		if l[i].id == id {
			return l[i]
		}
	}
	return lastEvent{id: id}
}

// view is a folded record, and the versions of the record and the events in it.
type view struct {
	record   guard.Record
	revision uint64 // of the record in the bucket
	changes  uint64 // of the cluster, as in Slots
}

// version returns the version of the view. Both parts only ever grow, so a later view has a higher version.
func (v view) version() uint64 { return v.revision + v.changes }

// view returns what this agent knows of a cluster at one moment, under one lock: a decision must not miss a change
// between two looks.
func (s *Slots) view(cluster int64) (view, error) {
	control := s.pauses.Of(cluster)
	s.mu.Lock()
	defer s.mu.Unlock()
	record, revision, err := knownLocked[guard.Record](s, clusterKey(cluster))
	if err != nil {
		return view{}, err
	}
	holders := s.holders[cluster]
	folded := record.Fold(func(id string) (guard.Holder, bool) { return holders.of(id).last() }, control)
	if revision > 0 || s.generations[cluster] != nil { // a request may name any cluster, also one that does not exist
		folded.Generation = s.generationOf(cluster).count(folded.Generation)
	}
	return view{record: folded, revision: revision, changes: s.changes[cluster]}, nil
}

// generation continues the count after a record was lost, so that facts from before the loss stay outdated.
type generation struct{ base, latest uint64 }

func (g *generation) count(n uint64) uint64 {
	g.latest = max(g.latest, g.base+n)
	return g.base + n
}

func (g *generation) lost() { g.base = g.latest + 1 }

// last returns the holder as of the last event that was read; false if none was read.
func (h lastEvent) last() (guard.Holder, bool) { return h.Holder, !h.readAt.IsZero() }

// verified returns the view of op's cluster, after it has read all events that op's decision rests on.
func (s *Slots) verified(ctx context.Context, op events.Operation) (view, error) {
	for {
		record, revision, err := knownAs[guard.Record](s, clusterKey(op.ClusterID))
		if err != nil {
			return view{}, err
		}
		s.verify(ctx, op, record)
		if v, err := s.view(op.ClusterID); err != nil || v.revision == revision {
			return v, err
		}
	}
}

// verify reads the last events that op's decision rests on from the journal, if they are unknown or were read too long
// ago. If an event cannot be read, its slot counts as held, which can only make op wait. If operations at the head of the
// queue turn out to be over, verify goes on with the next ones: nobody may write the record for a long time.
func (s *Slots) verify(ctx context.Context, op events.Operation, record guard.Record) {
	asked := map[string]bool{}
	for {
		ids := slices.DeleteFunc(s.unverified(op, record), func(id string) bool { return asked[id] })
		if len(ids) == 0 {
			return
		}
		for _, id := range ids {
			asked[id] = true
			entry, err := journal.Last(ctx, s.events, id)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				s.log.Warn("the last event of an operation cannot be read; its slot counts as held",
					"operation_id", id, "cluster", op.ClusterID, "error", err)
				continue
			}
			if entry.Sequence == 0 && takenLately(record, id) {
				continue // unknown, so that its slot counts as held
			}
			s.store(op.ClusterID, id, entry)
		}
	}
}

func takenLately(record guard.Record, id string) bool {
	return slices.ContainsFunc(record.Active, func(s guard.Slot) bool {
		return s.OperationID == id && time.Since(s.Since) < firstEventGrace
	})
}

// unverified lists the operations whose last events verify must read.
func (s *Slots) unverified(op events.Operation, record guard.Record) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	holders := s.holders[op.ClusterID]
	var ids []string
	add := func(id string, since time.Time, settled func(guard.Holder) bool) {
		h := holders.of(id)
		over := settled(h.Holder)
		// An operation that the journal did not have may be in it by now. If a slot was taken since the reading, the journal
		// may have forgotten the operation, and its key was used again.
		read := h.State != "" && h.announced <= h.sequence && (!over || !since.After(h.readAt))
		if id == "" || id == op.OperationID || slices.Contains(ids, id) || read && (over || time.Since(h.readAt) < verifyEvery) {
			return
		}
		ids = append(ids, id)
	}
	for _, slot := range record.Active {
		add(slot.OperationID, slot.Since, func(h guard.Holder) bool { return !slot.HeldBy(h) })
	}
	for i, waiting := 0, 0; i < len(record.Queue) && waiting < verifyTickets; i++ {
		id := record.Queue[i].OperationID
		add(id, time.Time{}, func(h guard.Holder) bool { return h.State.Final() })
		if last, known := holders.of(id).last(); !known || !record.Frees(id, last) {
			waiting++
		}
	}
	add(record.Newest[op.ServerID].OperationID, time.Time{}, func(h guard.Holder) bool { return h.State.Final() })
	return ids
}

// store keeps the last event of an operation that the record of the cluster names, unless a later one is known. It
// reports whether that frees a slot or a place in the queue.
func (s *Slots) store(cluster int64, id string, entry journal.Entry) (frees bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.holders[cluster].of(id)
	if entry.Sequence > 0 && entry.Sequence < h.sequence { // 0: the journal has forgotten the operation
		return false
	}
	before, known := h.last()
	h.Holder, h.sequence, h.readAt = guard.HolderOf(entry.Operation), max(h.sequence, entry.Sequence), time.Now()
	s.hold(cluster, h)
	record, _, err := knownLocked[guard.Record](s, clusterKey(cluster))
	frees = err == nil && record.Frees(id, h.Holder)
	if frees != (known && record.Frees(id, before)) || frees && h.Holder != before {
		s.changes[cluster]++
		return frees
	}
	return false
}

// hold replaces what is known of an operation, for a function that has locked s.mu.
func (s *Slots) hold(cluster int64, h lastEvent) {
	known := s.holders[cluster]
	if i := slices.IndexFunc(known, func(other lastEvent) bool { return other.id == h.id }); i >= 0 {
		known[i] = h
		return
	}
	s.holders[cluster] = append(known, h)
}

// Saw notes an event that this agent has appended. It reports whether the event frees a slot or a place in the queue,
// so that the agent can wake other operations.
func (s *Slots) Saw(entry journal.Entry) bool {
	op := entry.Operation
	if op.State != events.Waiting && !op.State.Final() {
		return false
	}
	record, _, err := knownAs[guard.Record](s, clusterKey(op.ClusterID))
	return err == nil && record.Names(op.OperationID) && s.store(op.ClusterID, op.OperationID, entry)
}

// announcement is an event of any agent that may free a slot or a place in the queue, as its subject and headers show
// it.
type announcement struct {
	cluster  int64
	id       string
	holder   guard.Holder // without the time of the end; Steps may include duplicates
	sequence uint64
}

// noteEvent notes an announcement, and reports whether it frees a slot or a place: then the next decision reads the
// event. If an event arrives before the record in which it frees something, a decision reads it once the record is
// there.
func (s *Slots) noteEvent(a announcement) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	record, _, err := knownLocked[guard.Record](s, clusterKey(a.cluster))
	h := s.holders[a.cluster].of(a.id)
	known := a.sequence <= max(h.sequence, h.announced) // as events of this agent are
	if err != nil || known || !record.Frees(a.id, a.holder) {
		return false
	}
	h.announced = a.sequence
	s.hold(a.cluster, h)
	s.changes[a.cluster]++
	return true
}

// prune forgets the last events of operations that a record does not name.
func (s *Slots) prune(cluster int64, record guard.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := slices.DeleteFunc(s.holders[cluster], func(h lastEvent) bool { return !record.Names(h.id) })
	if s.holders[cluster] = kept; len(kept) == 0 {
		delete(s.holders, cluster)
	}
}
