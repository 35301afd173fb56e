package guard

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// world is a cluster, an OCP, several agents and people, without a line of the rules:
// what must hold is counted from what was done.
type world struct {
	random  *rand.Rand // what happens; its seed is rapid's, as is the policy
	decide  func(*Question) Decision
	heldBy  func(Slot, Holder) bool // Slot.HeldBy, or a rule that is wrong
	clock   time.Time
	policy  *policy.Policy
	openAt  [2]int // hours of the day at which servers may be taken down; equal: always
	control Control

	servers []*machine
	zones   int
	tasks   []*job

	record   Record // as in the bucket, with its revision
	revision int
	ops      []*order
	agents   []*agent
	sequence uint64

	down     []time.Time // when we were allowed to take a server down
	breaches []string
}

// machine is a server as it is. Its status is what OCP shows.
type machine struct {
	id     int64
	zone   int
	status string
}

func (m *machine) moving() bool { return ocp.Server{Status: m.status}.Moving() }

// job is a task of OCP; order is nil where it is somebody else's.
type job struct {
	id      int64
	kind    events.Kind
	machine *machine
	order   *order
	status  string
}

// order is an operation in the journal.
type order struct {
	events.Operation
	job  *job
	slot bool // it holds a place: allowed, and not ended
}

// agent is one of several that decide at the same time. Between its steps anything
// that agents do may happen.
type agent struct {
	step     int
	order    *order
	facts    Facts
	record   Record // folded by what the agent knows
	revision int
	knows    map[string]Holder // last events that it has heard of, some of them older than the journal's
}

func newWorld(t *rapid.T, decide func(*Question) Decision) *world {
	w := &world{random: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), decide: decide, heldBy: Slot.HeldBy, clock: now, zones: rapid.SampledFrom([]int{3, 1, 2, 4, 5, 3}).Draw(t, "zones")}
	each := rapid.IntRange(1, 3).Draw(t, "servers a zone")
	for i := range w.zones * each {
		w.servers = append(w.servers, &machine{id: int64(i + 1), zone: i / each, status: "RUNNING"})
	}
	w.policy = &policy.Policy{Limits: policy.Limits{
		MaxConcurrent:  rapid.IntRange(1, 3).Draw(t, "max concurrent"),
		KeepZones:      rapid.SampledFrom([]int{policy.Majority, policy.Majority, 0, 1, 2}).Draw(t, "keep zones"),
		OneZoneAtATime: rapid.Bool().Draw(t, "one zone at a time"),
		Supersede:      rapid.SampledFrom([]bool{false, false, false, true}).Draw(t, "supersede"),
		Budget:         policy.Budget{Operations: rapid.IntRange(0, 3).Draw(t, "budget"), Window: 3 * time.Hour},
		Cooldown: policy.Cooldown{
			Server: time.Duration(rapid.IntRange(0, 30).Draw(t, "cooldown")) * time.Minute, Failure: 10 * time.Minute,
		},
		PauseAfterFailures: rapid.SampledFrom([]int{0, 2, 3}).Draw(t, "pause after"),
	}}
	if rapid.Bool().Draw(t, "window") {
		w.openAt = [2]int{rapid.IntRange(0, 12).Draw(t, "from"), rapid.IntRange(13, 24).Draw(t, "to")}
		w.policy.Limits.Allow = []policy.Window{hours("open", "", w.openAt[0], w.openAt[1])}
	}
	for range rapid.IntRange(1, 3).Draw(t, "agents") {
		w.agents = append(w.agents, &agent{knows: map[string]Holder{}})
	}
	return w
}

