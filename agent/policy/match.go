package policy

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"
)

// approvalCounts is for how long an approval counts if no rule matches.
const approvalCounts = time.Hour

// Matches reports whether all matchers match a request; label returns the value of one
// of its labels. As in Prometheus, a label that a request does not have is empty.
func Matches(all labels.Matchers, label func(name string) string) bool {
	for _, m := range all {
		if !m.Matches(label(m.Name)) {
			return false
		}
	}
	return true
}

// LimitsFor returns the limits of a request: those of all clusters, changed by the
// overrides that match, in the order of the file.
func (p *Policy) LimitsFor(label func(name string) string) Limits {
	limits := p.Limits
	for _, o := range p.Override {
		if Matches(o.Matchers, label) {
			replaced := limits // a variable of its own: it is allocated only if an override applies
			o.Apply(&replaced)
			limits = replaced
		}
	}
	return limits
}

// DenialOf returns the first denial that matches a request; nil if none does.
func (p *Policy) DenialOf(label func(name string) string) *Denial {
	for i := range p.Deny {
		if Matches(p.Deny[i].Matchers, label) {
			return &p.Deny[i]
		}
	}
	return nil
}

// ApprovalFor returns the first approval rule that matches a request, and whether one
// does. Without one, the rule is that anybody may approve, for an hour.
func (p *Policy) ApprovalFor(label func(name string) string) (rule ApprovalRule, matched bool) {
	for _, rule := range p.Approvals {
		if Matches(rule.Matchers, label) {
			if rule.Expires <= 0 {
				rule.Expires = approvalCounts
			}
			return rule, true
		}
	}
	return ApprovalRule{Expires: approvalCounts}, false
}

// Lists reports whether a person is one of the rule's approvers; a rule without
// approvers lists everybody. An approver with a host (ann@host1) counts on that host
// only, one without counts on any.
func (r ApprovalRule) Lists(by string) bool {
	return len(r.Approvers) == 0 || slices.ContainsFunc(r.Approvers, func(approver string) bool {
		if strings.Contains(approver, "@") {
			return strings.EqualFold(strings.TrimSpace(approver), strings.TrimSpace(by))
		}
		return SamePerson(approver, by)
	})
}

// SamePerson reports whether two names are of one person, on whatever hosts: commands
// send user@host.
func SamePerson(a, b string) bool { return person(a) == person(b) }

func person(name string) string {
	name, _, _ = strings.Cut(strings.TrimSpace(name), "@")
	return strings.ToLower(name)
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

// Longest is how far back the policy looks: for how long agents must remember
// operations that have ended.
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
