package guard

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// How soon a waiting request is evaluated again, even if nothing has told the agent that
// something changed.
const (
	lookAgainAfter  = 5 * time.Second // if work in the cluster must end
	askPeopleAfter  = time.Minute     // if people must do something
	lookAgainAtMost = time.Hour       // if time must pass: policies are reloaded, clocks set
)

// rule is one reason to object. It is a pure function of a question.
type rule struct {
	name string // in Findings, a part of the public interface
	ask  func(*view) Decision
	// onFacts: the decision depends on what OCP showed, and must not be believed for long.
	onFacts bool
	// retry: the rule is asked about retries too. Retries do not queue: one that would have to
	// wait fails.
	retry bool
	// queued: a request that waits for the rule keeps its place in the queue. It must not if
	// the rule holds up this request but not the ones behind it.
	queued bool
	// onRecord: an objection depends on the cluster's record, the facts, the policy and the
	// pauses only, and not on the time.
	onRecord bool
}

// rules returns the rules in the order in which they are asked; the first that objects
// decides. Rules whose objection never ends by itself come before the others they depend
// on, so that nobody waits only to be rejected. README.md explains each rule.
func rules() []rule {
	return []rule{
		{name: "target", ask: targetExists, onFacts: true, retry: true},
		{name: "deny", ask: notDenied, retry: true},
		{name: "pause", ask: notPaused, retry: true, queued: true, onRecord: true},
		{name: "failures", ask: notFailing, queued: true, onRecord: true},
		{name: "newest", ask: notSuperseded},
		{name: "server_slot", ask: serverHasNoSlot, retry: true, queued: true, onRecord: true},
		{name: "server_in_ocp", ask: serverIsStill, onFacts: true, retry: true, queued: true},
		{name: "state", ask: stateFits, onFacts: true},
		{name: "cluster_slots", ask: slotIsFree, retry: true, queued: true, onRecord: true},
		{name: "cluster_in_ocp", ask: clusterIsStill, onFacts: true, retry: true, queued: true},
		{name: "turn", ask: itsTurn, onFacts: true, queued: true},
		{name: "active_zone", ask: noOtherZoneActive, onFacts: true, retry: true, queued: true},
		{name: "majority", ask: majorityStays, onFacts: true, retry: true},
		{name: "root_server", ask: rootServerStays, onFacts: true},
		{name: "stopped_zone", ask: noOtherZoneStopped, onFacts: true, retry: true},
		{name: "approval", ask: approved},
		{name: "window", ask: insideWindow},
		{name: "cooldown", ask: cooledDown},
		{name: "budget", ask: withinBudget},
	}
}

// Decide returns the decision of the first rule that objects, or Allow. A Wait says in
// Reason.Until when to look again. A Wait with a Position keeps its ticket in the queue;
// any other decision gives the ticket back.
func Decide(q *Question) Decision { return decideBy(rules(), q) }

// DecideOnOld is Decide on facts that may be some time old, and reports whether the
// decision counts: it does if it is to wait and does not depend on what OCP showed.
// Otherwise decide again on fresh facts.
func DecideOnOld(q *Question) (Decision, bool) {
	all := rules()
	d := decideBy(all, q)
	if d.Verdict != Wait {
		return d, false
	}
	at := slices.IndexFunc(all, func(r rule) bool { return r.name == d.Rule })
	return d, !all[at].onFacts
}

// RestsOnRecord reports whether a decision to wait stays the same as long as the cluster's
// record, the facts, the policy and the pauses do, however much time passes.
func RestsOnRecord(d Decision) bool {
	return d.Verdict == Wait && slices.ContainsFunc(rules(), func(r rule) bool { return r.name == d.Rule && r.onRecord })
}

// Explain returns what each rule says, in order. If the server does not exist, it stops
// after the rule that says so.
func Explain(q *Question) []events.Finding {
	v := newView(q)
	v.explaining = true
	var findings []events.Finding
	for _, r := range rules() {
		if q.Retry && !r.retry {
			continue
		}
		d := r.ask(v)
		findings = append(findings, events.Finding{
			Rule: r.name, Verdict: string(d.Verdict), Code: d.Reason.Code, Message: d.Reason.Message,
		})
		if d.Reason.Code == events.CodeNotFound {
			break
		}
	}
	return findings
}

