package operation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// Outcome is what OCP shows after a call whose answer is not known.
type Outcome string

// The outcomes of a reconciliation.
const (
	Found      Outcome = "found"      // the task that the call started
	Done       Outcome = "done"       // the server is in the wanted state, no task is to be seen
	InBetween  Outcome = "in_between" // the server is on its way somewhere, no task is to be seen
	Nothing    Outcome = "nothing"    // no trace of the call
	Unclear    Outcome = "unclear"    // tasks that may be it, and no way to tell
	Forbidden  Outcome = "forbidden"  // OCP does not let this user look
	Unreadable Outcome = "unreadable" // OCP does not answer
)

// Finding is an outcome with the task, where there is one, and what a person
// should know of it.
type Finding struct {
	Outcome Outcome
	Task    ocp.Task
	Note    string
}

// ClockTolerance is how much earlier than the call, by OCP's clock as the agent
// knows it, a task may have started and still be the call's: some clocks are known
// from headers of a resolution of one second.
const ClockTolerance = 2 * time.Second

// Evidence is what OCP shows of a cluster after a call.
type Evidence struct {
	Tasks    []ocp.Task // of the cluster, in full where that was needed
	Topology []ocp.Zone
}

// Trace finds the task of op's latest call in the evidence. Of several tasks it takes the earliest: any other can only
// have been started after it.
func Trace(op events.Operation, e Evidence) Finding {
	server, _ := guard.FindServer(e.Topology, op.ServerID)
	var certain, possible []ocp.Task
	for _, t := range e.Tasks {
		switch mayBe(op, t, server.HostID) {
		case Yes:
			certain = append(certain, t)
		case Unknown:
			possible = append(possible, t)
		}
	}
	wanted, moving := wantedStatus(op, server)
	switch {
	case len(certain) > 0:
		return found(certain)
	case len(possible) == 1 && (wanted || moving):
		f := found(possible)
		f.Note = fmt.Sprintf("; it does not say for certain that it is this one, but server %d is %s and there is no other", op.ServerID, server.Status)
		return f
	case len(possible) > 0:
		return Finding{Outcome: Unclear, Note: fmt.Sprintf("OCP shows %d tasks that may be it, %v, while server %d is %s",
			len(possible), taskIDs(possible), op.ServerID, server.Status)}
	case wanted:
		return Finding{Outcome: Done, Note: fmt.Sprintf("server %d is %s", op.ServerID, server.Status)}
	case moving:
		return Finding{Outcome: InBetween, Note: fmt.Sprintf("server %d is %s and OCP shows no task of it", op.ServerID, server.Status)}
	}
	return Finding{Outcome: Nothing}
}

// Candidate reports whether a task in OCP's list may turn out to be the one that op's latest call started, once it is
// read in full: lists do not always say which server a task is about. hostID is that of op's server; 0: not known.
func Candidate(op events.Operation, t ocp.Task, hostID int64) bool {
	return matches(op, t, hostID) != No
}

// mayBe reports whether a task in full is the one that op's latest call started. A task that says neither what it does
// nor to which server is nobody's.
func mayBe(op events.Operation, t ocp.Task, hostID int64) Match {
	if _, about := AboutServer(t, op.ClusterID, op.ServerID, hostID); about == Unknown && does(t, op.Kind) == Unknown {
		return No
	}
	return matches(op, t, hostID)
}

func matches(op events.Operation, t ocp.Task, hostID int64) Match {
	_, about := AboutServer(t, op.ClusterID, op.ServerID, hostID)
	return min(does(t, op.Kind), about, startedSince(t, op.OCPTime))
}

