package guard

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// insideWindow holds up operations that take a server down while the policy's windows are
// closed; a start never waits for a window.
func insideWindow(v *view) Decision {
	if !v.takesDown() {
		return v.allow(func() string { return "a start takes no server down" })
	}
	now := v.Now.UTC() // intervals without a time zone are in UTC
	block := policy.Containing(v.limits.Block, now)
	if block == "" && (len(v.limits.Allow) == 0 || policy.Containing(v.limits.Allow, now) != "") {
		return v.allow(func() string {
			if len(v.limits.Allow) == 0 {
				return "no window closes this moment"
			}
			return "inside " + policy.Containing(v.limits.Allow, now)
		})
	}
	why := "outside of " + list(windowNames(v.limits.Allow))
	if block != "" {
		why = "inside of " + block + ", which blocks"
	}
	next := v.limits.NextOpen(now)
	if next.IsZero() {
		return v.waitUntil(events.CodeOutsideWindow, next,
			"%s, and no window opens within a year; to do it now, change the policy's windows", why)
	}
	return v.waitUntil(events.CodeOutsideWindow, next, "%s; the next window opens at %s", why, stamp(next))
}

func windowNames(windows []policy.Window) []string {
	var names []string
	for _, w := range windows {
		names = append(names, w.Name)
	}
	return names
}

// cooledDown keeps a server from being operated on again and again. It does not hold up a
// start that undoes a stop: its server is down, and to leave it down helps nobody.
func cooledDown(v *view) Decision {
	var server, again, zone, failure *Ended
	for i := range v.Record.Recent {
		e := &v.Record.Recent[i]
		if e.OperationID == v.Operation.OperationID {
			continue
		}
		if e.ServerID == v.Operation.ServerID {
			server = later(server, e)
			if e.Kind == v.Operation.Kind {
				again = later(again, e)
			}
		}
		if e.Zone == v.zone.Name {
			zone = later(zone, e)
		}
	}
	undoes := v.Operation.Kind == events.Start && server != nil && server.Kind == events.Stop
	for i := range v.Record.Recent {
		e := &v.Record.Recent[i]
		if !e.Succeeded && e.OperationID != v.Operation.OperationID && (!undoes || e != server) {
			failure = later(failure, e)
		}
	}
	stop := ""
	if undoes {
		stop, again, zone = server.OperationID, nil, nil
	}
	var until time.Time
	var why string
	for _, c := range []struct {
		after  *Ended
		length time.Duration
		what   string
	}{
		{again, v.limits.Cooldown.Server, "of the same kind on the same server"},
		{zone, v.limits.Cooldown.Zone, "in the same zone"},
		{failure, v.limits.Cooldown.Failure, "that failed in the cluster"},
	} {
		if c.after == nil || !c.after.At.Add(c.length).After(v.Now) || !c.after.At.Add(c.length).After(until) {
			continue
		}
		until = c.after.At.Add(c.length)
		why = fmt.Sprintf("operations wait for %s after an operation %s: %s of server %d (operation %s) ended at %s",
			c.length, c.what, c.after.Kind, c.after.ServerID, c.after.OperationID, stamp(c.after.At))
	}
	if !until.IsZero() {
		return v.waitUntil(events.CodeCooldown, until, "%s; it waits until %s, or until the policy has a shorter cooldown",
			why, stamp(until))
	}
	return v.allow(func() string {
		if undoes {
			return "it undoes a stop: operation " + stop
		}
		return "no cooldown runs"
	})
}

func later(a, b *Ended) *Ended {
	if a == nil || !b.At.Before(a.At) {
		return b
	}
	return a
}

// withinBudget counts the operations that take servers down, each from when its slot was
// taken; a start costs nothing.
func withinBudget(v *view) Decision {
	if !v.takesDown() {
		return v.allow(func() string { return "a start takes no server down" })
	}
	const over = "%d operations of %s that take a server down began within %s, and the limit is %d; " +
		"the next may begin at %s, or once the policy's %s is larger"
	cluster, fleet := v.limits.Budget, v.Policy.Fleet
	spent, free := cluster.Spent(v.clusterStarts, v.Now)
	if !free.IsZero() {
		return v.waitUntil(events.CodeBudget, free, over, spent, fmt.Sprint("cluster ", v.Operation.ClusterID),
			cluster.Window, cluster.Operations, stamp(free), "budget")
	}
	all, free := fleet.Spent(v.fleetStarts, v.Now)
	if !free.IsZero() {
		return v.waitUntil(events.CodeBudget, free, over, all, "all clusters", fleet.Window, fleet.Operations,
			stamp(free), "budget of all clusters")
	}
	return v.allow(func() string {
		return fmt.Sprintf("the cluster's: %s; of all clusters: %s", usage(cluster, spent), usage(fleet, all))
	})
}

// clusterStarts yields when other operations that take servers of the cluster down began.
func (v *view) clusterStarts(yield func(time.Time) bool) {
	for i := range v.Record.Active {
		if s := &v.Record.Active[i]; takesDown(s.Kind) && s.OperationID != v.Operation.OperationID && !yield(s.Since) {
			return
		}
	}
	for i := range v.Record.Recent {
		e := &v.Record.Recent[i]
		// An operation that has ended and runs again is counted where it runs.
		if takesDown(e.Kind) && e.OperationID != v.Operation.OperationID && !v.Record.Holds(e.OperationID, 0) &&
			!yield(e.Since) {
			return
		}
	}
}

// fleetStarts does the same for all clusters.
func (v *view) fleetStarts(yield func(time.Time) bool) {
	for i := range v.Fleet.Taken {
		if t := &v.Fleet.Taken[i]; t.OperationID != v.Operation.OperationID && !yield(t.At) {
			return
		}
	}
}

// Reserves reports whether the operation needs a share of the budget of all clusters that
// it does not have yet.
func (q *Question) Reserves() bool {
	return q.Policy.Fleet.Operations > 0 && takesDown(q.Operation.Kind) && !q.Retry &&
		!slices.ContainsFunc(q.Fleet.Taken, func(t Taken) bool { return t.OperationID == q.Operation.OperationID })
}

// BudgetsUsed returns how much of the cluster's budget is used, and of the budget of all
// clusters: 0 to 1, and 0 if there is no budget.
func (q *Question) BudgetsUsed() (cluster, fleet float64) {
	v := &view{Question: q, limits: q.Limits()}
	ratio := func(b policy.Budget, starts iter.Seq[time.Time]) float64 {
		spent, _ := b.Spent(starts, q.Now)
		return float64(spent) / float64(max(1, b.Operations))
	}
	return ratio(v.limits.Budget, v.clusterStarts), ratio(q.Policy.Fleet, v.fleetStarts)
}

// usage says how much of a budget is spent.
func usage(b policy.Budget, spent int) string {
	if b.Operations <= 0 {
		return "no limit"
	}
	return fmt.Sprintf("%d of %d in %s", spent, b.Operations, b.Window)
}

// takesDown reports whether operations of the kind take a server down.
func takesDown(k events.Kind) bool { return k != events.Start }
