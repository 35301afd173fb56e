package deploy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
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

// compose is what is looked at of compose.yaml.
type compose struct {
	Services map[string]struct {
		Image   string
		Build   any
		Volumes []string
		Ports   []string
		Configs []struct{ Source, Target string }
		Secrets []struct{ Source, Target string }

		Environment map[string]string
		Command     []string
	}
	Configs map[string]struct{ Content string }
	Secrets map[string]struct{ Environment string }
	Volumes map[string]any
}

func readCompose(t *testing.T) (c compose) {
	t.Helper()
	readYAML(t, "compose.yaml", &c)
	return c
}

// compose.yaml cannot be run here: what it names must at least be there.
func TestComposeNamesWhatIsThere(t *testing.T) {
	t.Parallel()
	compose := readCompose(t)
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

// kubernetes/obwarden.yaml cannot be run here either.
func TestKubernetesNamesWhatIsThere(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("kubernetes/obwarden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		Kind       string
		Metadata   struct{ Name string }
		Data       map[string]string
		StringData map[string]string `yaml:"stringData"`
		Spec       struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Env []struct {
							Name, Value string
							ValueFrom   struct {
								SecretKeyRef struct{ Name, Key string } `yaml:"secretKeyRef"`
							} `yaml:"valueFrom"`
						}
						VolumeMounts []struct {
							Name      string
							MountPath string `yaml:"mountPath"`
						} `yaml:"volumeMounts"`
					}
					Volumes []struct {
						Name   string
						Secret struct {
							SecretName string `yaml:"secretName"`
							Items      []struct{ Key, Path string }
						}
						ConfigMap struct{ Name string } `yaml:"configMap"`
					}
				}
			}
		}
	}
	objects := map[string]object{}
	for decoder := yaml.NewDecoder(bytes.NewReader(content)); ; {
		var o object
		if err := decoder.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		objects[o.Kind+"/"+o.Metadata.Name] = o
	}
	pod := objects["Deployment/obwarden"].Spec.Template.Spec
	if len(pod.Containers) != 1 || objects["Service/obwarden"].Kind == "" {
		t.Fatalf("%d containers, want one and a service", len(pod.Containers))
	}
	files := map[string]bool{} // that a container sees
	for _, mount := range pod.Containers[0].VolumeMounts {
		for _, volume := range pod.Volumes {
			if volume.Name != mount.Name {
				continue
			}
			for _, item := range volume.Secret.Items {
				if _, ok := objects["Secret/"+volume.Secret.SecretName].StringData[item.Key]; ok {
					files[mount.MountPath+"/"+item.Path] = true
				}
			}
			for name := range objects["ConfigMap/"+volume.ConfigMap.Name].Data {
				files[mount.MountPath+"/"+name] = true
			}
		}
	}
	for _, env := range pod.Containers[0].Env {
		if strings.HasSuffix(env.Name, "_FILE") && !files[env.Value] {
			t.Errorf("%s: no file %s among %v", env.Name, env.Value, files)
		}
		if ref := env.ValueFrom.SecretKeyRef; ref.Name != "" && objects["Secret/"+ref.Name].StringData[ref.Key] == "" {
			t.Errorf("%s: no %s in secret %s", env.Name, ref.Key, ref.Name)
		}
	}
	p, err := policy.Parse("policy.yaml", []byte(objects["ConfigMap/obwarden-policy"].Data["policy.yaml"]))
	if err != nil || len(p.Alerts) == 0 || p.Silence == nil {
		t.Errorf("policy %+v, %v, want one that says what is made of alerts and what is silenced", p, err)
	}
}

