//go:build linux

package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// idle measures the binary with its own NATS server and nothing to do.
func idle(t *testing.T, s size, all *table) {
	ocp := newOCP(t, servers)
	for range s.rounds {
		a := startAgent(t, map[string]string{"OBWARDEN_OCP_URL": ocp.URL, "OBWARDEN_DATA_DIR": t.TempDir(), "OBWARDEN_NATS_LISTEN": "127.0.0.1:0"})
		all.add("start to ready", float64(a.readyIn)/float64(time.Millisecond), 150)
		time.Sleep(min(s.idle, 3*time.Second)) // what the start left behind
		all.add("processor, idle", a.processor(s.idle), 0.3)
		all.add("memory, idle, embedded NATS", a.residentMiB(), 30)
		a.Stop()
	}
}

// processor is the share of a core that the agent uses over a time, in percent.
func (p *agentProcess) processor(over time.Duration) float64 {
	p.t.Helper()
	before, began := p.processorSeconds(), time.Now()
	time.Sleep(over)
	return 100 * (p.processorSeconds() - before) / time.Since(began).Seconds()
}

// open measures the binary with its own NATS server and many operations in hand: first only operations that it follows,
// then the same number of waiting ones with them.
func open(t *testing.T, s size, all *table) {
	ocp := newOCP(t, 200)
	start := func(n seeds) *agentProcess {
		dir := t.TempDir()
		seedDir(t, ocp, dir, n)
		return startAgent(t, map[string]string{"OBWARDEN_OCP_URL": ocp.URL, "OBWARDEN_DATA_DIR": dir, "OBWARDEN_NATS_LISTEN": "127.0.0.1:0"})
	}
	a := start(seeds{open: s.open / 10, clusters: max(1, s.open/100)})
	a.awaitInFlight(s.open / 10)
	time.Sleep(s.idle)
	all.add(followedRow(s), a.processor(s.idle), 5)
	a.profile("followed")()
	a.Stop()

	a = start(seeds{open: s.open, waiting: s.waiting, clusters: max(1, s.open/100)})
	a.awaitInFlight(s.open + s.waiting)
	all.add("memory at its most, while these are taken up", a.mostResidentMiB(), 0)
	time.Sleep(2 * s.idle) // what that left behind
	all.add(heldRow("memory", s), a.residentMiB(), 150)
	all.add(heldRow("processor", s), a.processor(s.idle), 0)
	for range 20 {
		took, _ := a.scrape()
		all.add("scrape, with these", float64(took)/float64(time.Millisecond), 5)
	}
	a.profile("open")()
	a.Stop()
}

// awaitInFlight waits until the agent holds so many operations.
func (p *agentProcess) awaitInFlight(n int) {
	p.t.Helper()
	eventually(p.t, "the operations are in hand", 50*time.Millisecond, func() error {
		_, values := p.scrape()
		total := 0.0
		for name, value := range values {
			if strings.HasPrefix(name, "obwarden_operations_in_flight") {
				total += value
			}
		}
		if total < float64(n) {
			return fmt.Errorf("%g of %d", total, n)
		}
		return nil
	})
}

// oldJournal measures a start with a long history and many open operations.
func oldJournal(t *testing.T, s size, all *table) {
	ocp := newOCP(t, 200)
	dir := t.TempDir()
	seedDir(t, ocp, dir, seeds{ended: s.journal, open: s.open, clusters: max(1, s.open/100)})
	for range s.rounds {
		a := startAgent(t, map[string]string{"OBWARDEN_OCP_URL": ocp.URL, "OBWARDEN_DATA_DIR": dir, "OBWARDEN_NATS_LISTEN": "127.0.0.1:0"})
		all.add(journalRow(s), float64(a.readyIn)/float64(time.Millisecond), 5000)
		a.awaitInFlight(s.open)
		all.add("memory, with these", a.residentMiB(), 0)
		a.profile("journal")()
		a.Stop()
	}
}

func binarySize(t *testing.T, _ size, all *table) {
	info, err := os.Stat(program(t))
	if err != nil {
		t.Fatal(err)
	}
	all.add("binary, stripped", float64(info.Size())/(1<<20), 30)
}

// demo measures the time from go run, with everything compiled before, to the first event on the screen.
func demo(t *testing.T, s size, all *table) {
	if out, err := exec.Command("go", "run", "../../cmd/obwarden", "version").CombinedOutput(); err != nil { // compiles
		t.Fatalf("%v: %s", err, out)
	}
	for range s.rounds {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := exec.CommandContext(ctx, "go", "run", "../../cmd/obwarden", "demo", "--exit", "--speed", "1000")
		seen := make(chan time.Time, 1)
		cmd.Stdout = firstWrite{with: "accepted", seen: seen}
		began := time.Now()
		err := cmd.Run()
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		all.add("demo to its first event", (<-seen).Sub(began).Seconds(), 10)
	}
}

// firstWrite tells when something is first written.
type firstWrite struct {
	with string
	seen chan<- time.Time
}

func (w firstWrite) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.with) {
		select {
		case w.seen <- time.Now():
		default:
		}
	}
	return len(p), nil
}
