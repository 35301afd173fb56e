package guard

import (
	"errors"
	"fmt"
	"strings"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// approval is the rule that the operation's approval must meet, and whether it needs one:
// an operation with force always does.
func (q *Question) approval() (rule policy.ApprovalRule, needed bool) {
	rule, matched := q.Policy.ApprovalFor(q.label)
	return rule, matched || q.Operation.Request.Force
}

// MayApprove says why a person may not approve the operation; nil if they may. Whoever
// made the request never may, whatever the policy says: two people must have looked.
func (q *Question) MayApprove(by string) error {
	rule, _ := q.approval()
	switch {
	case strings.TrimSpace(by) == "":
		return errors.New("an approval must say who approves")
	case policy.SamePerson(by, q.Operation.Request.RequestedBy):
		return fmt.Errorf("%s is the requester: somebody else must approve", by)
	case !rule.Lists(by):
		return fmt.Errorf("unknown approver %q: %s may approve", by, list(rule.Approvers))
	}
	return nil
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
			return fmt.Sprintf("approved by %s; which counts until %s", last.By, stamp(last.At.Add(rule.Expires)))
		})
	}
	why := "the policy asks for an approval"
	if v.Operation.Request.Force {
		why = "force needs an approval"
	}
	if last != nil {
		why += fmt.Sprintf(", the one by %s expired at %s", last.By, stamp(last.At.Add(rule.Expires)))
	}
	who := "anybody but the requester"
	if len(rule.Approvers) > 0 {
		who = list(rule.Approvers)
	}
	return v.wait(events.CodeNeedsApproval, askPeopleAfter, "%s; %s may give it with obwarden approve %s",
		why, who, v.Operation.OperationID)
}
