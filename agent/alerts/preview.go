package alerts

import (
	"context"
	"fmt"
	"time"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// Preview is what rules would make of one alert, were it the first time that it is told.
type Preview struct {
	Outcome
	Kind    events.Kind     `json:"kind,omitempty"`
	Request *events.Request `json:"request,omitempty"`
}

// PreviewBody says what a policy would make of each alert of a webhook body. It asks
// OCP where a server is to be looked up and changes nothing. An error means that the
// body is no webhook; that OCP does not answer is the result of an alert.
func PreviewBody(ctx context.Context, rules *policy.Policy, directory *Directory, body []byte, now time.Time) ([]Preview, error) {
	all, err := decodeBody(body)
	if err != nil {
		return nil, err
	}
	previews := make([]Preview, len(all))
	for i, raw := range all {
		a, err := decodeAlert(raw)
		p := &previews[i]
		p.Alert, p.Fingerprint, p.Result = fmt.Sprintf("%.64s", a.name()), a.Fingerprint, resultRefused
		if err != nil {
			p.Message = err.Error()
			continue
		}
		rule := match(rules.Alerts, a.Labels)
		if rule == nil {
			p.Message = "no rule of the policy matches it"
			continue
		}
		p.Rule = rule.Name
		cluster, server, err := directory.find(ctx, rule.Target, a.Labels)
		var r events.Request
		if err == nil {
			if r, err = requestOf(rule, a, cluster, server); err != nil {
				err = refusal{err}
			}
		}
		switch {
		case isRefusal(err):
			p.Message = err.Error()
			continue
		case err != nil:
			p.Result, p.Message = resultFailed, err.Error()
			continue
		}
		p.Kind, p.Request, p.OperationID = rule.Kind, &r, events.OperationID(r.IdempotencyKey)
		p.Result, p.Message = resultRequested, fmt.Sprintf("%s server %d of cluster %d", rule.Kind, server, cluster)
		switch {
		case !a.Firing:
			p.Result, p.Message = resultResolved, "cancels what waits: "+p.Message
		case a.age(now) < rule.For:
			p.Result, p.Message = resultNotYet, fmt.Sprintf("firing for %s, the rule wants %s: %s", a.age(now).Round(time.Second), rule.For, p.Message)
		}
	}
	return previews, nil
}

// Failed reports that OCP did not answer.
func (p Preview) Failed() bool { return p.Result == resultFailed }

// Refused reports that nothing would come of the alert.
func (p Preview) Refused() bool { return p.Result == resultRefused }
