package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

// patience is for what must happen; it is never waited out.
const patience = time.Minute

var buildOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "obwarden-test-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "obwarden")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return binary, nil
})

// process is the real binary.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr bytes.Buffer
	lines  chan string // of stdout
	done   chan struct{}
	err    error
}

func startProcess(t *testing.T, environ map[string]string, args ...string) *process {
	t.Helper()
	binary, err := buildOnce()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	p := &process{t: t, cmd: exec.Command(binary, args...), lines: make(chan string, 10_000), done: make(chan struct{})}
	p.cmd.Env = []string{"HOME=" + os.Getenv("HOME"), "TMPDIR=" + t.TempDir()}
	for name, value := range environ {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
		close(p.lines)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // usually gone already
		<-p.done
		if t.Failed() {
			t.Logf("%v, stderr:\n%s", args, p.stderr.String())
		}
	})
	return p
}

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%v goes on running", p.cmd.Args)
	}
	return p.cmd.ProcessState.ExitCode()
}

// until collects stdout up to a line that contains text.
func (p *process) until(text string) []string {
	p.t.Helper()
	var seen []string
	deadline := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("%v ended without %q; stdout:\n%s", p.cmd.Args, text, strings.Join(seen, "\n"))
			}
			seen = append(seen, line)
			if strings.Contains(line, text) {
				return seen
			}
		case <-deadline:
			p.t.Fatalf("no %q; stdout:\n%s", text, strings.Join(seen, "\n"))
		}
	}
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // usually running still
	<-p.done
}

var stopSubtasks = []string{"Prepare stop observer", "Stop server", "Stop observer process", "Wait observer stop",
	"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}

func TestDemoShowsTheEightSubtasksInOrderAndEndsWhenToldTo(t *testing.T) {
	t.Parallel()
	p := startProcess(t, nil, "demo", "--speed", "100")
	story := p.until("Ctrl-C ends it")
	text := strings.Join(story, "\n")
	at := 0
	for _, name := range stopSubtasks {
		i := strings.Index(text[at:], name)
		if i < 0 {
			t.Fatalf("subtask %q is missing or out of order in:\n%s", name, text)
		}
		at += i
	}
	for _, want := range []string{"succeeded", "duplicate", "1 call of stop", "dry_runn", "MAJORITY_AT_RISK", "SUBTASK_FAILED", `obwarden_operations_total{kind="stop",outcome="failed"} 1`} {
		if !strings.Contains(text, want) {
			t.Errorf("the story lacks %q:\n%s", want, text)
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// site is a simulated OCP and the settings of an agent that works with it.
type site struct {
	sim     *ocpsim.Sim
	environ map[string]string
}

func newSite(t *testing.T, config ocpsim.Config) site {
	t.Helper()
	config.Users = ocpsim.DefaultUsers("admin", "secret")
	sim := ocpsim.Start(t, config)
	return site{sim: sim, environ: map[string]string{
		"OBWARDEN_OCP_URL": sim.URL(), "OBWARDEN_OCP_USERNAME": "admin", "OBWARDEN_OCP_PASSWORD": "secret",
		"OBWARDEN_NATS_LISTEN": freeAddress(t), "OBWARDEN_HTTP_LISTEN": "127.0.0.1:0", "OBWARDEN_DATA_DIR": t.TempDir(),
		"OBWARDEN_POLL_MIN": "20ms", "OBWARDEN_POLL_MAX": "100ms", "OBWARDEN_SETTLE": "2s", "OBWARDEN_ACK_WAIT": "1s", "OBWARDEN_OCP_MAX_RPS": "200",
	}}
}

// freeAddress is for a server that must come back on the same port.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s site) connect(t *testing.T) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect("nats://"+s.environ["OBWARDEN_NATS_LISTEN"], nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// publish sends the request again and again until it is in the stream, with the
// same key, as a publisher does that wants to be sure.
func publish(t *testing.T, js jetstream.JetStream, r events.Request) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, time.Second)
		_, err := r.Publish(try, js, events.Stop, "cli")
		stop()
		if err == nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("publish: %v", err)
		}
	}
}

