package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/agent/policy/internal/strict"
	"github.com/obwarden/obwarden/events"
)

const (
	// maxAlertRules bounds the values of a metric's label.
	maxAlertRules = 200
	// againAfter is AlertRule.AgainAfter if a rule says nothing.
	againAfter = time.Hour
	// silenceGrace is SilenceRule.Grace if the policy says nothing.
	silenceGrace = 5 * time.Minute
)

type alertFile struct {
	Name       strict.Word      `yaml:"name" required:"true" doc:"of the rule, in metrics and keys: letters, digits, _ . -"`
	Matchers   alertMatchers    `yaml:"matchers" required:"true" doc:"of the alert's labels, all must match; of several rules that match the first counts"`
	Target     targetFile       `yaml:"target" required:"true" doc:"which labels of the alert say which server it is about"`
	Kind       strict.Kind      `yaml:"kind" required:"true" doc:"what is asked for: stop, start or restart"`
	For        *strict.Duration `yaml:"for" doc:"the alert must have fired for so long; 0s where nothing is said"`
	AgainAfter *strict.Duration `yaml:"again_after" doc:"how long after an operation the server may get another without its alerts having been resolved; 0s: never; 1h where nothing is said"`
	Reason     *reasonText      `yaml:"reason" doc:"template of the request's reason, over .Labels and .Annotations; the alert's name where nothing is said"`
	Labels     []labelName      `yaml:"labels" doc:"of the alert, carried into the request; empty: all"`
	DryRun     bool             `yaml:"dry_run" doc:"decide and report, call nothing: to try a rule"`
}

type targetFile struct {
	ClusterID labelName `yaml:"cluster_id" doc:"label with OCP's id of the cluster"`
	Cluster   labelName `yaml:"cluster" doc:"label with the cluster's name"`
	ServerID  labelName `yaml:"server_id" doc:"label with OCP's id of the server"`
	Address   labelName `yaml:"address" doc:"label with ip:port or host:port, the port being the server's or that of its SQL"`
	Host      labelName `yaml:"host" doc:"label with ip or host name; a port behind it, such as an exporter's, does not count"`
}

func (t targetFile) Fault() string {
	said := 0
	for _, label := range []labelName{t.ServerID, t.Address, t.Host} {
		if label != "" {
			said++
		}
	}
	switch {
	case said != 1:
		return "must name one label for the server: server_id, address or host"
	case t.ClusterID != "" && t.Cluster != "":
		return "names two labels for the cluster; leave cluster_id or cluster out"
	case t.ServerID != "" && t.ClusterID == "" && t.Cluster == "":
		return "server_id needs cluster_id or cluster beside it"
	}
	return ""
}

type silencesFile struct {
	Alerts        []silencedFile   `yaml:"alerts" doc:"what is silenced, a silence each; empty: nothing"`
	Grace         *strict.Duration `yaml:"grace" doc:"from the end of an operation to the end of its silences; 5m where nothing is said"`
	IfUnreachable ifUnreachable    `yaml:"if_unreachable" doc:"go_on (where nothing is said), or wait: without silences nothing is submitted"`
}

type silencedFile struct {
	Matchers silenceMatchers `yaml:"matchers" required:"true" doc:"of the alerts' labels; values are templates over .Cluster, .ClusterID, .ServerID, .Address, .IP, .Port, .SQLPort, .Zone and .Kind"`
}

// alertRules returns what the section alerts means.
func (f *policyFile) alertRules(d *strict.Document) []AlertRule {
	var rules []AlertRule
	for i, a := range f.Alerts {
		at := a.Name.At
		switch {
		case i == maxAlertRules:
			d.Faultf(at, "more than %d rules; join some with =~", maxAlertRules)
		case a.Name.Text == "":
			continue // is a fault already
		case !ruleName.MatchString(a.Name.Text) || a.Name.Text == "none":
			d.Faultf(at, "%.60q is no name of a rule; write 1 to 64 letters, digits, _ . - and not none", a.Name.Text)
		case slices.ContainsFunc(rules, func(r AlertRule) bool { return r.Name == a.Name.Text }):
			d.Faultf(at, "there is a rule %.60q already; choose another name", a.Name.Text)
		}
		rule := AlertRule{
			Name: a.Name.Text, Matchers: a.Matchers.all(), Kind: events.Kind(a.Kind), AgainAfter: againAfter, DryRun: a.DryRun,
			Target: AlertTarget{
				ClusterID: string(a.Target.ClusterID), Cluster: string(a.Target.Cluster),
				ServerID: string(a.Target.ServerID), Address: string(a.Target.Address), Host: string(a.Target.Host),
			},
		}
		replace(&rule.For, (*time.Duration)(a.For))
		replace(&rule.AgainAfter, (*time.Duration)(a.AgainAfter))
		if a.Reason != nil {
			rule.Reason, _ = ParseReason(string(*a.Reason)) // nil is a fault already
		}
		for _, label := range a.Labels {
			rule.Labels = append(rule.Labels, string(label))
		}
		rules = append(rules, rule)
	}
	return rules
}

