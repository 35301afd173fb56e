//go:build linux

package deploy

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/obwarden/obwarden/events"
)

var (
	endToEnd = flag.Bool("e2e", false, "run agent, NATS, simulator, Prometheus and Alertmanager as they are deployed")
	shown    = flag.String("e2e.out", "", "directory for what each panel of the dashboards shows, from which panels are drawn")
)

// natsVariable makes this test binary a NATS server with nats/nats.conf: its value is
// the port and the data directory, with a blank between.
const natsVariable = "OBWARDEN_E2E_NATS"

func TestMain(m *testing.M) {
	if config := os.Getenv(natsVariable); config != "" {
		if err := serveNATS(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveNATS runs until it is told to end.
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

// world is everything, running.
type world struct {
	t                                          *testing.T
	dir                                        string
	binary                                     string
	policy                                     string // file
	nats, ocp, agent, prometheus, alertmanager string // addresses
	sick                                       sickServer
	processes                                  map[string]*exec.Cmd
	asker                                      user
	load                                       context.CancelFunc
}

// TestEndToEnd tries the files of this directory and the dashboards with the programs
// that they are for. Each step relies on those before it.
func TestEndToEnd(t *testing.T) {
	if !*endToEnd {
		t.Skip("run it with make e2e")
	}
	w := &world{t: t, dir: t.TempDir(), processes: map[string]*exec.Cmd{}}
	w.start()
	for _, step := range []struct {
		must string
		hold func(*world, *testing.T)
	}{
		{"a server that fails is restarted, with its alerts silenced", (*world).alertRestarts},
		{"another agent ends the silences, and an alert that is told again restarts nothing", (*world).repeatsDoNothing},
		{"an alert that is resolved is over, and the next one waits for its turn", (*world).resolvedIsOver},
		{"what still waits is cancelled when its alert is resolved", (*world).resolvedCancels},
		{"a failed operation becomes an alert that reaches Alertmanager", (*world).failureAlerts},
		{"a task that stands still becomes one too", (*world).stallAlerts},
		{"a budget that is nearly used becomes one too", (*world).budgetAlerts},
		{"a faulty policy is told of and has no effect, and the next one has", (*world).policyReloads},
		{"a pause holds operations back and is told of", (*world).pauseHolds},
		{"every query of the dashboards finds something", (*world).dashboardsShow},
		{"what was paused goes on when it is resumed", (*world).resumeLetsGo},
		{"every rule is evaluated, and every recording rule has a value", (*world).rulesWork},
		{"an exemplar leads to its operation", (*world).exemplarsLead},
		{"what scrapers store is bounded, and no time of creation is stored", (*world).seriesAreFew},
		{"an agent that loses NATS is told of", (*world).lostNATSAlerts},
		{"with no agent left there is one alert and not many", (*world).noAgentAlerts},
	} {
		if !t.Run(step.must, func(t *testing.T) { step.hold(w, t) }) {
			break
		}
	}
}

// start brings all of it up, busy.
func (w *world) start() {
	w.binary = filepath.Join(w.dir, "obwarden")
	if out, err := exec.Command("go", "build", "-o", w.binary, "../cmd/obwarden").CombinedOutput(); err != nil {
		w.t.Fatalf("build: %v\n%s", err, out)
	}
	w.nats, w.ocp, w.agent, w.prometheus, w.alertmanager = freeAddress(w.t), freeAddress(w.t), freeAddress(w.t), freeAddress(w.t), freeAddress(w.t)
	_, port, _ := net.SplitHostPort(w.nats)
	w.run("nats", []string{
		natsVariable + "=" + port + " " + filepath.Join(w.dir, "nats"),
		"OBWARDEN_AGENT_PASSWORD=secretOfAGENT", "OBWARDEN_REQUESTER_PASSWORD=secretOfREQUESTER", "OBWARDEN_READER_PASSWORD=secretOfREADER",
		"OBWARDEN_OPERATOR_PASSWORD=secretOfOPERATOR",
	}, os.Args[0])
	w.run("simulator", nil, w.binary, "sim", "--listen", w.ocp, "--clusters", "8", "--speed", "40",
		"--fault", "server_restart:fail_subtask,subtask=Stop observer process,cluster=4",
		"--fault", "server_restart:fail_subtask,subtask=Start server,cluster=5",
		"--fault", "server_stop:lose_after,cluster=6,count=3",
		"--fault", "server_stop:hang_subtask,subtask=Wait observer stop,cluster=7",
		"--fault", "task_get:status,status=503,probability=0.1")
	w.reach("NATS", func() error { c, err := net.Dial("tcp", w.nats); closeQuietly(c); return err })
	w.reach("the simulator", func() error { c, err := net.Dial("tcp", w.ocp); closeQuietly(c); return err })
	w.policy = w.configure("policy/example.yaml",
		"fleet_budget: {operations: 30", "fleet_budget: {operations: 3000",
		`block: \[year-end\]`, "block: []", // whatever the date
		`for: 5m`, "for: 1s",
		`grace: 5m`, "grace: 5s",
		`(?m)^overrides:`, lax)
	w.startAgent()
	w.write("obwarden-token", webhookToken)
	w.run("alertmanager", nil, program(w.t, "prometheus-alertmanager", "alertmanager"),
		"--config.file="+w.configure("alertmanager/alertmanager.yml",
			"127.0.0.1:9480", w.agent, `# (http_config:|  authorization:|    credentials_file:)`, "$1", "/etc/alertmanager", w.dir,
			"group_wait: 10s", "group_wait: 1s", "interval: 1m", "interval: 1s"),
		"--storage.path="+filepath.Join(w.dir, "alertmanager"), "--web.listen-address="+w.alertmanager, "--cluster.listen-address=")
	// As deployed, but fifteen times as fast, and alerts do not wait; beside it stands
	// what is the database's own.
	w.configure("prometheus/agents.yml", "127.0.0.1:9480", w.agent)
	w.configure("prometheus/alertmanagers.yml", "127.0.0.1:9093", w.alertmanager)
	w.configure("prometheus/rules.yml", `for: \d+[mh]`, "for: 0s")
	w.write("oceanbase.yml", oceanbaseRules)
	w.lastWeek()
	w.run("prometheus", nil, program(w.t, "prometheus"),
		"--config.file="+w.configure("prometheus/prometheus.yml", `interval: 15s`, "interval: 1s",
			`(?m)^  - rules.yml`, "  - rules.yml\n  - oceanbase.yml",
			`(?m)^scrape_configs:`, "scrape_configs:\n  - job_name: oceanbase\n    static_configs: [{targets: ["+w.exporter()+"]}]"),
		"--storage.tsdb.path="+filepath.Join(w.dir, "prometheus"), "--web.listen-address="+w.prometheus,
		"--enable-feature=exemplar-storage")
	w.reach("the agent", func() error { return get("http://"+w.agent+"/-/ready", nil) })
	w.reach("Prometheus", func() error { return get("http://"+w.prometheus+"/-/ready", nil) })
	w.reach("Alertmanager", func() error { return get("http://"+w.alertmanager+"/-/ready", nil) })
	w.keepBusy()
}

// lax is for the load, which leaves one cluster to the policy as it is.
const lax = `overrides:
  - matchers: ['cluster_id=~"[1-7]"']
    max_concurrent: 20
    keep_zones: 0
    one_zone_at_a_time: false
    keep_root_server: false
    cooldown: {server: 0s, zone: 0s, failure: 0s}
    budget: {operations: 0}
    pause_after_failures: 0
  - matchers: ['cluster_id="2"']
    max_concurrent: 1
    budget: {operations: 5, window: 30s}`

// startAgent runs the agent, the first time or anew.
func (w *world) startAgent() {
	w.t.Helper()
	w.run("agent", []string{
		"OBWARDEN_NATS_URL=nats://agent:secretOfAGENT@" + w.nats,
		"OBWARDEN_OCP_URL=http://" + w.ocp, "OBWARDEN_OCP_USERNAME=admin", "OBWARDEN_OCP_PASSWORD=obdemo", "OBWARDEN_OCP_MAX_RPS=200",
		"OBWARDEN_HTTP_LISTEN=" + w.agent, "OBWARDEN_POLICY_FILE=" + w.policy,
		"OBWARDEN_WEBHOOK_TOKEN=" + webhookToken, "OBWARDEN_ALERTMANAGER_URL=http://" + w.alertmanager,
		"OBWARDEN_POLL_MIN=100ms", "OBWARDEN_POLL_MAX=500ms", "OBWARDEN_STALL_AFTER=3s", "OBWARDEN_SETTLE=2s",
	}, w.binary, "run")
}

// lastWeek gives Prometheus the durations of a subtask of a week ago, for comparison.
func (w *world) lastWeek() {
	w.t.Helper()
	var samples strings.Builder
	weekAgo := time.Now().Add(-7 * 24 * time.Hour)
	for _, series := range []string{"sum", "count"} {
		for n := range 40 {
			fmt.Fprintf(&samples, "obwarden_subtask_duration_seconds_%s{job=\"obwarden\",instance=%q,kind=\"stop\",subtask=\"stop_server\",outcome=\"successful\"} %d %d\n",
				series, w.agent, n, weekAgo.Add(time.Duration(n-20)*30*time.Second).Unix())
		}
	}
	w.write("last-week", samples.String()+"# EOF\n")
	if out, err := exec.Command(program(w.t, "promtool"), "tsdb", "create-blocks-from", "openmetrics",
		filepath.Join(w.dir, "last-week"), filepath.Join(w.dir, "prometheus")).CombinedOutput(); err != nil {
		w.t.Fatalf("promtool: %v\n%s", err, out)
	}
}

func (w *world) write(file, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, file), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// configure copies a file with what must be different here; each pattern must be there.
func (w *world) configure(file string, replacements ...string) string {
	w.t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(replacements); i += 2 {
		pattern := regexp.MustCompile(replacements[i])
		if !pattern.Match(content) {
			w.t.Fatalf("%s has no %s", file, pattern)
		}
		content = pattern.ReplaceAll(content, []byte(replacements[i+1]))
	}
	w.write(filepath.Base(file), string(content))
	return filepath.Join(w.dir, filepath.Base(file))
}

func (w *world) run(name string, environ []string, program string, args ...string) {
	w.t.Helper()
	log, err := os.OpenFile(filepath.Join(w.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append([]string{"HOME=" + w.dir, "PATH=" + os.Getenv("PATH")}, environ...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // the kernel ends it with this test
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.processes[name] = cmd
	w.t.Cleanup(func() {
		w.end(name)
		_ = log.Close() // the process is gone
		if w.t.Failed() {
			content, err := os.ReadFile(log.Name())
			w.t.Logf("%s, %v, the end of its log:\n%s", name, err, content[max(0, len(content)-4000):])
		}
	})
}

// end kills a process, once.
func (w *world) end(name string) {
	if cmd := w.processes[name]; cmd != nil {
		_ = cmd.Process.Kill() // gone already, perhaps
		_ = cmd.Wait()         // killed, as it should be
		delete(w.processes, name)
	}
}

func program(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("no %s here: apt-get install prometheus prometheus-alertmanager", names[0])
	return ""
}

// freeAddress is below the ports that the system gives to clients, so that nobody
// takes it before its server does.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 18000+rand.IntN(14000))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close() // to be free again
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

func closeQuietly(c net.Conn) {
	if c != nil {
		_ = c.Close() // only tried
	}
}

// reach waits until something answers.
func (w *world) reach(what string, try func() error) {
	w.t.Helper()
	until(w.t, what+" answers", func() string {
		if err := try(); err != nil {
			return err.Error()
		}
		return ""
	})
}

// until asks again and again what is still missing; nothing must be before patience ends.
func until(t *testing.T, what string, missing func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		m := missing()
		if m == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s, missing:\n%s", what, patience, m)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// get reads JSON into what is not nil.
func get(url string, into any) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.300s", url, response.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// keepBusy asks for operations of all kinds and fates until the load is ended.
func (w *world) keepBusy() {
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan struct{})
	w.load = func() { cancel(); <-ended }
	w.t.Cleanup(w.load)
	w.asker = connect(w.t, "nats://"+w.nats, "agent")
	ask := func(kind events.Kind, key string, cluster, server int64) { w.ask(ctx, kind, key, cluster, server) }
	go func() {
		defer close(ended)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for round := int64(0); ctx.Err() == nil; round++ {
			key := func(what string) string { return fmt.Sprintf("%s-%d", what, round) }
			switch round % 12 {
			case 0: // done, and asked for twice
				ask(events.Stop, key("stop"), 1, 1)
				ask(events.Stop, key("stop"), 1, 1)
			case 2:
				ask(events.Restart, key("restart"), 2, 2)
				ask(events.Restart, key("behind"), 2, 5) // waits
			case 4: // fails; its server stays in between
				ask(events.Restart, key("fails"), 4+round/12%2, 1+round/24%6)
			case 6: // answer lost
				ask(events.Stop, key("lost"), 6, 1+round/12%6)
				ask(events.Start, key("start"), 1, 1)
			case 8: // there is no such server
				ask(events.Stop, key("wrong"), 3, 100)
			case 10:
				ask(events.Stop, "hangs", 7, 1)
				if _, err := w.asker.js.Publish(ctx, events.RequestSubject(events.Stop), []byte("{")); err != nil && ctx.Err() == nil {
					w.t.Errorf("ask for nonsense: %v", err)
				}
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
}

// ask makes a request about a server of a cluster, which are counted from 1 in each.
func (w *world) ask(ctx context.Context, kind events.Kind, key string, cluster, server int64) {
	_, err := (events.Request{IdempotencyKey: key, ClusterID: cluster, ServerID: 6*(cluster-1) + server}).Publish(ctx, w.asker.js, kind, "cli")
	if err != nil && ctx.Err() == nil {
		w.t.Errorf("ask for %s: %v", key, err)
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
		if err := w.processes["agent"].Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
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

// answer is what Prometheus' API says to a query.
type answer struct {
	Data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
			Values [][2]any
		}
	}
}

// finds reports whether there is a number in it.
func (a answer) finds() bool {
	for _, r := range a.Data.Result {
		for _, v := range append(r.Values, r.Value) {
			text, _ := v[1].(string)
			if f, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
				return true
			}
		}
	}
	return false
}

// query asks for the last minute.
func (w *world) query(expr string) (a answer, err error) {
	now := time.Now().Unix()
	form := url.Values{"query": {expr}, "start": {fmt.Sprint(now - 60)}, "end": {fmt.Sprint(now)}, "step": {"1"}}
	return a, get("http://"+w.prometheus+"/api/v1/query_range?"+form.Encode(), &a)
}

// untilFound waits until a query finds something now.
func (w *world) untilFound(t *testing.T, expr string) {
	t.Helper()
	until(t, expr, func() string {
		var a answer
		if err := get("http://"+w.prometheus+"/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &a); err != nil {
			t.Fatal(err)
		}
		if !a.finds() {
			return "a sample"
		}
		return ""
	})
}

// board is what is looked at of a dashboard.
type board struct {
	UID         string
	Title       string
	Annotations struct{ List []struct{ Name, Expr string } }
	Panels      []struct {
		Title, Type string
		GridPos     struct{ H, W, X, Y int }
		FieldConfig json.RawMessage // for who draws it
		Targets     []struct {
			Expr, LegendFormat string
			Answer             answer
		}
	}
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
}

func boards(t *testing.T) (all []board) {
	t.Helper()
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d dashboards, error %v", len(files), err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var b board
		if err := json.Unmarshal(content, &b); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, b)
	}
	return all
}

// filledIn puts in what Grafana would for its variables.
func filledIn(expr string) string {
	expr = strings.NewReplacer("$__rate_interval", "10s", "$__range", "5m", "$window", "5m").Replace(expr)
	return regexp.MustCompile(`\$[a-z_]+`).ReplaceAllString(expr, ".*")
}

func (w *world) dashboardsShow(t *testing.T) {
	pending := map[string]string{} // what shows it, by query
	for _, b := range boards(t) {
		for _, p := range b.Panels {
			for _, q := range p.Targets {
				pending[filledIn(q.Expr)] = b.UID + ": " + p.Title
			}
		}
		for _, a := range b.Annotations.List {
			if a.Expr != "" {
				pending[filledIn(a.Expr)] = b.UID + ": annotation " + a.Name
			}
		}
	}
	if len(pending) < 60 {
		t.Fatalf("%d queries", len(pending))
	}
	until(t, "queries of the dashboards find something", func() string {
		still := ""
		for expr, where := range pending {
			a, err := w.query(expr)
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			if a.finds() {
				delete(pending, expr)
			} else {
				still += where + ": " + expr + "\n"
			}
		}
		return still
	})
	for _, b := range boards(t) {
		for _, v := range b.Templating.List {
			m := regexp.MustCompile(`^label_values\((.*), ([a-z_]+)\)$`).FindStringSubmatch(filledIn(v.Definition))
			if v.Type != "query" {
				continue
			}
			var values struct{ Data []string }
			if m == nil {
				t.Errorf("%s: variable %s: %q is no label_values", b.UID, v.Name, v.Definition)
			} else if err := get("http://"+w.prometheus+"/api/v1/label/"+m[2]+"/values?match[]="+url.QueryEscape(m[1]), &values); err != nil || len(values.Data) == 0 {
				t.Errorf("%s: variable %s has %d values, error %v", b.UID, v.Name, len(values.Data), err)
			}
		}
	}
	w.keepWhatIsShown(t)
}

// keepWhatIsShown writes every panel with its data, for the command that draws them.
func (w *world) keepWhatIsShown(t *testing.T) {
	if *shown == "" {
		return
	}
	until(t, "more data", func() string {
		if a, err := w.query(`count_over_time(up{job="obwarden"}[2m]) > 40`); err != nil || !a.finds() {
			return fmt.Sprint("not yet ", err)
		}
		return ""
	})
	for _, b := range boards(t) {
		for i := range b.Panels {
			for j := range b.Panels[i].Targets {
				target := &b.Panels[i].Targets[j]
				var err error
				if target.Answer, err = w.query(filledIn(target.Expr)); err != nil {
					t.Fatal(err)
				}
			}
		}
		content, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(*shown, b.UID+".json"), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
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
	w.end("nats")
	w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenNATSDisconnected"})
}

func (w *world) noAgentAlerts(t *testing.T) {
	w.end("agent")
	w.untilAlert(t, "active", map[string]string{"alertname": "ObwardenNoAgent"})
	w.untilAlert(t, "suppressed", map[string]string{"alertname": "ObwardenAgentDown"})
}
