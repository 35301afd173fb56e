package alerts

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// maxTold is how many alerts of one matter are remembered; the resolved ones among
// them are forgotten first.
const maxTold = 256

// matter is what the alerts of one rule about one server come to: one value in a
// key-value bucket that all agents share, written by compare-and-set. So one
// operation at a time is asked for, whichever alerts fire and whichever agent is told.
type matter struct {
	Told []told `json:"told"` // as they came, at most maxTold
	// Request is the latest, kept as it was first made: what is published again must
	// be the same to the letter, and an annotation may have changed.
	Request     *events.Request `json:"request,omitempty"`
	Kind        events.Kind     `json:"kind,omitempty"` // of the request
	RequestedAt time.Time       `json:"requested_at,omitzero"`
	Published   bool            `json:"published,omitempty"` // JetStream has it on disk
	Resolved    bool            `json:"resolved,omitempty"`  // since the request, all that fired have been
	UpdatedAt   time.Time       `json:"updated_at"`
}

// told is what was last told of one alert.
type told struct {
	Fingerprint string    `json:"fingerprint"`
	StartsAt    time.Time `json:"starts_at"`
	Resolved    bool      `json:"resolved,omitempty"`
}

// tell takes in what an alert says of itself, and reports whether that is news. What
// was resolved stays resolved, whatever a slower Alertmanager still says of it.
func (m *matter) tell(a alert) (news bool) {
	i := slices.IndexFunc(m.Told, func(t told) bool { return t.Fingerprint == a.Fingerprint })
	if i < 0 {
		m.Told = append(m.Told, told{a.Fingerprint, a.StartsAt, !a.Firing})
		if len(m.Told) > maxTold {
			oldest := max(0, slices.IndexFunc(m.Told, func(t told) bool { return t.Resolved }))
			m.Told = slices.Delete(m.Told, oldest, oldest+1)
		}
	} else {
		t := &m.Told[i]
		later := a.StartsAt.After(t.StartsAt)
		if !later && (t.Resolved || a.Firing || a.StartsAt.Before(t.StartsAt)) {
			return false
		}
		t.StartsAt, t.Resolved = a.StartsAt, !a.Firing
	}
	if m.Request != nil && !slices.ContainsFunc(m.Told, func(t told) bool { return !t.Resolved }) {
		m.Resolved = true
	}
	return true
}

// over reports whether this firing of the alert is known to have been resolved.
func (m *matter) over(a alert) bool {
	return slices.ContainsFunc(m.Told, func(t told) bool {
		return t.Fingerprint == a.Fingerprint && (t.Resolved && !a.StartsAt.After(t.StartsAt) || a.StartsAt.Before(t.StartsAt))
	})
}

// hinders says why a firing alert gets no request of its own now; "" where nothing
// hinders. op is the operation of the latest request as the journal has it.
func (m *matter) hinders(rule *policy.AlertRule, op events.Operation, now time.Time) (result, message string) {
	if m.Request == nil {
		return "", ""
	}
	id := events.OperationID(m.Request.IdempotencyKey)
	ended, result, what := op.EndedAt, resultCooling, "was done for"
	if op.N == 0 { // no agent has taken the request yet
		ended, result, what = m.RequestedAt, resultGrouped, "was asked for"
	}
	again := ended.Add(rule.AgainAfter)
	switch {
	case op.N > 0 && !op.State.Final():
		return resultGrouped, fmt.Sprintf("operation %s on the server is %s", id, op.State)
	case m.Resolved:
		return "", ""
	case rule.AgainAfter == 0:
		return result, fmt.Sprintf("operation %s %s this server; the alerts must be resolved first", id, what)
	case now.Before(again):
		return result, fmt.Sprintf("operation %s %s this server; not again before %s, unless the alerts are resolved", id, what, again.UTC().Format(time.RFC3339))
	}
	return "", ""
}

// matterKey is the same for all alerts of a rule that name their server the same way.
// It needs no look at OCP: an alert that is resolved must count while OCP is away.
func matterKey(rule *policy.AlertRule, labels map[string]string) string {
	t := rule.Target
	host := labels[t.Host]
	if split, _, err := net.SplitHostPort(host); err == nil {
		host = split
	}
	named, _ := json.Marshal([]string{rule.Name, labels[cmp.Or(t.ClusterID, t.Cluster)], labels[t.ServerID], labels[t.Address], host}) // strings always encode
	sum := sha256.Sum256(named)
	return "alert." + hex.EncodeToString(sum[:16])
}

// matters are kept where all agents find them.
type matters struct{ bucket jetstream.KeyValue }

// update reads a matter, lets change change it, and writes it where change says so;
// where somebody else has written it meanwhile, all over again.
func (s matters) update(ctx context.Context, key string, now time.Time, change func(*matter) (bool, error)) error {
	for {
		var m matter
		var revision uint64
		entry, err := s.bucket.Get(ctx, key)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
		case err != nil:
			return fmt.Errorf("read %s of bucket %s: %w", key, Bucket, err)
		default:
			revision = entry.Revision()
			if err := json.Unmarshal(entry.Value(), &m); err != nil {
				return fmt.Errorf("read %s of bucket %s: %w", key, Bucket, err)
			}
		}
		write, err := change(&m)
		if err != nil || !write {
			return err
		}
		m.UpdatedAt = now.UTC()
		value, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("write %s of bucket %s: %w", key, Bucket, err)
		}
		_, err = s.bucket.Update(ctx, key, value, revision)
		if err == nil {
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return fmt.Errorf("write %s of bucket %s: %w", key, Bucket, err)
		}
	}
}

// Bucket is the key-value bucket of matters.
const Bucket = "OB_ALERTS"

// OpenBucket opens the bucket and makes it where it is missing. A matter is
// forgotten once nothing was told of it for as long as idempotency keys are
// remembered.
func OpenBucket(ctx context.Context, js jetstream.JetStream, o events.StreamOptions) (jetstream.KeyValue, error) {
	bucket, err := js.KeyValue(ctx, Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		bucket, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket:      Bucket,
			Description: "obwarden: what was made of the alerts of one rule about one server",
			Replicas:    o.Replicas,
			TTL:         o.Retention,
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // another agent was first
			bucket, err = js.KeyValue(ctx, Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open key-value bucket %s: %w", Bucket, err)
	}
	return bucket, nil
}

// last returns the operation of a key as the journal has it; a zero one where it has none.
func last(ctx context.Context, journal jetstream.Stream, key string) (events.Operation, error) {
	return lastOf(ctx, journal, events.OperationID(key))
}

func lastOf(ctx context.Context, journal jetstream.Stream, id string) (events.Operation, error) {
	msg, err := journal.GetLastMsgForSubject(ctx, events.OperationSubjects(id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return events.Operation{}, nil
	}
	if err != nil {
		return events.Operation{}, fmt.Errorf("read operation %s from the journal: %w", id, err)
	}
	e, err := events.DecodeEvent(msg.Subject, msg.Data)
	return e.Operation, err
}