// facts are what OCP shows now.
func (w *world) facts() Facts {
	f := Facts{ClusterID: 1, ClusterName: "trade", ReadAt: w.clock}
	for z := range w.zones {
		zone := ocp.Zone{Name: zoneName(z), Status: "RUNNING"}
		for _, m := range w.servers {
			if m.zone != z {
				continue
			}
			inner := "INACTIVE"
			if m.status == "RUNNING" {
				inner = "ACTIVE"
			}
			if m.moving() {
				zone.Status = "OPERATING"
			}
			zone.Servers = append(zone.Servers, ocp.Server{ID: m.id, Zone: zone.Name, Status: m.status, InnerStatus: inner})
		}
		zone.ServerCount = len(zone.Servers)
		f.Zones = append(f.Zones, zone)
	}
	for _, j := range w.tasks {
		if j.status != ocp.StatusSuccessful {
			f.Tasks = append(f.Tasks, ocp.Task{
				ID: j.id, ClusterID: 1, Name: string(j.kind) + " OB server", Status: j.status,
				ServerIDs: []int64{j.machine.id}, ZoneName: zoneName(j.machine.zone),
			})
		}
	}
	return f
}

func zoneName(z int) string { return fmt.Sprint("zone", z+1) }

func (w *world) machine(id int64) *machine { return w.servers[id-1] }

func (w *world) arrive(kind events.Kind, server int64) *order {
	w.sequence++
	o := &order{Operation: events.Operation{
		OperationID: fmt.Sprint("op", w.sequence), N: 1, Steps: 1, Kind: kind, State: events.Accepted,
		ClusterID: 1, ServerID: server, RequestSequence: w.sequence,
	}}
	w.ops = append(w.ops, o)
	w.update(func(r *Record) bool {
		return r.Announce(Ticket{OperationID: o.OperationID, ServerID: server, Sequence: w.sequence})
	})
	return o
}

// update is a change of the record by somebody who tries until it is done.
func (w *world) update(change func(*Record) bool) {
	if change(&w.record) {
		w.revision++
	}
}

func (w *world) waiting() []*order {
	return slices.DeleteFunc(slices.Clone(w.ops), func(o *order) bool {
		return o.slot || o.State.Final() || slices.ContainsFunc(w.agents, func(a *agent) bool { return a.order == o })
	})
}

// move is the next step of an agent: read the record, ask OCP, read the record again,
// decide, and write what comes of it by compare-and-set.
func (w *world) move(a *agent) {
	switch a.step {
	case 0:
		open := w.waiting()
		if len(open) == 0 {
			return
		}
		a.order = open[w.random.IntN(len(open))]
		a.record = w.readBy(a)
	case 1:
		a.facts = w.facts()
		a.facts.Generation = a.record.Generation
	case 2:
		if a.record, a.revision = w.readBy(a), w.revision; a.record.Generation != a.facts.Generation {
			a.step = 1 // the facts do not show what was done since
			return
		}
	case 3:
		w.settle(a)
		*a = agent{knows: a.knows}
		return
	}
	a.step++
}

// readBy is the record as an agent reads it that has heard of some events lately, and not of others.
func (w *world) readBy(a *agent) Record {
	for _, o := range w.ops {
		if w.random.IntN(2) == 0 {
			a.knows[o.OperationID] = HolderOf(o.Operation)
		}
	}
	return w.fold(func(id string) (Holder, bool) { h, known := a.knows[id]; return h, known })
}

// read is the record as an agent reads it that knows every event.
func (w *world) read() Record {
	return w.fold(func(id string) (Holder, bool) {
		for _, o := range w.ops {
			if o.OperationID == id {
				return HolderOf(o.Operation), true
			}
		}
		return Holder{}, true
	})
}

// fold is Record.Fold by w.heldBy.
func (w *world) fold(last func(string) (Holder, bool)) Record {
	return w.record.Fold(func(id string) (Holder, bool) {
		h, known := last(id)
		i := w.record.slot(id)
		if known && i >= 0 && !w.heldBy(w.record.Active[i], h) && w.record.Active[i].HeldBy(h) {
			return Holder{}, true // which frees it
		}
		return h, known
	}, w.control)
}