// silence returns what the section silences means; nil if there is nothing to silence.
func (f *policyFile) silence() *SilenceRule {
	if f.Silences == nil || len(f.Silences.Alerts) == 0 {
		return nil
	}
	rule := &SilenceRule{Grace: silenceGrace, Wait: f.Silences.IfUnreachable == "wait"}
	replace(&rule.Grace, (*time.Duration)(f.Silences.Grace))
	for _, s := range f.Silences.Alerts {
		var matchers []SilenceMatcher
		for _, line := range s.Matchers {
			matchers = append(matchers, line.SilenceMatcher)
		}
		rule.Silences = append(rule.Silences, matchers)
	}
	return rule
}

var ruleName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// labelName is the name of an alert's label.
type labelName string

func (l labelName) Fault() string {
	if l == "" {
		return "is empty; write the name of a label"
	}
	return ""
}

// reasonText is the template of a reason.
type reasonText string

func (r *reasonText) UnmarshalYAML(unmarshal func(any) error) error {
	if err := unmarshal((*string)(r)); err != nil {
		return err
	}
	if _, err := ParseReason(string(*r)); err != nil {
		return fmt.Errorf("%w; write e.g. {{.Labels.alertname}} on {{.Labels.instance}}", err)
	}
	return nil
}

type ifUnreachable string

func (u *ifUnreachable) UnmarshalYAML(unmarshal func(any) error) error {
	if err := unmarshal((*string)(u)); err != nil {
		return err
	}
	if *u != "go_on" && *u != "wait" {
		return fmt.Errorf("%.60q: write go_on or wait", string(*u))
	}
	return nil
}

// alertMatchers match the labels of an alert, which may have any name and value.
type alertMatchers []alertMatcherLine

type alertMatcherLine struct{ matchers labels.Matchers }

func (ms alertMatchers) Fault() string {
	if len(ms) == 0 {
		return `no matcher; add one, e.g. alertname="ObserverDown"`
	}
	return ""
}

func (ms alertMatchers) all() labels.Matchers {
	var all labels.Matchers
	for _, line := range ms {
		all = append(all, line.matchers...)
	}
	return all
}

func (m *alertMatcherLine) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	parsed, err := labels.ParseMatchers(text)
	if err == nil && len(parsed) == 0 {
		err = errors.New("an empty matcher")
	}
	if err != nil {
		return fmt.Errorf(`%w; write a matcher as Alertmanager does, e.g. alertname="ObserverDown"`, err)
	}
	m.matchers = parsed
	return nil
}

type silenceMatchers []silenceMatcherLine

type silenceMatcherLine struct {
	SilenceMatcher
	templated bool
}

// Fault finds silences of everything: a silence must name the operation's own server, zone
// or cluster.
func (ms silenceMatchers) Fault() string {
	if !slices.ContainsFunc(ms, func(m silenceMatcherLine) bool {
		return m.templated && (m.Type == labels.MatchEqual || m.Type == labels.MatchRegexp)
	}) {
		return `names no server, zone or cluster, and would silence those of all; add a matcher, e.g. instance=~"{{.IP}}:.*"`
	}
	return ""
}

func (m *silenceMatcherLine) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	err := unmarshal(&text)
	if err != nil {
		return err
	}
	if m.SilenceMatcher, err = ParseSilenceMatcher(text); err != nil {
		return fmt.Errorf(`%w; write one matcher as Alertmanager does, e.g. instance=~"{{.IP}}:.*"`, err)
	}
	m.templated = strings.Contains(text, "{{")
	return nil
}
