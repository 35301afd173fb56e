package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"

	"obwarden/metrics"
)

// rules is what is looked at of rules.yml.
type rules struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type rule struct {
	Alert, Record, Expr string
	Labels, Annotations map[string]string
}

func readRules(t *testing.T) (all []rule) {
	t.Helper()
	var r rules
	readYAML(t, "prometheus/rules.yml", &r)
	for _, g := range r.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 20 {
		t.Fatalf("%d rules", len(all))
	}
	return all
}

func readYAML(t *testing.T, file string, into any) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(content, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// tool runs a program of Prometheus, where it is installed.
func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here: apt-get install prometheus prometheus-alertmanager", name)
	}
	if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
}

func TestRulesDoWhatTheirTestsSay(t *testing.T) {
	t.Parallel()
	tool(t, "promtool", "test", "rules", "prometheus/rules.test.yml")
}

func TestPrometheusTakesItsConfiguration(t *testing.T) {
	t.Parallel()
	tool(t, "promtool", "check", "config", "prometheus/prometheus.yml")
}

func TestAlertmanagerTakesItsConfiguration(t *testing.T) {
	t.Parallel()
	tool(t, "amtool", "check-config", "alertmanager/alertmanager.yml")
}

// compose.yaml cannot be run here: what it names must at least be there.
func TestComposeNamesWhatIsThere(t *testing.T) {
	t.Parallel()
	var compose struct {
		Services map[string]struct {
			Image   string
			Build   any
			Volumes []string
			Ports   []string
			Configs []struct{ Source, Target string }
		}
		Configs map[string]struct{ Content string }
		Volumes map[string]any
	}
	readYAML(t, "compose.yaml", &compose)
	for _, want := range []string{"nats", "simulator", "agent", "prometheus", "alertmanager", "grafana"} {
		if _, ok := compose.Services[want]; !ok {
			t.Errorf("no service %s", want)
		}
	}
	pinned := regexp.MustCompile(`:v?\d+\.\d+\.\d+(-[a-z]+)?$`)
	for name, s := range compose.Services {
		if s.Build == nil && !pinned.MatchString(s.Image) {
			t.Errorf("%s: image %q has no version", name, s.Image)
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			_, named := compose.Volumes[from]
			if _, err := os.Stat(from); err != nil && !named {
				t.Errorf("%s: %s is neither a file nor a volume", name, from)
			}
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to the world", name, p)
			}
		}
		for _, c := range s.Configs {
			var content any
			if err := yaml.Unmarshal([]byte(compose.Configs[c.Source].Content), &content); err != nil || content == nil {
				t.Errorf("%s: config %s: %v, %v", name, c.Source, content, err)
			}
		}
	}
}

func TestEveryAlertTellsAPersonWhatToDo(t *testing.T) {
	t.Parallel()
	runbook, err := os.ReadFile("prometheus/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	const runbookURL, dashboardURL = "https://obwarden.example.com/deploy/prometheus/runbook.md#", "https://grafana.example.com/d/"
	var alerts []string
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		alerts = append(alerts, r.Alert)
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q is neither critical nor warning", r.Alert, s)
		}
		if len(r.Annotations["summary"]) < 10 || len(r.Annotations["description"]) < 40 {
			t.Errorf("%s: summary or description is missing", r.Alert)
		}
		if got, want := r.Annotations["runbook_url"], runbookURL+strings.ToLower(r.Alert); got != want {
			t.Errorf("%s: runbook %s, want %s", r.Alert, got, want)
		}
		uid, found := strings.CutPrefix(r.Annotations["dashboard_url"], dashboardURL)
		if _, err := os.Stat(filepath.Join("..", "grafana", "dashboards", uid+".json")); !found || err != nil {
			t.Errorf("%s: no dashboard %q", r.Alert, r.Annotations["dashboard_url"])
		}
	}
	var sections []string
	for _, m := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(string(runbook), -1) {
		sections = append(sections, m[1])
	}
	slices.Sort(alerts)
	slices.Sort(sections)
	if !slices.Equal(alerts, sections) {
		t.Errorf("sections of the runbook:\n%v\nalerts:\n%v", sections, alerts)
	}
}

// Each alert has a moment at which it must fire, and one at which it must not.
func TestEveryRuleIsTested(t *testing.T) {
	t.Parallel()
	var file struct {
		Tests []struct {
			Exprs []struct {
				Expr    string
				Samples []struct{ Labels string } `yaml:"exp_samples"`
			} `yaml:"promql_expr_test"`
			Alerts []struct {
				Alert   string `yaml:"alertname"`
				Firings []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	readYAML(t, "prometheus/rules.test.yml", &file)
	fires, silent, recorded := map[string]bool{}, map[string]bool{}, ""
	alertName := regexp.MustCompile(`alertname=~?"([^"]*)"`)
	for _, test := range file.Tests {
		for _, a := range test.Alerts {
			fires[a.Alert] = fires[a.Alert] || len(a.Firings) > 0
			silent[a.Alert] = silent[a.Alert] || len(a.Firings) == 0
		}
		for _, e := range test.Exprs {
			m := alertName.FindStringSubmatch(e.Expr)
			if m == nil {
				recorded += e.Expr + "\n"
				continue
			}
			for name := range strings.SplitSeq(m[1], "|") {
				fires[name] = fires[name] || len(e.Samples) > 0
				silent[name] = silent[name] || len(e.Samples) == 0
			}
		}
	}
	// The burn rates are one expression over several windows: the alerts on them and one of each kind are tested.
	burn := regexp.MustCompile(`_burn\d+[mh]$`)
	for _, r := range readRules(t) {
		switch {
		case r.Alert != "" && (!fires[r.Alert] || !silent[r.Alert]):
			t.Errorf("%s: tested to fire: %t, not to: %t", r.Alert, fires[r.Alert], silent[r.Alert])
		case r.Record != "" && !strings.Contains(recorded, burn.ReplaceAllString(r.Record, "_burn")):
			t.Errorf("%s: not tested", r.Record)
		}
	}
}

// A rule on a metric that does not exist never fires, and no tool says so.
func TestRulesNameMetricsThatExist(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := metrics.New(reg, "test", "go", metrics.Scraped{})
	m.Paused.WithLabelValues(metrics.AllClusters)
	m.OperationDuration.WithLabelValues("stop", "succeeded")
	m.OCPRequestDuration.WithLabelValues("task_get", "200")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, f := range families {
		known[f.GetName()] = true
	}
	name := regexp.MustCompile(`(?:^|[^:a-z0-9_])(obwarden_[a-z0-9_]+)`)
	suffix := regexp.MustCompile(`_(bucket|count|sum)$`)
	for _, r := range readRules(t) {
		for _, m := range name.FindAllStringSubmatch(r.Expr, -1) {
			if !known[m[1]] && !known[suffix.ReplaceAllString(m[1], "")] {
				t.Errorf("%s%s: the agent has no metric %s", r.Alert, r.Record, m[1])
			}
		}
	}
}
