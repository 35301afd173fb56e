package operation

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// The model enumerates everything that can happen to one operation within bounds:
// two agents, a crash before and after every append, call, answer and
// acknowledgement, requests delivered to a second agent while the first still works,
// duplicates, orders, every kind of answer of OCP, calls that take effect late. The
// machine in it is the real one. OCP is as bad as it can be: it accepts every call,
// so that a second one always shows as a second task.
//
// One thing is taken for granted, and stated in the README: a call is over when the
// settle time of another agent ends. Its effect is there or never will be, and an
// agent that still has not made it does not make it any more.

// world is one state of the model. It is copied by value; what pointers in it point
// to is never changed.
type world struct {
	journal  events.Operation
	acked    bool // the request is gone from the stream
	agents   [2]modelAgent
	tasks    int    // in OCP, of this operation
	status   string // of the task
	late     bool   // a call is on its way that will take effect
	finished events.State
	budget   budget
	path     string
}

// budget bounds what may go wrong on the way to a state.
type budget struct{ crashes, redeliveries, faults, duplicates, orders int }

type modelAgent struct {
	holds  bool
	view   events.Operation // as it last read or wrote the journal
	do     Action
	ifLost Action // what it does in the place of do once it has begun do
	input  Input  // what its action brought, not yet stepped
	tooOld bool   // its call's deadline has passed
}

// design is the machine, and the rules that agent.go adds to it; each can be broken.
type design struct {
	step         func(op events.Operation, in Input, now time.Time) Effects
	resume       func(events.State) Action
	ignoreFence  bool // append whatever the journal holds
	ignoreSettle bool // take a call for lost at once
	ignoreAge    bool // make the call after its deadline
	callFirst    bool // call OCP before the intent is in the journal
	ackEarly     bool // acknowledge before the end
	forgetIfLost bool // an agent that loses the outcome of an action does it again
}

var modelNow = time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)

const modelSettle = 30 * time.Second

func soundDesign() design {
	m := Machine{Agent: "a", Settle: modelSettle, StallAfter: time.Hour, PollMin: time.Second, PollMax: time.Second}
	return design{step: m.Step, resume: ActionFor}
}

// checker explores and remembers.
type modelChecker struct {
	design     design
	seen       map[string]bool
	queue      []world
	violations map[string]string // kind → how it came about
	healed     map[string]bool
}

func (c *modelChecker) explore(start world, limit int) {
	c.seen, c.healed, c.violations = map[string]bool{}, map[string]bool{}, map[string]string{}
	c.add(start)
	for len(c.queue) > 0 && len(c.seen) < limit && len(c.violations) == 0 {
		w := c.queue[len(c.queue)-1]
		c.queue = c.queue[:len(c.queue)-1]
		c.expand(w)
		c.heal(w)
	}
}

func (c *modelChecker) add(w world) {
	if w.tasks > 1 {
		c.violate("two tasks", w)
		return
	}
	key := w.key(true)
	if !c.seen[key] {
		c.seen[key] = true
		c.queue = append(c.queue, w)
	}
}

func (c *modelChecker) violate(kind string, w world) {
	if _, ok := c.violations[kind]; !ok {
		c.violations[kind] = w.path
	}
}

// key names the state, whichever of the two agents is which. withBudget says whether
// the faults that may still happen are a part of it.
func (w world) key(withBudget bool) string {
	var agents [2]string
	for i, a := range w.agents {
		if a.holds {
			agents[i] = fmt.Sprintf("%s %s %v %s %s", a.do, a.ifLost, a.tooOld, showInput(a.input), showOperation(a.view))
		}
	}
	slices.Sort(agents[:])
	key := fmt.Sprintf("%s|%v|%v %d %s %v %s", showOperation(w.journal), agents, w.acked, w.tasks, w.status, w.late, w.finished)
	if withBudget {
		key += fmt.Sprint(w.budget)
	}
	return key
}