// startedSince reports whether a task may have been started by a call at the moment called, by OCP's clock. A task that
// was over before the call is older in any case; where OCP tells whole seconds, a task that was over in the second of the
// call may be either.
func startedSince(t ocp.Task, called time.Time) Match {
	started := t.StartedAt
	if started.IsZero() {
		started = t.CreatedAt
	}
	over, latest := !t.FinishedAt.IsZero() && t.FinishedAt.Before(called), t.FinishedAt
	if latest.Nanosecond() == 0 {
		latest = latest.Add(time.Second - 1)
	}
	switch {
	case over && latest.Before(called):
		return No
	case started.IsZero():
		return Unknown
	case started.Before(called.Add(-ClockTolerance)):
		return No
	case over:
		return Unknown
	}
	return Yes
}

func found(tasks []ocp.Task) Finding {
	first := slices.MinFunc(tasks, func(a, b ocp.Task) int { return int(min(max(a.ID-b.ID, -1), 1)) })
	f := Finding{Outcome: Found, Task: first}
	if len(tasks) > 1 {
		f.Note = fmt.Sprintf("; it is the first of %d such tasks: %v", len(tasks), taskIDs(tasks))
	}
	return f
}

func taskIDs(tasks []ocp.Task) []int64 {
	var ids []int64
	for _, t := range tasks {
		ids = append(ids, t.ID)
	}
	slices.Sort(ids)
	return ids
}

// wantedStatus reports whether a server is in the state that op leads to, or is moving from one state to another. A state
// that the guard does not take for done before a call is not done after it either: the server is halfway.
func wantedStatus(op events.Operation, server ocp.Server) (wanted, moving bool) {
	server.Status, server.InnerStatus = strings.ToUpper(server.Status), strings.ToUpper(server.InnerStatus)
	if guard.Fulfilled(op, server) {
		return true, false
	}
	switch server.Status {
	case "SERVICE_STOPPED":
		return false, op.Kind == events.Stop
	case "RUNNING":
		return false, op.Kind == events.Start
	case "STOPPING", "STARTING", "RESTARTING", "OPERATING", "SERVICE_STOPPING", "PROCESS_STOPPING":
		return false, true
	}
	return false, false
}

// Match is a yes or no that may not be known.
type Match int

// The matches.
const (
	No Match = iota
	Unknown
	Yes
)

// AboutServer reports whether a task is one of this cluster and of this server.
// The published shapes tell it in different places or, in a list, not at all;
// hostID helps where the shape names only the host (0: not known).
func AboutServer(t ocp.Task, clusterID, serverID, hostID int64) (cluster, server Match) {
	cluster, server = Unknown, Unknown
	for _, id := range []int64{t.ClusterID, t.ContextClusterID} {
		if id == clusterID {
			cluster = Yes
		} else if id != 0 && cluster == Unknown {
			cluster = No
		}
	}
	switch {
	case slices.Contains(t.ServerIDs, serverID):
		server = Yes
	case len(t.ServerIDs) > 0:
		server = No
	case t.HostID != 0 && hostID != 0 && t.HostID == hostID:
		server = Yes
	case t.HostID != 0 && hostID != 0:
		server = No
	}
	if cluster == No {
		server = No
	}
	return cluster, server
}

// does reports whether a task carries out an operation of the kind on a server.
// OCP's tasks have no type for this but their name, in English ("Stop OB server")
// as published; what is named otherwise may be anything.
func does(t ocp.Task, kind events.Kind) Match {
	name := strings.ToLower(t.Name)
	named := nameOf(name)
	says := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(name, w) })
	}
	switch {
	case named == "":
		return Unknown
	case named != kind:
		return No
	case says("server"): // observer is one too
		return Yes
	case says("zone", "cluster", "tenant", "proxy", "host", "agent"):
		return No
	}
	return Unknown
}

// nameOf is the kind of operation that a name speaks of; empty where it speaks of none.
func nameOf(name string) events.Kind {
	for _, kind := range []events.Kind{events.Restart, events.Start, events.Stop} { // restart has start in it
		if strings.Contains(name, string(kind)) {
			return kind
		}
	}
	return ""
}
