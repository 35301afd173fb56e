//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

var (
	flagTime   = flag.Duration("chaos.time", 0, "how long faults and operations go on; 0: not at all")
	flagOps    = flag.Int("chaos.ops", 0, "operations; 0: eight a second")
	flagSeed   = flag.Uint64("chaos.seed", 0, "of the faults and operations; 0: any")
	flagReport = flag.String("chaos.report", "", "file for the report")
	flagDir    = flag.String("chaos.dir", "", "directory for the logs of agents and NATS, kept; empty: a temporary one, gone after a run without violations")
)

const (
	patience = 3 * time.Minute // how long things that must happen may take once the faults have ceased
	slack    = 600 * time.Millisecond
)

func TestMain(m *testing.M) {
	agenttest.RunRole(map[string]func(string) error{"nats": agenttest.ServeNATS})
	os.Exit(m.Run())
}

func TestPlansAreTheirSeeds(t *testing.T) {
	t.Parallel()
	one, same, other := newPlan(1, time.Minute), newPlan(1, time.Minute), newPlan(2, time.Minute)
	if !reflect.DeepEqual(one, same) {
		t.Error("the same seed made another plan")
	}
	if reflect.DeepEqual(one, other) {
		t.Error("another seed made the same plan")
	}
}

// TestChaos lets everything go wrong for a while, then lets everything work, and judges the result.
func TestChaos(t *testing.T) {
	if *flagTime == 0 {
		t.Skip("run it with -chaos.time, or make chaos")
	}
	seed := *flagSeed
	if seed == 0 {
		seed = rand.Uint64N(1_000_000)
	}
	ops := *flagOps
	if ops == 0 {
		ops = int(8 * flagTime.Seconds())
	}
	t.Logf("seed %d", seed)
	a := newArena(t, seed, ops)
	a.start()
	a.attack(*flagTime)
	a.calm()
	h := a.history()
	v := check(h)
	report := a.report(h, v)
	t.Logf("\n%s", report)
	if *flagReport != "" {
		if err := os.WriteFile(*flagReport, []byte(report), 0o600); err != nil {
			t.Error(err)
		}
	}
	if len(v.violations) > 0 {
		t.Errorf("%d violations; logs in %s", len(v.violations), a.dir)
	}
	if a.load.published < ops {
		t.Errorf("%d of %d operations published: too slow", a.load.published, ops)
	}
}

// arena is the programs of a run, the load on them and what is known about them so far.
type arena struct {
	t    *testing.T
	seed uint64
	ops  int
	dir  string

	version  string // of this tree; empty if there is no git
	shape    ocpsim.Shape
	speed    float64
	clusters []ocpsim.ClusterConfig
	sim      *ocpsim.Sim
	nats     *process
	agents   []*process
	links    []*proxy // 2*agent: to NATS, 2*agent+1: to OCP
	address  string   // of NATS
	js       jetstream.JetStream
	load     *load
	abort    context.CancelFunc
	began    time.Time

	mu        sync.Mutex
	holds     map[string]int    // operation → agent, by the agents' logs
	moving    map[string]string // operation → state, of the operations that an agent works on
	struck    []strike
	counts    map[string]int // faults by name
	pauses    []span
	shutdowns []time.Duration
	read      uint64 // the journal's last sequence that the load knows
	natsUp    []time.Duration
	posts     []post // of OCP's log, up to entry harvested
	harvested int64
}

// strike is a fault of a process that has happened, with the operations that it delayed.
type strike struct {
	name     string
	from, to time.Time
	held     []string
}

