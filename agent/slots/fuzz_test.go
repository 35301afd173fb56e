package slots

import (
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
)

// Arbitrary bytes in the bucket are a record or an error, and whatever a record says, a decision can look at it.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"generation":3,"active":[{"operation_id":"a","server_id":2,"zone":"z","since":"2026-11-28T03:00:00Z","steps":2}]}`))
	f.Add([]byte(`{"active":null,"queue":[{"operation_id":"b","sequence":7}],"recent":[{"operation_id":"c","succeeded":true}]}`))
	f.Add([]byte(`{"failures":2,"failures_under":9,"last_failure":"c","newest":{"1":{"operation_id":"b"}}}`))
	f.Add([]byte(`{"actve":[]}`))
	f.Add([]byte(`garbage`))
	f.Fuzz(func(t *testing.T, value []byte) {
		s := New(nil, nil, nil, NewPauses(nil, nil), nil)
		s.learn("1", versioned{value: value, revision: 1})
		if _, err := s.view(1); err != nil {
			return
		}
		before := s.Record(1)
		for _, slot := range before.Active {
			readFailure(s, slot.OperationID)
		}
		after := s.Record(1)
		if after.Generation < before.Generation && before.Generation < 1<<63 { // it may overflow, in a record made by hand
			t.Errorf("the generation went from %d to %d", before.Generation, after.Generation)
		}
		after.Prune(time.Now(), time.Hour)
	})
}

// readFailure lets the agent have read that an operation of cluster 1 has failed.
func readFailure(s *Slots, id string) {
	s.hold(1, lastEvent{id: id, Holder: guard.Holder{Steps: 1 << 30, State: events.Failed, Attempt: 1}, sequence: 1, readAt: time.Now()})
}
