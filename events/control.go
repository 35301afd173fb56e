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

// Pause says whether operations are held back, by whom and why: a value of the
// key-value bucket OB_CONTROL. Its key is pause.all or pause.<cluster>.
type Pause struct {
	Paused bool      `json:"paused"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// AllClusters is the cluster of a pause that holds for all of them.
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

// DecodePause reads a pause with its key. What cannot be understood is a pause: a
// kill switch that somebody tried to throw must not be passed over.
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
	return cluster, Pause{Paused: true, By: "somebody", Reason: fmt.Sprintf("the value of key %s in %s cannot be understood", key, ControlBucket)}, nil
}

// decodePause is strict: a value that does not say for certain that nothing is paused
// must not be taken for one that does.
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

// ErrRaced means that somebody else changed a pause at the same moment.
var ErrRaced = errors.New("somebody else changed it at the same moment: look, and try again")

// SetPause pauses or resumes a cluster, or AllClusters. It takes effect with every
// agent within moments, and with those that start later.
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

// Inventory is what OCP last showed to an agent: a value of the bucket OB_CONTROL,
// for those who have no access to OCP.
type Inventory struct {
	Clusters []KnownCluster `json:"clusters"`
	At       time.Time      `json:"at"`
}

// KnownCluster is a cluster in OCP.
type KnownCluster struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
}

const inventoryKey = "clusters"

// ReadInventory reads what OCP last showed; the zero Inventory where it has shown nothing yet.
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

// Write keeps i for others to read. The last writer wins: all agents see the same OCP.
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
