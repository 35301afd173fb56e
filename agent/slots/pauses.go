package slots

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
)

// Pauses knows which clusters people have paused, by watching the bucket. All methods may be called concurrently.
type Pauses struct {
	bucket jetstream.KeyValue
	log    *slog.Logger

	mu    sync.Mutex
	known map[int64]pause
}

// pause is the latest value of a cluster, or of events.AllClusters.
type pause struct {
	events.Pause
	guard.Control // its Revision and ChangedAt
}

// NewPauses returns the pauses of a bucket; Watch learns them.
func NewPauses(bucket jetstream.KeyValue, log *slog.Logger) *Pauses {
	return &Pauses{bucket: bucket, log: log, known: map[int64]pause{}}
}

// Of returns the pauses that apply to a cluster.
func (p *Pauses) Of(cluster int64) guard.Control {
	p.mu.Lock()
	defer p.mu.Unlock()
	all, own := p.known[events.AllClusters], p.known[cluster]
	latest := own.Control
	if all.Revision > own.Revision { // both are revisions of one bucket: resuming all clusters resumes this one
		latest = all.Control
	}
	return guard.Control{All: all.Pause, Cluster: own.Pause, Revision: latest.Revision, ChangedAt: latest.ChangedAt}
}

// Paused lists the clusters that are paused; events.AllClusters is one of them if all are.
func (p *Pauses) Paused() []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var paused []int64
	for cluster := range maps.Keys(p.known) {
		if p.known[cluster].Paused {
			paused = append(paused, cluster)
		}
	}
	return paused
}

// Watch watches pauses until ctx ends, and calls changed with the cluster, or events.AllClusters, after each change. It
// calls ready once it knows every earlier pause.
func (p *Pauses) Watch(ctx context.Context, ready func(), changed func(cluster int64)) error {
	return watch(ctx, p.bucket, events.PauseKeys, ready, func(entry jetstream.KeyValueEntry) {
		cluster, said, err := events.DecodePause(entry.Key(), entry.Value())
		if entry.Operation() != jetstream.KeyValuePut {
			said = events.Pause{} // deleted by hand: not paused
		}
		if err != nil {
			p.log.Warn("a pause that names no cluster has no effect", "bucket", events.ControlBucket, "error", err)
			return
		}
		control := guard.Control{Revision: entry.Revision(), ChangedAt: entry.Created().UTC()}
		p.mu.Lock()
		p.known[cluster] = pause{Pause: said, Control: control}
		p.mu.Unlock()
		p.log.Info("paused or resumed", "key", entry.Key(), "paused", said.Paused, "by", said.By, "reason", said.Reason)
		changed(cluster)
	})
}
