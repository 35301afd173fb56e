package guard

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/obwarden/obwarden/events"
)

// What a record holds at most: all agents read and write it as one value.
const (
	MaxQueue  = 64
	MaxRecent = 512
)

// maxTaken is what a Fleet holds at most.
const maxTaken = 4096

// Record is what the agents have agreed on about one cluster: one value in a
// key-value bucket that all of them share, written by compare-and-set. Its
// methods change the receiver alone, never what a copy of it shares, and say whether
// anything changed.
type Record struct {
	// Generation grows whenever a slot is taken or given back, so that facts read
	// before are known to be old.
	Generation uint64   `json:"generation"`
	Active     []Slot   `json:"active"`
	Queue      []Ticket `json:"queue,omitempty"`  // who waits for a slot, first come first, at most MaxQueue
	Recent     []Ended  `json:"recent,omitempty"` // oldest first, pruned by age
	// Failures in a row, counted under the control revision FailuresUnder.
	Failures      int    `json:"failures,omitempty"`
	FailuresUnder uint64 `json:"failures_under,omitempty"`
	LastFailure   string `json:"last_failure,omitempty"` // operation id
	// Newest request for each server, where the policy lets a newer one supersede.
	Newest map[int64]Ticket `json:"newest,omitempty"`
}

// Slot is the place that one operation holds in its cluster from the moment it is
// allowed until it has ended or waits again.
type Slot struct {
	OperationID string      `json:"operation_id"`
	Kind        events.Kind `json:"kind"`
	ServerID    int64       `json:"server_id"`
	Zone        string      `json:"zone"`
	Since       time.Time   `json:"since"`
	// Steps of the operation when the slot was taken. The slot is the operation's
	// only until the journal shows it later than that and not under way: who gives
	// a slot back late cannot take one that was taken since.
	Steps int `json:"steps"`
}

// Ticket is an operation's place in the queue for a slot.
type Ticket struct {
	OperationID string      `json:"operation_id"`
	Kind        events.Kind `json:"kind"`
	ServerID    int64       `json:"server_id"`
	Sequence    uint64      `json:"sequence"` // of its request: who came first
}

// Ended is an operation that was submitted and has ended.
type Ended struct {
	OperationID string      `json:"operation_id"`
	Kind        events.Kind `json:"kind"`
	ServerID    int64       `json:"server_id"`
	Zone        string      `json:"zone"`
	Since       time.Time   `json:"since"` // when its slot was taken
	At          time.Time   `json:"at"`    // when it ended
	Succeeded   bool        `json:"succeeded"`
}

// Fleet is what the agents have agreed on about all clusters together.
type Fleet struct {
	Taken []Taken `json:"taken"` // oldest first, pruned by age
}

// Taken is one operation's share of the budget of all clusters.
type Taken struct {
	OperationID string    `json:"operation_id"`
	At          time.Time `json:"at"`
}

// Take gives the slot to its operation, whose ticket it takes. One that the operation
// has already is stamped anew: it stays the operation's until the journal is past the
// new step.
func (r *Record) Take(slot Slot) bool {
	r.Dequeue(slot.OperationID)
	r.Generation++
	active := slices.Clone(r.Active)
	if i := r.slot(slot.OperationID); i >= 0 {
		// An agent that has lost the operation may be late: it must not make the slot
		// look older than it is, and so one that may be given back.
		slot.Steps = max(slot.Steps, active[i].Steps)
		active[i] = slot
	} else {
		active = append(active, slot)
	}
	r.Active = active
	return true
}

// Give takes back what the record holds for an operation that stands at op: its slot
// and, where it has ended, its ticket; nothing where the slot was taken since. What
// was submitted and has succeeded or failed is remembered, once however often it is
// given, and counted: a failure adds to those in a row, a success ends the row.
func (r *Record) Give(op events.Operation, controlRevision uint64, now time.Time) bool {
	slot, changed := Slot{Since: op.SubmittedAt}, false
	if i := r.slot(op.OperationID); i >= 0 {
		if r.Active[i].heldAfter(op) {
			return false
		}
		slot, changed = r.Active[i], true
		r.Active = slices.Delete(slices.Clone(r.Active), i, i+1)
	}
	if op.State.Final() {
		changed = r.remember(op, slot, changed, controlRevision, now) || changed
		changed = r.Dequeue(op.OperationID) || changed
		changed = r.forget(op) || changed
	}
	if changed {
		r.Generation++
	}
	return changed
}

// forget drops the operation where it is the newest request for its server.
func (r *Record) forget(op events.Operation) bool {
	if r.Newest[op.ServerID].OperationID != op.OperationID {
		return false
	}
	r.Newest = maps.Clone(r.Newest)
	delete(r.Newest, op.ServerID)
	return true
}

// remember keeps an operation that has ended and held slot. One that is known already
// has ended again only if it held one since: a retry that was not allowed is none.
func (r *Record) remember(op events.Operation, slot Slot, held bool, controlRevision uint64, now time.Time) bool {
	if op.Attempt == 0 || op.State != events.Succeeded && op.State != events.Failed {
		return false
	}
	known := slices.IndexFunc(r.Recent, func(e Ended) bool { return e.OperationID == op.OperationID })
	if known >= 0 && !held {
		return false
	}
	ended := Ended{
		OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Zone: slot.Zone,
		Since: slot.Since.UTC(), At: op.EndedAt.UTC(), Succeeded: op.State == events.Succeeded,
	}
	if ended.At.IsZero() {
		ended.At = now.UTC()
	}
	recent := slices.Clone(r.Recent)
	if known >= 0 {
		recent = slices.Delete(recent, known, known+1)
	}
	recent = append(recent, ended)
	slices.SortStableFunc(recent, func(a, b Ended) int { return a.At.Compare(b.At) })
	r.Recent = recent[max(0, len(recent)-MaxRecent):]
	if r.FailuresUnder != controlRevision { // somebody has resumed the cluster since
		r.Failures, r.FailuresUnder, r.LastFailure = 0, controlRevision, ""
	}
	if ended.Succeeded {
		r.Failures, r.LastFailure = 0, ""
	} else {
		r.Failures, r.LastFailure = r.Failures+1, op.OperationID
	}
	return true
}

