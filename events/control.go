package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Pause says whether a person holds operations back, who does and why. It is a value of the
// key-value bucket OB_CONTROL; its key is pause.all or pause.<cluster>.
type Pause struct {
	Paused bool      `json:"paused"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// AllClusters stands for the cluster in a pause of all clusters.
const AllClusters int64 = 0

// PauseKeys matches the keys of all pauses.
const PauseKeys = "pause.*"

// PauseKey is the key of the pause of a cluster, or of AllClusters.
func PauseKey(cluster int64) string {
	if cluster == AllClusters {
		return "pause.all"
	}
	return fmt.Sprintf("pause.%d", cluster)
}

// DecodePause reads a pause with its key. A value that cannot be parsed counts as a pause: a
// kill switch that somebody tried to use must not be ignored.
func DecodePause(key string, value []byte) (cluster int64, p Pause, err error) {
	name, _ := strings.CutPrefix(key, "pause.")
	if name != "all" {
		if cluster, err = strconv.ParseInt(name, 10, 64); err != nil || cluster < 1 {
			return 0, Pause{}, fmt.Errorf("key %q: not pause.all or pause.<cluster>", key)
		}
	}
	if p, err := decodePause(value); err == nil {
		return cluster, p, nil
	}
	reason := fmt.Sprintf("the value of key %s in %s cannot be understood", key, ControlBucket)
	return cluster, Pause{Paused: true, By: "somebody", Reason: reason}, nil
}

// decodePause is strict, so that only a value that says for certain that nothing is paused
// is read so.
func decodePause(value []byte) (p Pause, err error) {
	fields, err := decodeObject(value)
	if err != nil {
		return p, err
	}
	var paused *bool
	into := map[string]any{"paused": &paused, "by": &p.By, "reason": &p.Reason, "at": &p.At}
	for name, raw := range fields {
		if into[name] == nil {
			return p, fmt.Errorf("%.64q: unknown field", name)
		}
		if err := json.Unmarshal(raw, into[name]); err != nil {
			return p, fmt.Errorf("%s: %w", name, err)
		}
	}
	if paused == nil {
		return p, errors.New("paused: missing")
	}
	p.Paused = *paused
	return p, nil
}

// ErrRaced means that somebody else changed the pause at the same moment.
var ErrRaced = errors.New("somebody else changed the pause at the same moment: look, and try again")

// SetPause pauses or resumes a cluster, or AllClusters. Every agent that runs obeys within
// moments, and so does every agent that starts later.
func SetPause(ctx context.Context, bucket jetstream.KeyValue, cluster int64, p Pause) error {
	key := PauseKey(cluster)
	value, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	var revision uint64
	entry, err := bucket.Get(ctx, key)
	switch {
	case err == nil:
		revision = entry.Revision()
	case !errors.Is(err, jetstream.ErrKeyNotFound):
		return fmt.Errorf("read %s: %w", key, err)
	}
	_, err = bucket.Update(ctx, key, value, revision)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		err = ErrRaced
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// Inventory lists the clusters that OCP last showed to an agent. It is a value of the bucket
// OB_CONTROL, for programs that have no access to OCP.
type Inventory struct {
	Clusters []KnownCluster `json:"clusters"`
	At       time.Time      `json:"at"`
}

// KnownCluster is a cluster that OCP showed.
type KnownCluster struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
}

const inventoryKey = "clusters"

// ReadInventory reads the latest Inventory, or the zero value if OCP has not shown any
// cluster yet.
func ReadInventory(ctx context.Context, bucket jetstream.KeyValue) (Inventory, error) {
	entry, err := bucket.Get(ctx, inventoryKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Inventory{}, nil
	}
	if err != nil {
		return Inventory{}, fmt.Errorf("read %s from %s: %w", inventoryKey, ControlBucket, err)
	}
	var i Inventory
	if err := json.Unmarshal(entry.Value(), &i); err != nil {
		return Inventory{}, fmt.Errorf("read %s from %s: %w", inventoryKey, ControlBucket, err)
	}
	return i, nil
}

// Write stores i for others to read. The last writer wins, since all agents see the same OCP.
func (i Inventory) Write(ctx context.Context, bucket jetstream.KeyValue) error {
	value, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("encode %s: %w", inventoryKey, err)
	}
	if _, err := bucket.Put(ctx, inventoryKey, value); err != nil {
		return fmt.Errorf("write %s to %s: %w", inventoryKey, ControlBucket, err)
	}
	return nil
}
