package events

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
)

// Kind is what an operation does to a server.
type Kind string

// The kinds an agent carries out.
const (
	Stop    Kind = "stop"
	Start   Kind = "start"
	Restart Kind = "restart"
)

// Kinds lists every kind, in the order in which documents show them.
func Kinds() []Kind { return []Kind{Stop, Start, Restart} }

// Known reports whether an agent can carry k out.
func (k Kind) Known() bool { return k == Stop || k == Start || k == Restart }

// State is where an operation stands. Progress, Stalled, Duplicate and Approved
// are no states: they are the last token of the subjects of events that leave the
// state as it is.
type State string

// The states of an operation.
const (
	Accepted   State = "accepted"   // decoded, valid, the first of its key
	Waiting    State = "waiting"    // the guard says not yet
	Submitting State = "submitting" // the intent to call OCP, written before the call
	Running    State = "running"    // OCP's task is known
	Succeeded  State = "succeeded"
	Failed     State = "failed"
	Cancelled  State = "cancelled"
	Rejected   State = "rejected" // before anything was sent
	Expired    State = "expired"  // not submitted by its expires_at
)

// Events that are not states.
const (
	Progress  State = "progress"  // a subtask, or the task, changed
	Stalled   State = "stalled"   // no subtask moved for a long time
	Duplicate State = "duplicate" // the same request arrived again
	Approved  State = "approved"  // a person has approved it, or tried to
)

// States lists every state in the order in which an operation may pass them.
func States() []State {
	return []State{Accepted, Waiting, Submitting, Running, Succeeded, Failed, Cancelled, Rejected, Expired}
}

// Final reports whether an operation in state s has ended.
func (s State) Final() bool {
	switch s {
	case Succeeded, Failed, Cancelled, Rejected, Expired:
		return true
	}
	return false
}

// The subjects that the two streams take.
const (
	RequestSubjects       = "ob.server.*.request"   // target in the body
	TargetRequestSubjects = "ob.server.*.request.>" // .<cluster>.<server>
	CancelSubjects        = "ob.server.*.cancel.>"  // .<operation id>.<cluster>.<server>
	RetrySubjects         = "ob.server.*.retry.>"   // .<operation id>.<cluster>.<server>
	ApproveSubjects       = "ob.server.*.approve.>" // .<operation id>.<cluster>.<server>
	EventSubjects         = "ob.server.*.event.>"
)

// RequestSubject is where a request of kind k is published, its target in the body.
func RequestSubject(k Kind) string { return "ob.server." + string(k) + ".request" }

// TargetRequestSubject names the target too, so that NATS permissions can say
// who may do what to which server.
func TargetRequestSubject(k Kind, cluster, server int64) string {
	return fmt.Sprintf("%s.%d.%d", RequestSubject(k), cluster, server)
}

// Verb is what a person wants of an operation that is there already.
type Verb string

// The verbs.
const (
	Cancel  Verb = "cancel"  // what has not been submitted
	Retry   Verb = "retry"   // OCP's failed task
	Approve Verb = "approve" // what waits for a person's word
)

// Verbs lists every verb, in the order in which documents show them.
func Verbs() []Verb { return []Verb{Cancel, Retry, Approve} }

// EventSubject is where the event of an operation is published; token is a
// state, or Progress, Stalled, Duplicate or Approved. An unknown cluster or server is 0.
func EventSubject(k Kind, operationID string, cluster, server int64, token State) string {
	return fmt.Sprintf("ob.server.%s.event.%s.%d.%d.%s", k, operationID, cluster, server, token)
}

// OperationSubjects matches every event of one operation, and nothing else. The
// kind is a wildcard: one key is one operation, whatever its kind.
func OperationSubjects(operationID string) string { return "ob.server.*.event." + operationID + ".>" }

// OperationID is the id of the operation that an idempotency key stands for: 128
// bits of SHA-256, as 26 characters of lower-case base32.
func OperationID(key string) string {
	sum := sha256.Sum256([]byte(key))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// EventToken is the last token of an event's subject: the state, or Progress,
// Stalled, Duplicate or Approved.
func EventToken(subject string) State {
	return State(subject[strings.LastIndexByte(subject, '.')+1:])
}

// target is what a request's subject says.
type target struct {
	kind            Kind
	cluster, server int64 // 0: not in the subject
}

// parseRequestSubject reads kind and target. Where it fails, it returns what it
// could read beside the error.
func parseRequestSubject(subject string) (target, error) {
	tokens := strings.Split(subject, ".")
	if len(tokens) < 4 || tokens[0] != "ob" || tokens[1] != "server" || tokens[3] != "request" {
		return target{}, fmt.Errorf("subject %q: not of the form ob.server.<kind>.request", subject)
	}
	t := target{kind: Kind(tokens[2])}
	if !t.kind.Known() {
		return t, fmt.Errorf("subject %q: kind must be stop, start or restart", subject)
	}
	switch len(tokens) {
	case 4:
		return t, nil
	case 6:
		var errCluster, errServer error
		t.cluster, errCluster = parseID(tokens[4])
		t.server, errServer = parseID(tokens[5])
		if errCluster != nil || errServer != nil {
			return t, fmt.Errorf("subject %q: cluster and server must be integers of at least 1", subject)
		}
		return t, nil
	}
	return t, fmt.Errorf("subject %q: after request comes nothing, or .<cluster>.<server>", subject)
}

// parseID reads an id as the documents write it: digits only, at least 1.
func parseID(s string) (int64, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil || id < 1 || s[0] < '1' || s[0] > '9' {
		return 0, fmt.Errorf("must be an integer of at least 1")
	}
	return id, nil
}
