package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

var stopSubtasks = []string{"Prepare stop observer", "Stop server", "Stop observer process", "Wait observer stop",
	"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}

func TestDemoShowsTheEightSubtasksInOrderAndEndsWhenToldTo(t *testing.T) {
	t.Parallel()
	p := startProcess(t, nil, "demo", "--speed", "100")
	text := p.Await("Ctrl-C ends it")
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
	p.Stop()
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
				agent.Kill()
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
				if code := p.Wait(); code != 0 {
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
			agent.Stop()
		})
	}
}

func TestAnAgentThatCannotStartSaysWhyAndWhatToDo(t *testing.T) {
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
			if code := p.Wait(); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			stderr := p.Stderr.String()
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

func TestThreeAgentsOneKilled300CopiesOf6RequestsAre6Calls(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(6, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, ocpsim.Config{Clusters: clusters, Speed: 30})
	s.natsServer(t)
	var agents []*agenttest.Process
	for range 3 {
		agents = append(agents, startProcess(t, s.environ, "run"))
	}
	s.ready(t)
	js := s.connect(t)
	for i := range 300 {
		c := clusters[i%6]
		publish(t, js, events.Request{IdempotencyKey: fmt.Sprint("k", i%6), ClusterID: c.ID, ServerID: c.Zones[0].Servers[0].ID})
		if i == 150 {
			agents[0].Kill()
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

// TestAPausedAgentReleasesItsOperation stops one of two agents (SIGSTOP) in the middle of an
// operation, for longer than the ack wait: the other ends it, and the first, awake
// again, neither writes nor calls.
func TestAPausedAgentReleasesItsOperation(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{Speed: 30})
	s.natsServer(t)
	first := startProcess(t, s.environ, "run")
	s.ready(t)
	js := s.connect(t)
	publish(t, js, events.Request{IdempotencyKey: "k", ClusterID: 1, ServerID: 2})
	awaitState(t, js, events.OperationID("k"), events.Running)
	first.Signal(syscall.SIGSTOP)
	second := startProcess(t, s.environ, "run")
	operation := awaitEnd(t, js, "k")
	if operation.State != events.Succeeded {
		t.Errorf("ended %s: %+v", operation.State, operation.Reason)
	}
	first.Signal(syscall.SIGCONT)
	publish(t, js, events.Request{IdempotencyKey: "next", ClusterID: 1, ServerID: 1})
	awaitEnd(t, js, "next")
	if again := awaitEnd(t, js, "k"); again.N != operation.N {
		t.Errorf("%d events after the end", again.N-operation.N)
	}
	if posts := s.sim.Posts(ocpsim.ServerStop); posts != 2 {
		t.Errorf("%d calls for two operations", posts)
	}
	for _, p := range []*agenttest.Process{first, second} {
		p.Stop()
	}
}
