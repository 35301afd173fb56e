package journal

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

// ErrConflict means that another agent has appended to the operation: this agent does not hold the operation any more.
var ErrConflict = errors.New("another agent has written this operation")

const (
	// batchFrom is the number of events from which one atomic batch is cheaper than as many single appends: a batch
	// costs about 2 ms whatever its size, a flushed append about 0.3 ms.
	batchFrom = 8
	// appendTimeout is how long one try of an append may take, and the longest pause between two tries. After a failed
	// try the agent reads the journal to find out the outcome: the answer to an append is lost whenever NATS restarts.
	appendTimeout = 2 * time.Second
)

// Journal is the stream of all events. An append is a compare-and-set on the last event of its operation, so that of
// two agents that believe that they own an operation only one can append. All methods may be called concurrently.
type Journal struct {
	stream jetstream.Stream
	group  *GroupCommit
	log    *slog.Logger
	count  Counters

	lastErr atomic.Pointer[error] // why the latest append failed; nil if it did not
}

// Counters are called for every append. All of them must be set and safe for concurrent use.
type Counters struct {
	Appended func(took time.Duration) // one append or batch is on disk
	Conflict func()                   // another agent has written the operation
	Failed   func()                   // one try of an append failed for any other reason
}

// New returns the journal that is kept in stream.
func New(stream jetstream.Stream, group *GroupCommit, log *slog.Logger, count Counters) *Journal {
	return &Journal{stream: stream, group: group, log: log, count: count}
}

// Err returns why the latest append failed; nil if it did not.
func (j *Journal) Err() error {
	if err := j.lastErr.Load(); err != nil {
		return fmt.Errorf("journal cannot be written: %w", *err)
	}
	return nil
}

// Last returns the operation as of its last event; see the function Last.
func (j *Journal) Last(ctx context.Context, operationID string) (Entry, error) {
	return Last(ctx, j.stream, operationID)
}

// At returns the operation as of the event at a sequence of the journal. It returns ErrConflict if that event is gone.
func (j *Journal) At(ctx context.Context, operationID string, sequence uint64) (Entry, error) {
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

// Append appends events of one operation after the entry after, in order; a batch is written as a whole or not at all.
// It returns once the events are on disk. While NATS does not answer, it keeps trying until ctx ends, because an
// operation must not go on without its journal. It returns ErrConflict if after is no longer the operation's last
// event.
func (j *Journal) Append(ctx context.Context, after Entry, appended []events.Event) (Entry, error) {
	batch := len(appended) >= batchFrom
	for len(appended) > 0 {
		n := 1
		if batch {
			n = len(appended)
		}
		last, err := j.appendUntilKnown(ctx, after, appended[:n])
		if batch && refusesBatches(err) {
			batch = false // append the events one by one
			continue
		}
		if err != nil {
			return after, fmt.Errorf("append event %s: %w", appended[0].EventID(), err)
		}
		after, appended = last, appended[n:]
	}
	return after, nil
}

// appendUntilKnown publishes until the journal has these events, or events of another agent. The content of the journal
// decides, not the error of the publish: the server may have stored the message although its answer was lost, and a
// NATS cluster reports a known event id as a duplicate even if the event was another agent's.
func (j *Journal) appendUntilKnown(ctx context.Context, after Entry, appended []events.Event) (Entry, error) {
	var last Entry
	backoff := retry.NewExponential(50 * time.Millisecond)
	backoff = retry.WithJitterPercent(20, retry.WithCappedDuration(appendTimeout, backoff))
	err := retry.Do(ctx, backoff, func(ctx context.Context) error {
		began := time.Now()
		sequence, published := j.publish(ctx, after, appended)
		if published == nil {
			j.lastErr.Store(nil)
			j.count.Appended(time.Since(began))
			last = Entry{Operation: appended[len(appended)-1].Operation, Sequence: sequence}
			return nil
		}
		found, err := j.Last(ctx, appended[0].OperationID)
		switch {
		case err != nil:
			j.tryFailed(published)
			j.log.Warn("journal neither written nor read, trying again",
				"event", appended[0].EventID(), "error", published)
			return retry.RetryableError(errors.Join(published, err))
		case isOurs(found, appended[len(appended)-1]):
			j.lastErr.Store(nil) // it is on disk: only the answer was lost
			last = found
			return nil
		case found.Sequence != after.Sequence:
			j.lastErr.Store(nil) // the journal answers
			j.count.Conflict()
			return ErrConflict
		case isPermanent(published):
			j.count.Failed()
			return published
		}
		j.tryFailed(published)
		j.log.Warn("journal not written, trying again", "event", appended[0].EventID(), "error", published)
		return retry.RetryableError(published)
	})
	return last, err
}

func (j *Journal) tryFailed(err error) {
	j.lastErr.Store(&err)
	j.count.Failed()
}

// isOurs reports whether the journal has this very event. It compares whole documents, because an event of another
// agent may have the same number.
func isOurs(found Entry, e events.Event) bool {
	ours, err := e.Message()
	if err != nil {
		return false
	}
	theirs, err := events.Event{Operation: found.Operation, Token: e.Token}.Message()
	return err == nil && bytes.Equal(ours.Data, theirs.Data)
}

// isPermanent reports whether another try would fail in the same way.
func isPermanent(err error) bool { return errors.Is(err, nats.ErrMaxPayload) || refusesBatches(err) }

// refusesBatches reports whether the stream was created without batches, the server is older than 2.14 and accepts no
// message ids in batches, or too many batches are under way.
func refusesBatches(err error) bool {
	return errors.Is(err, jetstreamext.ErrBatchPublishNotEnabled) ||
		errors.Is(err, jetstreamext.ErrBatchPublishUnsupportedHeader) ||
		errors.Is(err, jetstreamext.ErrBatchPublishTooManyInflight) ||
		errors.Is(err, jetstreamext.ErrAtomicPublishTooManyInflight)
}

// errDuplicate means that the server already knows the id of the event.
var errDuplicate = errors.New("an event of this id is in the journal already")

func (j *Journal) publish(ctx context.Context, after Entry, appended []events.Event) (sequence uint64, err error) {
	return j.group.Publish(ctx, len(appended), func() (msgs []*nats.Msg, err error) {
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

// IsConflict reports whether a write was refused because somebody else has written the subject. Streams with several
// replicas have an error code of their own for that.
func IsConflict(err error) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (e.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		e.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
