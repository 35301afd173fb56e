package ocp

import (
	"slices"
	"strings"
)

// Answer is a yes or no that may not be known. The smaller of two answers is what both
// together say: min(Yes, Unknown) is Unknown.
type Answer int

// The answers.
const (
	No Answer = iota
	Unknown
	Yes
)

// Subject is what a task is about, as far as it says. OCP has no field for that: the name
// says what is done, in English as published ("Stop OB server"), and ids say to what. The
// published shapes have the ids in different places or, in a list, not at all. A task with
// a name in another language may be about anything.
type Subject struct {
	// Action on a server that the name speaks of; empty if it speaks of none.
	Action Action
	// Scope is what the name says that the action is on: "server" (an observer is one
	// too), else the first of "zone", "cluster", "tenant", "proxy", "host" and "agent"
	// that the name has in it; empty if it has none of them.
	Scope string
	// Structural says whether, by its name and type, the task works on servers, zones or
	// the cluster as a whole, and so may take servers down. No: it is about something
	// else, such as a backup. Unknown: only the ids can tell.
	Structural Answer

	ClusterID        int64   // OCP's id; 0: not shown
	ContextClusterID int64   // the same, from the task's context
	ServerIDs        []int64 // OCP's ids
	HostID           int64   // 0: not shown
	Zone             string  // name; empty: not shown
}

// Subject returns what the task is about.
func (t Task) Subject() Subject {
	return Subject{
		Action: actionOf(t.Name), Scope: scopeOf(t.Name), Structural: structural(t.Name, t.Type),
		ClusterID: t.ClusterID, ContextClusterID: t.ContextClusterID,
		ServerIDs: t.ServerIDs, HostID: t.HostID, Zone: t.ZoneName,
	}
}

// Does reports whether the task carries out the action on a server, by its name.
func (s Subject) Does(action Action) Answer {
	switch {
	case s.Action == "":
		return Unknown
	case s.Action != action:
		return No
	case s.Scope == "server":
		return Yes
	case s.Scope != "":
		return No
	}
	return Unknown
}

// InCluster reports whether the task is one of the cluster. If the task shows two ids,
// one of them is enough.
func (s Subject) InCluster(id int64) Answer {
	switch {
	case s.ClusterID == id || s.ContextClusterID == id:
		return Yes
	case s.ClusterID == 0 && s.ContextClusterID == 0:
		return Unknown
	}
	return No
}

// OnServer reports whether the task is one of the server, which is in the cluster. hostID
// is the server's host, for tasks that show only that; 0: not known.
func (s Subject) OnServer(clusterID, serverID, hostID int64) Answer {
	switch {
	case s.InCluster(clusterID) == No:
		return No
	case slices.Contains(s.ServerIDs, serverID):
		return Yes
	case len(s.ServerIDs) > 0:
		return No
	case s.HostID == 0 || hostID == 0:
		return Unknown
	case s.HostID == hostID:
		return Yes
	}
	return No
}

func actionOf(name string) Action {
	for _, action := range [...]Action{Restart, Start, Stop} { // restart has start in it
		if containsFold(name, string(action)) {
			return action
		}
	}
	return ""
}

func scopeOf(name string) string {
	for _, scope := range [...]string{"server", "zone", "cluster", "tenant", "proxy", "host", "agent"} {
		if containsFold(name, scope) {
			return scope
		}
	}
	return ""
}

// structural goes by the words of a task's name and type. The topics in the middle must be
// found, or a backup that takes a week would stop everything.
func structural(name, kind string) Answer {
	says := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return containsFold(name, w) || containsFold(kind, w) })
	}
	// What is done to servers, zones and clusters alike, and to nothing else.
	operates := says("stop", "start", "upgrade", "scal", "switchover", "switch over", "failover", "fail over")
	switch {
	case says("proxy"): // the servers of OBProxy are no servers of the cluster
		return No
	case (operates || says("add", "create", "delete", "remove", "replace", "migrat", "roll")) && says("server", "zone"):
		return Yes
	case says("tenant", "backup", "restore", "archiv", "inspect", "agent", "log", "report", "monitor", "alarm", "collect",
		"diagnos", "compaction", "merge", "statistic", "parameter", "password", "user", "account", "database", "whitelist",
		"software", "package"):
		return No
	case operates:
		return Yes
	case says("cluster") && says("create", "delete", "remove", "replace", "migrat", "roll", "take over", "takeover"):
		return Yes
	}
	return Unknown
}

// containsFold reports whether s contains word, which is lower case, whatever the case of
// the ASCII letters in s.
func containsFold(s, word string) bool {
	for i := 0; i+len(word) <= len(s); i++ {
		if s[i]|0x20 == word[0] && strings.EqualFold(s[i:i+len(word)], word) {
			return true
		}
	}
	return false
}
