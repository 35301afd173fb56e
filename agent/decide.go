package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

const (
	// factsTooOld: an OCP that takes so long to answer shows how the cluster was.
	factsTooOld = 15 * time.Second
	// aheadPause is for how long no facts are read ahead after some were of no use.
	aheadPause = time.Minute
	// sweepEvery is how often slots are looked for that operations left behind.
	sweepEvery = 5 * time.Second
	// earlyFor is how long a decision counts that was made before its operation was in
	// the journal. It is over before anybody may take out the slot: see sweepCluster.
	earlyFor = time.Second
	// sweepHead is how many in the queue of a cluster are looked at: those that others wait for.
	sweepHead = 4
)

// What stands in the place of the guard's rules where it cannot be asked.
const (
	ruleTopology = "topology"
	ruleRecord   = "record"
)

// Fail is no word of the guard but what comes of facts that OCP refuses to show.
const Fail guard.Verdict = "fail"

// decide asks the guard about h and takes its slot where the word is Allow. retry
// asks about OCP's failed task instead of a first call.
func (a *Agent) decide(ctx context.Context, h *held, retry bool) (Decided, error) {
	op, early, made := h.entry.Operation, h.early, guard.Decision{}
	h.news, h.early = a.news.Load(), nil
	q := guard.Question{Policy: a.policy.Load(), Operation: op, Retry: retry, Now: time.Now()}
	if early.holdsFor(op, h.news, q.Now) {
		q.Facts, made = early.facts, early.decision
	}
	decided, err := a.decideInSilence(ctx, &q, made)
	switch {
	case errors.Is(err, errRecord):
		decided = withoutRecord(op, err, q.Now)
	case err != nil:
		return Decided{}, err
	}
	decided.Policy, decided.Retry = q.Policy.Hash, retry
	decided.Offset, decided.FactsAt = a.OCP.ClockOffset(), q.Facts.ReadAt
	record := a.slots.record(op.ClusterID)
	decided.Holds = record.Holds(op.OperationID, op.Steps)
	if wait := q.Limits().MaxWait; wait > 0 {
		decided.GiveUp = op.RequestedAt.Add(wait)
	}
	switch {
	case !op.Request.DryRun:
	case decided.Rule == ruleTopology || decided.Rule == ruleRecord: // the guard was not asked
		decided.Findings = []events.Finding{{Rule: decided.Rule, Verdict: string(decided.Verdict), Code: decided.Reason.Code, Message: decided.Reason.Message}}
	default:
		decided.Findings = guard.Explain(&q)
	}
	code := decided.Reason.Code
	if decided.Verdict == Fail {
		code = decided.Error.Code
	}
	a.Metrics.GuardDecisions.WithLabelValues(string(decided.Verdict), metrics.Code(code)).Inc()
	a.logOf(h).Debug("guard decided", "decision", decided.Verdict, "rule", decided.Rule, "reason", code, "message", decided.Reason.Message)
	return decided, nil
}

// decideInSilence has silences made for what the guard allows, before anything of it
// is written. What waits for them asks for them first: it is to take no slot meanwhile.
// The guard is not asked where made is its decision.
func (a *Agent) decideInSilence(ctx context.Context, q *guard.Question, made guard.Decision) (Decided, error) {
	op := q.Operation
	waits := func(r *events.Reason) Decided {
		return Decided{Decision: guard.Decision{Verdict: guard.Wait, Reason: *r}}
	}
	if op.Reason != nil && op.Reason.Code == events.CodeAlertmanagerUnreachable {
		if r := silence(ctx, a.Silencer, op, q.Now); r != nil {
			return waits(r), ctx.Err()
		}
	}
	decided, err := Decided{Decision: made}, error(nil)
	if made.Verdict == "" {
		decided, err = a.decideOn(ctx, q, false)
	}
	if err != nil || decided.Verdict != guard.Allow {
		return decided, err
	}
	if r := silence(ctx, a.Silencer, op, q.Now); r != nil {
		return waits(r), ctx.Err()
	}
	return decided, nil
}

