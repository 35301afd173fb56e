package guard

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/obwarden/obwarden/events"
)

// Upper limits of a record: all agents read and write it as one value.
const (
	MaxQueue  = 64
	MaxRecent = 512
)

// maxTaken is the upper limit of a Fleet.
const maxTaken = 4096

// Record is what the agents have agreed on about one cluster: which operations took slots and when, which are queued,
// and the history that rules look at. It is one value in a key-value bucket that all agents share, written by
// compare-and-set.
//
// A record never says that a slot is free again: the last event of the slot's operation in the journal does. Fold
// applies those events, and the agent that takes the next slot writes the folded record. So record and journal cannot
// disagree, whenever an agent dies.
//
// Methods change the receiver alone, never a value that a copy of it shares, and report whether anything changed.
type Record struct {
	// Generation grows whenever an operation takes a slot and, in a folded record, whenever a slot became free. Facts
	// that were read under an older generation may not show that yet.
	Generation uint64   `json:"generation"`
	Active     []Slot   `json:"active"`
	Queue      []Ticket `json:"queue,omitempty"`  // operations that wait for a slot, in the order of their requests
	Recent     []Ended  `json:"recent,omitempty"` // oldest first, pruned by age
	// Failures in a row, counted under the control revision FailuresUnder.
	Failures      int    `json:"failures,omitempty"`
	FailuresUnder uint64 `json:"failures_under,omitempty"`
	LastFailure   string `json:"last_failure,omitempty"` // operation id
	// Newest request for each server, if the policy lets a newer request supersede.
	Newest map[int64]Ticket `json:"newest,omitempty"`
}

// Slot is the permission to work in a cluster that an operation took when the guard allowed it. HeldBy reports whether
// the operation still holds the slot.
type Slot struct {
	OperationID string      `json:"operation_id"`
	Kind        events.Kind `json:"kind"`
	ServerID    int64       `json:"server_id"`
	Zone        string      `json:"zone"`
	Since       time.Time   `json:"since"`
	// Steps of the operation when it took the slot. A later event that says waiting or an end frees the slot.
	Steps int `json:"steps"`
}

