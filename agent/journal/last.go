// Package journal reads and writes the stream of all events. It returns the last event of an operation, and appends
// events by compare-and-set. Writes of many operations share a flush. The package imports events.
package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
)

// Entry is an operation with the sequence of its last event in the journal. The zero Entry is an operation without
// events.
type Entry struct {
	Operation events.Operation
	Sequence  uint64
}

// Last returns the operation as of its last event in stream; a zero Entry if there is none.
func Last(ctx context.Context, stream jetstream.Stream, operationID string) (Entry, error) {
	msg, err := stream.GetLastMsgForSubject(ctx, events.OperationSubjects(operationID))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Entry{}, nil
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read operation %s from the journal: %w", operationID, err)
	}
	e, err := events.DecodeEvent(msg.Subject, msg.Data)
	if err != nil {
		return Entry{}, fmt.Errorf("read operation %s from the journal at sequence %d: %w",
			operationID, msg.Sequence, err)
	}
	return Entry{Operation: e.Operation, Sequence: msg.Sequence}, nil
}