// decideOn decides by old facts where these are good enough to wait by, and by
// fresh ones otherwise: those that wait must not make a storm of calls to OCP. Where it
// is early nothing is written but what is allowed.
func (a *Agent) decideOn(ctx context.Context, q *guard.Question, early bool) (Decided, error) {
	for fresh := q.Operation.Request.DryRun; ; fresh = true {
		err := a.readFacts(ctx, q, fresh)
		if err == nil && fresh && time.Since(q.Facts.ReadAt) > factsTooOld {
			err = fmt.Errorf("OCP took %s to answer", time.Since(q.Facts.ReadAt).Round(time.Second))
		}
		if ctx.Err() != nil {
			return Decided{}, ctx.Err()
		}
		if err != nil {
			return withoutTopology(q.Operation, err, q.Now), nil
		}
		fresh = fresh || time.Since(q.Facts.ReadAt) <= factsFresh
		decision, err := a.settle(ctx, q, fresh, early)
		if err != nil || decision.Verdict != "" {
			return Decided{Decision: decision}, err
		}
	}
}

// early is the word Allow, with the slot taken, of before the operation's first event was
// in the journal; nil is none.
type early struct {
	decision guard.Decision
	facts    guard.Facts
	asked    time.Time // before the slot was taken
	news     uint64    // what it knew
}

// holdsFor reports whether it is the word on op now, which is in the journal.
func (e *early) holdsFor(op events.Operation, news uint64, now time.Time) bool {
	return e != nil && op.N == 1 && op.State == events.Accepted && e.news == news && now.Sub(e.asked) < earlyFor
}

// decideEarly asks the guard about a request that is the first of its key while its first
// event is on its way to the journal: both take a flush, and need not wait for each other.
// The word counts once the event is there. Where it never comes, or by another agent, the
// slot stays: it is the operation's, whoever has it in hand, and a left-over one is swept.
// What it returns waits for the word. Those that come while one of their cluster is
// decided on early come after it.
func (a *Agent) decideEarly(ctx context.Context, d delivery) func() *early {
	cluster := d.received.Request.ClusterID
	record := a.slots.record(cluster)
	a.mu.Lock()
	defer a.mu.Unlock()
	if d.again || d.received.Refusal != nil || d.received.Request.DryRun || len(record.Active) > 0 || len(record.Queue) > 0 || a.early[cluster] {
		return func() *early { return nil }
	}
	a.early[cluster] = true
	e := &early{asked: time.Now(), news: a.news.Load()}
	q := guard.Question{Policy: a.policy.Load(), Operation: a.Machine.Step(events.Operation{}, d.received, e.asked).Append[0].Operation, Now: e.asked}
	word := make(chan *early, 1)
	a.running.Go(func() {
		// An error is met again by whoever decides without it.
		decided, err := a.decideOn(ctx, &q, true)
		if e.decision, e.facts = decided.Decision, q.Facts; err != nil || decided.Verdict != guard.Allow {
			e = nil
		}
		a.mu.Lock()
		delete(a.early, cluster)
		a.mu.Unlock()
		word <- e
	})
	return func() *early { return <-word }
}

// readAhead has facts of a cluster read while the journal is read and written for a
// request that seems to be the first of its key, in a cluster where nothing is under
// way: it will most likely be decided by them. The caller holds a.mu.
func (a *Agent) readAhead(work context.Context, d delivery) {
	cluster := d.received.Request.ClusterID
	if d.order != nil || d.received.Refusal != nil || d.again || a.leftAlone.Load() || time.Now().UnixNano() < a.aheadFrom.Load() {
		return
	}
	if record := a.slots.record(cluster); len(record.Active) > 0 || len(record.Queue) > 0 || a.ahead[cluster] {
		return
	}
	a.ahead[cluster] = true
	a.running.Go(func() {
		// What comes of it is in the cache, errors too.
		_, _ = a.facts.of(work, cluster, func() uint64 { return a.slots.record(cluster).Generation }, true)
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.ahead, cluster)
	})
}

// readAheadInVain: the request was none to decide on. In a storm of duplicates it
// would be so for each.
func (a *Agent) readAheadInVain() { a.aheadFrom.Store(time.Now().Add(aheadPause).UnixNano()) }

// readFacts gives q what OCP shows. That may take long: others have something to do
// meanwhile.
func (a *Agent) readFacts(ctx context.Context, q *guard.Question, fresh bool) (err error) {
	defer a.stepAside(ctx)()
	cluster := q.Operation.ClusterID
	q.Facts, err = a.facts.of(ctx, cluster, func() uint64 { return a.slots.record(cluster).Generation }, fresh)
	if err == nil && q.Policy.NamesClusters() {
		q.Facts.ClusterName, err = a.facts.name(ctx, cluster)
	}
	return err
}