func (w *world) settle(a *agent) {
	o := a.order
	d := w.decide(&Question{
		Policy: w.policy, Control: w.control, Facts: a.facts, Record: a.record, Operation: o.Operation, Now: w.clock,
	})
	record := a.record
	changed := false
	switch {
	case d.Verdict == Allow:
		record.Prune(w.clock, w.policy.Longest())
		changed = record.Take(Slot{OperationID: o.OperationID, Kind: o.Kind, ServerID: o.ServerID, Zone: zoneName(w.machine(o.ServerID).zone), Since: w.clock, Steps: o.Steps})
	case d.Verdict == Wait && d.Reason.Position > 0:
		changed = record.Enqueue(Ticket{OperationID: o.OperationID, Kind: o.Kind, ServerID: o.ServerID, Sequence: o.RequestSequence})
	default:
		changed = record.Dequeue(o.OperationID)
	}
	if changed {
		if a.revision != w.revision {
			return // another was faster
		}
		w.record = record
		w.revision++
	}
	o.Steps++
	o.N++
	switch d.Verdict {
	case Allow:
		w.check(o, false)
		o.slot, o.State, o.Attempt, o.SubmittedAt = true, events.Submitting, 1, w.clock
	case Wait:
		o.State, o.Reason = events.Waiting, &d.Reason
		if !d.Reason.Until.After(w.clock) {
			w.breach("%s waits until %s, which is over", o.OperationID, d.Reason.Until)
		}
	case Done:
		w.end(o, events.Succeeded)
	case Supersede:
		w.end(o, events.Cancelled)
	default:
		w.end(o, events.Rejected)
	}
}

// retry is a person's: OCP runs the failed task again, if the guard lets it.
func (w *world) retry(o *order) {
	o.State = events.Running // the order's event comes first
	o.Steps++
	o.N++
	record := w.read()
	d := w.decide(&Question{
		Policy: w.policy, Control: w.control, Facts: w.facts(), Record: record, Operation: o.Operation, Now: w.clock, Retry: true,
	})
	if d.Verdict != Allow {
		w.end(o, events.Failed)
		return
	}
	w.check(o, true)
	target := w.machine(o.ServerID)
	record.Take(Slot{OperationID: o.OperationID, Kind: o.Kind, ServerID: o.ServerID, Zone: zoneName(target.zone), Since: w.clock, Steps: o.Steps})
	w.record, w.revision = record, w.revision+1
	o.slot = true
	o.job.status = ocp.StatusRunning
	target.begin(o.Kind)
}

func (w *world) end(o *order, state events.State) {
	o.State, o.EndedAt, o.Reason = state, w.clock, nil
	o.Steps++
	o.N++
}

func (w *world) breach(format string, args ...any) {
	w.breaches = append(w.breaches, fmt.Sprintf(format, args...))
}