// decideBy is Decide with the given rules, so that a test can leave one out.
func decideBy(all []rule, q *Question) Decision {
	v := newView(q)
	for _, r := range all {
		if q.Retry && !r.retry {
			continue
		}
		d := r.ask(v)
		if d.Verdict == Allow {
			continue
		}
		d.Rule = r.name
		if d.Verdict == Wait && r.queued && !q.Retry {
			d.Reason.Position = v.position()
		}
		return d
	}
	return Decision{Verdict: Allow}
}

// view is a question, and the answers to lookups that several rules need.
type view struct {
	*Question
	limits     policy.Limits
	server     ocp.Server // zero: OCP shows no such server
	zone       ocp.Zone   // of the server
	work       []work     // under way in the cluster, without the operation itself
	explaining bool
	few        [8]work // room for work, so that it need not be allocated
}

func newView(q *Question) *view {
	v := &view{Question: q, limits: q.Limits()}
	v.server, v.zone = q.target()
	room := v.few[:0]
	if n := len(q.Record.Active) + len(q.Facts.Tasks); n > len(v.few) {
		room = make([]work, 0, n)
	}
	v.work = v.underWay(room)
	return v
}

// target is the server in question and its zone; both zero if OCP does not show it.
func (q *Question) target() (ocp.Server, ocp.Zone) {
	server, zone, _ := q.Facts.Zones.Server(q.Operation.ServerID)
	return server, zone
}

// takesDown reports whether the operation takes its server down. A start does not, and
// rules do not hold it up for a risk that it cannot increase.
func (v *view) takesDown() bool { return takesDown(v.Operation.Kind) }

// allow is a rule's consent. The reason is put in words only if somebody asks for it.
func (v *view) allow(why func() string) Decision {
	d := Decision{Verdict: Allow}
	if v.explaining {
		d.Reason.Message = why()
	}
	return d
}

// reject says that the request will never be allowed by itself.
func (v *view) reject(code, format string, args ...any) Decision {
	return Decision{Verdict: Reject, Reason: events.Reason{Code: code, Message: fmt.Sprintf(format, args...)}}
}

// wait says that the request waits for a change, and when to look again.
func (v *view) wait(code string, after time.Duration, format string, args ...any) Decision {
	return Decision{Verdict: Wait, Reason: events.Reason{
		Code: code, Message: fmt.Sprintf(format, args...), Until: v.Now.Add(after).UTC(),
	}}
}

// waitUntil says that the request waits for a moment; zero if it is not known. Messages
// name the moment and never the time until then, so that they change only if it does.
func (v *view) waitUntil(code string, moment time.Time, format string, args ...any) Decision {
	after := lookAgainAtMost
	if !moment.IsZero() {
		after = min(max(moment.Sub(v.Now), time.Second), lookAgainAtMost)
	}
	return v.wait(code, after, format, args...)
}

// position returns the operation's place in the queue, from 1.
func (v *view) position() int {
	place := 1
	for _, t := range v.Record.Queue {
		if v.before(t) {
			place++
		}
	}
	return place
}

// before reports whether a ticket belongs to another operation, which came first.
func (v *view) before(t Ticket) bool {
	return t.Sequence < v.Operation.RequestSequence && t.OperationID != v.Operation.OperationID
}

// targetExists rejects requests for servers that OCP does not show.
func targetExists(v *view) Decision {
	if v.server.ID != 0 {
		return v.allow(func() string {
			return fmt.Sprintf("server %d of cluster %d is in %s", v.server.ID, v.Operation.ClusterID, v.zone.Name)
		})
	}
	const shown = 20
	var ids []int64
	for i := range v.Facts.Zones {
		for j := range v.Facts.Zones[i].Servers {
			ids = append(ids, v.Facts.Zones[i].Servers[j].ID)
		}
	}
	slices.Sort(ids)
	more := ""
	if len(ids) > shown {
		ids, more = ids[:shown], fmt.Sprintf(" and %d more", len(ids)-shown)
	}
	return v.reject(events.CodeNotFound, "cluster %d has no server %d; it has %v%s", v.Operation.ClusterID,
		v.Operation.ServerID, ids, more)
}

// notDenied rejects requests that the policy denies.
func notDenied(v *view) Decision {
	if denial := v.Policy.DenialOf(v.label); denial != nil {
		return v.reject(events.CodeDenied, "the policy denies %s: %s; to lift it, change deny in the policy",
			denial.Matchers, or(denial.Reason, "it gives no reason"))
	}
	return v.allow(func() string { return fmt.Sprintf("none of %s matches", count(len(v.Policy.Deny), "denial")) })
}

