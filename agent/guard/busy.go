package guard

import (
	"fmt"
	"slices"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// work is something under way in the cluster, other than the operation itself: a slot, a
// task of OCP or, if neither explains it, a server or zone that is on its way to another
// status. A task on several servers is one work with several entries.
type work struct {
	zone   string // empty: not known, or the whole cluster
	server int64  // 0: the whole zone or cluster
	whole  bool   // the whole cluster, or a task that does not say what it works on
	again  bool   // a further entry of the same task
	slot   *Slot
	task   *ocp.Task
	status string // that OCP shows, if there is neither slot nor task
}

// underWay appends all work in the cluster to found.
func (v *view) underWay(found []work) []work {
	for i := range v.Record.Active {
		if slot := &v.Record.Active[i]; slot.OperationID != v.Operation.OperationID {
			found = append(found, work{zone: or(v.zoneOf(slot.ServerID), slot.Zone), server: slot.ServerID, slot: slot})
		}
	}
	slots := len(found)
	for i := range v.Facts.Tasks {
		if t := &v.Facts.Tasks[i]; !v.owns(t) && v.concerns(t) {
			found = v.appendTask(found, slots, t)
		}
	}
	for i := range v.Facts.Zones {
		zone := &v.Facts.Zones[i]
		for j := range zone.Servers {
			s := &zone.Servers[j]
			if s.ID != v.Operation.ServerID && s.Moving() && !explained(found, zone.Name, s.ID) {
				found = append(found, work{zone: zone.Name, server: s.ID, status: s.Status})
			}
		}
		inZone := func(w work) bool { return w.whole || w.zone == zone.Name }
		if zone.Moving() && !v.leftBehind(zone) && !slices.ContainsFunc(found, inZone) {
			found = append(found, work{zone: zone.Name, status: zone.Status})
		}
	}
	return found
}

// explained reports whether some work that was found explains why the server is moving.
func explained(found []work, zone string, server int64) bool {
	return slices.ContainsFunc(found, func(w work) bool {
		return w.whole || w.server == server || w.server == 0 && w.zone == zone
	})
}

// leftBehind reports whether a zone is on its way because of the server in question: the
// server is moving too, or its failed task is to be retried.
func (v *view) leftBehind(zone *ocp.Zone) bool {
	return zone.Name == v.zone.Name && (v.Retry || v.server.Moving())
}

// appendTask appends what a task works on, except for servers with a slot among the first
// entries of found: their work is counted already.
func (v *view) appendTask(found []work, slots int, t *ocp.Task) []work {
	first := true
	add := func(w work) {
		failed := t.Status == ocp.StatusFailed
		if slices.ContainsFunc(found[:slots], func(s work) bool { return w.server != 0 && s.server == w.server }) ||
			failed && !v.stuck(w, t) ||
			failed && v.Retry && w.server == v.Operation.ServerID {
			return
		}
		w.task, w.again = t, !first
		found, first = append(found, w), false
	}
	named := false
	for _, id := range t.ServerIDs {
		named = true
		add(work{zone: or(v.zoneOf(id), t.ZoneName), server: id})
	}
	if !named && t.HostID != 0 {
		for i := range v.Facts.Zones {
			for j := range v.Facts.Zones[i].Servers {
				if s := &v.Facts.Zones[i].Servers[j]; s.HostID == t.HostID {
					named = true
					add(work{zone: v.Facts.Zones[i].Name, server: s.ID})
				}
			}
		}
	}
	switch {
	case named:
	case t.ZoneName != "":
		add(work{zone: t.ZoneName})
	default:
		add(work{whole: true})
	}
	return found
}

// stuck reports whether the server or zone that a failed task worked on is still in
// between. A failed task counts only for so long: people may never touch it again. The
// status of a zone proves nothing if one of its servers explains it, or the task that is
// to be retried.
func (v *view) stuck(w work, t *ocp.Task) bool {
	for i := range v.Facts.Zones {
		zone := &v.Facts.Zones[i]
		shown := false
		for j := range zone.Servers {
			s := &zone.Servers[j]
			if !s.Moving() {
				continue
			}
			shown = true
			if s.ID == w.server || w.server == 0 && zone.Name == w.zone {
				return true
			}
		}
		if !shown && zone.Moving() && (zone.Name == w.zone || zone.Name == t.ZoneName) && !v.leftBehind(zone) {
			return true
		}
	}
	return false
}

func (v *view) zoneOf(server int64) string { return v.Facts.Zones.ZoneOf(server) }

// owns reports whether a task is the operation's own.
func (v *view) owns(t *ocp.Task) bool { return v.Operation.Task != nil && v.Operation.Task.ID == t.ID }

// concerns reports whether a task may be work on servers, zones or the cluster. If neither
// its name nor its type tells, it is if it names a server, its host or a zone of the cluster.
func (v *view) concerns(t *ocp.Task) bool {
	subject := t.Subject()
	switch {
	case t.Status == ocp.StatusSuccessful || subject.InCluster(v.Operation.ClusterID) == ocp.No:
		return false
	case subject.Structural != ocp.Unknown:
		return subject.Structural == ocp.Yes
	}
	return len(t.ServerIDs) > 0 || t.ZoneName != "" || v.onHost(t.HostID)
}

func (v *view) onHost(id int64) bool {
	return id != 0 && slices.ContainsFunc(v.Facts.Zones, func(z ocp.Zone) bool {
		return slices.ContainsFunc(z.Servers, func(s ocp.Server) bool { return s.HostID == id })
	})
}

func (w work) String() string {
	what := ""
	switch {
	case w.slot != nil:
		return fmt.Sprintf("%s of server %d (operation %s)", w.slot.Kind, w.server, w.slot.OperationID)
	case w.server != 0:
		what = fmt.Sprintf("server %d", w.server)
	case w.zone != "":
		what = w.zone
	default:
		what = "the cluster"
	}
	if w.task == nil {
		return fmt.Sprintf("%s is %s in OCP", what, w.status)
	}
	who := ""
	if w.task.Creator != "" {
		who = " of " + w.task.Creator
	}
	if w.task.Status == ocp.StatusFailed {
		return fmt.Sprintf("OCP's task %d (%s)%s on %s has failed and left it halfway: retry or roll it back in OCP",
			w.task.ID, w.task.Name, who, what)
	}
	return fmt.Sprintf("OCP's task %d (%s)%s on %s", w.task.ID, w.task.Name, who, what)
}

// serverHasNoSlot lets one operation at a time have a server.
func serverHasNoSlot(v *view) Decision {
	for _, w := range v.work {
		if w.slot != nil && w.server == v.Operation.ServerID {
			return v.wait(events.CodeServerBusy, lookAgainAfter, "server %d waits for the %s", w.server, w)
		}
	}
	return v.allow(func() string { return fmt.Sprintf("no other operation has server %d", v.Operation.ServerID) })
}

// serverIsStill holds up operations on a server that something else works on. A server
// that is being created or deleted is left to stateFits, and a server that a failed task
// left halfway is what a retry is for.
func serverIsStill(v *view) Decision {
	for _, w := range v.work {
		if w.slot == nil && (w.server == v.server.ID || w.server == 0 && w.zone == v.zone.Name && !w.whole) {
			return v.wait(events.CodeServerBusy, lookAgainAfter, "server %d waits: %s", v.server.ID, w)
		}
	}
	if !v.Retry && v.server.Moving() && v.server.Exists() {
		return v.wait(events.CodeServerBusy, lookAgainAfter, "server %d is %s in OCP; it waits until that is over",
			v.server.ID, v.server.Status)
	}
	return v.allow(func() string {
		return fmt.Sprintf("nothing is under way on server %d in OCP%s", v.server.ID, v.hidden())
	})
}

// hidden is what a consent adds if OCP shows no tasks.
func (v *view) hidden() string {
	if v.Facts.TasksHidden {
		return ", as far as statuses show: it hides its tasks"
	}
	return ""
}

func (v *view) maxConcurrent() int { return max(1, v.limits.MaxConcurrent) }

// slotIsFree lets only so many operations of ours have slots in a cluster.
func slotIsFree(v *view) Decision {
	taken := v.count(func(w work) bool { return w.slot != nil })
	if taken >= v.maxConcurrent() {
		return v.clusterBusy(taken)
	}
	return v.allow(func() string { return fmt.Sprintf("%d of %s taken", taken, count(v.maxConcurrent(), "slot")) })
}

// clusterIsStill counts work of others in OCP like operations of ours.
func clusterIsStill(v *view) Decision {
	for _, w := range v.work {
		if w.whole {
			return v.wait(events.CodeClusterBusy, lookAgainAfter, "cluster %d waits for %s", v.Operation.ClusterID, w)
		}
	}
	taken := v.count(func(work) bool { return true })
	if taken >= v.maxConcurrent() {
		return v.clusterBusy(taken)
	}
	return v.allow(func() string {
		return fmt.Sprintf("%d of %s under way%s", taken, count(v.maxConcurrent(), "operation"), v.hidden())
	})
}

func (v *view) count(which func(work) bool) int {
	n := 0
	for _, w := range v.work {
		if !w.again && which(w) {
			n++
		}
	}
	return n
}

func (v *view) clusterBusy(taken int) Decision {
	return v.wait(events.CodeClusterBusy, lookAgainAfter, "cluster %d has %d of %s under way: %s",
		v.Operation.ClusterID, taken, count(v.maxConcurrent(), "operation"), v.work[0])
}

// itsTurn serves the queue in order. A ticket whose server is busy could not take a slot,
// and lets others pass. A ticket that waits for the zone in use to become quiet keeps
// further operations out of that zone.
func itsTurn(v *view) Decision {
	free := v.maxConcurrent() - v.count(func(work) bool { return true })
	ahead := 0
	var next, elsewhere Ticket
	for _, t := range v.Record.Queue {
		if !v.before(t) || v.busy(t.ServerID) {
			continue
		}
		if ahead == 0 || t.Sequence < next.Sequence {
			next = t
		}
		if v.limits.OneZoneAtATime && v.takesDown() && takesDown(t.Kind) && v.zoneOf(t.ServerID) != v.zone.Name {
			elsewhere = t
		}
		ahead++
	}
	if ahead >= free {
		return v.wait(events.CodeClusterBusy, lookAgainAfter,
			"%d came first and %s free in cluster %d; next is operation %s of server %d",
			ahead, count(free, "slot"), v.Operation.ClusterID, next.OperationID, next.ServerID)
	}
	if elsewhere.OperationID != "" {
		return v.wait(events.CodeClusterBusy, lookAgainAfter,
			"operation %s of server %d came first and is about another zone, %s; it goes when %s is quiet",
			elsewhere.OperationID, elsewhere.ServerID, v.zoneOf(elsewhere.ServerID), v.zone.Name)
	}
	return v.allow(func() string { return fmt.Sprintf("%d came first, %s free", ahead, count(free, "slot")) })
}

// busy reports whether a server of the cluster could not be operated on now.
func (v *view) busy(server int64) bool {
	if explained(v.work, v.zoneOf(server), server) {
		return true
	}
	return server == v.Operation.ServerID && v.server.Moving()
}

// noOtherZoneActive keeps operations in one zone at a time: the database does not let
// servers of two zones be stopped at once, and work in another zone may be a stop.
func noOtherZoneActive(v *view) Decision {
	if d, exempt := v.oneZone(); exempt {
		return d
	}
	for _, w := range v.work {
		if w.zone != v.zone.Name {
			return v.wait(events.CodeOtherZoneActive, lookAgainAfter, "servers of one zone at a time: %s waits for %s, %s",
				v.zone.Name, or(w.zone, "another zone"), w)
		}
	}
	return v.allow(func() string { return "nothing is under way in another zone" })
}

// noOtherZoneStopped does the same for servers that are stopped already.
func noOtherZoneStopped(v *view) Decision {
	if d, exempt := v.oneZone(); exempt {
		return d
	}
	for i := range v.Facts.Zones {
		zone := &v.Facts.Zones[i]
		if zone.Name == v.zone.Name {
			continue
		}
		for j := range zone.Servers {
			if s := &zone.Servers[j]; s.Stopped() {
				return v.wait(events.CodeOtherZoneActive, askPeopleAfter,
					"servers of one zone at a time: server %d of %s is %s; start it first (obwarden start %d %d)",
					s.ID, zone.Name, s.Status, v.Operation.ClusterID, s.ID)
			}
		}
	}
	return v.allow(func() string { return "no server of another zone is stopped" })
}

// oneZone returns the consent of the rules about other zones if they do not apply.
func (v *view) oneZone() (d Decision, exempt bool) {
	switch {
	case !v.takesDown():
		return v.allow(func() string { return "a start takes no server down" }), true
	case !v.limits.OneZoneAtATime:
		return v.allow(func() string { return "the policy lets several zones be operated on at once" }), true
	}
	return Decision{}, false
}
