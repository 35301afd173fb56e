// Package facts caches what OCP shows: which clusters and servers there are, and what goes on in them. Callers say how
// old a fact may be for their purpose; those who ask at the same time share one reading.
//
// directory.go owns the list of clusters and the servers in them, inventory.go writes that list down for commands
// without access to OCP, cache.go is how a reading is shared.
package facts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
)

// DirectoryAge is how old entries of the directory may be where only a name or an address is looked up: these hardly
// ever change. Whether something may be done to a server is never decided by the directory.
const DirectoryAge = time.Minute

// ErrNotShown means that OCP answers and does not show what was asked for. Asking again does not help until OCP does.
// Errors that match it have a text of their own.
var ErrNotShown = errors.New("OCP does not show it")

// notShown is an error that matches ErrNotShown.
type notShown struct{ error }

func (e notShown) Is(target error) bool { return target == ErrNotShown }
func (e notShown) Unwrap() error        { return e.error }

// Directory is the one owner of the list of clusters in OCP, and of the servers in each. Its methods may be called
// concurrently.
type Directory struct {
	client   *ocp.Client
	clusters cached[[]ocp.Cluster]
	servers  byCluster[[]ocp.Server]
}

// NewDirectory makes a directory. It asks OCP when it is first used.
func NewDirectory(client *ocp.Client) *Directory {
	return &Directory{client: client, servers: byCluster[[]ocp.Server]{maxAge: DirectoryAge}}
}

// Clusters returns the clusters that OCP shows, read at most maxAge ago. The caller must not change them.
func (d *Directory) Clusters(ctx context.Context, maxAge time.Duration) ([]ocp.Cluster, error) {
	clusters, err := d.readClusters(ctx, func(_ []ocp.Cluster, age time.Duration) bool { return age <= maxAge })
	if err != nil {
		return nil, fmt.Errorf("look clusters up in OCP: %w", err)
	}
	return clusters, nil
}

// Name returns a cluster's name, and looks again before it says that there is none: "" where OCP shows no such cluster.
func (d *Directory) Name(ctx context.Context, cluster int64) (string, error) {
	clusters, err := d.readClusters(ctx, func(known []ocp.Cluster, age time.Duration) bool {
		return age <= DirectoryAge && indexOf(known, cluster) >= 0
	})
	if err != nil {
		return "", fmt.Errorf("read names of clusters: %w", err)
	}
	if i := indexOf(clusters, cluster); i >= 0 {
		return clusters[i].Name, nil
	}
	return "", nil
}

func (d *Directory) readClusters(
	ctx context.Context, good func(known []ocp.Cluster, age time.Duration) bool,
) ([]ocp.Cluster, error) {
	return d.clusters.get(ctx, good, func() ([]ocp.Cluster, error) { return d.client.Clusters(ctx) })
}

func indexOf(clusters []ocp.Cluster, id int64) int {
	return slices.IndexFunc(clusters, func(c ocp.Cluster) bool { return c.ID == id })
}

// Servers returns the servers of a cluster, read at most DirectoryAge ago; ErrNotShown where OCP refuses to show them.
// The caller must not change them.
func (d *Directory) Servers(ctx context.Context, cluster int64) ([]ocp.Server, error) {
	servers, err := d.servers.of(cluster).get(ctx,
		func(_ []ocp.Server, age time.Duration) bool { return age <= DirectoryAge },
		func() ([]ocp.Server, error) { return d.readServers(ctx, cluster) })
	switch {
	case err == nil:
	case ocp.ClassOf(err) == ocp.Refused:
		return nil, notShown{fmt.Errorf("OCP does not show the servers of cluster %d: %w", cluster, err)}
	default:
		return nil, fmt.Errorf("look servers of cluster %d up in OCP: %w", cluster, err)
	}
	return servers, nil
}

func (d *Directory) readServers(ctx context.Context, cluster int64) ([]ocp.Server, error) {
	servers, err := d.client.Servers(ctx, cluster)
	for i := range servers {
		servers[i].ClusterID = cluster // an answer about another cluster is not trusted to say so
	}
	return servers, err
}

// Server returns a server and the name of its cluster; ErrNotShown where OCP shows no such server, or no such cluster.
func (d *Directory) Server(ctx context.Context, cluster, server int64) (ocp.Server, string, error) {
	clusters, err := d.Clusters(ctx, DirectoryAge)
	if err != nil {
		return ocp.Server{}, "", err
	}
	servers, err := d.Servers(ctx, cluster)
	if err != nil {
		return ocp.Server{}, "", err
	}
	c := indexOf(clusters, cluster)
	s := slices.IndexFunc(servers, func(s ocp.Server) bool { return s.ID == server })
	if c < 0 || s < 0 {
		return ocp.Server{}, "", notShown{fmt.Errorf("OCP shows no server %d in cluster %d", server, cluster)}
	}
	return servers[s], clusters[c].Name, nil
}