// showOperation names all that Step looks at: times stand still in the model.
func showOperation(op events.Operation) string {
	task := ""
	if op.Task != nil {
		task = fmt.Sprint(op.Task.ID, op.Task.Status)
	}
	reason := ""
	if op.Reason != nil {
		reason = op.Reason.Code
	}
	return fmt.Sprint(op.N, op.Steps, op.State, op.Attempt, task, reason)
}

func showInput(in Input) string {
	switch in := in.(type) {
	case nil:
		return ""
	case Answered:
		return fmt.Sprint("answered ", in.Task.ID, in.Err)
	case Looked:
		return fmt.Sprint("looked ", in.Task.ID, in.Task.Status, in.Err)
	case Reconciled:
		return fmt.Sprint("reconciled ", in.Outcome, in.Task.ID, in.Task.Status, in.Since)
	case Decided:
		return fmt.Sprint("decided ", in.Verdict)
	}
	return fmt.Sprintf("%T", in)
}

func (w world) then(format string, args ...any) world {
	w.path += fmt.Sprintf(format, args...) + "\n"
	return w
}

// expand adds every state that may follow w.
func (c *modelChecker) expand(w world) {
	for i := range w.agents {
		for _, next := range c.moves(w, i) {
			c.add(next)
		}
		if w.agents[i].holds && w.budget.crashes > 0 {
			n := w.then("agent %d dies", i)
			n.budget.crashes--
			n.agents[i] = modelAgent{}
			c.add(n)
		}
		if !w.acked && !w.agents[i].holds && (!w.agents[1-i].holds || w.budget.redeliveries > 0) {
			n := w.then("the request is delivered to agent %d", i)
			if w.agents[1-i].holds {
				n.budget.redeliveries--
			}
			c.deliver(&n, i)
			c.add(n)
		}
	}
	if w.late {
		n := w.then("the late call takes effect")
		n.late = false
		n.tasks, n.status = n.tasks+1, ocp.StatusRunning
		c.add(n)
		n = w.then("the late call is lost")
		n.late = false
		c.add(n)
	}
	if w.status == ocp.StatusRunning {
		for _, status := range []string{ocp.StatusSuccessful, ocp.StatusFailed} {
			n := w.then("OCP's task is %s", status)
			n.status = status
			c.add(n)
		}
	}
	if w.journal.N > 0 && w.budget.duplicates > 0 {
		n := w.then("a duplicate is recorded")
		n.budget.duplicates--
		c.append(&n, c.design.step(w.journal, Duplicated{Count: 1}, modelNow).Append)
		c.add(n)
	}
	if w.journal.N > 0 && w.budget.orders > 0 {
		order := events.OrderTo(events.Cancel, w.journal)
		n := w.then("a person cancels")
		n.budget.orders--
		c.append(&n, c.design.step(w.journal, Ordered{Order: order, Sequence: 7, At: modelNow}, modelNow).Append)
		c.add(n)
	}
}

// deliver is what agent.go does with a request: the first of its key, or one that an
// agent held before.
func (c *modelChecker) deliver(w *world, i int) {
	a := modelAgent{holds: true, view: w.journal}
	if w.journal.N == 0 {
		a.input = Received{Sequence: 7, At: modelNow, Received: events.Received{Kind: events.Stop, Request: events.Request{IdempotencyKey: "k", ClusterID: 1, ServerID: 2}}}
	} else {
		a.do = c.design.resume(w.journal.State)
	}
	w.agents[i] = a
	if c.design.ackEarly {
		w.acked = true
	}
}