// check is what must hold at the moment at which o is allowed, before it is done.
func (w *world) check(o *order, retry bool) {
	target := w.machine(o.ServerID)
	held := 0
	inWork := map[*machine]bool{}
	for _, other := range w.ops {
		if other.slot {
			held++
			inWork[w.machine(other.ServerID)] = inWork[w.machine(other.ServerID)] || other.Kind != events.Start
			if other.ServerID == o.ServerID {
				w.breach("%s and %s at once on server %d", other.OperationID, o.OperationID, o.ServerID)
			}
		}
	}
	for _, j := range w.tasks {
		if j.status != ocp.StatusRunning {
			continue
		}
		inWork[j.machine] = inWork[j.machine] || j.kind != events.Start
		if j.machine == target {
			w.breach("%s while OCP's task %d runs on server %d", o.OperationID, j.id, target.id)
		}
	}
	if held >= w.policy.Limits.MaxConcurrent {
		w.breach("%s is one more than %d at once", o.OperationID, w.policy.Limits.MaxConcurrent)
	}
	if w.control.Cluster.Paused {
		w.breach("%s while the cluster is paused", o.OperationID)
	}
	if o.Kind == events.Start {
		return
	}
	whole := 0
	for z := range w.zones {
		good := z != target.zone
		for _, m := range w.servers {
			if m.zone == z && (m.status != "RUNNING" || inWork[m]) {
				good = false
			}
		}
		if good {
			whole++
		}
	}
	keep := w.policy.Limits.KeepZones
	if keep == policy.Majority && 2*whole <= w.zones || keep != policy.Majority && whole < keep {
		w.breach("%s leaves %d of %d zones whole, %d must (-1: most)", o.OperationID, whole, w.zones, keep)
	}
	for _, m := range w.servers {
		out := inWork[m] || slices.Contains([]string{"STOPPED", "STOPPING", "RESTARTING", "STARTING"}, m.status)
		if w.policy.Limits.OneZoneAtATime && m.zone != target.zone && out {
			w.breach("%s touches zone %d while server %d of zone %d is %s", o.OperationID, target.zone+1, m.id, m.zone+1, m.status)
		}
	}
	if retry { // which has passed these before
		return
	}
	w.down = append(w.down, w.clock)
	if b := w.policy.Limits.Budget; b.Operations > 0 {
		lately := 0
		for _, at := range w.down {
			if w.clock.Sub(at) < b.Window {
				lately++
			}
		}
		if lately > b.Operations {
			w.breach("%s is number %d within %s, %d may", o.OperationID, lately, b.Window, b.Operations)
		}
	}
	if h := w.clock.Hour(); w.openAt[0] != w.openAt[1] && (h < w.openAt[0] || h >= w.openAt[1]) {
		w.breach("%s at %d o'clock, open from %v", o.OperationID, h, w.openAt)
	}
}

// start is a task of OCP that begins, for o or, where that is nil, for somebody else.
func (w *world) start(kind events.Kind, m *machine, o *order) {
	j := &job{id: int64(1000 + len(w.tasks)), kind: kind, machine: m, order: o, status: ocp.StatusRunning}
	m.begin(kind)
	w.tasks = append(w.tasks, j)
	if o != nil {
		o.job, o.State, o.Task = j, events.Running, &events.Task{ID: j.id}
	}
}

// begin is what the beginning of a task does to its server: what runs, no start takes down.
func (m *machine) begin(kind events.Kind) {
	if kind != events.Start || m.status != "RUNNING" {
		m.status = map[events.Kind]string{events.Stop: "STOPPING", events.Start: "STARTING", events.Restart: "RESTARTING"}[kind]
	}
}

// finish ends a task well, or badly, which leaves its server on its way or where it was.
func (w *world) finish(j *job, well, halfway bool) {
	j.status = ocp.StatusFailed
	switch {
	case well && j.kind == events.Stop:
		j.status, j.machine.status = ocp.StatusSuccessful, "STOPPED"
	case well:
		j.status, j.machine.status = ocp.StatusSuccessful, "RUNNING"
	case !halfway && j.machine.moving():
		j.machine.status = "UNAVAILABLE"
	}
	if j.order != nil {
		state := events.Failed
		if well {
			state = events.Succeeded
		}
		j.order.slot = false
		w.end(j.order, state)
	}
}

func (w *world) resume() {
	w.control.Cluster = events.Pause{}
	w.control.Revision++
	w.control.ChangedAt = w.clock
}

