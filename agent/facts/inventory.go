package facts

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
)

// inventoryInterval is how old the list of clusters may be for commands without access to OCP.
const inventoryInterval = 10 * time.Minute

// KeepInventory writes the list of clusters that OCP shows to the control bucket, as events.Inventory, until ctx ends.
// Commands without access to OCP read it.
func KeepInventory(ctx context.Context, directory *Directory, bucket jetstream.KeyValue, log *slog.Logger) {
	tick := time.NewTicker(inventoryInterval)
	defer tick.Stop()
	i := inventory{directory: directory, bucket: bucket}
	for {
		if err := i.refresh(ctx); err != nil && ctx.Err() == nil {
			log.Warn("cannot write the list of clusters for `obwarden pause`", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// inventory writes the list of clusters and remembers the list that it wrote last.
type inventory struct {
	directory *Directory
	bucket    jetstream.KeyValue
	written   []events.KnownCluster
	wrote     bool
}

// refresh writes the list unless this agent wrote the same list last. While OCP does not answer, the old list stays;
// that is no error of the inventory.
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