// moves of agent i: step with what its action brought, or do the action.
func (c *modelChecker) moves(w world, i int) []world {
	a := w.agents[i]
	if !a.holds {
		return nil
	}
	if a.input != nil {
		return []world{c.commit(w, i)}
	}
	var next []world
	move := func(fault int, what string, in Input, change func(*world)) {
		if w.budget.faults < fault {
			return
		}
		n := w.then("agent %d: %s: %s", i, a.do, what)
		n.budget.faults -= fault
		n.agents[i].input = in
		if change != nil {
			change(&n)
		}
		next = append(next, n)
	}
	switch a.do {
	case Decide:
		move(0, "allowed", Decided{Decision: guard.Decision{Verdict: guard.Allow}}, nil)
		move(1, "wait", Decided{Decision: guard.Decision{Verdict: guard.Wait, Reason: events.Reason{Code: events.CodeClusterBusy}}}, nil)
		move(1, "reject", Decided{Decision: guard.Decision{Verdict: guard.Reject, Reason: events.Reason{Code: events.CodeNotFound}}}, nil)
	case Submit:
		c.submits(w, i, move)
	case Reconcile:
		c.reconciles(w, move)
	case Look:
		move(0, "sees the task", Looked{Task: w.task()}, nil)
		move(1, "OCP does not answer", Looked{Err: lost(), Failures: 1}, nil)
		move(1, "OCP refuses for good", Looked{Err: &ocp.Error{Class: ocp.Refused, Status: 403}, Refusals: refusalsUntilFailed, Refused: time.Hour}, nil)
	case Finish:
		n := w.then("agent %d acknowledges", i)
		n.acked, n.agents[i] = true, modelAgent{}
		if !w.journal.State.Final() {
			c.violate("acknowledged before the end", n)
		}
		next = append(next, n)
	}
	return next
}

type mover func(fault int, what string, in Input, change func(*world))

// lose is what the shell does when an action has begun and its outcome reaches no step: the plan that the step function
// made for that case.
func (c *modelChecker) lose(w *world, i int) {
	a := &w.agents[i]
	if a.ifLost != "" && !c.design.forgetIfLost {
		a.do, a.ifLost = a.ifLost, ""
	}
}

func (c *modelChecker) submits(w world, i int, move mover) {
	a := w.agents[i]
	if a.tooOld && !c.design.ignoreAge {
		move(0, "too late, not sent", Answered{Err: &ocp.Error{Class: ocp.NotSent, Err: errors.New("deadline")}}, nil)
		return
	}
	if !c.design.callFirst && w.journal.Attempt < a.view.Attempt {
		c.violate("a call without its intent in the journal", w)
	}
	effect := func(n *world) { n.tasks, n.status = n.tasks+1, ocp.StatusRunning }
	accepted := w.task()
	accepted.ID, accepted.Status = int64(w.tasks+1), ocp.StatusRunning
	move(0, "accepted", Answered{Task: accepted}, effect)
	move(1, "takes effect, answer lost", Answered{Err: lost()}, effect)
	move(1, "lost on the way", Answered{Err: lost()}, nil)
	move(1, "takes effect later, no answer", Answered{Err: lost()}, func(n *world) { n.late = true })
	move(1, "takes effect, the agent cannot record what came of it", nil, func(n *world) { effect(n); c.lose(n, i) })
	move(1, "lost on the way, the agent cannot record what came of it", nil, func(n *world) { c.lose(n, i) })
	move(1, "refused", Answered{Err: &ocp.Error{Class: ocp.Refused, Status: 409}}, nil)
	move(1, "not sent", Answered{Err: &ocp.Error{Class: ocp.NotSent, Err: errors.New("refused")}}, nil)
}

func (c *modelChecker) reconciles(w world, move mover) {
	settledSince, justNow := modelNow.Add(-2*modelSettle), modelNow
	move(1, "OCP does not answer", Reconciled{Finding: Finding{Outcome: Unreadable}, Since: justNow}, nil)
	move(1, "OCP does not let it look", Reconciled{Finding: Finding{Outcome: Forbidden}, Since: justNow}, nil)
	if w.tasks > 0 {
		move(0, "finds the task", Reconciled{Finding: Finding{Outcome: Found, Task: w.task()}, Since: justNow}, nil)
		return
	}
	if c.design.ignoreSettle {
		move(0, "finds nothing", Reconciled{Finding: Finding{Outcome: Nothing}, Since: settledSince}, nil)
		return
	}
	move(0, "finds nothing yet", Reconciled{Finding: Finding{Outcome: Nothing}, Since: justNow}, nil)
	if !w.late { // the call is over: see above
		move(0, "finds nothing when the settle time is over", Reconciled{Finding: Finding{Outcome: Nothing}, Since: settledSince}, func(n *world) {
			for j := range n.agents {
				n.agents[j].tooOld = n.agents[j].tooOld || n.agents[j].do == Submit && n.agents[j].input == nil
			}
		})
	}
}