// TestKilledAtAnyMomentTheAgentEndsTheOperationWithOneCall kills the process twenty
// times, at random moments of operations that take about a second.
func TestKilledAtAnyMomentTheAgentEndsTheOperationWithOneCall(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for run := range 4 {
		moments := make([]time.Duration, 5)
		for i := range moments {
			moments[i] = time.Duration(random.Int64N(int64(900 * time.Millisecond)))
			if i%2 == 0 { // the moments around the call are the short ones
				moments[i] /= 20
			}
		}
		t.Run(fmt.Sprint("run ", run), func(t *testing.T) {
			t.Parallel()
			clusters, err := ocpsim.Grid(1, 3, len(moments)) // all that is stopped is in one zone
			if err != nil {
				t.Fatal(err)
			}
			s := newSite(t, ocpsim.Config{Clusters: clusters, Speed: 80, Shape: ocpsim.Shape(1 + run%3)})
			js := s.connect(t)
			agent := startProcess(t, s.environ, "run")
			for i, moment := range moments {
				key := fmt.Sprint("k", i)
				publish(t, js, events.Request{IdempotencyKey: key, ClusterID: 1, ServerID: int64(i + 1)})
				time.Sleep(moment) // the moment of death is what this test is about
				agent.kill()
				agent = startProcess(t, s.environ, "run")
				operation := awaitEnd(t, js, key)
				if operation.State != events.Succeeded {
					t.Errorf("killed after %s: ended %s: %+v", moment, operation.State, operation.Reason)
				}
				if posts := s.sim.Posts(ocpsim.ServerStop); posts != i+1 {
					t.Fatalf("killed after %s: %d calls for %d operations", moment, posts, i+1)
				}
			}
		})
	}
}

// awaitEnd reads an operation's events to its end; their numbers must have no gap.
func awaitEnd(t *testing.T, js jetstream.JetStream, key string) events.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	id := events.OperationID(key)
	for {
		var all []events.Event
		err := read(ctx, js, jetstream.OrderedConsumerConfig{FilterSubjects: []string{events.OperationSubjects(id)}}, func(msg jetstream.Msg) error {
			e, err := events.DecodeEvent(msg.Subject(), msg.Data())
			all = append(all, e)
			return err
		})
		if ctx.Err() != nil {
			t.Fatalf("no end of %s: %v", key, err)
		}
		for i, e := range all {
			if e.N != i+1 {
				t.Fatalf("%s: event %d has number %d", key, i+1, e.N)
			}
		}
		if err == nil && len(all) > 0 && all[len(all)-1].State.Final() {
			return all[len(all)-1].Operation
		}
		time.Sleep(20 * time.Millisecond) // the process may be down: ask again
	}
}

func TestEveryKindByCommandInEveryShape(t *testing.T) {
	t.Parallel()
	for _, shape := range []ocpsim.Shape{ocpsim.ShapeTasks, ocpsim.ShapeSubtasks, ocpsim.ShapeV43} {
		t.Run(fmt.Sprint("shape ", shape), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, ocpsim.Config{Speed: 500, Shape: shape})
			if shape == ocpsim.ShapeV43 {
				s = newSite(t, ocpsim.Config{Speed: 500, Shape: shape, API: ocpsim.APIV43})
				s.environ["OBWARDEN_OCP_API"] = "v4.3"
			}
			agent := startProcess(t, s.environ, "run")
			s.ready(t)
			for _, kind := range events.Kinds() {
				p := startProcess(t, s.environ, string(kind), "1", "2", "--wait")
				if code := p.wait(); code != 0 {
					t.Errorf("%s: exit code %d, want 0", kind, code)
				}
			}
			var names []string
			for _, sub := range s.sim.Tasks()[0].Subtasks {
				names = append(names, sub.Name)
			}
			if !slices.Equal(names, stopSubtasks) {
				t.Errorf("subtasks of the stop: %v", names)
			}
			if err := agent.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := agent.wait(); code != 0 {
				t.Errorf("agent: exit code %d, want 0", code)
			}
		})
	}
}