func newArena(t *testing.T, seed uint64, ops int) *arena {
	random := rand.New(rand.NewPCG(seed, 0))
	a := &arena{t: t, seed: seed, ops: ops, dir: *flagDir, address: agenttest.FreeAddress(t),
		shape: ocpsim.Shape(1 + random.IntN(3)), speed: float64(100 + random.IntN(701)),
		holds: map[string]int{}, moving: map[string]string{}, counts: map[string]int{}}
	if a.dir == "" {
		a.dir = filepath.Join(os.TempDir(), fmt.Sprintf("obwarden-chaos-%d-%d", seed, os.Getpid()))
		t.Cleanup(func() {
			if !t.Failed() {
				_ = os.RemoveAll(a.dir) // temporary
			}
		})
	}
	if err := os.MkdirAll(a.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	var err error
	if a.clusters, err = ocpsim.Grid(48+random.IntN(17), 3, 2); err != nil {
		t.Fatal(err)
	}
	return a
}

// start starts all programs, without faults.
func (a *arena) start() {
	api := ocpsim.APIV3
	if a.shape == ocpsim.ShapeV43 {
		api = ocpsim.APIV43
	}
	a.sim = ocpsim.Start(a.t, ocpsim.Config{Clusters: a.clusters, Users: ocpsim.DefaultUsers("admin", "secret"),
		Speed: a.speed, Shape: a.shape, API: api, Seed: a.seed, Faults: failures()})
	a.nats = startProcess(a.t, "nats", a.dir, func() *exec.Cmd {
		return agenttest.NATS(a.address, filepath.Join(a.dir, "jetstream"))
	}, nil)
	nc, err := nats.Connect("nats://"+a.address, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(nc.Close)
	if a.js, err = jetstream.New(nc); err != nil {
		a.t.Fatal(err)
	}
	if described, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		a.version = strings.TrimSpace(string(described))
	}
	binary, err := agenttest.Build(a.dir, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	// The policy lets nearly everything through, so that the run attacks the calls and not the guard.
	policy := filepath.Join(a.dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(agenttest.LaxPolicy), 0o600); err != nil {
		a.t.Fatal(err)
	}
	for i := range agents {
		a.links = append(a.links, newProxy(a.t, a.address), newProxy(a.t, strings.TrimPrefix(a.sim.URL(), "http://")))
		environ := []string{
			"OBWARDEN_OCP_URL=http://" + a.links[2*i+1].address, "OBWARDEN_OCP_USERNAME=admin", "OBWARDEN_OCP_PASSWORD=secret",
			"OBWARDEN_OCP_API=" + string(api), "OBWARDEN_NATS_URL=nats://" + a.links[2*i].address, "OBWARDEN_HTTP_LISTEN=127.0.0.1:0",
			fmt.Sprintf("OBWARDEN_SETTLE=%s", settle), fmt.Sprintf("OBWARDEN_ACK_WAIT=%s", ackWait), fmt.Sprintf("OBWARDEN_OCP_TIMEOUT=%s", callTimeout),
			"OBWARDEN_POLICY_FILE=" + policy, "OBWARDEN_POLL_MIN=20ms", "OBWARDEN_POLL_MAX=200ms", "OBWARDEN_OCP_MAX_RPS=2000", "GOMAXPROCS=2", "GOTRACEBACK=all",
		}
		a.agents = append(a.agents, startProcess(a.t, fmt.Sprint("agent-", i), a.dir, func() *exec.Cmd {
			cmd := exec.Command(binary, "run")
			cmd.Env = environ
			return cmd
		}, func(line []byte) { a.sawLog(i, line) }))
	}
	a.await("streams", time.Minute, func(ctx context.Context) error {
		_, err := a.js.KeyValue(ctx, events.ClusterBucket)
		return err
	})
	ctx, abort := context.WithCancel(context.Background())
	a.abort = abort
	a.t.Cleanup(abort)
	a.load = newLoad(a.js, a.sim, a.clusters, a.seed, a.ops, float64(a.ops)/flagTime.Seconds(), ctx)
	go a.follow(ctx)
}

// await tries until do succeeds, and reports whether it did in time.
func (a *arena) await(what string, atMost time.Duration, do func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), atMost)
	defer cancel()
	err := agenttest.Poll(ctx, 50*time.Millisecond, func() error {
		try, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return do(try)
	})
	if err != nil {
		a.t.Errorf("%s: not within %s: %v", what, atMost, err)
	}
	return err == nil
}

// sawLog learns from an agent's log, which has one line for each event, which operations the agent holds.
func (a *arena) sawLog(agent int, line []byte) {
	var entry struct {
		Operation string `json:"operation_id"`
		N         int    `json:"n"`
		State     string `json:"state"`
	}
	if json.Unmarshal(line, &entry) != nil || entry.N == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holds[entry.Operation], a.moving[entry.Operation] = agent, entry.State
	if final(entry.State) || entry.State == "waiting" { // nothing is under way
		delete(a.holds, entry.Operation)
		delete(a.moving, entry.Operation)
	}
}

// follow tells the load what the journal says.
func (a *arena) follow(ctx context.Context) {
	for ctx.Err() == nil {
		// An error means that NATS is away. The journal is read on from the last event that was read.
		_ = a.readJournal(ctx, a.read+1, 0, func(e event) {
			a.read = e.sequence
			a.load.saw(e)
		})
		pause(ctx, 100*time.Millisecond)
	}
}