// settle decides on the record as it is and writes what follows into it: the slot,
// or the place in the queue. Two agents never get the last slot both: whose write
// comes second decides anew. It returns no decision where the facts are not good enough.
func (a *Agent) settle(ctx context.Context, q *guard.Question, fresh, early bool) (guard.Decision, error) {
	op := q.Operation
	for {
		var decision guard.Decision
		reserve := false
		err := a.slots.update(ctx, op.ClusterID, func(record *guard.Record) bool {
			q.Record, q.Fleet, q.Control, q.Now = *record, a.slots.fleet(), a.control.of(op.ClusterID), time.Now()
			decision, reserve = guard.Decision{}, false
			if waits, sure := guard.DecideOnOld(q); sure && !op.Request.DryRun {
				decision = waits
			} else if fresh && q.Facts.Generation == record.Generation {
				decision = guard.Decide(q)
			}
			switch {
			case op.Request.DryRun || decision.Verdict == "" || early && decision.Verdict != guard.Allow:
				return false
			case early && record.Holds(op.OperationID, 0): // another agent's, perhaps for another server: the journal is to say whose key it is
				decision = guard.Decision{Verdict: guard.Wait}
				return false
			case decision.Verdict == guard.Allow && q.Reserves():
				reserve = true
				return false
			}
			return apply(record, q, decision)
		})
		if err != nil || !reserve {
			return decision, err
		}
		// The share of the budget of all clusters comes first: should the slot be gone by
		// then, the operation keeps its share and waits for the next one.
		if err := a.slots.updateFleet(ctx, func(fleet *guard.Fleet) bool {
			q.Fleet = *fleet
			if guard.Decide(q).Verdict != guard.Allow {
				return false
			}
			fleet.Prune(q.Now, q.Policy.Fleet.Window)
			return fleet.Take(op.OperationID, q.Now)
		}); err != nil {
			return guard.Decision{}, err
		}
	}
}

// apply writes into the record what follows from a decision, and says whether anything does.
func apply(record *guard.Record, q *guard.Question, d guard.Decision) bool {
	op := q.Operation
	ticket := guard.Ticket{OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Sequence: op.RequestSequence}
	if d.Verdict == guard.Allow {
		server, _ := guard.FindServer(q.Facts.Zones, op.ServerID)
		record.Prune(q.Now, q.Policy.Longest())
		return record.Take(guard.Slot{
			OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Zone: server.Zone, Since: q.Now.UTC(), Steps: op.Steps,
		})
	}
	changed := false
	if d.Verdict == guard.Wait && !q.Retry && q.Limits().Supersede {
		changed = record.Announce(ticket)
	}
	if d.Reason.Position > 0 {
		return record.Enqueue(ticket) || changed
	}
	return record.Dequeue(op.OperationID) || changed
}

// withoutTopology is the word where OCP does not show the cluster.
func withoutTopology(op events.Operation, err error, now time.Time) Decided {
	switch {
	case refusedWith(err, http.StatusNotFound): // and not by a gateway that knows no such path
		return Decided{Decision: guard.Decision{Verdict: guard.Reject, Rule: ruleTopology, Reason: events.Reason{
			Code: events.CodeNotFound, Message: fmt.Sprintf("OCP knows no cluster %d: %v", op.ClusterID, err)}}}
	case forbidden(err):
		failure := describe(events.CodeOCPRefused, err)
		failure.Message = fmt.Sprintf("OCP does not show cluster %d to this user, nothing was sent: %v", op.ClusterID, err)
		return Decided{Decision: guard.Decision{Verdict: Fail}, Error: &failure}
	}
	return Decided{Decision: guard.Decision{Verdict: guard.Wait, Rule: ruleTopology, Reason: events.Reason{
		Code: events.CodeStaleTopology, Message: fmt.Sprintf("cluster %d cannot be looked at: %v", op.ClusterID, err),
		Until: now.Add(jitter(retryAfter)).UTC(),
	}}}
}

// keepSlot puts the slot of an operation back that is under way, should the record
// have been lost.
func (a *Agent) keepSlot(ctx context.Context, op events.Operation) error {
	record := a.slots.record(op.ClusterID)
	if op.State != events.Submitting && op.State != events.Running || record.Holds(op.OperationID, 0) {
		return nil
	}
	return a.slots.update(ctx, op.ClusterID, func(record *guard.Record) bool {
		return !record.Holds(op.OperationID, 0) && record.Take(guard.Slot{
			OperationID: op.OperationID, Kind: op.Kind, ServerID: op.ServerID, Since: op.SubmittedAt, Steps: op.Steps - 1,
		})
	})
}