// act is one thing that happens.
func (w *world) act() {
	m := w.servers[w.random.IntN(len(w.servers))]
	held := func(o *order) bool { return o.slot && o.ServerID == m.id }
	// What others do in OCP between an agent's look and its call nobody can know.
	deciding := slices.ContainsFunc(w.agents, func(a *agent) bool { return a.step > 0 })
	switch what := w.random.IntN(100); {
	case what < 3:
		kinds := []events.Kind{events.Stop, events.Stop, events.Restart, events.Start}
		w.arrive(kinds[w.random.IntN(len(kinds))], m.id)
	case what < 6:
		w.clock = w.clock.Add(time.Duration(1+w.random.IntN(120)) * time.Minute)
	case what < 19:
		if i := slices.IndexFunc(w.ops, func(o *order) bool { return o.slot && o.job == nil }); i >= 0 {
			w.start(w.ops[i].Kind, w.machine(w.ops[i].ServerID), w.ops[i])
		}
	case what < 29:
		if i := slices.IndexFunc(w.tasks, func(j *job) bool { return j.status == ocp.StatusRunning }); i >= 0 {
			w.finish(w.tasks[i], w.random.IntN(5) > 0, w.random.IntN(2) > 0)
		}
	case what < 41:
		if !deciding && !m.moving() && !slices.ContainsFunc(w.ops, held) {
			w.start(events.Kinds()[w.random.IntN(3)], m, nil)
		}
	case what < 42:
		if !deciding && !m.moving() {
			m.status = "UNAVAILABLE"
		}
	case what < 54: // somebody mends a server in OCP
		if !slices.ContainsFunc(w.tasks, func(j *job) bool { return j.machine == m && j.status == ocp.StatusRunning }) && !slices.ContainsFunc(w.ops, held) {
			m.status = "RUNNING"
		}
	case what < 55:
		if !deciding {
			w.control.Cluster = events.Pause{Paused: true, By: "ann", At: w.clock}
		}
	case what < 58:
		w.resume()
	case what < 61:
		if i := slices.IndexFunc(w.ops, func(o *order) bool { return o.State == events.Failed && o.job != nil && o.Attempt > 0 }); i >= 0 {
			w.retry(w.ops[i])
		}
	default:
		w.move(w.agents[w.random.IntN(len(w.agents))])
	}
}

// quiet lets everything end that is under way, and people mend what is broken.
func (w *world) quiet() {
	for _, o := range w.ops {
		if o.slot && o.job == nil {
			w.start(o.Kind, w.machine(o.ServerID), o)
		}
	}
	for _, j := range w.tasks {
		if j.status == ocp.StatusRunning {
			w.finish(j, true, false)
		}
	}
	for _, m := range w.servers {
		m.status = "RUNNING"
	}
	w.resume()
	w.clock = w.clock.Add(time.Hour)
}

// play lets so many things happen and says what was done that must not be.
func (w *world) play(things int) []string {
	for range things {
		w.act()
	}
	return w.breaches
}

// calmDown lets the world become quiet and says what waits for ever all the same.
func (w *world) calmDown() []string {
	for _, a := range w.agents {
		*a = agent{knows: a.knows}
	}
	// A round takes an hour: a request may have to wait for a day's window and for its
	// share of the budget behind all the others.
	for range 48 * (1 + len(w.ops)) {
		if len(w.waiting()) == 0 {
			break
		}
		w.quiet()
		for _, o := range w.waiting() {
			record := w.read()
			facts := w.facts()
			facts.Generation = record.Generation
			w.settle(&agent{order: o, facts: facts, record: record, revision: w.revision})
		}
	}
	for _, o := range w.waiting() {
		w.breach("%s of server %d waits for ever: %+v", o.Kind, o.ServerID, o.Reason)
	}
	return w.breaches
}

// Whatever arrives in whatever order, decided on by however many agents at once: what
// was allowed never costs a majority, exceeds a budget, touches two zones, breaks a
// window or takes a slot that is taken, and nothing waits for ever.
func TestNothingAllowedBreaksTheRulesAndNothingWaitsForEver(t *testing.T) {
	t.Parallel()
	allowed := 0
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, Decide)
		w.play(2000 - rapid.IntRange(0, 1999).Draw(t, "things left out"))
		allowed += len(w.down)
		for _, breach := range w.calmDown() {
			t.Error(breach)
		}
	})
	enough := 300
	if testing.Short() { // a fifth of the worlds
		enough = 30
	}
	if allowed < enough {
		t.Errorf("%d servers were taken down in all worlds together: too few to show anything", allowed)
	}
}

