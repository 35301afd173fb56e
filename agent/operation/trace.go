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

// Outcome says what OCP shows after a call whose answer is lost.
type Outcome string

// The outcomes of a reconciliation.
const (
	Found      Outcome = "found"      // the task that the call started
	Done       Outcome = "done"       // the server is in the wanted state, and OCP shows no task
	InBetween  Outcome = "in_between" // the server is moving to another status, and OCP shows no task
	Nothing    Outcome = "nothing"    // no trace of the call
	Unclear    Outcome = "unclear"    // tasks that the call may have started, and no way to tell
	Forbidden  Outcome = "forbidden"  // OCP does not let this user look
	Unreadable Outcome = "unreadable" // OCP does not answer
)

// Finding is an outcome with the task, if there is one, and a note for people.
type Finding struct {
	Outcome Outcome
	Task    ocp.Task
	Note    string
}

// ClockTolerance is how much earlier than the call a task may seem to have started and still be the call's. The agent
// knows OCP's clock from HTTP headers, some of which have a resolution of one second.
const ClockTolerance = 2 * time.Second

// Evidence is what OCP shows of a cluster after a call.
type Evidence struct {
	Tasks    []ocp.Task // of the cluster, in full
	Topology ocp.Topology
}

// Trace finds the task of op's latest call in the evidence. If several tasks match, it takes the earliest: somebody
// else must have started the later ones.
func Trace(op events.Operation, e Evidence) Finding {
	server, _, _ := e.Topology.Server(op.ServerID)
	var certain, possible []ocp.Task
	for _, t := range e.Tasks {
		switch mayBe(op, t, server.HostID) {
		case ocp.Yes:
			certain = append(certain, t)
		case ocp.Unknown:
			possible = append(possible, t)
		}
	}
	wanted, moving := wantedStatus(op, server)
	switch {
	case len(certain) > 0:
		return found(certain)
	case len(possible) == 1 && (wanted || moving):
		f := found(possible)
		f.Note = fmt.Sprintf("; OCP does not show for certain that the call started this task, but server %d is %s "+
			"and there is no other task", op.ServerID, server.Status)
		return f
	case len(possible) > 0:
		return Finding{Outcome: Unclear, Note: fmt.Sprintf(
			"OCP shows %d tasks that the call may have started, %v, while server %d is %s",
			len(possible), taskIDs(possible), op.ServerID, server.Status)}
	case wanted:
		return Finding{Outcome: Done, Note: fmt.Sprintf("server %d is %s", op.ServerID, server.Status)}
	case moving:
		return Finding{Outcome: InBetween, Note: fmt.Sprintf(
			"server %d is %s and OCP shows no task for it", op.ServerID, server.Status)}
	}
	return Finding{Outcome: Nothing}
}

// Candidate reports whether a task in OCP's list may turn out to be the one that op's latest call started, once it is
// read in full: lists do not always say which server a task is about. hostID is the host of op's server; 0: not known.
func Candidate(op events.Operation, t ocp.Task, hostID int64) bool {
	does, onServer := about(op, t, hostID)
	return min(does, onServer, startedSince(t, op.OCPTime)) != ocp.No
}

// mayBe reports whether a task in full is the one that op's latest call started. A task that says neither what it does
// nor to which server never counts.
func mayBe(op events.Operation, t ocp.Task, hostID int64) ocp.Answer {
	does, onServer := about(op, t, hostID)
	if does == ocp.Unknown && onServer == ocp.Unknown {
		return ocp.No
	}
	return min(does, onServer, startedSince(t, op.OCPTime))
}

// about reports whether a task does what op wants, and whether it does it to op's server.
func about(op events.Operation, t ocp.Task, hostID int64) (does, onServer ocp.Answer) {
	subject := t.Subject()
	return subject.Does(ocp.Action(op.Kind)), subject.OnServer(op.ClusterID, op.ServerID, hostID)
}

// startedSince reports whether a task may have been started by a call at the moment called, by OCP's clock. A task that
// had ended before the call is older in any case. If OCP shows whole seconds only, a task that ended in the second of
// the call may be either.
func startedSince(t ocp.Task, called time.Time) ocp.Answer {
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
		return ocp.No
	case started.IsZero():
		return ocp.Unknown
	case started.Before(called.Add(-ClockTolerance)):
		return ocp.No
	case over:
		return ocp.Unknown
	}
	return ocp.Yes
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

// wantedStatus reports whether a server is in the state that op leads to, or is moving from one state to another. It
// agrees with the guard: a state that needs a call before the call is not the wanted state after it, but halfway to it.
func wantedStatus(op events.Operation, server ocp.Server) (wanted, moving bool) {
	server.Status, server.InnerStatus = strings.ToUpper(server.Status), strings.ToUpper(server.InnerStatus)
	if guard.Fulfilled(op, server) {
		return true, false
	}
	switch server.Status {
	case ocp.ServerServiceStopped:
		return false, op.Kind == events.Stop
	case ocp.ServerRunning:
		return false, op.Kind == events.Start
	}
	return false, server.Moving() && server.Exists()
}
