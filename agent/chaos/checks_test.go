package chaos

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/events"
)

// past makes histories by hand, a second between one thing and the next.
type past struct {
	history
	now time.Time
}

func newPast() *past {
	p := &past{now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	p.retries, p.cancels, p.tasks = map[string]int{}, map[string]int{}, map[int64]task{}
	p.late = 1500 * time.Millisecond
	return p
}

func (p *past) tick() time.Time {
	p.now = p.now.Add(time.Second)
	return p.now
}

// request is acknowledged; it is sequence 1, 2, ….
func (p *past) request(key string) {
	p.requests = append(p.requests, request{sequence: uint64(len(p.requests) + 1), key: key})
}

// event appends to key's operation, a stop of server 7 in cluster 1.
func (p *past) event(key, token string, change ...func(*document)) {
	d := document{ID: operationOf(key), Kind: "stop", Cluster: 1, Server: 7, RequestSequence: 1}
	for _, e := range p.events {
		if e.ID == d.ID {
			d = e.document
		}
	}
	d.N++
	if token != "duplicate" {
		d.Steps++
	}
	if !slices.Contains([]string{"progress", "stalled", "duplicate"}, token) {
		d.State = token
	}
	switch {
	case token == "submitting":
		d.Attempt++
		d.SubmittedAt = p.now
	case final(token):
		d.EndedAt = p.now
	}
	for _, c := range change {
		c(&d)
	}
	p.events = append(p.events, event{sequence: uint64(len(p.events) + 1), stored: p.tick(), token: token, document: d})
}

// post is a call of key's operation that starts a task; task 0: a call without effect.
func (p *past) post(key string, attempt int, id int64) {
	p.posts = append(p.posts, post{at: p.tick(), kind: "stop", cluster: 1, server: 7, operation: operationOf(key),
		request: fmt.Sprintf("%s.%d", operationOf(key), attempt), task: id})
	if id != 0 {
		p.tasks[id] = task{kind: "stop", cluster: 1, server: 7, status: "SUCCESSFUL", started: p.now, finished: p.now.Add(100 * time.Millisecond)}
	}
}

func (p *past) status(id int64, status string) {
	t := p.tasks[id]
	t.status = status
	p.tasks[id] = t
}

func follows(id int64) func(*document) {
	return func(d *document) {
		d.Task = &struct {
			ID         int64     `json:"id"`
			Status     string    `json:"status"`
			FinishedAt time.Time `json:"finished_at"`
		}{ID: id, Status: "RUNNING"}
	}
}

func because(code string) func(*document) { return func(d *document) { d.Reason.Code = code } }

// ordinary is an operation as it should be: requested, called once, followed, ended.
func (p *past) ordinary(key string, id int64) {
	p.request(key)
	p.event(key, "accepted")
	p.event(key, "submitting")
	p.post(key, 1, id)
	p.event(key, "running", follows(id))
	p.event(key, "progress")
	p.event(key, "succeeded")
}

// asked is an operation that ends without a call.
func (p *past) asked(key, kind, end, code string) {
	p.request(key)
	p.event(key, "accepted", func(d *document) { d.Kind = kind })
	p.event(key, end, because(code))
}

// TestCheckerFindsPlantedViolations checks the checker. Each history names the rules that it breaks.
func TestCheckerFindsPlantedViolations(t *testing.T) {
	t.Parallel()
	k := "k"
	id := operationOf(k)
	for _, test := range []struct {
		name  string
		make  func(*past)
		rules []string // broken; none: the history is sound
	}{
		{"ordinary", func(p *past) { p.ordinary(k, 100) }, nil},
		{"duplicate after the end", func(p *past) { p.ordinary(k, 100); p.request(k); p.event(k, "duplicate") }, nil},
		{"a call without effect, then another", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 0)
			p.event(k, "submitting")
			p.post(k, 2, 100)
			p.event(k, "running", follows(100))
			p.event(k, "succeeded")
		}, nil},
		{"failed, retried by order, succeeded", func(p *past) {
			failedOnce(p)
			p.retries[id] = 1
			p.event(k, "running", because(""))
			p.posts = append(p.posts, post{at: p.tick(), kind: "retry", task: 100})
			p.event(k, "succeeded")
			p.tasks[100] = task{kind: "stop", cluster: 1, server: 7, status: "SUCCESSFUL", started: p.tasks[100].started,
				resumed: p.now.Add(-time.Second), finished: p.now}
		}, nil},
		{"cancelled, expired, refused, dry run", func(p *past) {
			p.request("c")
			p.event("c", "accepted")
			p.cancels[operationOf("c")] = 1
			p.event("c", "cancelled", because("CANCELLED"))
			p.request("e")
			expires := p.now
			p.event("e", "accepted", func(d *document) { d.Request.ExpiresAt = expires })
			p.event("e", "expired", because("EXPIRED"))
			p.requests = append(p.requests, request{sequence: 9, key: "r", refused: true})
			p.event("r", "rejected", func(d *document) { d.RequestSequence = 9 })
			p.requests = append(p.requests, request{sequence: 10, key: "r", words: "something else"})
			p.event("fallback", "rejected", func(d *document) { d.RequestSequence = 10 })
			p.request("d")
			p.event("d", "accepted", func(d *document) { d.Request.DryRun = true })
			p.event("d", "succeeded")
		}, nil},
		{"outcome unknown, with a task", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 100)
			p.event(k, "failed", because("OUTCOME_UNKNOWN"))
		}, nil},
		{"a paused agent's call, late and without effect", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.pauses = append(p.pauses, span{from: p.now.Add(time.Millisecond)})
			p.event(k, "submitting")
			p.post(k, 2, 100)
			p.event(k, "running", follows(100))
			p.event(k, "succeeded")
			p.pauses[0].to = p.now
			p.post(k, 1, 0)
		}, nil},

		{"stopped already", func(p *past) { p.ordinary(k, 100); p.asked("again", "stop", "succeeded", "ALREADY_STOPPED") }, nil},
		{"running already, from the beginning", func(p *past) { p.asked(k, "start", "succeeded", "ALREADY_RUNNING") }, nil},
		{"running already, mended by hand", func(p *past) {
			p.ordinary(k, 100)
			p.mended = append(p.mended, mending{at: p.tick(), server: 7})
			p.asked("again", "start", "succeeded", "ALREADY_RUNNING")
		}, nil},
		{"stopped meanwhile", func(p *past) {
			p.request("waits")
			p.event("waits", "accepted")
			p.ordinary(k, 100)
			p.event("waits", "succeeded", because("ALREADY_STOPPED"))
		}, nil},
		{"restart of what is stopped", func(p *past) { p.ordinary(k, 100); p.asked("again", "restart", "rejected", "WRONG_STATE") }, nil},

		{"two tasks", func(p *past) { p.ordinary(k, 100); p.event(k, "submitting"); p.post(k, 2, 101) }, []string{twoEffects, postAfterEnd, finalChanged}},
		{"two tasks by the same attempt", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 100)
			p.post(k, 1, 101)
			p.event(k, "running", follows(100))
			p.event(k, "succeeded")
		}, []string{twoEffects, postNoIntent}},
		{"late, but nobody was paused", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.event(k, "submitting")
			p.post(k, 2, 100)
			p.post(k, 1, 0)
			p.event(k, "running", follows(100))
			p.event(k, "succeeded")
		}, []string{postAfterEffect}},
		{"blind call again", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 100)
			p.event(k, "submitting")
			p.post(k, 2, 0)
			p.event(k, "running", follows(100))
			p.event(k, "succeeded")
		}, []string{postAfterEffect}},
		{"call before its intent", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.post(k, 1, 100)
			p.event(k, "submitting")
			p.event(k, "running", follows(100))
			p.event(k, "succeeded")
		}, []string{postNoIntent}},
		{"call for nobody", func(p *past) { p.ordinary(k, 100); p.post("stranger", 1, 0) }, []string{strayPost}},
		{"call about another server", func(p *past) { p.ordinary(k, 100); p.posts[0].server = 8 }, []string{strayPost}},
		{"event missing", func(p *past) { p.ordinary(k, 100); p.events = slices.Delete(p.events, 3, 4) }, []string{numbers}},
		{"event twice", func(p *past) { p.ordinary(k, 100); p.events[4].N = 4 }, []string{numbers}},
		{"end undone", func(p *past) { p.ordinary(k, 100); p.event(k, "running") }, []string{finalChanged}},
		{"end changed by a duplicate", func(p *past) {
			p.ordinary(k, 100)
			p.event(k, "duplicate", because("CANCELLED"))
		}, []string{finalChanged}},
		{"retried without an order", func(p *past) { failedOnce(p); p.event(k, "running"); p.event(k, "failed") }, []string{finalChanged}},
		{"retried twice by one order", func(p *past) {
			failedOnce(p)
			p.retries[id] = 1
			p.event(k, "running", because(""))
			for range 2 {
				p.posts = append(p.posts, post{at: p.tick(), kind: "retry", task: 100})
			}
			p.event(k, "failed", because("SUBTASK_FAILED"))
		}, []string{retryTwice}},
		{"order forgotten", func(p *past) { failedOnce(p); p.ordered = map[string]bool{id: true} }, []string{lost}},
		{"acknowledged and forgotten", func(p *past) { p.request(k) }, []string{lost}},
		{"invalid and forgotten", func(p *past) {
			p.ordinary(k, 100)
			p.requests = append(p.requests, request{sequence: 2, key: k, refused: true})
		}, []string{lost}},
		{"key reused and forgotten", func(p *past) {
			p.ordinary(k, 100)
			p.requests = append(p.requests, request{sequence: 2, key: k, words: "something else"})
		}, []string{lost}},
		{"without end", func(p *past) { p.request(k); p.event(k, "accepted") }, []string{stuck}},
		{"request left", func(p *past) { p.ordinary(k, 100); p.open = []string{"1"} }, []string{stuck}},
		{"slot of what has ended", func(p *past) { p.ordinary(k, 100); p.slots = []slot{{id, 1}} }, nil},
		{"slot of what has ended, then a duplicate", func(p *past) { p.ordinary(k, 100); p.event(k, "duplicate"); p.slots = []slot{{id, 5}} }, nil},
		{"slot of nobody", func(p *past) { p.ordinary(k, 100); p.slots = []slot{{operationOf("nobody's"), 1}} }, nil},
		{"slot taken after the end", func(p *past) { p.ordinary(k, 100); p.slots = []slot{{id, 6}} }, []string{slotLeft}},
		{"slot of what is under way", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.slots = []slot{{id, 1}}
		}, []string{slotLeft, stuck}},
		{"slot from before the wait", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "waiting")
			p.slots = []slot{{id, 1}}
		}, []string{stuck}},
		{"slot taken by what waits", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "waiting")
			p.slots = []slot{{id, 2}}
		}, []string{slotLeft, stuck}},
		{"succeeded, but the task failed", func(p *past) { p.ordinary(k, 100); p.status(100, "FAILED") }, []string{wrongOutcome}},
		{"failed, but the task succeeded", func(p *past) { failedOnce(p); p.status(100, "SUCCESSFUL") }, []string{wrongOutcome}},
		{"refused, but there is a task", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 100)
			p.event(k, "failed", because("OCP_REFUSED"))
		}, []string{wrongOutcome}},
		{"already done, but the task failed", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 100)
			p.status(100, "FAILED")
			p.event(k, "succeeded", because("ALREADY_DONE"))
		}, []string{wrongOutcome}},
		{"another's task", func(p *past) {
			p.ordinary(k, 100)
			p.tick()
			p.ordinary("other", 101)
			p.events[len(p.events)-1].Task.ID = 100
		}, []string{wrongTask}},
		{"rejected, but called", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 0)
			p.event(k, "rejected")
		}, []string{unwantedEffect}},
		{"dry run called", func(p *past) {
			p.ordinary(k, 100)
			for i := range p.events {
				p.events[i].Request.DryRun = true
			}
		}, []string{unwantedEffect}},
		{"cancelled, but done", func(p *past) {
			p.request(k)
			p.cancels[id] = 1
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 100)
			p.event(k, "cancelled")
		}, []string{unwantedEffect}},
		{"submitted after it had expired", func(p *past) {
			p.ordinary(k, 100)
			for i := range p.events {
				p.events[i].Request.ExpiresAt = p.events[0].stored
			}
		}, []string{unwantedEffect}},
		{"cancelled by nobody", func(p *past) { p.request(k); p.event(k, "accepted"); p.event(k, "cancelled") }, []string{unorderedEnd}},
		{"expired without a time", func(p *past) { p.request(k); p.event(k, "accepted"); p.event(k, "expired") }, []string{unorderedEnd}},
		{"two tasks at once in a cluster", func(p *past) {
			p.ordinary(k, 100)
			p.ordinary("other", 101)
			long := p.tasks[100]
			long.finished = p.now
			p.tasks[100] = long
		}, []string{twoInCluster}},
		{"a retried task beside another", func(p *past) {
			p.ordinary(k, 100)
			p.ordinary("other", 101)
			again := p.tasks[100]
			again.resumed, again.finished = p.tasks[101].started, p.tasks[101].finished
			p.tasks[100] = again
		}, []string{twoInCluster}},
		{"said to be stopped, but it runs", func(p *past) { p.asked(k, "stop", "succeeded", "ALREADY_STOPPED") }, []string{wrongOutcome}},
		{"said to be stopped, but it was mended", func(p *past) {
			p.ordinary(k, 100)
			p.mended = append(p.mended, mending{at: p.tick(), server: 7})
			p.asked("again", "stop", "succeeded", "ALREADY_STOPPED")
		}, []string{wrongOutcome}},
		{"said to be stopped, but another is", func(p *past) {
			p.ordinary(k, 100)
			stopped := p.tasks[100]
			stopped.server = 8
			p.tasks[100] = stopped
			p.asked("again", "stop", "succeeded", "ALREADY_STOPPED")
		}, []string{wrongOutcome}},
		{"said to run, but it is stopped", func(p *past) { p.ordinary(k, 100); p.asked("again", "start", "succeeded", "ALREADY_RUNNING") }, []string{wrongOutcome}},
		{"said to be stopped, of a start", func(p *past) { p.ordinary(k, 100); p.asked("again", "start", "succeeded", "ALREADY_STOPPED") }, []string{wrongOutcome}},
		{"stopped already, by its own call", func(p *past) {
			p.request(k)
			p.event(k, "accepted")
			p.event(k, "submitting")
			p.post(k, 1, 100)
			p.event(k, "succeeded", because("ALREADY_STOPPED"))
		}, []string{unwantedEffect}},
		{"restart refused of what runs", func(p *past) { p.asked(k, "restart", "rejected", "WRONG_STATE") }, []string{wrongOutcome}},
		{"panic", func(p *past) { p.panics = []string{"panic: nil"} }, []string{panicked}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPast()
			test.make(p)
			v := check(p.history)
			var rules []string
			for _, rule := range ruleNames() {
				if v.count(rule) > 0 {
					rules = append(rules, rule)
				}
			}
			slices.Sort(test.rules)
			slices.Sort(rules)
			if !slices.Equal(rules, test.rules) {
				t.Errorf("found %v, want %v: %v", rules, test.rules, v.violations)
			}
			if paused := len(p.pauses) > 0; paused != (len(v.exceptions) > 0) {
				t.Errorf("exceptions: %v, an agent was paused: %v", v.exceptions, paused)
			}
		})
	}
}

