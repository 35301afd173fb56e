package guard

import (
	"net"
	"strconv"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
)

// Limits are what the policy holds the operation to: those of all clusters, changed by
// the overrides that match the operation.
func (q *Question) Limits() policy.Limits { return q.Policy.LimitsFor(q.label) }

// label is one label of the operation. The request's own labels cannot replace ours.
func (q *Question) label(name string) string {
	op := &q.Operation
	switch name {
	case "cluster":
		return q.Facts.ClusterName
	case "cluster_id":
		return strconv.FormatInt(op.ClusterID, 10)
	case "server_id":
		return strconv.FormatInt(op.ServerID, 10)
	case "kind":
		return string(op.Kind)
	case "force":
		return strconv.FormatBool(op.Request.Force)
	case "requested_by":
		return op.Request.RequestedBy
	case "source":
		return op.Source
	case "server", "zone", "region", "idc":
		server, zone := q.target()
		return topologyLabel(name, server, zone)
	}
	return op.Request.Labels[name]
}

func topologyLabel(name string, server ocp.Server, zone ocp.Zone) string {
	switch {
	case name == "zone":
		return zone.Name
	case name == "region":
		return zone.Region
	case name == "idc":
		return zone.IDC
	case server.IP == "":
		return ""
	}
	return net.JoinHostPort(server.IP, strconv.Itoa(server.Port))
}
