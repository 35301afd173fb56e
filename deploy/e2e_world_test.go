//go:build linux

package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/events"
)

// world is everything, running.
type world struct {
	t                                          *testing.T
	dir                                        string
	binary                                     string
	policy                                     string // file
	nats, ocp, agent, prometheus, alertmanager string // addresses
	sick                                       sickServer
	processes                                  map[string]*agenttest.Process
	asker                                      user
	load                                       context.CancelFunc
}

// start brings all of it up, busy.
func (w *world) start() {
	var err error
	if w.binary, err = agenttest.Build(w.dir, nil); err != nil {
		w.t.Fatal(err)
	}
	w.nats, w.ocp, w.agent, w.prometheus, w.alertmanager = agenttest.FreeAddress(w.t), agenttest.FreeAddress(w.t), agenttest.FreeAddress(w.t), agenttest.FreeAddress(w.t), agenttest.FreeAddress(w.t)
	_, port, _ := net.SplitHostPort(w.nats)
	server := agenttest.Self("nats", port+" "+filepath.Join(w.dir, "nats"))
	server.Env = append(server.Env, "OBWARDEN_AGENT_PASSWORD=secretOfAGENT", "OBWARDEN_REQUESTER_PASSWORD=secretOfREQUESTER",
		"OBWARDEN_READER_PASSWORD=secretOfREADER", "OBWARDEN_OPERATOR_PASSWORD=secretOfOPERATOR")
	w.processes["nats"] = agenttest.Start(w.t, server)
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

// run starts a program that is ended with the test, or before by its name.
func (w *world) run(name string, environ []string, program string, args ...string) {
	w.t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append([]string{"HOME=" + w.dir, "PATH=" + os.Getenv("PATH")}, environ...)
	w.processes[name] = agenttest.Start(w.t, cmd)
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

func closeQuietly(c net.Conn) {
	if c != nil {
		_ = c.Close() // only tried
	}
}

// reach waits until something answers.
func (w *world) reach(what string, try func() error) {
	w.t.Helper()
	agenttest.Eventually(w.t, what+" answers", patience, 100*time.Millisecond, try)
}

// until asks again and again for what is still missing, and fails the test if that is not nothing before patience ends.
// The programs tell nobody.
func until(t *testing.T, what string, missing func() string) {
	t.Helper()
	agenttest.Eventually(t, what, patience, 100*time.Millisecond, func() error {
		if m := missing(); m != "" {
			return errors.New("missing:\n" + m)
		}
		return nil
	})
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
