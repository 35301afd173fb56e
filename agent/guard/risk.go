package guard

import (
	"fmt"
	"slices"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// wholeness is the state of a zone while the operation's server is down.
type wholeness int

const (
	whole  wholeness = iota
	busy             // not whole, only because of work in it that will end
	broken           // something in it is down
)

// majorityStays counts the zones that stay whole while the server is down. The server's
// own zone is never one of them, whatever its state: taking one more server of a broken
// zone down costs no zone, but if too few of the other zones are whole, the outage has
// begun and must not get worse. That is also true for a restart of a server that is down:
// UNAVAILABLE may be OCP's view alone. A start brings a server back, and is never held up
// here.
func majorityStays(v *view) Decision {
	keep, zones := v.limits.KeepZones, len(v.Facts.Zones)
	switch {
	case !v.takesDown():
		return v.allow(func() string { return "a start takes no server down" })
	case keep == 0:
		return v.allow(func() string { return "the policy asks for no zone to stay whole (keep_zones: 0)" })
	case keep < 0:
		keep = zones/2 + 1
	}
	stay, passing := 0, 0
	for i := range v.Facts.Zones {
		switch v.wholeness(&v.Facts.Zones[i]) {
		case whole:
			stay++
		case busy:
			passing++
		}
	}
	switch {
	case stay >= keep:
		return v.allow(func() string { return fmt.Sprintf("%s, and %d must", v.whoStays(stay), keep) })
	case stay+passing >= keep:
		return v.wait(events.CodeMajorityAtRisk, lookAgainAfter,
			"without server %d only %s, and %d must; it waits for work under way in the others: %s",
			v.Operation.ServerID, v.whoStays(stay), keep, v.others())
	case zones-1 < keep:
		return v.reject(events.CodeMajorityAtRisk,
			"a cluster of %s cannot keep %d whole while one is down; "+
				"to do it all the same, let the policy say keep_zones: %d for it",
			count(zones, "zone"), keep, max(0, zones-1))
	}
	return v.reject(events.CodeMajorityAtRisk, "without server %d only %s, and %d must; bring back first: %s",
		v.Operation.ServerID, v.whoStays(stay), keep, v.others())
}

// wholeness returns the state of a zone while the operation's server is down.
func (v *view) wholeness(z *ocp.Zone) wholeness {
	if z.Name == v.zone.Name {
		return broken
	}
	state, servers := whole, 0
	for _, w := range v.work {
		if w.whole || w.zone == z.Name && (w.slot == nil || takesDown(w.slot.Kind)) {
			state = busy
		}
	}
	for i := range z.Servers {
		s := &z.Servers[i]
		if s.Status == ocp.ServerDeleted {
			continue
		}
		servers++
		switch {
		case s.Running():
		case s.Moving() || v.inWork(s.ID):
			state = max(state, busy)
		default:
			return broken
		}
	}
	switch {
	case servers == 0 || z.ServerCount > len(z.Servers): // servers that OCP does not show may be down
		return broken
	case state == busy: // that explains the zone's own status
		return busy
	case !z.Running():
		return broken
	}
	return whole
}

// inWork reports whether some other work is on the server.
func (v *view) inWork(server int64) bool {
	return slices.ContainsFunc(v.work, func(w work) bool { return w.server == server })
}

// whoStays says how many zones stay whole, and which.
func (v *view) whoStays(stay int) string {
	var names []string
	for i := range v.Facts.Zones {
		if v.wholeness(&v.Facts.Zones[i]) == whole {
			names = append(names, v.Facts.Zones[i].Name)
		}
	}
	return fmt.Sprintf("%d of %s stay whole (%s)", stay, count(len(v.Facts.Zones), "zone"), list(names))
}

// others names the zones that do not stay whole, besides the server's own.
func (v *view) others() string {
	var names []string
	for i := range v.Facts.Zones {
		if z := &v.Facts.Zones[i]; z.Name != v.zone.Name && v.wholeness(z) != whole {
			names = append(names, z.Name)
		}
	}
	return list(names)
}

// rootServerStays keeps the last root service running. If OCP shows no root service at
// all, nobody knows which servers have one, and the database's own check must do.
func rootServerStays(v *view) Decision {
	switch {
	case !v.takesDown():
		return v.allow(func() string { return "a start takes no server down" })
	case !v.limits.KeepRootServer:
		return v.allow(func() string { return "the policy does not ask for a root server to stay" })
	case !v.server.WithRootServer:
		return v.allow(func() string { return fmt.Sprintf("server %d has no root service", v.server.ID) })
	}
	var inWork int64
	for i := range v.Facts.Zones {
		for j := range v.Facts.Zones[i].Servers {
			s := &v.Facts.Zones[i].Servers[j]
			switch {
			case !s.WithRootServer || s.ID == v.server.ID:
			case s.Moving() || v.inWork(s.ID):
				inWork = s.ID
			case !s.Running():
			default:
				return v.allow(func() string { return fmt.Sprintf("server %d keeps a root service", s.ID) })
			}
		}
	}
	if inWork != 0 {
		return v.wait(events.CodeLastRootServer, lookAgainAfter,
			"server %d has the last root service that runs; it waits for server %d, which has another", v.server.ID, inWork)
	}
	return v.reject(events.CodeLastRootServer,
		"server %d has the last root service that runs; "+
			"bring another one back first, or let the policy say keep_root_server: false", v.server.ID)
}
