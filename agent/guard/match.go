package guard

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// approvalCounts is for how long an approval counts where no rule says.
const approvalCounts = time.Hour

// Limits are what the policy holds the operation to: those of all clusters, with what
// matching overrides put in their place, in the order of the file.
func (q *Question) Limits() Limits {
	limits := q.Policy.Limits
	for _, o := range q.Policy.Override {
		if q.matches(o.Matchers) {
			replaced := limits // an own variable: only where an override applies is it allocated
			o.Apply(&replaced)
			limits = replaced
		}
	}
	return limits
}

// Reserves reports whether the operation needs a share of the budget of all clusters
// that it does not have yet.
func (q *Question) Reserves() bool {
	return q.Policy.Fleet.Operations > 0 && takesDown(q.Operation.Kind) && !q.Retry &&
		!slices.ContainsFunc(q.Fleet.Taken, func(t Taken) bool { return t.OperationID == q.Operation.OperationID })
}

// NamesClusters reports whether a decision needs the name of the cluster.
func (p *Policy) NamesClusters() bool {
	names := func(all labels.Matchers) bool {
		return slices.ContainsFunc(all, func(m *labels.Matcher) bool { return m.Name == "cluster" })
	}
	return slices.ContainsFunc(p.Override, func(o Override) bool { return names(o.Matchers) }) ||
		slices.ContainsFunc(p.Deny, func(d Denial) bool { return names(d.Matchers) }) ||
		slices.ContainsFunc(p.Approvals, func(a ApprovalRule) bool { return names(a.Matchers) })
}

// Longest is how far back the policy looks: for how long ended operations must be
// remembered.
func (p *Policy) Longest() time.Duration {
	longest := p.Limits.longest()
	for _, o := range p.Override {
		limits := p.Limits
		o.Apply(&limits)
		longest = max(longest, limits.longest())
	}
	return longest
}

func (l Limits) longest() time.Duration {
	return max(l.Cooldown.Server, l.Cooldown.Zone, l.Cooldown.Failure, l.Budget.Window)
}

// matches reports whether all matchers match the operation and its target. As in
// Prometheus, a label that is not there is empty.
func (q *Question) matches(all labels.Matchers) bool {
	for _, m := range all {
		if !m.Matches(q.label(m.Name)) {
			return false
		}
	}
	return true
}

// label is one label of the operation. The request's own cannot take the place of ours.
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

// approval is the rule that the operation's approval is held to, and whether it needs
// one: force always does. Of several rules the first counts.
func (q *Question) approval() (ApprovalRule, bool) {
	for _, rule := range q.Policy.Approvals {
		if q.matches(rule.Matchers) {
			if rule.Expires <= 0 {
				rule.Expires = approvalCounts
			}
			return rule, true
		}
	}
	return ApprovalRule{Expires: approvalCounts}, q.Operation.Request.Force
}

// MayApprove says why a person may not approve the operation; nil: may. Who asked
// never may, whatever the policy says: two people must have looked.
func (q *Question) MayApprove(by string) error {
	rule, _ := q.approval()
	switch {
	case strings.TrimSpace(by) == "":
		return errors.New("an approval must say who approves")
	case person(by) == person(q.Operation.Request.RequestedBy):
		return fmt.Errorf("%s asked for it: somebody else must approve", by)
	case len(rule.Approvers) > 0 && !slices.ContainsFunc(rule.Approvers, func(a string) bool { return isOne(a, by) }):
		return fmt.Errorf("unknown approver %q: %s may approve", by, list(rule.Approvers))
	}
	return nil
}

// person is who somebody is, on whatever host: commands say user@host.
func person(name string) string {
	name, _, _ = strings.Cut(strings.TrimSpace(name), "@")
	return strings.ToLower(name)
}

// isOne reports whether by is the approver that a policy names: with a host only
// there, without one on any.
func isOne(approver, by string) bool {
	if strings.Contains(approver, "@") {
		return strings.EqualFold(strings.TrimSpace(approver), strings.TrimSpace(by))
	}
	return person(approver) == person(by)
}

func approved(v *view) Decision {
	rule, needed := v.approval()
	if !needed {
		return v.allow(func() string { return "needs no approval" })
	}
	var last *events.Approval
	for i := range v.Operation.Approvals {
		if a := &v.Operation.Approvals[i]; a.Refused == "" && v.MayApprove(a.By) == nil {
			last = a
		}
	}
	if last != nil && last.At.Add(rule.Expires).After(v.Now) {
		return v.allow(func() string {
			return fmt.Sprintf("approved by %s; that counts until %s", last.By, stamp(last.At.Add(rule.Expires)))
		})
	}
	why := "the policy asks for an approval"
	if v.Operation.Request.Force {
		why = "force needs an approval"
	}
	if last != nil {
		why += fmt.Sprintf(", that of %s expired at %s", last.By, stamp(last.At.Add(rule.Expires)))
	}
	who := "anybody but who asked"
	if len(rule.Approvers) > 0 {
		who = list(rule.Approvers)
	}
	return v.wait(events.CodeNeedsApproval, askPeopleAfter, "%s; %s may give it with obwarden approve %s", why, who, v.Operation.OperationID)
}
