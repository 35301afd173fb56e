package alerts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
)

// resolveTimeout is how long the name server may take to resolve one host.
const resolveTimeout = 2 * time.Second

// find returns the server that the labels are about. A refusal says why that is not certain; any other error means that
// OCP or the name server did not answer. The directory only finds a server by its address: whether something may be
// done to the server, the guard decides on fresh facts.
func find(
	ctx context.Context, d *facts.Directory, t policy.AlertTarget, labels map[string]string,
) (cluster, server int64, err error) {
	if t.ServerID != "" {
		if server, err = idIn(labels, t.ServerID); err != nil {
			return 0, 0, err
		}
		cluster, err = findCluster(ctx, d, t, labels)
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
	addresses, err := resolve(ctx, host)
	if err != nil {
		return 0, 0, fmt.Errorf("label %s: %w", name, err)
	}
	if cluster, err = findCluster(ctx, d, t, labels); err != nil {
		return 0, 0, err
	}
	found, err := findServers(ctx, d, cluster, addresses, port)
	if err != nil {
		return 0, 0, err
	}
	switch len(found) {
	case 0:
		return 0, 0, refuse("OCP shows no server with the address %q of label %s%s", value, name, inCluster(cluster))
	case 1:
		return found[0].ClusterID, found[0].ID, nil
	}
	return 0, 0, refuse(
		"the address %q of label %s is ambiguous%s: servers %d of cluster %d and %d of cluster %d, at least",
		value, name, inCluster(cluster), found[0].ID, found[0].ClusterID, found[1].ID, found[1].ClusterID)
}

// findCluster returns the cluster that the labels are about; 0 (any cluster) where the rule names no label for it.
func findCluster(
	ctx context.Context, d *facts.Directory, t policy.AlertTarget, labels map[string]string,
) (int64, error) {
	switch {
	case t.ClusterID != "":
		return idIn(labels, t.ClusterID)
	case t.Cluster == "":
		return 0, nil
	case labels[t.Cluster] == "":
		return 0, refuse("it has no label %s, which says which cluster it is about", t.Cluster)
	}
	clusters, err := d.Clusters(ctx, facts.DirectoryAge)
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
	return 0, refuse("the name %q of label %s is ambiguous: OCP shows %d clusters with it",
		labels[t.Cluster], t.Cluster, len(found))
}

// findServers returns the servers of a cluster that have one of the addresses, with port for OceanBase or for SQL. In
// place of 0 any cluster or any port will do.
func findServers(
	ctx context.Context, d *facts.Directory, cluster int64, addresses []netip.Addr, port int,
) (found []ocp.Server, err error) {
	clusters := []ocp.Cluster{{ID: cluster}}
	if cluster == 0 {
		if clusters, err = d.Clusters(ctx, facts.DirectoryAge); err != nil {
			return nil, err
		}
	}
	for _, c := range clusters {
		servers, err := d.Servers(ctx, c.ID)
		if err != nil {
			return nil, err
		}
		for _, s := range servers {
			if (port == 0 || s.Port == port || s.SQLPort == port) && isOneOf(s.IP, addresses) {
				found = append(found, s)
			}
		}
	}
	return found, nil
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

// splitAddress splits host and port; the port is 0 where the rule ignores it.
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
func resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if failure, ok := errors.AsType[*net.DNSError](err); ok && failure.IsNotFound {
		return nil, refuse("no such host: %q", host)
	}
	if err != nil {
		return nil, fmt.Errorf("look up host: %w", err)
	}
	return addresses, nil
}

func isOneOf(ip string, addresses []netip.Addr) bool {
	server, err := netip.ParseAddr(ip)
	if err != nil {
		return false
	}
	for _, a := range addresses {
		if a.Unmap() == server.Unmap() {
			return true
		}
	}
	return false
}
