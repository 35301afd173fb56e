//go:build linux

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/obwarden/obwarden/events"
)

const (
	// scaleShare is the share of a core that each agent may use. It is so small that the agents are the bottleneck, even
	// if the NATS servers have only the rest of two cores.
	scaleShare = 0.1
	// scaleClusters is the number of clusters, so large that no operation of a run waits for another.
	scaleClusters = 600
)

// scaleout compares three agents on a NATS cluster of three servers with one agent on the same cluster. Each agent is
// limited to the same share of a core.
func scaleout(t *testing.T, s size, all *table) {
	nodes, urls, js := startNATS(t, 3)
	r := &rig{t: t, ocp: newOCP(t, servers), url: urls, js: js}
	once := func(n int) (rate, agentMillis, natsMillis float64) {
		var agents []*agentProcess
		for range n {
			a := r.agent("OBWARDEN_STREAM_REPLICAS=3")
			if err := a.hold(scaleShare); err != nil && *flagSize == "full" {
				t.Skipf("processes cannot be held to a share of a core: %v", err)
			}
			agents = append(agents, a)
		}
		used := func() (agentSeconds, natsSeconds float64) {
			for _, a := range agents {
				agentSeconds += a.processorSeconds()
			}
			return agentSeconds, nodes.processorSeconds()
		}
		var msgs []*nats.Msg
		for range n * s.scaled {
			r.sent++
			msgs = append(msgs, requestFor(fmt.Sprint("key-", r.sent), int64(1+r.sent%scaleClusters), int64(1+r.sent/scaleClusters%servers)))
		}
		r.awaitTakers(n)
		posts := r.ocp.posts.Load()
		agentSeconds, natsSeconds := used()
		began := time.Now()
		r.publish(msgs)
		eventually(t, "all calls are made", 20*time.Millisecond, func() error { // OCP is asked: to ask NATS costs it something
			if calls := r.ocp.posts.Load() - posts; calls < int64(len(msgs)) {
				return fmt.Errorf("%d calls for %d operations", calls, len(msgs))
			}
			return nil
		})
		r.awaitEmpty(events.RequestStream, 0)
		took := time.Since(began)
		agentSecondsNow, natsSecondsNow := used()
		if calls := r.ocp.posts.Load() - posts; calls != int64(len(msgs)) {
			t.Errorf("%d agents: %d calls for %d operations", n, calls, len(msgs))
		}
		for _, a := range agents {
			a.Stop()
		}
		operations := float64(len(msgs))
		return operations / took.Seconds(), 1000 * (agentSecondsNow - agentSeconds) / operations, 1000 * (natsSecondsNow - natsSeconds) / operations
	}
	for range min(s.rounds, 3) {
		one, _, _ := once(1)
		three, agents, nats := once(3)
		all.add("3 agents on 3 NATS servers, beside 1", three, one)
		all.add("processor for an operation there, agents", agents, 0)
		all.add("processor for an operation there, NATS", nats, 0)
	}
}

// awaitTakers waits until n agents have asked NATS for requests. Otherwise the first of them would take all requests.
func (r *rig) awaitTakers(n int) {
	r.t.Helper()
	eventually(r.t, "agents take requests", 10*time.Millisecond, func() error { // NATS tells nobody
		consumer, err := r.js.Consumer(r.t.Context(), events.RequestStream, events.Consumer)
		if err != nil {
			r.t.Fatal(err)
		}
		if waiting := consumer.CachedInfo().NumWaiting; waiting < n {
			return fmt.Errorf("%d of %d do", waiting, n)
		}
		return nil
	})
}

// hold limits the process to a share of a core by a control group of its own, of version 1 or 2. It needs the right to
// create one.
func (p *process) hold(share float64) error {
	const period = 50 * time.Millisecond
	quota := strconv.FormatInt((time.Duration(share * float64(period))).Microseconds(), 10)
	type setting struct{ file, value string }
	parent, settings := "/sys/fs/cgroup/cpu", []setting{ // version 1
		{"cpu.cfs_period_us", strconv.FormatInt(period.Microseconds(), 10)}, {"cpu.cfs_quota_us", quota},
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		parent, settings = "/sys/fs/cgroup", []setting{
			{"../cgroup.subtree_control", "+cpu"}, {"cpu.max", fmt.Sprint(quota, " ", period.Microseconds())},
		}
	}
	dir, err := os.MkdirTemp(parent, "obwarden-bench-")
	if err != nil {
		return err
	}
	p.t.Cleanup(func() {
		p.Stop() // it must be empty
		if err := os.Remove(dir); err != nil {
			p.t.Error(err)
		}
	})
	for _, s := range append(settings, setting{"cgroup.procs", strconv.Itoa(p.Cmd.Process.Pid)}) {
		if err := os.WriteFile(filepath.Join(dir, s.file), []byte(s.value), 0o600); err != nil {
			return err
		}
	}
	return nil
}
