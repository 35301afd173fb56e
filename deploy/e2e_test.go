//go:build linux

package deploy

import (
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/events"
)

var (
	endToEnd = flag.Bool("e2e", false, "run agent, NATS, simulator, Prometheus and Alertmanager as they are deployed")
	shown    = flag.String("e2e.out", "", "directory for what each panel of the dashboards shows, from which panels are drawn")
)

func TestMain(m *testing.M) {
	agenttest.RunRole(map[string]func(string) error{"nats": serveNATS})
	os.Exit(m.Run())
}

// serveNATS is the role of the test binary as a NATS server with nats/nats.conf: its argument is the port and the data
// directory, with a blank between. It runs until it is asked to end.
func serveNATS(config string) error {
	port, dir, _ := strings.Cut(config, " ")
	o, err := server.ProcessConfigFile("nats/nats.conf")
	if err != nil {
		return err
	}
	if o.Port, err = strconv.Atoi(port); err != nil {
		return err
	}
	o.Host, o.HTTPPort, o.StoreDir, o.NoLog = "127.0.0.1", 0, dir, true
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.Start()
	s.WaitForShutdown()
	return nil
}

// TestEndToEnd tries the files of this directory and the dashboards with the programs
// that they are for. Each step relies on those before it.
func TestEndToEnd(t *testing.T) {
	if !*endToEnd {
		t.Skip("run it with make e2e")
	}
	w := &world{t: t, dir: t.TempDir(), processes: map[string]*agenttest.Process{}}
	w.start()
	for _, step := range []struct {
		must string
		hold func(*world, *testing.T)
	}{
		{"a server that fails is restarted, with its alerts silenced", (*world).alertRestarts},
		{"another agent ends the silences, and an alert that is sent again restarts nothing", (*world).repeatsDoNothing},
		{"an alert that is resolved is over, and the next one waits for its turn", (*world).resolvedIsOver},
		{"what still waits is cancelled when its alert is resolved", (*world).resolvedCancels},
		{"a failed operation becomes an alert that reaches Alertmanager", (*world).failureAlerts},
		{"a task that stands still becomes one too", (*world).stallAlerts},
		{"a budget that is nearly used becomes one too", (*world).budgetAlerts},
		{"a faulty policy is reported and has no effect, and the next one has", (*world).policyReloads},
		{"a pause holds operations back and is reported", (*world).pauseHolds},
		{"every query of the dashboards finds something", (*world).dashboardsShow},
		{"what was paused goes on when it is resumed", (*world).resumeLetsGo},
		{"every rule is evaluated, and every recording rule has a value", (*world).rulesWork},
		{"an exemplar leads to its operation", (*world).exemplarsLead},
		{"what scrapers store is bounded, and no time of creation is stored", (*world).seriesAreFew},
		{"an agent that loses NATS is reported", (*world).lostNATSAlerts},
		{"with no agent left there is one alert and not many", (*world).noAgentAlerts},
	} {
		if !t.Run(step.must, func(t *testing.T) { step.hold(w, t) }) {
			break
		}
	}
}

// fired is an alert as Alertmanager shows it.
type fired struct {
	Labels, Annotations map[string]string
	Receivers           []struct{ Name string }
	Status              struct {
		State      string
		SilencedBy []string
	}
}

// untilAlert waits for an alert with these labels, in a state that Alertmanager gives it.
func (w *world) untilAlert(t *testing.T, state string, labels map[string]string) (found fired) {
	t.Helper()
	until(t, fmt.Sprintf("alert %v", labels), func() string {
		var all []fired
		if err := get("http://"+w.alertmanager+"/api/v2/alerts", &all); err != nil {
			t.Fatal(err)
		}
		there := ""
		for _, found = range all {
			if found.Status.State == state && isSubset(labels, found.Labels) {
				return ""
			}
			there += fmt.Sprintln(found.Status.State, found.Labels)
		}
		return state + " among\n" + there
	})
	return found
}

func isSubset(part, whole map[string]string) bool {
	for name, value := range part {
		if whole[name] != value {
			return false
		}
	}
	return true
}

func (w *world) failureAlerts(t *testing.T) {
	a := w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenOperationFailed", "code": "SUBTASK_FAILED", "kind": "restart", "severity": "warning"})
	if got, want := a.Annotations["summary"], "A restart failed: SUBTASK_FAILED"; got != want {
		t.Errorf("summary %q, want %q", got, want)
	}
	// What the alert's description tells to do shows the operation.
	if out := w.obwarden(t, "reader", "list", "--state", "failed", "-o", "json"); !strings.Contains(out, `"SUBTASK_FAILED"`) {
		t.Errorf("obwarden list: %s", out)
	}
}

func (w *world) budgetAlerts(t *testing.T) {
	w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenBudgetNearlyUsed", "scope": "cluster"})
}

