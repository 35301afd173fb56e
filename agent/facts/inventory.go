package facts

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
)

// inventoryInterval is how old the list of clusters may be that commands without access to OCP go by.
const inventoryInterval = 10 * time.Minute

// KeepInventory writes down which clusters OCP shows until ctx ends, as events.Inventory in the control bucket, for
// commands that have no access to OCP.
func KeepInventory(ctx context.Context, directory *Directory, bucket jetstream.KeyValue, log *slog.Logger) {
	tick := time.NewTicker(inventoryInterval)
	defer tick.Stop()
	i := inventory{directory: directory, bucket: bucket}
	for {
		if err := i.refresh(ctx); err != nil && ctx.Err() == nil {
			log.Warn("the list of clusters is not written down for `obwarden pause`", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// inventory is the list of clusters with a memory of what was written.
type inventory struct {
	directory *Directory
	bucket    jetstream.KeyValue
	written   []events.KnownCluster
	wrote     bool
}

// refresh writes the list unless it is the one that this agent wrote last. It leaves the old list where it is while
// OCP does not answer, which is no error of the inventory.
func (i *inventory) refresh(ctx context.Context) error {
	clusters, err := i.directory.Clusters(ctx, DirectoryAge)
	if err != nil {
		return nil
	}
	var known []events.KnownCluster
	for _, c := range clusters {
		known = append(known, events.KnownCluster{ID: c.ID, Name: c.Name})
	}
	if i.wrote && slices.Equal(known, i.written) {
		return nil
	}
	if err := (events.Inventory{Clusters: known, At: time.Now().UTC()}).Write(ctx, i.bucket); err != nil {
		return err
	}
	i.written, i.wrote = known, true
	return nil
}