// attack publishes the load while everything goes wrong, and a little longer, until
// the last duplicate is out.
func (a *arena) attack(lasts time.Duration) {
	a.began = time.Now()
	p := newPlan(a.seed, 2*lasts+duplicateSpan)
	ctx, cease := context.WithCancel(context.Background())
	defer cease()
	var faults sync.WaitGroup
	for target := range agents + 1 {
		faults.Go(func() {
			for _, f := range p.processes {
				if f.target == target && a.at(ctx, f.at) {
					a.strike(f)
				}
			}
		})
	}
	for link := range a.links {
		faults.Go(func() {
			for _, f := range p.links {
				if f.link == link && a.at(ctx, f.at) {
					a.count(f.name())
					a.links[link].set(f.fault)
					pause(ctx, f.lasts)
					a.links[link].set(netFault{})
				}
			}
		})
	}
	faults.Go(func() {
		for _, phase := range p.phases {
			if a.at(ctx, phase.at) {
				a.setOCP(phase.faults)
			}
		}
	})
	faults.Go(func() {
		for pause(ctx, harvestEvery) {
			a.harvest(time.Now().Add(-harvestEvery))
		}
	})
	loading, cancel := context.WithTimeout(ctx, lasts+lasts/2)
	a.load.run(loading)
	cancel()
	rest, cancel := context.WithTimeout(ctx, duplicateSpan+10*time.Second)
	_ = agenttest.Poll(rest, 100*time.Millisecond, func() error { // calm waits for the rest
		if pending, _ := a.load.rest(); pending > 0 {
			return fmt.Errorf("%d messages to be published", pending)
		}
		return nil
	})
	cancel()
	cease()
	faults.Wait()
}

func (a *arena) at(ctx context.Context, at time.Duration) bool {
	return pause(ctx, time.Until(a.began.Add(at)))
}

func (a *arena) count(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[name]++
}

// setOCP replaces the faults of OCP, and counts how often the former ones have struck.
func (a *arena) setOCP(faults []ocpsim.Fault) {
	for _, f := range a.sim.Faults() {
		if f.Struck > 0 {
			a.mu.Lock()
			a.counts["ocp "+string(f.Action)] += f.Struck
			a.mu.Unlock()
		}
	}
	a.sim.ClearFaults()
	for _, f := range faults {
		if err := a.sim.AddFault(f); err != nil {
			panic(err)
		}
	}
}

// strike carries out one fault of a process, to its end.
func (a *arena) strike(f processFault) {
	p := a.nats
	if f.target < agents {
		p = a.agents[f.target]
	}
	if !p.running() {
		return
	}
	s := strike{name: f.name(), from: time.Now()}
	a.mu.Lock()
	for id, holder := range a.holds {
		if f.target == agents || holder == f.target {
			s.held = append(s.held, id)
		}
	}
	a.mu.Unlock()
	switch f.kind {
	case "kill":
		p.signal(syscall.SIGKILL, f.down)
		a.untilUp(p)
	case "term":
		took := p.signal(syscall.SIGTERM, f.down)
		a.mu.Lock()
		a.shutdowns = append(a.shutdowns, took)
		a.mu.Unlock()
		a.untilUp(p)
	case "pause":
		p.signal(syscall.SIGSTOP, 0)
		time.Sleep(f.down) // the fault itself
		p.signal(syscall.SIGCONT, 0)
	}
	s.to = time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[s.name]++
	a.struck = append(a.struck, s)
	if f.kind == "pause" && f.target < agents {
		a.pauses = append(a.pauses, span{s.from, s.to})
	}
}

// untilUp waits for the process to be started again; NATS is up when it answers.
func (a *arena) untilUp(p *process) {
	p.awaitRunning(time.Minute)
	if p != a.nats {
		return
	}
	began := time.Now()
	a.await("NATS", time.Minute, func(ctx context.Context) error {
		_, err := a.js.Stream(ctx, events.OperationStream)
		return err
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.natsUp = append(a.natsUp, time.Since(began))
}

// calm ends all faults and waits until nothing is left to be done.
func (a *arena) calm() {
	a.setOCP(nil)
	for _, link := range a.links {
		link.set(netFault{})
	}
	began := time.Now()
	a.await("everything ends", patience, func(ctx context.Context) error {
		stream, err := a.js.Stream(ctx, events.RequestStream)
		if err != nil {
			return err
		}
		pending, open := a.load.rest()
		if left := stream.CachedInfo().State.Msgs; left > 0 || pending > 0 || len(open) > 0 {
			return fmt.Errorf("%d requests in the stream, %d messages to be published, operations open: %v", left, pending, open)
		}
		return nil
	})
	a.t.Logf("calm after %s", time.Since(began).Round(time.Millisecond))
	a.abort()
}
