package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/events"
)

const saysAlerts = `alerts:
  - name: observer-down
    matchers: ['alertname="ObserverDown",severity=~"critical|page"', 'env!="test"']
    kind: restart
    target: {cluster: ob_cluster, address: instance}
    for: 5m
    again_after: 0s
    reason: "{{.Labels.alertname}}: {{.Annotations.summary}}"
    labels: [alertname, severity]
    dry_run: true
  - name: disk
    matchers: ['alertname="DiskFailing"', 'kind="ssd"', 'server_id="not OCP"']
    kind: stop
    target: {host: instance}
silences:
  alerts:
    - matchers: ['alertname=~"Observer.*"', 'instance=~"{{.IP}}:.*"']
    - {matchers: ['zone="{{.Zone}}"', 'ob_cluster="{{.Cluster}}"']}
  if_unreachable: wait
`

func TestWhatAPolicySaysOfAlertsIsWhatItMeans(t *testing.T) {
	t.Parallel()
	p, err := Parse("policy.yaml", []byte(saysAlerts))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(t, compiledSchema(t), []byte(saysAlerts)); err != nil {
		t.Errorf("the schema: %v", err)
	}
	if len(p.Alerts) != 2 {
		t.Fatalf("got %d rules", len(p.Alerts))
	}
	down, disk := p.Alerts[0], p.Alerts[1]
	if down.Name != "observer-down" || down.Kind != events.Restart || down.For != 5*time.Minute || down.AgainAfter != 0 || !down.DryRun ||
		len(down.Matchers) != 3 || down.Reason == nil || len(down.Labels) != 2 || down.Target != (AlertTarget{Cluster: "ob_cluster", Address: "instance"}) {
		t.Errorf("got %+v", down)
	}
	if disk.For != 0 || disk.AgainAfter != time.Hour || disk.DryRun || disk.Reason != nil || disk.Target != (AlertTarget{Host: "instance"}) {
		t.Errorf("got %+v", disk)
	}
	s := p.Silence
	if s == nil || len(s.Silences) != 2 || len(s.Silences[0]) != 2 || s.Grace != 5*time.Minute || !s.Wait {
		t.Fatalf("got %+v", s)
	}
	m, err := s.Silences[0][1].For(SilenceData{IP: "10.0.0.1"})
	if err != nil || m.Type != labels.MatchRegexp || !m.Matches("10.0.0.1:2881") || m.Matches("10x0.0.1:2881") {
		t.Errorf("got %v, %v", m, err)
	}
	if m, err := s.Silences[1][0].For(SilenceData{}); err == nil {
		t.Errorf("got %v for a server without a zone: every alert without a zone would be silenced", m)
	}
}

func TestFaultsOfAlertRulesSayWhatToDo(t *testing.T) {
	t.Parallel()
	rule := func(change ...string) string {
		return strings.NewReplacer(change...).Replace(`alerts: [{name: a, matchers: ['b="c"'], kind: stop, target: {host: instance}}]`)
	}
	silences := func(matcher string) string { return "silences: {alerts: [{matchers: ['" + matcher + "']}]}" }
	for _, test := range []struct{ content, want string }{
		{rule("name: a", "name: a b"), `1:17: "a b" is no name of a rule`},
		{rule("name: a", "name: none"), `"none" is no name of a rule`},
		{rule("name: a, ", ""), "name is missing"},
		{rule("]}]", "]}, {name: a, matchers: ['b=c'], kind: stop, target: {host: i}}]", "{host: instance}}", "{host: instance}}, {name: a, matchers: ['b=c'], kind: stop, target: {host: i}}"), `there is a rule "a" already`},
		{rule("kind: stop", "kind: kill"), "write stop, start or restart"},
		{rule(`'b="c"'`, ""), "no matcher; add one"},
		{rule(`b="c"`, `b`), "write a matcher as Alertmanager does"},
		{rule("{host: instance}", "{}"), "must name one label for the server"},
		{rule("{host: instance}", "{host: instance, address: instance}"), "must name one label for the server"},
		{rule("{host: instance}", "{server_id: s}"), "server_id needs cluster_id or cluster"},
		{rule("{host: instance}", "{host: i, cluster: c, cluster_id: d}"), "names two labels for the cluster"},
		{rule("host: instance", "host: ''"), "is empty; write the name of a label"},
		{rule("kind: stop", "kind: stop, force: true"), `unknown name "force"`},
		{rule("kind: stop", "kind: stop, for: soon"), "is no duration"},
		{rule("kind: stop", "kind: stop, reason: '{{.Labels.x'"), "write e.g. {{.Labels.alertname}}"},
		{rule("kind: stop", "kind: stop, reason: '{{.Label.x}}'"), "can't evaluate field Label"},
		{silences(`instance="10.0.0.1"`), "would silence those of all"},
		{silences(`instance!="{{.IP}}"`), "would silence those of all"},
		{silences(`instance="{{.Host}}"`), "can't evaluate field Host"},
		{silences(`instance=~"{{.IP}}:("`), "write one matcher as Alertmanager does"},
		{silences(`instance="{{if false}}x{{end}}"`), "its value is empty"},
		{"silences: {if_unreachable: panic}", "write go_on or wait"},
	} {
		if _, err := Parse("policy.yaml", []byte(test.content)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\n got %v\nwant %q", test.content, err, test.want)
		}
	}
	var many strings.Builder
	many.WriteString("alerts:\n")
	for i := range maxAlertRules + 1 {
		many.WriteString("  - {name: a" + strings.Repeat("x", i%50) + string(rune('a'+i/50)) + ", matchers: ['b=c'], kind: stop, target: {host: i}}\n")
	}
	if _, err := Parse("policy.yaml", []byte(many.String())); err == nil || !strings.Contains(err.Error(), "more than 200 rules") {
		t.Errorf("got %v for 201 rules", err)
	}
}