// A variable that does not exist has no effect, and nothing but a line in the log says so.
func TestExamplesSetVariablesThatExist(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../cmd/obwarden/README.md")
	if err != nil {
		t.Fatal(err)
	}
	set := regexp.MustCompile(`(?m)^\s*(?:- name: |ENV |#?Environment=|#)?(OBWARDEN_[A-Z_]+)(?:[:=]|$)`)
	users := regexp.MustCompile(`^OBWARDEN_(AGENT|REQUESTER|OPERATOR|READER)_PASSWORD$`) // of nats.conf
	for file, least := range map[string]int{"compose.yaml": 7, "kubernetes/obwarden.yaml": 9, "systemd/obwarden.env": 6, "systemd/obwarden.service": 2, "Dockerfile": 2} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, m := range set.FindAllStringSubmatch(string(content), -1) {
			if users.MatchString(m[1]) {
				continue
			}
			n++
			if name := strings.TrimSuffix(m[1], "_FILE"); !strings.Contains(string(readme), "| `"+name+"` |") && !strings.Contains(string(readme), "| `"+m[1]+"` |") {
				t.Errorf("%s: there is no variable %s", file, m[1])
			}
		}
		if n < least {
			t.Errorf("%s: %d variables, want %d or more", file, n, least)
		}
	}
}

// What systemctl reload does must not end the agent, whose SIGHUP reads the policy.
func TestSystemdReloadsThePolicy(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile("systemd/obwarden.service")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "\nExecReload=/bin/kill -HUP $MAINPID\n") {
		t.Error("no reload by SIGHUP")
	}
}

// The compose file wires alerts: Alertmanager's configuration as it is made there.
func TestComposeSendsAlertsToTheAgent(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	agent, alertmanager := c.Services["agent"], c.Services["alertmanager"]
	policyFile := agent.Environment["OBWARDEN_POLICY_FILE"]
	if !slices.Contains(agent.Volumes, "./policy:"+filepath.Dir(policyFile)+":ro") {
		t.Errorf("policy %s is in none of the volumes %v", policyFile, agent.Volumes)
	}
	if p, err := policy.Load("policy/" + filepath.Base(policyFile)); err != nil || len(p.Alerts) == 0 {
		t.Errorf("the policy has no alerts, or %v", err)
	}
	if len(alertmanager.Command) != 1 || len(alertmanager.Secrets) != 1 {
		t.Fatalf("%d commands and %d secrets of Alertmanager, want one each", len(alertmanager.Command), len(alertmanager.Secrets))
	}
	secret := alertmanager.Secrets[0]
	if got, want := agent.Environment["OBWARDEN_WEBHOOK_TOKEN"], "${"+c.Secrets[secret.Source].Environment+":?set it}"; got != want {
		t.Errorf("the agent's token is %s, Alertmanager's %s", got, want)
	}
	made := filepath.Join(t.TempDir(), "alertmanager.yml")
	script, _, _ := strings.Cut(strings.NewReplacer("/etc/alertmanager/alertmanager.yml", "alertmanager/alertmanager.yml", "/tmp/alertmanager.yml", made).Replace(alertmanager.Command[0]), "&&")
	if out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	var config struct {
		Receivers []struct {
			Name     string
			Webhooks []struct {
				URL  string
				HTTP struct {
					Authorization struct {
						File string `yaml:"credentials_file"`
					}
				} `yaml:"http_config"`
			} `yaml:"webhook_configs"`
		}
	}
	readYAML(t, made, &config)
	for _, r := range config.Receivers {
		if r.Name == "obwarden" && (r.Webhooks[0].URL != "http://agent:9480/alertmanager" || r.Webhooks[0].HTTP.Authorization.File != secret.Target) {
			t.Errorf("webhook %+v, want the agent's, with the token in %s", r.Webhooks[0], secret.Target)
		}
	}
	tool(t, "amtool", "check-config", made)
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
	reg.MustRegister(m.Holding(func() metrics.Held { return metrics.Held{Paused: []int64{events.AllClusters}} }))
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

func TestTheRunbookNamesEveryCodeThatAnOperationFailsWith(t *testing.T) {
	t.Parallel()
	runbook, err := os.ReadFile("prometheus/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range events.Codes() {
		only := len(code.States) == 1 && code.In(events.Failed)
		if only && !strings.Contains(string(runbook), "`"+code.Name+"`") {
			t.Errorf("the runbook says nothing of %s", code.Name)
		}
	}
}
