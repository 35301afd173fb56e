package alerts

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// source is the source of requests that are made from alerts, and who they are requested by.
const source = "alertmanager"

// ruleLabel is the label of a request that says which rule made it.
const ruleLabel = "alert_rule"

// match returns the first rule that matches; nil where none does. As in Prometheus, a missing label counts as empty.
func match(rules []policy.AlertRule, all map[string]string) *policy.AlertRule {
	for i := range rules {
		if matches(rules[i].Matchers, all) {
			return &rules[i]
		}
	}
	return nil
}

func matches(matchers labels.Matchers, all map[string]string) bool {
	for _, m := range matchers {
		if !m.Matches(all[m.Name]) {
			return false
		}
	}
	return true
}

// keyOf is the idempotency key: one request for each time that an alert begins to fire, however often and by however
// many Alertmanagers it is reported.
func keyOf(rule string, a alert) string {
	return fmt.Sprintf("alert/%s/%s/%s", rule, a.Fingerprint, a.StartsAt.Format(time.RFC3339Nano))
}

// makeRequest finds the server that an alert is about and makes the rule's request for it. Where the error is not a
// refusal, OCP or the name server did not answer.
func makeRequest(ctx context.Context, d *facts.Directory, rule *policy.AlertRule, a alert) (events.Request, error) {
	cluster, server, err := find(ctx, d, rule.Target, a.Labels)
	if err != nil {
		return events.Request{}, err
	}
	r, err := requestOf(rule, a, cluster, server)
	if err != nil {
		return events.Request{}, refusal{err}
	}
	return r, nil
}

// requestOf makes a rule's request for an alert about a server. It returns an error where the request would be refused
// if it came by NATS.
func requestOf(rule *policy.AlertRule, a alert, cluster, server int64) (events.Request, error) {
	carried, err := carry(rule, a.Labels)
	if err != nil {
		return events.Request{}, err
	}
	reason, err := reasonOf(rule, a)
	if err != nil {
		return events.Request{}, err
	}
	r := events.Request{
		IdempotencyKey: keyOf(rule.Name, a), ClusterID: cluster, ServerID: server,
		Reason: reason, RequestedBy: source, Labels: carried, DryRun: rule.DryRun,
	}
	msg, err := r.Message(rule.Kind, source)
	if err != nil {
		return events.Request{}, err
	}
	received, err := events.DecodeRequest(msg.Subject, msg.Header, msg.Data, "")
	return received.Request, err
}

// carry returns the labels of an alert that its request carries.
func carry(rule *policy.AlertRule, all map[string]string) (map[string]string, error) {
	carried := map[string]string{}
	if len(rule.Labels) == 0 {
		for name, value := range all {
			carried[name] = value
		}
	}
	for _, name := range rule.Labels {
		if value := all[name]; value != "" {
			carried[name] = value
		}
	}
	carried[ruleLabel] = rule.Name
	if len(carried) > events.MaxLabels {
		return nil, fmt.Errorf("%d labels, a request carries %d at most: name the labels that matter in labels of the rule",
			len(carried), events.MaxLabels)
	}
	return carried, nil
}

// reasonOf returns the reason of the request, one line of text.
func reasonOf(rule *policy.AlertRule, a alert) (string, error) {
	if rule.Reason == nil {
		return strings.TrimSpace("alert " + a.name()), nil
	}
	var out limited
	if err := rule.Reason.Execute(&out, policy.AlertData{Labels: a.Labels, Annotations: a.Annotations}); err != nil {
		return "", fmt.Errorf("reason of the rule: %w", err)
	}
	reason := strings.Join(strings.Fields(out.String()), " ")
	if strings.ContainsFunc(reason, unicode.IsControl) {
		return "", errors.New("reason of the rule: control characters are not allowed")
	}
	return reason, nil
}

// limited is a writer that fails once a template has written more than a reason may be long.
type limited struct{ strings.Builder }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > events.MaxReasonBytes {
		return 0, fmt.Errorf("over %d bytes", events.MaxReasonBytes)
	}
	return l.Builder.Write(p)
}