// failedOnce is an operation whose task 100 has failed.
func failedOnce(p *past) {
	p.ordinary("k", 100)
	p.status(100, "FAILED")
	last := &p.events[len(p.events)-1]
	last.token, last.State = "failed", "failed"
	last.Reason.Code = "SUBTASK_FAILED"
	last.Task.FinishedAt = p.tasks[100].finished
}

func TestOperationIDsAreThoseOfTheProduct(t *testing.T) {
	t.Parallel()
	if got, want := operationOf("disk-4711"), events.OperationID("disk-4711"); got != want {
		t.Errorf("operation of the key: %s, want %s", got, want)
	}
}

// TestOneKindOfViolationHidesNoOther is about the report of a run that went very wrong.
func TestOneKindOfViolationHidesNoOther(t *testing.T) {
	t.Parallel()
	var all []violation
	for i := range 1000 {
		all = append(all, violation{stuck, fmt.Sprint("operation-", i), "no end"})
	}
	all = append(all, violation{twoEffects, "the-worst", "two tasks"})
	text := describeViolations(all)
	for _, want := range []string{"stuck              1000\n", "and 990 more\n", "two-effects        1\n    the-worst: two tasks\n", "lost               0\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if lines, most := strings.Count(text, "\n"), len(ruleNames())+maxExamples+2; lines > most {
		t.Errorf("%d lines, want %d at most", lines, most)
	}
}