// withoutRecord is the word where it is not known what others do in the cluster.
func withoutRecord(op events.Operation, err error, now time.Time) Decided {
	return Decided{Decision: guard.Decision{Verdict: guard.Wait, Rule: ruleRecord, Reason: events.Reason{
		Code: events.CodeRecordUnreadable, Message: fmt.Sprintf("nothing is done in cluster %d: %v; see `nats kv get %s %d`, and delete it only while nothing runs there",
			op.ClusterID, err, events.ClusterBucket, op.ClusterID),
		Until: now.Add(jitter(retryAfter)).UTC(),
	}}}
}

// giveBack takes out of the cluster's record what an operation holds that has
// ended or waits again, and counts how it ended.
func (a *Agent) giveBack(ctx context.Context, op events.Operation) error {
	return a.slots.updateSurely(ctx, op.ClusterID, func(record *guard.Record) bool {
		return record.Give(op, a.control.of(op.ClusterID).Revision, time.Now())
	})
}

// mayApprove says why somebody may not approve op; nil where they may.
func (a *Agent) mayApprove(ctx context.Context, op events.Operation, by string) (refusal error, err error) {
	q := guard.Question{Policy: a.policy.Load(), Operation: op, Now: time.Now()}
	if err := a.readFacts(ctx, &q, false); err != nil {
		return nil, fmt.Errorf("find out who may approve operation %s: %w", op.OperationID, err)
	}
	return q.MayApprove(by), nil
}

// sweep takes out slots and tickets of operations that do not hold them any more,
// until ctx ends: those of agents that died at a bad moment, and of operations
// that somebody deleted by hand. A lock without a holder must not block for ever.
func (a *Agent) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	unclaimed := map[guard.Slot]time.Time{}
	for {
		a.measureBudgets()
		for cluster, record := range a.slots.all() {
			if err := a.sweepCluster(ctx, cluster, record, unclaimed); err != nil && ctx.Err() == nil {
				a.Log.Warn("slots without a holder not looked for", "cluster", cluster, "error", err)
				break // the others would fail for the same reason
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sweepCluster looks at the slots and the head of the queue of one cluster. A slot of an
// operation that is not in the journal may be one that was decided on early: it is left
// alone until that decision counts no more, by this agent's own clock, from when unclaimed
// says that it first saw it.
func (a *Agent) sweepCluster(ctx context.Context, cluster int64, record guard.Record, unclaimed map[guard.Slot]time.Time) error {
	for _, slot := range record.Active {
		if time.Since(slot.Since) < sweepEvery || a.holds(slot.OperationID, cluster) {
			continue
		}
		first, seen := unclaimed[slot]
		over := seen && time.Since(first) >= 2*earlyFor // before the journal is read: it must have had the time
		last, err := a.journal.Last(ctx, slot.OperationID)
		if err != nil {
			return err
		}
		if last.Operation.N == 0 && !over {
			if !seen {
				unclaimed[slot] = time.Now()
			}
			continue
		}
		delete(unclaimed, slot)
		stray := last.Operation.N == 0 || last.Operation.ClusterID != cluster // decided on early, but the key is another request's
		if !stray && !slot.Stale(last.Operation) {
			continue
		}
		a.Log.Warn("slot without a holder taken out", "operation_id", slot.OperationID, "cluster", cluster, "server", slot.ServerID, "state", last.Operation.State)
		if err := a.slots.update(ctx, cluster, func(record *guard.Record) bool {
			if stray {
				return record.Drop(slot)
			}
			return record.Give(last.Operation, a.control.of(cluster).Revision, time.Now()) // what came of it counts
		}); err != nil {
			return err
		}
	}
	for _, ticket := range record.Queue[:min(len(record.Queue), sweepHead)] {
		if a.holds(ticket.OperationID, cluster) {
			continue
		}
		last, err := a.journal.Last(ctx, ticket.OperationID)
		if err != nil {
			return err
		}
		if !ticket.Stale(last.Operation) {
			continue
		}
		if err := a.slots.update(ctx, cluster, func(record *guard.Record) bool { return record.Dequeue(ticket.OperationID) }); err != nil {
			return err
		}
	}
	return nil
}

// holds reports whether this agent has the operation in hand, and it is about the cluster
// or not known yet what it is about.
func (a *Agent) holds(operationID string, cluster int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.held[operationID]
	return h != nil && !h.owner.none() && (h.position.cluster == cluster || h.position.cluster == 0)
}
