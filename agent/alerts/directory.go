package alerts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
)

const (
	// directoryAge is how old what is known of OCP's clusters and servers may be.
	// It finds a server by its address; whether something may be done to it the guard
	// decides on fresh facts.
	directoryAge   = time.Minute
	resolveTimeout = 2 * time.Second
)

// refusal is an error that trying again does not mend.
type refusal struct{ error }

func refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

func isRefusal(err error) bool { return errors.As(err, new(refusal)) }

// Directory is what OCP shows of clusters and servers, a minute old at most. It is
// safe for concurrent use.
type Directory struct {
	client *ocp.Client

	mu       sync.Mutex // held while OCP is asked: who waits mostly wants the same
	clusters aged[[]ocp.Cluster]
	servers  map[int64]aged[[]ocp.Server] // by cluster
}

// aged is something with the time before it was read.
type aged[T any] struct {
	value  T
	readAt time.Time
}

func (a aged[T]) fresh() bool { return !a.readAt.IsZero() && time.Since(a.readAt) < directoryAge }

// NewDirectory makes a directory that asks OCP when it is first used.
func NewDirectory(client *ocp.Client) *Directory {
	return &Directory{client: client, servers: map[int64]aged[[]ocp.Server]{}}
}

// readClusters and readServers are called with d.mu held.
func (d *Directory) readClusters(ctx context.Context) ([]ocp.Cluster, error) {
	if !d.clusters.fresh() {
		now := time.Now()
		clusters, err := d.client.Clusters(ctx)
		if err != nil {
			return nil, fmt.Errorf("look clusters up in OCP: %w", err)
		}
		d.clusters = aged[[]ocp.Cluster]{clusters, now}
		for id, servers := range d.servers {
			if !servers.fresh() {
				delete(d.servers, id)
			}
		}
	}
	return d.clusters.value, nil
}

// readServers reads those of all clusters for cluster 0.
func (d *Directory) readServers(ctx context.Context, cluster int64) ([]ocp.Server, error) {
	if cluster == 0 {
		clusters, err := d.readClusters(ctx)
		if err != nil {
			return nil, err
		}
		var all []ocp.Server
		for _, c := range clusters {
			servers, err := d.readServers(ctx, c.ID)
			if err != nil {
				return nil, err
			}
			all = append(all, servers...)
		}
		return all, nil
	}
	if !d.servers[cluster].fresh() {
		now := time.Now()
		servers, err := d.client.Servers(ctx, cluster)
		if ocp.ClassOf(err) == ocp.Refused && err != nil {
			return nil, refuse("OCP does not show the servers of cluster %d: %w", cluster, err)
		}
		if err != nil {
			return nil, fmt.Errorf("look servers of cluster %d up in OCP: %w", cluster, err)
		}
		for i := range servers {
			servers[i].ClusterID = cluster // an answer about another is not trusted to say so
		}
		d.servers[cluster] = aged[[]ocp.Server]{servers, now}
	}
	return d.servers[cluster].value, nil
}

// server finds a server by its ids, and the name of its cluster.
func (d *Directory) server(ctx context.Context, cluster, server int64) (ocp.Server, string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	clusters, err := d.readClusters(ctx)
	if err != nil {
		return ocp.Server{}, "", err
	}
	servers, err := d.readServers(ctx, cluster)
	if err != nil {
		return ocp.Server{}, "", err
	}
	c := slices.IndexFunc(clusters, func(c ocp.Cluster) bool { return c.ID == cluster })
	s := slices.IndexFunc(servers, func(s ocp.Server) bool { return s.ID == server })
	if c < 0 || s < 0 {
		return ocp.Server{}, "", refuse("OCP shows no server %d in cluster %d", server, cluster)
	}
	return servers[s], clusters[c].Name, nil
}