func (w world) task() ocp.Task {
	return ocp.Task{ID: int64(w.tasks), Name: "Stop OB server", Status: w.status, ClusterID: 1, ServerIDs: []int64{2}}
}

func lost() error { return &ocp.Error{Class: ocp.Ambiguous, Err: errors.New("lost")} }

// commit steps agent i and appends: the compare-and-set, and what follows where it fails.
func (c *modelChecker) commit(w world, i int) world {
	a := w.agents[i]
	effects := c.design.step(a.view, a.input, modelNow)
	n := w.then("agent %d steps: %T, %d events, %s", i, a.input, len(effects.Append), effects.Do)
	if len(effects.Append) > 0 && a.view.N != w.journal.N && !c.design.ignoreFence {
		if a.view.N > 0 && SameHolder(a.view, w.journal) {
			n.agents[i].view = w.journal // and steps again
			return n
		}
		n = n.then("agent %d lets go", i)
		n.agents[i] = modelAgent{}
		return n
	}
	c.append(&n, effects.Append)
	a.input, a.tooOld = nil, false
	if len(effects.Append) > 0 {
		a.view = effects.Append[len(effects.Append)-1].Operation
	}
	if effects.Do != "" {
		a.do, a.ifLost = effects.Do, effects.IfLost
	}
	n.agents[i] = a
	return n
}

// append checks what must hold for every event.
func (c *modelChecker) append(w *world, appended []events.Event) {
	for _, e := range appended {
		if e.N != w.journal.N+1 && !c.design.ignoreFence {
			c.violate(fmt.Sprintf("event %d after %d", e.N, w.journal.N), *w)
		}
		if w.finished != "" && e.State != w.finished {
			c.violate("a final state changed", *w)
		}
		if e.State.Final() {
			w.finished = e.State
		}
		w.journal = e.Operation
	}
}

// heal lets nothing go wrong any more from w on: the operation must end, its request
// be acknowledged, and no second task appear.
func (c *modelChecker) heal(w world) {
	if len(c.violations) > 0 {
		return
	}
	if key := w.key(false); c.healed[key] {
		return
	} else {
		c.healed[key] = true
	}
	w = w.then("-- nothing goes wrong from here on")
	w.budget = budget{}
	for range 60 {
		if w.acked {
			break
		}
		switch {
		case w.late:
			w.late, w.tasks, w.status = false, w.tasks+1, ocp.StatusRunning
		case !w.agents[0].holds && !w.agents[1].holds:
			c.deliver(&w, 0)
		}
		for i := range w.agents {
			moves := c.moves(w, i)
			if len(moves) == 0 {
				continue
			}
			w = moves[len(moves)-1] // the last is the one that gets on
			if w.agents[i].do == Submit || w.agents[i].do == Decide || w.agents[i].do == Look {
				w = moves[0]
			}
			if w.status == ocp.StatusRunning && w.agents[i].do == Look {
				w.status = ocp.StatusSuccessful
			}
			if w.tasks > 1 {
				c.violate("two tasks", w)
				return
			}
		}
	}
	if !w.acked || !w.journal.State.Final() {
		c.violate("no end", w)
	}
}