// notPaused holds everything up that people have paused.
func notPaused(v *view) Decision {
	switch cluster := v.Operation.ClusterID; {
	case v.Control.All.Paused:
		return v.paused(v.Control.All, "all clusters are", "obwarden resume")
	case v.Control.Cluster.Paused:
		return v.paused(v.Control.Cluster, fmt.Sprintf("cluster %d is", cluster), fmt.Sprintf("obwarden resume %d", cluster))
	}
	return v.allow(func() string { return "nobody has paused the cluster" })
}

func (v *view) paused(p events.Pause, what, lift string) Decision {
	since := ""
	if !p.At.IsZero() {
		since = " since " + stamp(p.At)
	}
	return v.wait(events.CodePaused, askPeopleAfter, "%s paused by %s%s: %s; lift it with %s",
		what, or(p.By, "somebody"), since, or(p.Reason, "no reason given"), lift)
}

// notFailing holds a cluster up after too many failures in a row, until a person resumes it.
func notFailing(v *view) Decision {
	failures := v.Record.Failures
	if v.Record.FailuresUnder != v.Control.Revision {
		failures = 0 // somebody has resumed the cluster since
	}
	if limit := v.limits.PauseAfterFailures; limit > 0 && failures >= limit {
		return v.wait(events.CodeFailing, askPeopleAfter,
			"%d operations in a row have failed on cluster %d, the last is %s; "+
				"see why (obwarden get %s), then lift it with obwarden resume %d",
			failures, v.Operation.ClusterID, v.Record.LastFailure, v.Record.LastFailure, v.Operation.ClusterID)
	}
	return v.allow(func() string {
		if v.limits.PauseAfterFailures == 0 {
			return "the policy does not count failures"
		}
		return fmt.Sprintf("%d of %s in a row", failures, count(v.limits.PauseAfterFailures, "failure"))
	})
}

// notSuperseded ends a request that a newer one for the same server replaces.
func notSuperseded(v *view) Decision {
	if !v.limits.Supersede {
		return v.allow(func() string { return "the policy lets every request wait for its turn" })
	}
	newest := v.Record.Newest[v.Operation.ServerID]
	if newest.Sequence > v.Operation.RequestSequence && newest.OperationID != v.Operation.OperationID {
		return Decision{Verdict: Supersede, Reason: events.Reason{Code: events.CodeSuperseded, Message: fmt.Sprintf(
			"operation %s for server %d came later and takes its place", newest.OperationID, v.Operation.ServerID)}}
	}
	return v.allow(func() string { return "no newer request for the server" })
}

// stateFits ends operations that make no sense in the server's state, or are fulfilled
// already. OCP is left to judge unknown statuses. It also judges a stop of a server whose
// service alone is stopped, unless the request asks for no more than that: to call the
// server stopped could send a person to a machine that still runs. UNAVAILABLE may be
// OCP's view alone, so all three kinds make sense then.
func stateFits(v *view) Decision {
	status, kind := v.server.Status, v.Operation.Kind
	done := func(code string) Decision {
		return Decision{Verdict: Done, Reason: events.Reason{Code: code, Message: fmt.Sprintf(
			"server %d is %s already", v.server.ID, status)}}
	}
	switch {
	case !v.server.Exists():
		return v.reject(events.CodeWrongState, "server %d is %s: there is nothing to %s", v.server.ID, status, kind)
	case kind == events.Stop && Fulfilled(v.Operation, v.server):
		return done(events.CodeAlreadyStopped)
	case kind == events.Start && Fulfilled(v.Operation, v.server):
		return done(events.CodeAlreadyRunning)
	case kind == events.Restart && v.server.Stopped():
		return v.reject(events.CodeWrongState, "server %d is %s: start it instead", v.server.ID, status)
	}
	return v.allow(func() string { return fmt.Sprintf("server %d is %s", v.server.ID, or(status, "in a state unknown")) })
}

// Fulfilled reports whether a server is in the state in which op is to leave it. A restart
// is never fulfilled: a server that runs may not have been restarted.
func Fulfilled(op events.Operation, server ocp.Server) bool {
	switch op.Kind {
	case events.Stop:
		return server.Stopped() && (server.Status != ocp.ServerServiceStopped || op.Request.StopType == "STOP_SERVICE")
	case events.Start:
		return server.Running()
	}
	return false
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// stamp formats a moment for messages.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
