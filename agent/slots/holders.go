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
	// verifyEvery is how long an operation counts as the holder of its slot before a decision asks the journal again.
	// Events that free a slot are watched: this is for a message that the watch missed.
	verifyEvery = 5 * time.Second
	// verifyTickets is how many tickets at the head of the queue a decision asks the journal for.
	verifyTickets = 4
)

// lastSeen is the last event of an operation as far as this agent knows it.
type lastSeen struct {
	guard.Holder
	sequence uint64    // in the journal
	heard    uint64    // sequence of a later event that was announced and not read yet
	readAt   time.Time // zero: never
}

// fold applies the known events to a record. Its generation grows also where the record was lost and begins anew.
func (s *Slots) fold(cluster int64, record guard.Record) guard.Record {
	control := s.pauses.Of(cluster)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(record.Active)+len(record.Queue)+len(record.Newest) > 0 {
		holders := s.holders[cluster]
		record = record.Fold(func(id string) (guard.Holder, bool) {
			h, known := holders[id]
			return h.Holder, known && !h.readAt.IsZero()
		}, control)
	}
	g := s.generations[cluster]
	record.Generation += g.base
	g.latest = max(g.latest, record.Generation)
	s.generations[cluster] = g
	return record
}

// generation continues the count of a record that was lost, so that facts from before the loss stay outdated.
type generation struct{ base, latest uint64 }

// lost notes that the record of a cluster is gone. The caller holds the lock of s.
func (s *Slots) lost(cluster int64) {
	g := s.generations[cluster]
	g.base = g.latest + 1
	s.generations[cluster] = g
}

// verify reads those last events from the journal that op's decision rests on and that are not known, or are known for
// too long. An event that cannot be read leaves its slot held: that can only make op wait.
func (s *Slots) verify(ctx context.Context, op events.Operation, record guard.Record) {
	for _, id := range s.unverified(op, record) {
		entry, err := journal.Last(ctx, s.events, id)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Warn("the last event of an operation cannot be read; its slot counts as held", "operation_id", id, "cluster", op.ClusterID, "error", err)
			continue
		}
		s.store(op.ClusterID, id, entry)
	}
}

func (s *Slots) unverified(op events.Operation, record guard.Record) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	holders := s.holders[op.ClusterID]
	for id := range holders {
		if !record.Names(id) {
			delete(holders, id)
		}
	}
	var ids []string
	add := func(id string, settled func(guard.Holder) bool) {
		h := holders[id]
		read := !h.readAt.IsZero() && h.heard <= h.sequence
		if id == "" || id == op.OperationID || read && (settled(h.Holder) || time.Since(h.readAt) < verifyEvery) || slices.Contains(ids, id) {
			return
		}
		ids = append(ids, id)
	}
	for _, slot := range record.Active {
		add(slot.OperationID, func(h guard.Holder) bool { return !slot.HeldBy(h) })
	}
	for _, t := range record.Queue[:min(len(record.Queue), verifyTickets)] {
		add(t.OperationID, func(h guard.Holder) bool { return h.State.Final() })
	}
	add(record.Newest[op.ServerID].OperationID, func(h guard.Holder) bool { return h.State.Final() })
	return ids
}

// store keeps the last event of an operation that the record of the cluster names, unless a later one is known.
func (s *Slots) store(cluster int64, id string, entry journal.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holders[cluster] == nil {
		s.holders[cluster] = map[string]lastSeen{}
	}
	h := s.holders[cluster][id]
	if entry.Sequence < h.sequence {
		return
	}
	if now := guard.HolderOf(entry.Operation); now != h.Holder || h.readAt.IsZero() {
		s.versions[cluster]++
		h.Holder = now
	}
	h.sequence, h.readAt = entry.Sequence, time.Now()
	s.holders[cluster][id] = h
}

// Saw takes in an event that this agent has appended, and reports whether the record of the cluster names the operation:
// others may wait for the slot, or the place in the queue, that the event frees.
func (s *Slots) Saw(entry journal.Entry) bool {
	op := entry.Operation
	if op.State != events.Waiting && !op.State.Final() || !s.named(op.ClusterID, op.OperationID) {
		return false
	}
	s.store(op.ClusterID, op.OperationID, entry)
	return true
}

// heard takes in that another agent has appended an event that may free a slot: the next decision reads it.
func (s *Slots) heard(cluster int64, id string, sequence uint64) bool {
	if !s.named(cluster, id) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.holders[cluster][id]
	if sequence <= max(h.sequence, h.heard) { // this agent's own
		return false
	}
	if s.holders[cluster] == nil {
		s.holders[cluster] = map[string]lastSeen{}
	}
	h.heard = sequence
	s.holders[cluster][id] = h
	s.versions[cluster]++
	return true
}

func (s *Slots) named(cluster int64, id string) bool {
	record, _, err := knownAs[guard.Record](s, clusterKey(cluster))
	return err == nil && record.Names(id)
}