// Each rule that guards what the world counts is missed there when it is left out, and
// each rule at all is missed by the table of cases.
func TestEveryRuleIsNeeded(t *testing.T) {
	t.Parallel()
	without := func(name string) func(*Question) Decision {
		left := slices.DeleteFunc(rules(), func(r rule) bool { return r.name == name })
		return func(q *Question) Decision { return decideBy(left, q) }
	}
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			decide := without(r.name)
			if !slices.ContainsFunc(decisionCases(), func(c decisionCase) bool { return c.wrong(decide(c.question())) != "" }) {
				t.Errorf("no case of the table needs rule %s", r.name)
			}
		})
	}
	for name, limits := range map[string]policy.Limits{
		"pause":         {MaxConcurrent: 1},
		"server_slot":   {MaxConcurrent: 3},
		"server_in_ocp": {MaxConcurrent: 3},
		"active_zone":   {MaxConcurrent: 3, OneZoneAtATime: true},
		"stopped_zone":  {MaxConcurrent: 3, OneZoneAtATime: true},
		"majority":      {MaxConcurrent: 1, KeepZones: policy.Majority},
		"window":        {MaxConcurrent: 3, Allow: []policy.Window{hours("open", "", 0, 13)}},
		"budget":        {MaxConcurrent: 3, Budget: policy.Budget{Operations: 2, Window: 3 * time.Hour}},
	} {
		t.Run("world/"+name, func(t *testing.T) {
			t.Parallel()
			breaches := func(decide func(*Question) Decision) int {
				worlds := rapid.Custom(func(t *rapid.T) int {
					w := newWorld(t, decide)
					if w.policy.Limits, w.openAt = limits, [2]int{}; len(limits.Allow) > 0 {
						w.openAt = [2]int{0, 13}
					}
					return len(w.play(150))
				})
				found := 0
				for seed := range 400 {
					found += worlds.Example(seed)
				}
				return found
			}
			if found := breaches(without(name)); found == 0 {
				t.Errorf("no world needs rule %s", name)
			}
			if found := breaches(Decide); found > 0 {
				t.Errorf("%d breaches with all rules", found)
			}
		})
	}
}

// A slot that counts as free although its operation still has it is missed.
func TestTheWorldMissesASlotThatIsFreedTooEarly(t *testing.T) {
	t.Parallel()
	for name, heldBy := range map[string]func(Slot, Holder) bool{
		"by an event from before it was taken": func(_ Slot, h Holder) bool { return !h.State.Final() && h.State != events.Waiting },
		"while its operation is on its way":    func(s Slot, h Holder) bool { return s.HeldBy(h) && h.State != events.Submitting },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			worlds := rapid.Custom(func(t *rapid.T) int {
				w := newWorld(t, Decide)
				w.policy.Limits, w.openAt, w.heldBy = policy.Limits{MaxConcurrent: 1}, [2]int{}, heldBy
				return len(w.play(300))
			})
			found := 0
			for seed := range 400 {
				found += worlds.Example(seed)
			}
			if found == 0 {
				t.Error("no world needs the rule")
			}
		})
	}
}

// Two agents that decide on the last slot at once read the same record, and are both
// allowed. One of them writes first; the other decides anew, and waits.
func TestOfTwoAgentsOneGetsTheLastSlot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, Decide)
		w.policy.Limits, w.openAt = policy.Limits{MaxConcurrent: 1}, [2]int{}
		w.arrive(events.Stop, 1)
		w.arrive(events.Restart, int64(len(w.servers)))
		w.agents = []*agent{{knows: map[string]Holder{}}, {knows: map[string]Holder{}}}
		for range 40 {
			w.move(w.agents[rapid.IntRange(0, 1).Draw(t, "agent")])
			if len(w.record.Active) > 1 || len(w.breaches) > 0 {
				t.Fatalf("slots %+v, %v", w.record.Active, w.breaches)
			}
		}
		for range 8 {
			w.move(w.agents[0])
		}
		if len(w.record.Active) != 1 {
			t.Fatalf("slots %+v", w.record.Active)
		}
	})
}