// ready waits until the agent's streams are there.
func (s site) ready(t *testing.T) {
	t.Helper()
	js := s.connect(t)
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := js.KeyValue(ctx, events.ControlBucket)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("agent is not ready: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestWhatCannotStartSaysWhyAndWhatToDo(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{})
	startProcess(t, s.environ, "run")
	s.ready(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { busy.Close() })
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name     string
		set      map[string]string
		code     int
		says     []string
		saysNone []string
	}{
		{"data directory locked", map[string]string{"OBWARDEN_NATS_LISTEN": "127.0.0.1:0"}, 1, []string{"in use by another process", "OBWARDEN_DATA_DIR"}, nil},
		{"NATS port taken", map[string]string{"OBWARDEN_NATS_LISTEN": busy.Addr().String(), "OBWARDEN_DATA_DIR": t.TempDir()}, 1, []string{"OBWARDEN_NATS_LISTEN", busy.Addr().String()}, nil},
		{"HTTP port taken", map[string]string{"OBWARDEN_HTTP_LISTEN": busy.Addr().String()}, 1, []string{"OBWARDEN_HTTP_LISTEN", busy.Addr().String()}, nil},
		{"data directory is a file", map[string]string{"OBWARDEN_NATS_LISTEN": "127.0.0.1:0", "OBWARDEN_DATA_DIR": file}, 1, []string{file}, nil},
		{"NATS not there", map[string]string{"OBWARDEN_NATS_URL": "nats://127.0.0.1:1"}, exitUnreachable, []string{"nats://127.0.0.1:1", "OBWARDEN_NATS_URL"}, nil},
		{"faults of the configuration", map[string]string{"OBWARDEN_OCP_URL": "ocp", "OBWARDEN_OCP_API": "v5", "OBWARDEN_POLL_MIN": "soon",
			"OBWARDEN_OCP_PASSWORD": "", "OBWARDEN_OCP_SECRET_KEY": "hush"}, exitUsage,
			[]string{"OBWARDEN_OCP_URL", `OBWARDEN_OCP_API="v5": must be one of v3, v4.3`, `OBWARDEN_POLL_MIN="soon": must be a duration`, "OBWARDEN_OCP_PASSWORD", "OBWARDEN_OCP_ACCESS_KEY"}, []string{"hush"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			environ := map[string]string{}
			for name, value := range s.environ {
				environ[name] = value
			}
			for name, value := range test.set {
				environ[name] = value
			}
			p := startProcess(t, environ, "run")
			if code := p.wait(); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			stderr := p.stderr.String()
			for _, want := range test.says {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr lacks %q:\n%s", want, stderr)
				}
			}
			for _, secret := range test.saysNone {
				if strings.Contains(stderr, secret) {
					t.Errorf("stderr shows %q:\n%s", secret, stderr)
				}
			}
			if strings.Contains(stderr, "panic") {
				t.Errorf("stderr:\n%s", stderr)
			}
		})
	}
}

// TestNATSCommandLine runs the commands of the README's section on NATS with the
// official client. CI builds it and says where; without it there is nothing to run.
func TestNATSCommandLine(t *testing.T) {
	t.Parallel()
	cli := os.Getenv("NATS_CLI")
	if cli == "" {
		t.Skip("NATS_CLI names no nats binary; .ci/run builds one")
	}
	s := newSite(t, ocpsim.Config{Speed: 100})
	startProcess(t, s.environ, "run")
	s.ready(t)
	commands := readmeCommands(t, "nats ")
	if len(commands) < 2 {
		t.Fatalf("the README shows %d nats commands, want a subscription and a publication", len(commands))
	}
	run := func(command string) *exec.Cmd {
		c := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(command, "nats ", cli+" --server "+s.environ["OBWARDEN_NATS_LISTEN"]+" ", 1))
		c.Env = append(os.Environ(), "HOME="+t.TempDir())
		return c
	}
	subscription := run(commands[0])
	out, err := subscription.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	subscription.Stderr = subscription.Stdout
	if err := subscription.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = subscription.Process.Kill()
		_ = subscription.Wait()
	}()
	lines := bufio.NewReader(out)
	awaitText(t, lines, "Subscribing on") // only then is nothing missed
	if out, err := run(commands[1]).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", commands[1], err, out)
	}
	for _, want := range []string{"accepted", "submitting", "running", "progress", "succeeded"} {
		awaitText(t, lines, "."+want)
	}
	if posts := s.sim.Posts(ocpsim.ServerStop); posts != 1 {
		t.Errorf("%d calls, want 1", posts)
	}
}