// find says which server the labels are about. A refusal says why that is not
// certain; any other error means that OCP or the name server did not answer.
func (d *Directory) find(ctx context.Context, t policy.AlertTarget, labels map[string]string) (cluster, server int64, err error) {
	if t.ServerID != "" {
		if server, err = idIn(labels, t.ServerID); err != nil {
			return 0, 0, err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		cluster, err = d.cluster(ctx, t, labels)
		return cluster, server, err
	}
	name := cmp.Or(t.Address, t.Host)
	value := labels[name]
	if value == "" {
		return 0, 0, refuse("it has no label %s, which says which server it is about", name)
	}
	host, port, err := splitAddress(value, t.Address != "")
	if err != nil {
		return 0, 0, refuse("label %s: %w", name, err)
	}
	candidates, err := resolve(ctx, host)
	if err != nil {
		return 0, 0, fmt.Errorf("label %s: %w", name, err)
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if cluster, err = d.cluster(ctx, t, labels); err != nil {
		return 0, 0, err
	}
	servers, err := d.readServers(ctx, cluster)
	if err != nil {
		return 0, 0, err
	}
	var found []ocp.Server
	for _, s := range servers {
		if (port == 0 || s.Port == port || s.SQLPort == port) && sameHost(s.IP, candidates) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return 0, 0, refuse("OCP shows no server with the address %q of label %s%s", value, name, inCluster(cluster))
	case 1:
		return found[0].ClusterID, found[0].ID, nil
	}
	return 0, 0, refuse("the address %q of label %s is ambiguous%s: servers %d of cluster %d and %d of cluster %d, at least",
		value, name, inCluster(cluster), found[0].ID, found[0].ClusterID, found[1].ID, found[1].ClusterID)
}

// cluster is 0 where the rule names no label for it.
func (d *Directory) cluster(ctx context.Context, t policy.AlertTarget, labels map[string]string) (int64, error) {
	switch {
	case t.ClusterID != "":
		return idIn(labels, t.ClusterID)
	case t.Cluster == "":
		return 0, nil
	case labels[t.Cluster] == "":
		return 0, refuse("it has no label %s, which says which cluster it is about", t.Cluster)
	}
	clusters, err := d.readClusters(ctx)
	if err != nil {
		return 0, err
	}
	var found []int64
	for _, c := range clusters {
		if c.Name == labels[t.Cluster] {
			found = append(found, c.ID)
		}
	}
	switch len(found) {
	case 0:
		return 0, refuse("OCP shows no cluster with the name %q of label %s", labels[t.Cluster], t.Cluster)
	case 1:
		return found[0], nil
	}
	return 0, refuse("the name %q of label %s is ambiguous: OCP shows %d clusters with it", labels[t.Cluster], t.Cluster, len(found))
}

func inCluster(cluster int64) string {
	if cluster == 0 {
		return ""
	}
	return fmt.Sprintf(" in cluster %d", cluster)
}

// idIn reads an id as OCP writes it: digits only, at least 1.
func idIn(labels map[string]string, name string) (int64, error) {
	value := labels[name]
	if value == "" {
		return 0, refuse("it has no label %s", name)
	}
	id, err := strconv.ParseInt(value, 10, 64)
	if err != nil || id < 1 || value[0] < '1' || value[0] > '9' {
		return 0, refuse("label %s: %q is not an integer of at least 1", name, value)
	}
	return id, nil
}

// splitAddress takes host and port apart; the port is 0 where it does not count.
func splitAddress(value string, withPort bool) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(value)
	switch {
	case err != nil && withPort:
		return "", 0, fmt.Errorf("%q is not of the form ip:port", value)
	case err != nil:
		return strings.Trim(value, "[]"), 0, nil
	case !withPort:
		return host, 0, nil
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 1 || port > 1<<16-1 {
		return "", 0, fmt.Errorf("%q is not of the form ip:port", value)
	}
	return host, port, nil
}

// resolve returns the addresses of a host. OCP knows servers by address only.
func resolve(ctx context.Context, host string) ([]string, error) {
	if _, err := netip.ParseAddr(host); err == nil {
		return []string{host}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	var failure *net.DNSError
	if errors.As(err, &failure) && failure.IsNotFound {
		return nil, refuse("no such host: %q", host)
	}
	if err != nil {
		return nil, fmt.Errorf("look up host: %w", err)
	}
	return addresses, nil
}

func sameHost(ip string, candidates []string) bool {
	server, err := netip.ParseAddr(ip)
	if err != nil {
		return false
	}
	for _, c := range candidates {
		if a, err := netip.ParseAddr(c); err == nil && a.Unmap() == server.Unmap() {
			return true
		}
	}
	return false
}