// Ticket is an operation's place in the queue for a slot.
type Ticket struct {
	OperationID string      `json:"operation_id"`
	Kind        events.Kind `json:"kind"`
	ServerID    int64       `json:"server_id"`
	Sequence    uint64      `json:"sequence"` // of its request: requests with a lower one go first
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

// Holder is the part of an operation's last event that decides on its slot. The zero Holder is an operation that the
// journal does not have.
type Holder struct {
	Steps   int
	State   events.State
	Attempt int
	EndedAt time.Time
}

// HolderOf returns the part of op that decides on its slot.
func HolderOf(op events.Operation) Holder {
	if op.N == 0 {
		return Holder{}
	}
	return Holder{Steps: op.Steps, State: op.State, Attempt: op.Attempt, EndedAt: op.EndedAt}
}

// HeldBy reports whether an operation whose last event is last still holds the slot. The slot is free once an event
// after it was taken says that the operation waits or has ended. An operation may take its slot while its last event
// says that it waits: that event, of the same step, does not free the slot. An operation that has ended takes no slot
// before a person orders a retry, which is a later step.
func (s Slot) HeldBy(last Holder) bool {
	switch {
	case last.State == "": // not in the journal: deleted by hand, or forgotten after an end
		return false
	case last.State.Final():
		return s.Steps > last.Steps
	case last.State == events.Waiting:
		return s.Steps >= last.Steps
	}
	return true
}

// waits reports whether the operation still waits for a slot.
func (h Holder) waits() bool { return h.State == events.Accepted || h.State == events.Waiting }

// over reports whether the operation has ended, or is not in the journal any more.
func (h Holder) over() bool { return h.State == "" || h.State.Final() }

// Fold applies the last events of operations to the record and returns the result. It removes slots that their
// operations do not hold any more, and tickets of operations that do not wait any more. It adds operations that were
// submitted and have ended to the history. last returns the last event of an operation, or false if it is not known:
// then its slot counts as held, and its ticket as valid.
func (r Record) Fold(last func(operationID string) (Holder, bool), control Control) Record {
	gone := func(id string, still func(Holder) bool) bool {
		h, known := last(id)
		return known && !still(h)
	}
	var freed []Slot
	for _, s := range r.Active {
		if gone(s.OperationID, s.HeldBy) {
			freed = append(freed, s)
		}
	}
	if len(freed) > 0 {
		r.Active = slices.DeleteFunc(slices.Clone(r.Active), func(s Slot) bool { return slices.Contains(freed, s) })
		r.Generation += uint64(len(freed))
		r.remember(freed, last, control)
	}
	leaves := func(t Ticket) bool { return gone(t.OperationID, Holder.waits) }
	if slices.ContainsFunc(r.Queue, leaves) {
		r.Queue = slices.DeleteFunc(slices.Clone(r.Queue), leaves)
	}
	for server, t := range r.Newest {
		if gone(t.OperationID, func(h Holder) bool { return !h.over() }) {
			r.Newest = maps.Clone(r.Newest)
			maps.DeleteFunc(r.Newest, func(s int64, _ Ticket) bool { return s == server })
		}
	}
	return r
}

// remember adds freed slots of operations that were submitted and have ended to the history, in the order of their
// ends.
func (r *Record) remember(freed []Slot, last func(string) (Holder, bool), control Control) {
	ended := make([]Ended, 0, len(freed))
	for _, s := range freed {
		h, _ := last(s.OperationID)
		if h.Attempt == 0 || h.State != events.Succeeded && h.State != events.Failed {
			continue
		}
		ended = append(ended, Ended{
			OperationID: s.OperationID, Kind: s.Kind, ServerID: s.ServerID, Zone: s.Zone,
			Since: s.Since.UTC(), At: h.EndedAt.UTC(), Succeeded: h.State == events.Succeeded,
		})
	}
	slices.SortStableFunc(ended, func(a, b Ended) int { return a.At.Compare(b.At) })
	for _, e := range ended {
		same := func(other Ended) bool { return other.OperationID == e.OperationID }
		recent := slices.DeleteFunc(slices.Clone(r.Recent), same)
		at, _ := slices.BinarySearchFunc(recent, e, func(a, b Ended) int { return cmp.Or(a.At.Compare(b.At), -1) })
		recent = slices.Insert(recent, at, e)
		r.Recent = recent[max(0, len(recent)-MaxRecent):]
		r.countFailure(e, control)
	}
}

// countFailure counts failures in a row. A success starts the count again, and so does a person who resumes the
// cluster.
func (r *Record) countFailure(e Ended, control Control) {
	if r.FailuresUnder != control.Revision {
		r.Failures, r.FailuresUnder, r.LastFailure = 0, control.Revision, ""
	}
	switch {
	case e.Succeeded:
		r.Failures, r.LastFailure = 0, ""
	case e.At.Before(control.ChangedAt): // resumed since
	default:
		r.Failures, r.LastFailure = r.Failures+1, e.OperationID
	}
}

// Take adds a slot and drops the operation's ticket. If the operation already holds a slot, Take renews it: the
// operation holds it until the journal has a waiting or final event after the new step.
func (r *Record) Take(slot Slot) bool {
	r.Dequeue(slot.OperationID)
	r.Generation++
	active := slices.Clone(r.Active)
	if i := r.slot(slot.OperationID); i >= 0 {
		// An agent that has lost the operation may write late. It must not make the slot look older, and so free.
		slot.Steps = max(slot.Steps, active[i].Steps)
		active[i] = slot
	} else {
		active = append(active, slot)
	}
	r.Active = active
	return true
}

// Enqueue adds a ticket in place of the operation's older one. Only the first MaxQueue tickets stay.
func (r *Record) Enqueue(t Ticket) bool {
	same := func(other Ticket) bool { return other.OperationID == t.OperationID }
	queue := slices.DeleteFunc(slices.Clone(r.Queue), same)
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

// Announce notes a request if it is the newest one for its server.
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

// Holds reports whether an operation has a slot that it took at the given step or later.
func (r *Record) Holds(operationID string, step int) bool {
	i := r.slot(operationID)
	return i >= 0 && r.Active[i].Steps >= step
}

// Names reports whether the record names an operation: as the holder of a slot, in the queue or as a newest request.
func (r *Record) Names(operationID string) bool {
	return r.slot(operationID) >= 0 || r.queued(operationID) || r.newest(operationID)
}

// Frees reports whether an operation whose last event is last has lost its slot, its place in the queue or its place as
// the newest request. An operation that the record does not name frees nothing.
func (r *Record) Frees(operationID string, last Holder) bool {
	if i := r.slot(operationID); i >= 0 {
		return !r.Active[i].HeldBy(last)
	}
	if r.queued(operationID) {
		return !last.waits()
	}
	return r.newest(operationID) && last.over()
}

func (r *Record) queued(operationID string) bool {
	return slices.ContainsFunc(r.Queue, func(t Ticket) bool { return t.OperationID == operationID })
}

func (r *Record) newest(operationID string) bool {
	for _, t := range r.Newest {
		if t.OperationID == operationID {
			return true
		}
	}
	return false
}

// Prune forgets operations that ended more than keep before now, and the oldest of more than MaxRecent.
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

// Prune forgets shares that were taken more than keep before now.
func (f *Fleet) Prune(now time.Time, keep time.Duration) bool {
	taken := slices.DeleteFunc(slices.Clone(f.Taken), func(t Taken) bool { return t.At.Before(now.Add(-keep)) })
	if len(taken) == len(f.Taken) {
		return false
	}
	f.Taken = taken
	return true
}
