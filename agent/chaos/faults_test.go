package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// What goes wrong, and how often. No call takes effect later than settle, with all its delays added up: agents rely on
// that (OBWARDEN_SETTLE), and the guarantees exclude an OCP or a network that is later.
const (
	agents         = 3
	settle         = 2 * time.Second
	ackWait        = 2 * time.Second
	callTimeout    = 800 * time.Millisecond
	processFaultIn = 2200 * time.Millisecond // on average
	linkFaultIn    = 1200 * time.Millisecond
	maxOCPDelay    = 1800 * time.Millisecond // of a call's effect
	maxOCPHold     = 100 * time.Millisecond  // of its bytes on the way
	maxLatency     = 40 * time.Millisecond   // of 32 KiB
)

// processFault is one thing done to a process.
type processFault struct {
	at, down time.Duration // since the start; how long it is away
	kind     string        // kill, pause, term
	target   int           // agent; agents: NATS
}

func (f processFault) name() string {
	if f.target == agents {
		return "nats " + f.kind
	}
	return "agent " + f.kind
}

// linkFault is one thing done to the network between an agent and NATS or OCP.
type linkFault struct {
	at, lasts time.Duration
	link      int // 2*agent: its NATS; 2*agent+1: its OCP
	fault     netFault
}

func (f linkFault) name() string {
	return []string{"nats link ", "ocp link "}[f.link%2] + string(f.fault.kind)
}

// ocpPhase is what OCP does wrong from some moment on.
type ocpPhase struct {
	at     time.Duration
	faults []ocpsim.Fault
}

// plan is everything that goes wrong. It is a function of the seed.
type plan struct {
	processes []processFault
	links     []linkFault
	phases    []ocpPhase
}

func newPlan(seed uint64, lasts time.Duration) plan {
	var p plan
	random := rand.New(rand.NewPCG(seed, 2))
	busy := map[string]time.Duration{} // until when
	free := func(what string, at, until time.Duration) bool {
		if busy[what] > at {
			return false
		}
		busy[what] = until
		return true
	}
	for at := between(random, 0, 2*processFaultIn); at < lasts; at += between(random, 0, 2*processFaultIn) {
		if f := newProcessFault(random, at); free(fmt.Sprint("process ", f.target), at, at+f.down+500*time.Millisecond) {
			p.processes = append(p.processes, f)
		}
	}
	for at := between(random, 0, 2*linkFaultIn); at < lasts; at += between(random, 0, 2*linkFaultIn) {
		if f := newLinkFault(random, at); free(fmt.Sprint("link ", f.link), at, at+f.lasts+500*time.Millisecond) {
			p.links = append(p.links, f)
		}
	}
	for at, next := time.Duration(0), time.Duration(0); at < lasts; at = next {
		next = at + between(random, 4*time.Second, 12*time.Second)
		faults, late := newOCPFaults(random)
		p.phases = append(p.phases, ocpPhase{at, faults})
		// The settle time exists for calls that break at once and take effect as late as they may.
		for at := at; late && at < next; at += between(random, 200*time.Millisecond, 900*time.Millisecond) {
			p.links = append(p.links, linkFault{at: at, link: 2*random.IntN(agents) + 1, fault: netFault{kind: reset}})
		}
	}
	slices.SortStableFunc(p.links, func(a, b linkFault) int { return cmp.Compare(a.at, b.at) })
	return p
}

func between(random *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(random.Int64N(int64(to-from)))
}

// newProcessFault stops an agent for a time that may be shorter or longer than the ack wait.
func newProcessFault(random *rand.Rand, at time.Duration) processFault {
	f := processFault{at: at, target: random.IntN(agents)}
	switch dice := random.IntN(100); {
	case dice < 34:
		f.kind, f.down = "kill", between(random, 0, 3*time.Second)
	case dice < 70:
		f.kind, f.down = "pause", between(random, 100*time.Millisecond, 6*time.Second)
	case dice < 87:
		f.kind, f.down = "term", between(random, 0, 2*time.Second)
	case dice < 96:
		f.kind, f.down, f.target = "kill", between(random, 0, 2*time.Second), agents
	default:
		f.kind, f.down, f.target = "pause", between(random, 100*time.Millisecond, 3*time.Second), agents
	}
	return f
}

