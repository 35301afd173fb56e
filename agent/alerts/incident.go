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

// maxSightings is how many alerts of one incident are remembered; resolved ones are forgotten first.
const maxSightings = 256

// incident is formed by all alerts that one rule matches for one server. It is one value in a key-value bucket that all
// agents share, written by compare-and-set. So one operation at a time is requested for it, whichever alerts fire and
// whichever agent receives them.
//
// The names in JSON are those of stored values: they stay, whatever the fields are called.
type incident struct {
	Sightings []sighting `json:"told"` // in order of arrival, at most maxSightings
	// Request is the latest request, kept as it was made first: a request that is published again must be the same
	// byte for byte, and the alert's annotations may have changed since.
	Request     *events.Request `json:"request,omitempty"`
	Kind        events.Kind     `json:"kind,omitempty"` // of the request
	RequestedAt time.Time       `json:"requested_at,omitzero"`
	Published   bool            `json:"published,omitempty"` // JetStream has the request on disk
	Resolved    bool            `json:"resolved,omitempty"`  // all alerts that fired have been resolved since the request
	UpdatedAt   time.Time       `json:"updated_at"`
}

// sighting is the latest that one alert said of itself.
type sighting struct {
	Fingerprint string    `json:"fingerprint"`
	StartsAt    time.Time `json:"starts_at"`
	Resolved    bool      `json:"resolved,omitempty"`
}

// observe records what an alert says of itself, and reports whether that changed anything. A firing that was resolved
// stays resolved, whatever a slower Alertmanager still says of it.
func (i *incident) observe(a alert) (changed bool) {
	at := slices.IndexFunc(i.Sightings, func(s sighting) bool { return s.Fingerprint == a.Fingerprint })
	if at < 0 {
		i.Sightings = append(i.Sightings, sighting{a.Fingerprint, a.StartsAt, !a.Firing})
		if len(i.Sightings) > maxSightings {
			oldest := max(0, slices.IndexFunc(i.Sightings, func(s sighting) bool { return s.Resolved }))
			i.Sightings = slices.Delete(i.Sightings, oldest, oldest+1)
		}
	} else {
		s := &i.Sightings[at]
		later := a.StartsAt.After(s.StartsAt)
		if !later && (s.Resolved || a.Firing || a.StartsAt.Before(s.StartsAt)) {
			return false
		}
		s.StartsAt, s.Resolved = a.StartsAt, !a.Firing
	}
	if i.Request != nil && !slices.ContainsFunc(i.Sightings, func(s sighting) bool { return !s.Resolved }) {
		i.Resolved = true
	}
	return true
}

// wasResolved reports whether this firing of the alert is known to have been resolved.
func (i *incident) wasResolved(a alert) bool {
	return slices.ContainsFunc(i.Sightings, func(s sighting) bool {
		return s.Fingerprint == a.Fingerprint &&
			(s.Resolved && !a.StartsAt.After(s.StartsAt) || a.StartsAt.Before(s.StartsAt))
	})
}

// blocked says why a firing alert gets no request of its own now; the result is "" where it may get one. op is the
// operation of the latest request as the journal has it.
func (i *incident) blocked(rule *policy.AlertRule, op events.Operation, now time.Time) (result, message string) {
	if i.Request == nil {
		return "", ""
	}
	id := events.OperationID(i.Request.IdempotencyKey)
	ended, result, what := op.EndedAt, resultCooling, "has ended"
	if op.N == 0 { // no agent has taken the request yet
		ended, result, what = i.RequestedAt, resultGrouped, "has been requested"
	}
	again := ended.Add(rule.AgainAfter)
	switch {
	case op.N > 0 && !op.State.Final():
		return resultGrouped, fmt.Sprintf("operation %s on the server is %s", id, op.State)
	case i.Resolved:
		return "", ""
	case rule.AgainAfter == 0:
		return result, fmt.Sprintf("operation %s on this server %s; the alerts must be resolved first", id, what)
	case now.Before(again):
		return result, fmt.Sprintf("operation %s on this server %s; not again before %s, unless the alerts are resolved",
			id, what, again.UTC().Format(time.RFC3339))
	}
	return "", ""
}

// incidentKey is the same for all alerts of a rule that name their server in the same way. It is computed without OCP:
// the end of an alert must count while OCP is away.
func incidentKey(rule *policy.AlertRule, labels map[string]string) string {
	t := rule.Target
	host := labels[t.Host]
	if split, _, err := net.SplitHostPort(host); err == nil {
		host = split
	}
	named, _ := json.Marshal([]string{ // strings always encode
		rule.Name, labels[cmp.Or(t.ClusterID, t.Cluster)], labels[t.ServerID], labels[t.Address], host,
	})
	sum := sha256.Sum256(named)
	return "alert." + hex.EncodeToString(sum[:16])
}

// incidents are kept in a bucket that all agents share.
type incidents struct{ bucket jetstream.KeyValue }

// update reads an incident, lets change change it, and writes it where change says so. Where another agent has written
// it meanwhile, update starts again.
func (s incidents) update(ctx context.Context, key string, now time.Time, change func(*incident) (bool, error)) error {
	for {
		i, revision, err := s.read(ctx, key)
		if err != nil {
			return err
		}
		write, err := change(&i)
		if err != nil || !write {
			return err
		}
		i.UpdatedAt = now.UTC()
		value, err := json.Marshal(i)
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

// read returns an incident and its revision in the bucket; a new incident and 0 where there is none.
func (s incidents) read(ctx context.Context, key string) (i incident, revision uint64, err error) {
	entry, err := s.bucket.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return incident{}, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), &i)
	}
	if err != nil {
		return incident{}, 0, fmt.Errorf("read %s of bucket %s: %w", key, Bucket, err)
	}
	return i, entry.Revision(), nil
}

// Bucket is the key-value bucket of incidents.
const Bucket = "OB_ALERTS"

// OpenBucket opens the bucket, and creates it where it is missing. An incident is forgotten once none of its alerts has
// come in for as long as idempotency keys are remembered.
func OpenBucket(ctx context.Context, js jetstream.JetStream, o events.StreamOptions) (jetstream.KeyValue, error) {
	bucket, err := js.KeyValue(ctx, Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		bucket, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket:      Bucket,
			Description: "obwarden: incidents, each formed by the alerts that one rule matches for one server",
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