func TestModelNoSecondTaskAndAlwaysAnEnd(t *testing.T) {
	t.Parallel()
	bounds := []budget{
		{crashes: 1, redeliveries: 1, faults: 2, duplicates: 1, orders: 1},
		{crashes: 2, redeliveries: 2, faults: 2},
		{redeliveries: 1, faults: 4},
	}
	if testing.Short() {
		bounds = []budget{{crashes: 1, redeliveries: 1, faults: 1, duplicates: 1}}
	}
	for _, bound := range bounds {
		t.Run(fmt.Sprintf("%+v", bound), func(t *testing.T) {
			t.Parallel()
			c := &modelChecker{design: soundDesign()}
			c.explore(world{budget: bound}, 3_000_000)
			if len(c.queue) > 0 && len(c.violations) == 0 {
				t.Fatalf("not exhausted after %d states", len(c.seen))
			}
			for kind, path := range c.violations {
				t.Errorf("%s:\n%s", kind, path)
			}
			t.Logf("%d states explored, each healed to its end (%d that differ in more than what may still go wrong)", len(c.seen), len(c.healed))
		})
	}
}

// TestModelFindsPlantedFaults breaks one rule of the design at a time: the model
// must notice, or it proves nothing.
func TestModelFindsPlantedFaults(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(*design){
		"a call that may have been made is made again by who takes over": func(d *design) {
			d.resume = func(s events.State) Action {
				if s == events.Submitting {
					return Submit
				}
				return ActionFor(s)
			}
		},
		"an agent that loses the outcome of its call makes it again": func(d *design) { d.forgetIfLost = true },
		"the step function does not say what follows a lost call": func(d *design) {
			sound := d.step
			d.step = func(op events.Operation, in Input, now time.Time) Effects {
				e := sound(op, in, now)
				e.IfLost = ""
				return e
			}
		},
		"an unanswered call is made again at once": func(d *design) {
			sound := d.step
			d.step = func(op events.Operation, in Input, now time.Time) Effects {
				e := sound(op, in, now)
				if _, ok := in.(Answered); ok && e.Do == Reconcile {
					e.Do = Submit
				}
				return e
			}
		},
		"no settle time":            func(d *design) { d.ignoreSettle = true },
		"no fence":                  func(d *design) { d.ignoreFence = true },
		"a call after its deadline": func(d *design) { d.ignoreAge = true },
		"acknowledged on receipt":   func(d *design) { d.ackEarly = true },
		"the intent is not written": func(d *design) {
			sound := d.step
			d.step = func(op events.Operation, in Input, now time.Time) Effects {
				e := sound(op, in, now)
				if e.Do == Submit {
					e.Append = nil
				}
				return e
			}
		},
		"an ambiguous answer is taken for a refusal": func(d *design) {
			sound := d.step
			d.step = func(op events.Operation, in Input, now time.Time) Effects {
				if a, ok := in.(Answered); ok && a.Err != nil && ocp.ClassOf(a.Err) == ocp.Ambiguous {
					in = Answered{Err: &ocp.Error{Class: ocp.NotSent, Err: a.Err}}
				}
				return sound(op, in, now)
			}
		},
		"nothing found is taken for the end of the call": func(d *design) {
			sound := d.step
			d.step = func(op events.Operation, in Input, now time.Time) Effects {
				if r, ok := in.(Reconciled); ok && r.Outcome == Nothing {
					return Effects{Do: Decide}
				}
				return sound(op, in, now)
			}
		},
		"an end that does not stay": func(d *design) {
			sound := d.step
			d.step = func(op events.Operation, in Input, now time.Time) Effects {
				if _, ok := in.(Ordered); ok && op.State.Final() {
					op.State = events.Waiting
				}
				return sound(op, in, now)
			}
		},
		"a failed look is taken for the end": func(d *design) {
			sound := d.step
			d.step = func(op events.Operation, in Input, now time.Time) Effects {
				e := sound(op, in, now)
				if l, ok := in.(Looked); ok && l.Err != nil && len(e.Append) == 0 {
					e.Do = Finish
				}
				return e
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := soundDesign()
			plant(&d)
			c := &modelChecker{design: d}
			c.explore(world{budget: budget{crashes: 1, redeliveries: 2, faults: 2, duplicates: 1, orders: 1}}, 3_000_000)
			if len(c.violations) == 0 {
				t.Errorf("not noticed in %d states", len(c.seen))
			}
			for kind, path := range c.violations {
				t.Logf("noticed as %q after %d states:\n%s", kind, len(c.seen), path)
			}
		})
	}
}
