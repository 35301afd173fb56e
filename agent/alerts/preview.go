package alerts

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// Preview says what the rules would make of an alert that comes in for the first time.
type Preview struct {
	Outcome
	Kind    events.Kind     `json:"kind,omitempty"`
	Request *events.Request `json:"request,omitempty"`
}

// PreviewBody says what a policy would make of each alert of a webhook body. It asks OCP where a server is to be looked
// up, and changes nothing. An error means that the body is not a webhook of Alertmanager. Where OCP does not answer,
// the preview of the alert says so.
func PreviewBody(
	ctx context.Context, policy *policy.Policy, directory *facts.Directory, body []byte, now time.Time,
) ([]Preview, error) {
	all, err := decodeBody(body)
	if err != nil {
		return nil, err
	}
	previews := make([]Preview, len(all))
	for i, raw := range all {
		previews[i] = preview(ctx, policy, directory, raw, now)
	}
	return previews, nil
}

func preview(
	ctx context.Context, policy *policy.Policy, directory *facts.Directory, raw json.RawMessage, now time.Time,
) (p Preview) {
	a, err := decodeAlert(raw)
	p.Alert, p.Fingerprint, p.Result = fmt.Sprintf("%.64s", a.name()), a.Fingerprint, resultRefused
	if err != nil {
		p.Message = err.Error()
		return p
	}
	rule := match(policy.Alerts, a.Labels)
	if rule == nil {
		p.Message = "no rule of the policy matches it"
		return p
	}
	p.Rule = rule.Name
	r, err := makeRequest(ctx, directory, rule, a)
	if err != nil {
		p.Message = err.Error()
		if !isRefusal(err) {
			p.Result = resultFailed
		}
		return p
	}
	p.Kind, p.Request, p.OperationID = rule.Kind, &r, events.OperationID(r.IdempotencyKey)
	p.Result, p.Message = resultRequested, fmt.Sprintf("%s server %d of cluster %d", rule.Kind, r.ServerID, r.ClusterID)
	switch {
	case !a.Firing:
		p.Result, p.Message = resultResolved, "cancels what waits: "+p.Message
	case a.age(now) < rule.For:
		p.Result = resultNotYet
		p.Message = fmt.Sprintf("firing for %s, the rule wants %s: %s", a.age(now).Round(time.Second), rule.For, p.Message)
	}
	return p
}

// Failed reports that OCP did not answer.
func (p Preview) Failed() bool { return p.Result == resultFailed }

// Refused reports that the alert would be refused.
func (p Preview) Refused() bool { return p.Result == resultRefused }