// policyReloads also sees that the counters of a rule that is new begin at 0: from
// nothing no increase is seen.
func (w *world) policyReloads(t *testing.T) {
	good, err := os.ReadFile(w.policy)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(content string) {
		w.write(filepath.Base(w.policy), content)
		w.processes["agent"].Signal(syscall.SIGHUP)
	}
	reload(string(good) + "budgets: {}\n")
	w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenPolicyReloadFailed"})
	w.untilFound(t, `obwarden_policy_reloads_total{result="refused"} > 0`)
	const added = "alerts:\n  - {name: added, matchers: ['alertname=\"Added\"'], kind: stop, target: {host: svr_ip}}"
	reload(strings.Replace(string(good), "\nalerts:", "\n"+added, 1))
	w.untilFound(t, `obwarden_policy_reload_failed == 0`)
	w.untilFound(t, `obwarden_policy_reloads_total{result="loaded"} > 0`)
	w.untilFound(t, `obwarden_alerts_total{rule="added",result="requested"} == 0`)
}

func (w *world) pauseHolds(t *testing.T) {
	w.obwarden(t, "operator", "pause", "3", "--reason", "moving racks")
	w.ask(t.Context(), events.Stop, "held", 3, 1)
	w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenPausedLong", "cluster": "3"})
	w.untilFound(t, `obwarden_operations_waiting{reason="PAUSED"} == 1`)
}

func (w *world) resumeLetsGo(t *testing.T) {
	w.obwarden(t, "operator", "resume", "3")
	w.untilFound(t, `absent(obwarden_paused)`)
	w.untilFound(t, `obwarden_cluster_operations_total{cluster="3",outcome="succeeded"} == 1`)
}

// obwarden runs a command as one of the users of NATS and returns what it prints.
func (w *world) obwarden(t *testing.T, user string, args ...string) string {
	t.Helper()
	args = append(args, "--nats", "nats://"+user+":secretOf"+strings.ToUpper(user)+"@"+w.nats)
	out, err := exec.Command(w.binary, args...).CombinedOutput()
	if err != nil {
		t.Errorf("obwarden %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (w *world) stallAlerts(t *testing.T) {
	w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenSubtaskStalled"})
}

func (w *world) rulesWork(t *testing.T) {
	var loaded struct {
		Data struct {
			Groups []struct {
				File  string
				Rules []struct{ Name, Health, LastError, Type string }
			}
		}
	}
	if err := get("http://"+w.prometheus+"/api/v1/rules", &loaded); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range loaded.Data.Groups {
		if filepath.Base(g.File) != "rules.yml" {
			continue
		}
		for _, r := range g.Rules {
			n++
			if r.Health != "ok" || r.LastError != "" {
				t.Errorf("%s: %s, %s", r.Name, r.Health, r.LastError)
			}
		}
	}
	rules := readRules(t)
	if n != len(rules) {
		t.Errorf("Prometheus has %d rules, the file %d", n, len(rules))
	}
	for _, r := range rules {
		a, err := w.query(r.Expr)
		switch {
		case err != nil:
			t.Errorf("%s%s: %v", r.Alert, r.Record, err)
		case r.Record == "":
		case !a.finds():
			t.Errorf("%s has no value", r.Record)
		}
		if r.Record != "" {
			if a, err := w.query(r.Record); err != nil || !a.finds() {
				t.Errorf("%s was not recorded: %v", r.Record, err)
			}
		}
	}
}

func (w *world) exemplarsLead(t *testing.T) {
	now := time.Now().Unix()
	var found struct {
		Data []struct {
			Exemplars []struct{ Labels map[string]string }
		}
	}
	form := url.Values{"query": {`obwarden_operation_duration_seconds_bucket{outcome="failed"}`}, "start": {fmt.Sprint(now - 300)}, "end": {fmt.Sprint(now)}}
	if err := get("http://"+w.prometheus+"/api/v1/query_exemplars?"+form.Encode(), &found); err != nil {
		t.Fatal(err)
	}
	var id string
	for _, series := range found.Data {
		for _, e := range series.Exemplars {
			id = e.Labels["operation_id"]
		}
	}
	if out := w.obwarden(t, "reader", "get", id, "-o", "json"); id == "" || !strings.Contains(out, `"failed"`) {
		t.Errorf("exemplar %q: obwarden get: %s", id, out)
	}
}

func (w *world) seriesAreFew(t *testing.T) {
	var names struct{ Data []string }
	if err := get("http://"+w.prometheus+`/api/v1/label/__name__/values`, &names); err != nil {
		t.Fatal(err)
	}
	for _, name := range names.Data {
		if strings.HasSuffix(name, "_created") {
			t.Errorf("%s is stored", name)
		}
	}
	a, err := w.query(`scrape_samples_post_metric_relabeling{job="obwarden"} < 3000`)
	if err != nil || !a.finds() {
		t.Errorf("a scrape has 3000 samples or more, error %v", err)
	}
	if a, err = w.query(`scrape_duration_seconds{job="obwarden"} < 1`); err != nil || !a.finds() {
		t.Errorf("no scrape took less than a second, error %v", err)
	}
}

func (w *world) lostNATSAlerts(t *testing.T) {
	w.load()
	w.processes["nats"].Kill()
	w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenNATSDisconnected"})
}

func (w *world) noAgentAlerts(t *testing.T) {
	w.processes["agent"].Kill()
	w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenNoAgent"})
	w.untilAlert(t, "suppressed", map[string]string{"alertname": "ObwardenAgentDown"})
}
