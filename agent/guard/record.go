package guard

import (
	"time"

	"obwarden/events"
)

// Record is what the agents have agreed on about one cluster: one value in a
// key-value bucket that all of them share, written by compare-and-set. Its
// methods change a copy and say whether anything changed.
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
	OperationID string `json:"operation_id"`
	ServerID    int64  `json:"server_id"`
	Sequence    uint64 `json:"sequence"` // of its request: who came first
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