func newLinkFault(random *rand.Rand, at time.Duration) linkFault {
	f := linkFault{at: at, link: random.IntN(2 * agents)}
	way := random.IntN(3)
	f.fault.up, f.fault.down = way != 1, way != 0
	toOCP := f.link%2 == 1
	switch dice := random.IntN(100); {
	case dice < 20:
		f.fault.kind, f.fault.delay, f.lasts = latency, between(random, 5*time.Millisecond, maxLatency), between(random, time.Second, 6*time.Second)
	case dice < 30:
		f.fault.kind, f.fault.rate, f.lasts = bandwidth, 20_000+random.IntN(500_000), between(random, time.Second, 6*time.Second)
	case dice < 40:
		f.fault.kind, f.fault.delay, f.lasts = slowClose, between(random, 100*time.Millisecond, 2*time.Second), between(random, time.Second, 6*time.Second)
	case dice < 55:
		f.fault.kind, f.lasts = hold, between(random, 500*time.Millisecond, 8*time.Second)
		if toOCP {
			f.lasts = between(random, 20*time.Millisecond, maxOCPHold)
		}
	case dice < 68:
		f.fault.kind, f.lasts = drop, between(random, 500*time.Millisecond, 8*time.Second)
	case dice < 80:
		f.fault.kind, f.lasts = refuse, between(random, 500*time.Millisecond, 8*time.Second)
	default:
		f.fault.kind = reset
	}
	return f
}

// failures are faults of subtasks that some tasks suffer at any time.
func failures() []ocpsim.Fault {
	fail := func(endpoint ocpsim.Endpoint, subtask string) ocpsim.Fault {
		return ocpsim.Fault{Match: ocpsim.Match{Endpoint: endpoint}, Action: ocpsim.FailSubtask, Subtask: subtask, Probability: 0.03}
	}
	return []ocpsim.Fault{fail(ocpsim.ServerStop, "Stop server"), fail(ocpsim.ServerStart, "Start observer process"), fail(ocpsim.ServerRestart, "Wait observer active")}
}

// spoilers are faults that spoil an answer, or an effect.
func spoilers(random *rand.Rand) []ocpsim.Fault {
	delay := func(most time.Duration) ocpsim.Duration {
		return ocpsim.Duration(between(random, 50*time.Millisecond, most))
	}
	return []ocpsim.Fault{
		{Action: ocpsim.LoseBefore}, {Action: ocpsim.LoseAfter}, {Action: ocpsim.Reset}, {Action: ocpsim.ResetAfter},
		{Action: ocpsim.Truncate}, {Action: ocpsim.Empty}, {Action: ocpsim.EmptyAfter}, {Action: ocpsim.HTML}, {Action: ocpsim.HTMLAfter},
		{Action: ocpsim.DelayBefore, Delay: delay(maxOCPDelay)}, {Action: ocpsim.DelayBefore, Delay: delay(maxOCPDelay)},
		{Action: ocpsim.DelayAfter, Delay: delay(2 * callTimeout)},
		{Action: ocpsim.Status, Status: 503}, {Action: ocpsim.Status, Status: 429, RetryAfter: "1"},
		{Action: ocpsim.StatusAfter, Status: 502}, {Action: ocpsim.StatusAfter, Status: 504}, {Action: ocpsim.StatusAfter, Status: 429},
	}
}

// newOCPFaults is a phase: calm, a mixture of faults, one fault often, everything as late as it may be, or no OCP at
// all.
func newOCPFaults(random *rand.Rand) (faults []ocpsim.Fault, late bool) {
	faults = failures()
	every := spoilers(random)
	switch dice := random.IntN(100); {
	case dice < 12:
	case dice < 65:
		for _, i := range random.Perm(len(every)) {
			post, any := every[i], every[i]
			post.Match.Method, post.Probability = "POST", 0.002+0.03*random.Float64()
			any.Probability = 0.001 + 0.006*random.Float64()
			faults = append(faults, post, any)
		}
	case dice < 83:
		one := every[random.IntN(len(every))]
		one.Match.Method = []string{"POST", "", "GET"}[random.IntN(3)]
		one.Probability = 0.2 + 0.5*random.Float64()
		faults = append(faults, one)
	case dice < 94:
		late = true
		by := func(from, to time.Duration) ocpsim.Duration { return ocpsim.Duration(between(random, from, to)) }
		faults = append(faults,
			ocpsim.Fault{Match: ocpsim.Match{Method: "POST"}, Action: ocpsim.DelayBefore, Delay: by(maxOCPDelay*2/3, maxOCPDelay), Probability: 0.7},
			ocpsim.Fault{Match: ocpsim.Match{Endpoint: ocpsim.TasksList}, Action: ocpsim.DelayAfter, Delay: by(callTimeout/2, callTimeout*9/10), Probability: 0.7})
	default:
		faults = append(faults, ocpsim.Fault{Action: ocpsim.Status, Status: 503})
	}
	return slices.Clip(faults), late
}