func awaitText(t *testing.T, lines *bufio.Reader, text string) {
	t.Helper()
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, text) {
			return
		}
		if err != nil {
			t.Fatalf("no %q: %v", text, err)
		}
	}
}

// natsServer is a NATS server of its own, beside the agents.
func (s site) natsServer(t *testing.T) {
	t.Helper()
	server := eventstest.StartIn(t, s.environ["OBWARDEN_NATS_LISTEN"], t.TempDir())
	s.environ["OBWARDEN_NATS_URL"] = server.URL()
}

func TestThreeAgentsOneKilled300CopiesOf6RequestsAre6Calls(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(6, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, ocpsim.Config{Clusters: clusters, Speed: 30})
	s.natsServer(t)
	var agents []*process
	for range 3 {
		agents = append(agents, startProcess(t, s.environ, "run"))
	}
	s.ready(t)
	js := s.connect(t)
	for i := range 300 {
		c := clusters[i%6]
		publish(t, js, events.Request{IdempotencyKey: fmt.Sprint("k", i%6), ClusterID: c.ID, ServerID: c.Zones[0].Servers[0].ID})
		if i == 150 {
			agents[0].kill()
		}
	}
	for i := range 6 {
		if operation := awaitEnd(t, js, fmt.Sprint("k", i)); operation.State != events.Succeeded {
			t.Errorf("k%d ended %s: %+v", i, operation.State, operation.Reason)
		}
	}
	if posts := s.sim.Posts(ocpsim.ServerStop); posts != 6 {
		t.Errorf("%d calls, want 6", posts)
	}
}

// TestAPausedAgentLetsGo stops one of two agents (SIGSTOP) in the middle of an
// operation, for longer than the ack wait: the other ends it, and the first, awake
// again, neither writes nor calls.
func TestAPausedAgentLetsGo(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{Speed: 30})
	s.natsServer(t)
	first := startProcess(t, s.environ, "run")
	s.ready(t)
	js := s.connect(t)
	publish(t, js, events.Request{IdempotencyKey: "k", ClusterID: 1, ServerID: 2})
	awaitState(t, js, "k", events.Running)
	if err := first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	second := startProcess(t, s.environ, "run")
	operation := awaitEnd(t, js, "k")
	if operation.State != events.Succeeded {
		t.Errorf("ended %s: %+v", operation.State, operation.Reason)
	}
	if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	publish(t, js, events.Request{IdempotencyKey: "next", ClusterID: 1, ServerID: 1})
	awaitEnd(t, js, "next")
	if again := awaitEnd(t, js, "k"); again.N != operation.N {
		t.Errorf("%d events after the end", again.N-operation.N)
	}
	if posts := s.sim.Posts(ocpsim.ServerStop); posts != 2 {
		t.Errorf("%d calls for two operations", posts)
	}
	for _, p := range []*process{first, second} {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.wait(); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	}
}

func awaitState(t *testing.T, js jetstream.JetStream, key string, want events.State) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		stream, err := js.Stream(t.Context(), events.OperationStream)
		if err == nil {
			msg, err := stream.GetLastMsgForSubject(t.Context(), events.OperationSubjects(events.OperationID(key)))
			if err == nil {
				if e, err := events.DecodeEvent(msg.Subject, msg.Data); err == nil && e.State == want {
					return
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not %s", key, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// lax has the agents hold nothing back but a second operation in a cluster: for tests
// that are about something else, and stop more than a policy would let them.
func (s site) lax(t *testing.T) site {
	t.Helper()
	const policy = `defaults: {keep_zones: 0, one_zone_at_a_time: false, keep_root_server: false, cooldown: {server: 0s, zone: 0s, failure: 0s}, budget: {operations: 0, window: 1h}, pause_after_failures: 0}
fleet_budget: {operations: 0, window: 1h}
`
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	s.environ["OBWARDEN_POLICY_FILE"] = file
	return s
}
