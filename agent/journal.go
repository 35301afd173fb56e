package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sethvargo/go-retry"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/obwarden/obwarden/events"
)

// ErrConflict means that another agent has appended to the operation: this one
// does not hold it any more.
var ErrConflict = errors.New("another agent has written this operation")

const (
	// batchFrom is the number of events from which one atomic batch is cheaper
	// than as many single appends: a batch costs about 2 ms whatever its size, a
	// flushed append about 0.3 ms.
	batchFrom = 8
	// appendTimeout is how long one try of an append may take, and the longest pause
	// between two; then the journal is read to find out what became of it. The answer
	// to an append is lost whenever NATS is started anew.
	appendTimeout = 2 * time.Second
)

// Journal is the stream of all events. An append is a compare-and-set on the last
// event of its operation, so of two agents that believe to hold an operation only
// one can write. All methods may be called concurrently.
type Journal struct {
	stream   jetstream.Stream
	group    *group
	log      *slog.Logger
	appended func(took time.Duration) // one append or batch, flushed
	conflict func()
	failed   func()                 // one try of an append, for another reason
	trouble  *atomic.Pointer[error] // why the latest append failed; nil: it did not
}

// Entry is an operation with the place of its last event in the journal. The
// zero Entry is an operation without events.
type Entry struct {
	Operation events.Operation
	Sequence  uint64
}

// Last returns the operation as its last event left it; a zero Entry where there
// is none.
func (j Journal) Last(ctx context.Context, operationID string) (Entry, error) {
	msg, err := j.stream.GetLastMsgForSubject(ctx, events.OperationSubjects(operationID))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Entry{}, nil
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read operation %s from the journal: %w", operationID, err)
	}
	e, err := events.DecodeEvent(msg.Subject, msg.Data)
	if err != nil {
		return Entry{}, fmt.Errorf("read operation %s from the journal at sequence %d: %w", operationID, msg.Sequence, err)
	}
	return Entry{Operation: e.Operation, Sequence: msg.Sequence}, nil
}

// At returns the operation as its event at a place in the journal left it; ErrConflict
// where that is not there any more.
func (j Journal) At(ctx context.Context, operationID string, sequence uint64) (Entry, error) {
	msg, err := j.stream.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Entry{}, fmt.Errorf("journal has no event at sequence %d any more: %w", sequence, ErrConflict)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read the journal at sequence %d: %w", sequence, err)
	}
	e, err := events.DecodeEvent(msg.Subject, msg.Data)
	if err != nil {
		return Entry{}, fmt.Errorf("read the journal at sequence %d: %w", sequence, err)
	}
	if e.OperationID != operationID {
		return Entry{}, fmt.Errorf("journal has operation %s at sequence %d: %w", e.OperationID, sequence, ErrConflict)
	}
	return Entry{Operation: e.Operation, Sequence: msg.Sequence}, nil
}

// Append writes events of one operation behind after, all or none of them where
// they go as a batch, in order in any case. It returns once they are on disk. While
// NATS does not answer it keeps trying until ctx ends: an operation without its
// journal must stand still. It returns ErrConflict where after is no longer the
// operation's last event.
func (j Journal) Append(ctx context.Context, after Entry, appended []events.Event) (Entry, error) {
	batch := len(appended) >= batchFrom
	for len(appended) > 0 {
		n := 1
		if batch {
			n = len(appended)
		}
		last, err := j.appendSurely(ctx, after, appended[:n])
		if batch && refusesBatches(err) {
			batch = false // one by one, then
			continue
		}
		if err != nil {
			return after, fmt.Errorf("append event %s: %w", appended[0].EventID(), err)
		}
		after, appended = last, appended[n:]
	}
	return after, nil
}

// appendSurely publishes until the journal holds the events or those of somebody
// else. An error of the publish alone never decides: the message may have been
// stored before the answer was lost, and a cluster answers an event id that it
// knows as a duplicate even if it was another agent's. What the journal holds decides.
func (j Journal) appendSurely(ctx context.Context, after Entry, appended []events.Event) (Entry, error) {
	var last Entry
	backoff := retry.WithJitterPercent(20, retry.WithCappedDuration(appendTimeout, retry.NewExponential(50*time.Millisecond)))
	err := retry.Do(ctx, backoff, func(ctx context.Context) error {
		began := time.Now()
		sequence, published := j.publish(ctx, after, appended)
		if published == nil {
			j.trouble.Store(nil)
			j.appended(time.Since(began))
			last = Entry{Operation: appended[len(appended)-1].Operation, Sequence: sequence}
			return nil
		}
		found, err := j.Last(ctx, appended[0].OperationID)
		switch {
		case err != nil:
			j.troubled(published)
			j.log.Warn("journal neither written nor read, trying again", "event", appended[0].EventID(), "error", published)
			return retry.RetryableError(errors.Join(published, err))
		case isOurs(found, appended[len(appended)-1]):
			last = found
			return nil
		case found.Sequence != after.Sequence:
			j.conflict()
			return ErrConflict
		case isPermanent(published):
			j.failed()
			return published
		}
		j.troubled(published)
		j.log.Warn("journal not written, trying again", "event", appended[0].EventID(), "error", published)
		return retry.RetryableError(published)
	})
	return last, err
}

func (j Journal) troubled(err error) {
	j.trouble.Store(&err)
	j.failed()
}

// isOurs compares whole documents: the event's number alone could be another agent's.
func isOurs(found Entry, e events.Event) bool {
	ours, err := e.Message()
	if err != nil {
		return false
	}
	theirs, err := events.Event{Operation: found.Operation, Token: e.Token}.Message()
	return err == nil && bytes.Equal(ours.Data, theirs.Data)
}

// isPermanent: no number of tries makes the message smaller, or the server another.
func isPermanent(err error) bool { return errors.Is(err, nats.ErrMaxPayload) || refusesBatches(err) }

// refusesBatches: the stream was made without them, the server is older than 2.14
// and takes no message ids in them, or has too many under way.
func refusesBatches(err error) bool {
	return errors.Is(err, jetstreamext.ErrBatchPublishNotEnabled) || errors.Is(err, jetstreamext.ErrBatchPublishUnsupportedHeader) ||
		errors.Is(err, jetstreamext.ErrBatchPublishTooManyInflight) || errors.Is(err, jetstreamext.ErrAtomicPublishTooManyInflight)
}

// errDuplicate is the server's word that it knows the event's id.
var errDuplicate = errors.New("an event of this id is in the journal already")

func (j Journal) publish(ctx context.Context, after Entry, appended []events.Event) (sequence uint64, err error) {
	return j.group.append(ctx, len(appended), func() (msgs []*nats.Msg, err error) {
		msgs = make([]*nats.Msg, len(appended))
		for i, e := range appended {
			if msgs[i], err = e.Message(); err != nil {
				return nil, err
			}
		}
		msgs[0].Header.Set(jetstream.ExpectedLastSubjSeqHeader, fmt.Sprint(after.Sequence))
		msgs[0].Header.Set(jetstream.ExpectedLastSubjSeqSubjHeader, events.OperationSubjects(appended[0].OperationID))
		return msgs, nil
	})
}
