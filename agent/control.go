package agent

import (
	"context"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
)

// control is what people have paused, as this agent knows it by watching. All
// methods may be called concurrently.
type control struct {
	bucket jetstream.KeyValue
	log    *slog.Logger
	paused func(cluster int64, paused bool) // for whoever counts

	mu        sync.Mutex
	pauses    map[int64]events.Pause
	revisions map[int64]uint64
}

func newControl(bucket jetstream.KeyValue, log *slog.Logger, paused func(cluster int64, paused bool)) *control {
	return &control{bucket: bucket, log: log, paused: paused, pauses: map[int64]events.Pause{}, revisions: map[int64]uint64{}}
}

// of is what people have said about a cluster.
func (c *control) of(cluster int64) guard.Control {
	c.mu.Lock()
	defer c.mu.Unlock()
	return guard.Control{
		All:     c.pauses[events.AllClusters],
		Cluster: c.pauses[cluster],
		// Both are revisions of one bucket: whoever resumes all forgives all.
		Revision: max(c.revisions[events.AllClusters], c.revisions[cluster]),
	}
}

// watch learns what people say until ctx ends, and calls changed with the cluster,
// or events.AllClusters. It calls ready once it knows all that was said before.
func (c *control) watch(ctx context.Context, ready func(), changed func(cluster int64)) error {
	return watch(ctx, c.bucket, events.PauseKeys, ready, func(entry jetstream.KeyValueEntry) {
		cluster, pause, err := events.DecodePause(entry.Key(), entry.Value())
		if entry.Operation() != jetstream.KeyValuePut {
			pause = events.Pause{} // deleted by hand: nobody holds anything back
		}
		if err != nil {
			c.log.Warn("a pause that is about no cluster has no effect", "bucket", events.ControlBucket, "error", err)
			return
		}
		c.mu.Lock()
		c.pauses[cluster], c.revisions[cluster] = pause, entry.Revision()
		c.mu.Unlock()
		c.paused(cluster, pause.Paused)
		c.log.Info("paused or resumed", "key", entry.Key(), "paused", pause.Paused, "by", pause.By, "reason", pause.Reason)
		changed(cluster)
	})
}
