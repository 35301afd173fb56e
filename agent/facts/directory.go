// Package facts caches everything that agents read from OCP: clusters, servers, topologies and tasks. Callers say how
// old a fact may be for their purpose; callers that ask at the same time share one reading.
//
// directory.go owns the list of clusters and of the servers in each, and inventory.go publishes that list for commands
// without access to OCP. facts.go reads what the guard needs of a cluster, and tasks.go polls tasks. cache.go shares a
// reading. The package imports events, agent/guard and agent/ocp.
package facts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
)

// DirectoryAge is how old entries of the directory may be for a caller that only looks up a name or an address: these
// hardly ever change. The directory never decides whether an operation is safe.
const DirectoryAge = time.Minute

// ErrNotShown means that OCP answers, but does not show the cluster or server. Errors that match it have a text of
// their own.
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

// NewDirectory returns a directory. It asks OCP when it is first used.
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

// Name returns a cluster's name; "" if OCP shows no such cluster, also when asked again.
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

// Servers returns the servers of a cluster, read at most DirectoryAge ago; ErrNotShown if OCP refuses to show them. The
// caller must not change them.
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
		servers[i].ClusterID = cluster // whatever the answer says
	}
	return servers, err
}

// Server returns a server and the name of its cluster; ErrNotShown if OCP shows no such server or cluster.
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
