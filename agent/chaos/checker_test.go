package chaos

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// history is everything that a run leaves behind: the journal, OCP's log, and what the publishers have asked for.
type history struct {
	events   []event         // the whole journal, in its order
	requests []request       // acknowledged by JetStream, duplicates included
	retries  map[string]int  // orders to retry that may have arrived, by operation
	ordered  map[string]bool // operations that had failed when an order to retry was acknowledged
	cancels  map[string]int  // orders to cancel, by operation
	posts    []post          // that OCP received: operations on servers, and retries of tasks
	tasks    map[int64]task  // of OCP
	mended   []mending       // servers that were repaired by hand
	pauses   []span          // times in which an agent's process was stopped
	open     []string        // what is left in the request stream when everything should have ended
	slots    []slot          // in the records of clusters then, still held or not
	panics   []string        // of agents
	late     time.Duration   // a call this long after its intent must come from an agent that was paused
}

// event is one message of the journal.
type event struct {
	sequence uint64
	stored   time.Time // by NATS' clock, which is this machine's
	token    string
	document
}

// document is what the checker reads of an event's body.
type document struct {
	ID              string    `json:"operation_id"`
	N               int       `json:"n"`
	Steps           int       `json:"steps"`
	Kind            string    `json:"kind"`
	State           string    `json:"state"`
	Cluster         int64     `json:"cluster_id"`
	Server          int64     `json:"server_id"`
	Attempt         int       `json:"attempt"`
	Duplicates      int       `json:"duplicates"`
	RequestSequence uint64    `json:"request_sequence"`
	SubmittedAt     time.Time `json:"submitted_at"`
	EndedAt         time.Time `json:"ended_at"`
	Warnings        []string  `json:"warnings"`
	Request         struct {
		Words     string    `json:"reason"`
		DryRun    bool      `json:"dry_run"`
		ExpiresAt time.Time `json:"expires_at"`
	} `json:"request"`
	Reason struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"reason"`
	Task *struct {
		ID         int64     `json:"id"`
		Status     string    `json:"status"`
		FinishedAt time.Time `json:"finished_at"`
	} `json:"task"`
}

// request is a message that JetStream acknowledged.
type request struct {
	sequence uint64
	key      string
	words    string // its reason; of two requests with one key, the operation belongs to the one that an agent took first
	refused  bool   // it is invalid and must end as rejected, in an operation of its own
}

// post is a call as OCP logged it.
type post struct {
	at        time.Time // received
	kind      string    // stop, start, restart; retry: of a task
	cluster   int64
	server    int64
	operation string // header Idempotency-Key
	request   string // header X-Request-Id
	task      int64  // started or changed by it; 0: it had no effect
	fault     string
}

// task is one of OCP's, as it stands in the end.
type task struct {
	kind              string
	cluster           int64
	server            int64
	status            string
	started, finished time.Time
	resumed           time.Time // when its second run began; zero: it ran once
}

// slot is one that an operation took in the record of its cluster.
type slot struct {
	Operation string `json:"operation_id"`
	Steps     int    `json:"steps"` // of the operation when it took the slot
}

// heldBy reports whether the slot still counts as held, where last is its operation's last event. An event later than
// the taking that says waiting or an end frees the slot. An operation that waits takes a slot by that very step, so the
// waiting event of the same step does not free it; an operation that has ended takes none.
func (s slot) heldBy(last document) bool {
	switch {
	case final(last.State):
		return s.Steps > last.Steps
	case last.State == "waiting":
		return s.Steps >= last.Steps
	}
	return true
}

type span struct{ from, to time.Time }

// mending is a server that was made to run by hand.
type mending struct {
	at     time.Time
	server int64
}

// violation is one broken rule.
type violation struct{ rule, operation, what string }

func (v violation) String() string { return v.rule + " " + v.operation + ": " + v.what }

// The rules: the guarantees of agent/README.md, turned round.
const (
	twoEffects      = "two-effects"       // two tasks in OCP for one operation: the worst
	postAfterEffect = "post-after-effect" // a call although an earlier one of the operation had started a task
	postAfterEnd    = "post-after-end"    // a call for an operation that had ended
	postNoIntent    = "post-no-intent"    // a call without an intent of its own in the journal before it
	strayPost       = "stray-post"        // a call that is not what its operation asked for
	numbers         = "numbers"           // events of an operation not numbered 1, 2, 3, …
	finalChanged    = "final-changed"     // a final state that did not stay, without an order to retry
	lost            = "lost"              // an acknowledged request without an operation, or order without effect
	stuck           = "stuck"             // an operation without an end, or a request that nobody ends
	slotLeft        = "slot-left"         // a slot that is still held when everything should have ended
	wrongOutcome    = "wrong-outcome"     // the journal says one thing, OCP another
	wrongTask       = "wrong-task"        // an operation that follows the task of another
	unwantedEffect  = "unwanted-effect"   // rejected, expired, cancelled or a dry run, but OCP did it
	unorderedEnd    = "unordered-end"     // cancelled without an order, expired without or before its time
	twoInCluster    = "two-in-cluster"    // two tasks at once in one cluster
	retryTwice      = "retry-twice"       // a task retried more often than ordered
	panicked        = "panic"
)

func ruleNames() []string {
	return []string{twoEffects, postAfterEffect, postAfterEnd, postNoIntent, strayPost, numbers, finalChanged, lost, stuck,
		slotLeft, wrongOutcome, wrongTask, unwantedEffect, unorderedEnd, twoInCluster, retryTwice, panicked}
}

// verdict is what the checker found. Exceptions are violations that agent/README.md excludes from the guarantees: calls
// of an agent whose process was stopped between its last look at the clock and the call, and went on when another agent
// had taken over the operation.
type verdict struct {
	violations []violation
	exceptions []violation
}

func (v verdict) count(rule string) int {
	n := 0
	for _, one := range v.violations {
		if one.rule == rule {
			n++
		}
	}
	return n
}

// maxExamples is how many violations of one rule are shown, so that one rule cannot hide the others.
const maxExamples = 10

// describeViolations groups violations by rule, and also names the rules that were not broken.
func describeViolations(all []violation) string {
	var b strings.Builder
	byRule := map[string][]violation{}
	for _, one := range all {
		byRule[one.rule] = append(byRule[one.rule], one)
	}
	for _, rule := range ruleNames() {
		broken := byRule[rule]
		fmt.Fprintf(&b, "  %-18s %d\n", rule, len(broken))
		for _, one := range broken[:min(len(broken), maxExamples)] {
			fmt.Fprintf(&b, "    %s: %s\n", one.operation, one.what)
		}
		if more := len(broken) - maxExamples; more > 0 {
			fmt.Fprintf(&b, "    and %d more\n", more)
		}
	}
	return b.String()
}

// life is one operation's part of the history.
type life struct {
	id     string
	events []event
	posts  []post // on servers
}

func (l life) last() event { return l.events[len(l.events)-1] }

// effects are the tasks that the operation's calls started.
func (l life) effects() []int64 {
	var ids []int64
	for _, p := range l.posts {
		if p.task != 0 && !slices.Contains(ids, p.task) {
			ids = append(ids, p.task)
		}
	}
	return ids
}

func final(state string) bool {
	return slices.Contains([]string{"succeeded", "failed", "cancelled", "rejected", "expired"}, state)
}

func operationOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// lives are the operations, by id.
func (h history) lives() map[string]life {
	all := map[string]life{}
	for _, e := range h.events {
		l := all[e.ID]
		l.id, l.events = e.ID, append(l.events, e)
		all[e.ID] = l
	}
	for _, p := range h.posts {
		if p.kind != "retry" {
			l := all[p.operation]
			l.id, l.posts = p.operation, append(l.posts, p)
			all[p.operation] = l
		}
	}
	return all
}

// check judges a history whose faults have ceased.
func check(h history) verdict {
	c := &checker{history: h, byID: h.lives(), owner: map[int64]string{}, retried: map[string]int{}}
	for _, p := range h.posts {
		if p.kind != "retry" && p.task != 0 {
			c.owner[p.task] = p.operation
		}
	}
	for _, p := range h.posts {
		if p.kind == "retry" && p.task != 0 { // it had an effect
			c.retried[c.owner[p.task]]++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.byID)) {
		l := c.byID[id]
		if len(l.events) == 0 {
			c.say(strayPost, id, "%d calls, the first at %s, for an operation that the journal does not know", len(l.posts), clock(l.posts[0].at))
			continue
		}
		c.checkNumbers(l)
		c.checkPosts(l)
		c.checkFinality(l)
		c.checkOutcome(l)
		c.checkRetries(l)
	}
	c.checkRequests()
	c.checkSlots()
	c.checkClusters()
	for _, p := range h.panics {
		c.say(panicked, "", "%s", p)
	}
	return c.verdict
}

type checker struct {
	history
	byID    map[string]life
	owner   map[int64]string // operation by task
	retried map[string]int   // retries that took effect, by operation
	verdict
}

func (c *checker) say(rule, operation, format string, args ...any) {
	c.violations = append(c.violations, violation{rule, operation, fmt.Sprintf(format, args...)})
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05.000") }

func (c *checker) checkNumbers(l life) {
	for i, e := range l.events {
		if e.N != i+1 {
			c.say(numbers, l.id, "event %d, at sequence %d, has number %d", i+1, e.sequence, e.N)
			return
		}
	}
}

// checkPosts compares every call with its intent and with the calls before it.
func (c *checker) checkPosts(l life) {
	used := map[int]int{} // calls by attempt
	var effect *post
	for _, p := range l.posts {
		head := l.events[0]
		if p.kind != head.Kind || p.cluster != head.Cluster || p.server != head.Server {
			c.say(strayPost, l.id, "%s of server %d of cluster %d at %s, asked for: %s of server %d of cluster %d",
				p.kind, p.server, p.cluster, clock(p.at), head.Kind, head.Server, head.Cluster)
		}
		attempt, err := strconv.Atoi(strings.TrimPrefix(p.request, l.id+"."))
		if err != nil {
			c.say(strayPost, l.id, "X-Request-Id %q", p.request)
			continue
		}
		used[attempt]++
		intents := 0
		var intent event
		for _, e := range l.events {
			if e.token == "submitting" && e.Attempt == attempt && e.stored.Before(p.at) {
				intents, intent = intents+1, e
			}
		}
		if used[attempt] > intents {
			c.say(postNoIntent, l.id, "call %d of attempt %d at %s, intents before it: %d", used[attempt], attempt, clock(p.at), intents)
		}
		excused := c.excused(p, intent)
		if effect != nil {
			rule := postAfterEffect
			if p.task != 0 && p.task != effect.task {
				rule = twoEffects
			}
			c.sayUnless(excused, rule, l.id, "attempt %d at %s, task %d, fault %q; attempt %s at %s had started task %d, fault %q", attempt, clock(p.at), p.task, p.fault,
				strings.TrimPrefix(effect.request, l.id+"."), clock(effect.at), effect.task, effect.fault)
		}
		if end, ok := endedBefore(l, p.at); ok {
			c.sayUnless(excused, postAfterEnd, l.id, "attempt %d at %s, it had %s at %s", attempt, clock(p.at), end.State, clock(end.stored))
		}
		if p.task != 0 && effect == nil {
			effect = &p
		}
	}
}

func endedBefore(l life, at time.Time) (event, bool) {
	for _, e := range l.events {
		if final(e.token) && e.stored.Before(at) {
			return e, true
		}
	}
	return event{}, false
}

// excused reports whether p comes too late after its intent for an agent that runs, and right after a pause of an agent
// that began after the intent.
func (c *checker) excused(p post, intent event) bool {
	if intent.N == 0 || p.at.Sub(intent.stored) <= c.late {
		return false
	}
	return slices.ContainsFunc(c.pauses, func(s span) bool {
		return s.from.After(intent.stored) && s.from.Before(intent.stored.Add(c.late)) && s.to.Before(p.at) && p.at.Before(s.to.Add(c.late))
	})
}

func (c *checker) sayUnless(excused bool, rule, operation, format string, args ...any) {
	if excused {
		c.exceptions = append(c.exceptions, violation{rule, operation, fmt.Sprintf(format, args...)})
		return
	}
	c.say(rule, operation, format, args...)
}

// checkFinality allows nothing after an end except duplicates and, after an order, a retry.
func (c *checker) checkFinality(l life) {
	var end *event
	reopened := 0
	for _, e := range l.events {
		switch {
		case end == nil:
		case e.token == "duplicate" && e.State == end.State && e.Reason == end.Reason && taskOf(e.document) == taskOf(end.document):
			continue
		case e.token == "running" && end.State == "failed" && taskOf(end.document) != 0 && reopened < c.retries[l.id]:
			reopened++
			end = nil
		default:
			c.say(finalChanged, l.id, "event %d is %s (state %s), event %d had ended it: %s; orders to retry: %d; %s", e.N, e.token, e.State, end.N, end.State, c.retries[l.id], describeLife(l))
			return
		}
		if final(e.State) {
			end = &e
		}
	}
	if end == nil {
		c.say(stuck, l.id, "%s", describeLife(l))
	}
}

func taskOf(d document) int64 {
	if d.Task == nil {
		return 0
	}
	return d.Task.ID
}

// describeLife is an operation's events on one line.
func describeLife(l life) string {
	var b strings.Builder
	e := l.last()
	fmt.Fprintf(&b, "%s server %d cluster %d:", e.Kind, e.Server, e.Cluster)
	for _, e := range l.events[max(0, len(l.events)-12):] {
		fmt.Fprintf(&b, " %d %s %s", e.N, e.token, clock(e.stored))
		if e.Attempt > 0 {
			fmt.Fprintf(&b, " a%d", e.Attempt)
		}
		if e.Reason.Code != "" {
			b.WriteString(" " + e.Reason.Code)
		}
		b.WriteByte(';')
	}
	for _, p := range l.posts {
		fmt.Fprintf(&b, " POST %s %s task %d [%s];", strings.TrimPrefix(p.request, l.id), clock(p.at), p.task, p.fault)
	}
	return b.String()
}

// checkRetries allows one retry of OCP's task for each that the journal has.
func (c *checker) checkRetries(l life) {
	reopened, ended := 0, false
	for _, e := range l.events {
		if ended && e.token == "running" {
			reopened++
		}
		ended = ended || final(e.token)
	}
	if c.ordered[l.id] && reopened == 0 {
		c.say(lost, l.id, "its order to retry, acknowledged, was not obeyed; %s", describeLife(l))
	}
	if did := c.retried[l.id]; did > reopened {
		c.say(retryTwice, l.id, "%d retries of its task took effect, %d were recorded, %d ordered", did, reopened, c.retries[l.id])
	}
}

// checkRequests compares the publishers' acknowledgements with the journal.
func (c *checker) checkRequests() {
	rejected := map[uint64]bool{}
	for _, l := range c.byID {
		if len(l.events) > 0 && l.last().State == "rejected" {
			rejected[l.events[0].RequestSequence] = true
		}
	}
	for _, r := range c.requests {
		l := c.byID[operationOf(r.key)]
		switch {
		case len(l.events) == 0:
			c.say(lost, operationOf(r.key), "request %d, key %q, has no operation", r.sequence, r.key)
		case (r.refused || l.events[0].Request.Words != r.words) && !rejected[r.sequence]:
			c.say(lost, operationOf(r.key), "request %d, to be refused, has no operation that was rejected", r.sequence)
		}
	}
	for _, text := range c.open {
		c.say(stuck, "", "left in the request stream: %s", text)
	}
}

// checkSlots wants every slot in the records to be free by what the journal says of its holder. A slot without any
// event of its holder is free, too.
func (c *checker) checkSlots() {
	for _, s := range c.slots {
		l := c.byID[s.Operation]
		if len(l.events) > 0 && s.heldBy(l.last().document) {
			c.say(slotLeft, s.Operation, "holds a slot, taken at step %d, after everything has ended; %s", s.Steps, describeLife(l))
		}
	}
}

// run is a stretch of a task's life.
type run struct {
	id int64
	span
}

// checkClusters compares the tasks of each cluster in the order in which they began.
func (c *checker) checkClusters() {
	runs := map[int64][]run{}
	for id, t := range c.tasks {
		if t.resumed.IsZero() {
			runs[t.cluster] = append(runs[t.cluster], run{id, span{t.started, t.finished}})
			continue
		}
		runs[t.cluster] = append(runs[t.cluster], run{id, span{t.started, c.firstEnd(id, t)}}, run{id, span{t.resumed, t.finished}})
	}
	for cluster, all := range runs {
		slices.SortFunc(all, func(a, b run) int { return a.from.Compare(b.from) })
		for i := 1; i < len(all); i++ {
			before, after := all[i-1], all[i]
			if before.to.IsZero() || after.from.Before(before.to) {
				c.say(twoInCluster, c.owner[after.id], "cluster %d: task %d began at %s, task %d (operation %s) ran from %s to %s",
					cluster, after.id, clock(after.from), before.id, c.owner[before.id], clock(before.from), clock(before.to))
			}
		}
	}
}

// firstEnd is when the first run of a retried task ended: only the journal still knows.
func (c *checker) firstEnd(id int64, t task) time.Time {
	for _, e := range c.byID[c.owner[id]].events {
		if e.token == "failed" && e.Task != nil {
			return e.Task.FinishedAt
		}
	}
	return t.started
}