// Enqueue keeps a ticket, in the place of the operation's older one. Of more than
// MaxQueue those that came first stay.
func (r *Record) Enqueue(t Ticket) bool {
	queue := slices.DeleteFunc(slices.Clone(r.Queue), func(other Ticket) bool { return other.OperationID == t.OperationID })
	at, _ := slices.BinarySearchFunc(queue, t, func(a, b Ticket) int { return cmp.Compare(a.Sequence, b.Sequence) })
	queue = slices.Insert(queue, at, t)
	queue = queue[:min(len(queue), MaxQueue)]
	if slices.Equal(queue, r.Queue) {
		return false
	}
	r.Queue = queue
	return true
}

// Dequeue drops the operation's ticket.
func (r *Record) Dequeue(operationID string) bool {
	queue := slices.DeleteFunc(slices.Clone(r.Queue), func(t Ticket) bool { return t.OperationID == operationID })
	if len(queue) == len(r.Queue) {
		return false
	}
	r.Queue = queue
	return true
}

// Announce notes a request, where it is the newest for its server.
func (r *Record) Announce(t Ticket) bool {
	if t.Sequence <= r.Newest[t.ServerID].Sequence {
		return false
	}
	newest := maps.Clone(r.Newest)
	if newest == nil {
		newest = map[int64]Ticket{}
	}
	newest[t.ServerID] = t
	r.Newest = newest
	return true
}

// Drop takes out a slot that is left over, unless it was taken anew since.
func (r *Record) Drop(slot Slot) bool {
	i := r.slot(slot.OperationID)
	if i < 0 || r.Active[i].Steps != slot.Steps || !r.Active[i].Since.Equal(slot.Since) {
		return false
	}
	r.Active = slices.Delete(slices.Clone(r.Active), i, i+1)
	r.Generation++
	return true
}

// Holds reports whether an operation has a slot that was taken at its step or later.
func (r *Record) Holds(operationID string, step int) bool {
	i := r.slot(operationID)
	return i >= 0 && r.Active[i].Steps >= step
}

// Queued reports whether an operation has a ticket.
func (r *Record) Queued(operationID string) bool {
	return slices.ContainsFunc(r.Queue, func(t Ticket) bool { return t.OperationID == operationID })
}

// Prune forgets operations that ended more than keep before now, and the oldest of
// more than MaxRecent.
func (r *Record) Prune(now time.Time, keep time.Duration) bool {
	recent := slices.DeleteFunc(slices.Clone(r.Recent), func(e Ended) bool { return e.At.Before(now.Add(-keep)) })
	recent = recent[max(0, len(recent)-MaxRecent):]
	if len(recent) == len(r.Recent) {
		return false
	}
	r.Recent = recent
	return true
}

func (r *Record) slot(operationID string) int {
	return slices.IndexFunc(r.Active, func(s Slot) bool { return s.OperationID == operationID })
}

func (r *Record) holds(operationID string) bool { return r.slot(operationID) >= 0 }

// Stale reports whether a slot is left over, where last is what the journal shows of
// its operation: there is none, or it was past the slot's step when it ended or began
// to wait. A lock without a holder must not block for ever.
func (s Slot) Stale(last events.Operation) bool {
	return last.N == 0 || (last.State.Final() || last.State == events.Waiting) && !s.heldAfter(last)
}

// heldAfter reports whether the slot was taken after the operation stood at op. An
// operation that waits takes it by that very step; one that has ended takes none.
func (s Slot) heldAfter(op events.Operation) bool {
	if op.State.Final() {
		return s.Steps > op.Steps
	}
	return s.Steps >= op.Steps
}

// Stale reports whether a ticket is left over: its operation is not there, or does not
// wait any more.
func (t Ticket) Stale(last events.Operation) bool {
	return last.N == 0 || last.State != events.Accepted && last.State != events.Waiting
}

// Take gives an operation its share of the budget, from now on.
func (f *Fleet) Take(operationID string, now time.Time) bool {
	taken := slices.DeleteFunc(slices.Clone(f.Taken), func(t Taken) bool { return t.OperationID == operationID })
	taken = append(taken, Taken{OperationID: operationID, At: now.UTC()})
	taken = taken[max(0, len(taken)-maxTaken):]
	if slices.Equal(taken, f.Taken) {
		return false
	}
	f.Taken = taken
	return true
}

// Give takes the share of an operation back that has not been allowed after all.
func (f *Fleet) Give(operationID string) bool {
	taken := slices.DeleteFunc(slices.Clone(f.Taken), func(t Taken) bool { return t.OperationID == operationID })
	if len(taken) == len(f.Taken) {
		return false
	}
	f.Taken = taken
	return true
}

// Prune forgets shares that were taken more than keep before now.
func (f *Fleet) Prune(now time.Time, keep time.Duration) bool {
	taken := slices.DeleteFunc(slices.Clone(f.Taken), func(t Taken) bool { return t.At.Before(now.Add(-keep)) })
	if len(taken) == len(f.Taken) {
		return false
	}
	f.Taken = taken
	return true
}
