package events

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
)

// Kind names what an operation does to a server.
type Kind string

// The kinds of operations that an agent carries out.
const (
	Stop    Kind = "stop"
	Start   Kind = "start"
	Restart Kind = "restart"
)

// Kinds lists every kind, in the order in which documents show them.
func Kinds() []Kind { return []Kind{Stop, Start, Restart} }

// Known reports whether an agent can carry out k.
func (k Kind) Known() bool { return k == Stop || k == Start || k == Restart }

// State is how far an operation has come. Progress, Stalled, Duplicate and Approved are no
// states: they are the last token in the subjects of events that leave the state as it is.
type State string

// The states of an operation.
const (
	Accepted   State = "accepted"   // the request is valid and the first with its key
	Waiting    State = "waiting"    // the guard does not allow the operation yet
	Submitting State = "submitting" // OCP is about to be called: written before the call
	Running    State = "running"    // OCP's task is known
	Succeeded  State = "succeeded"
	Failed     State = "failed"
	Cancelled  State = "cancelled"
	Rejected   State = "rejected" // before anything was sent to OCP
	Expired    State = "expired"  // the operation was not submitted in time
)

// Tokens of events that leave the state as it is.
const (
	Progress  State = "progress"  // a subtask, or the task itself, has changed
	Stalled   State = "stalled"   // no subtask has moved for a long time
	Duplicate State = "duplicate" // the same request came again
	Approved  State = "approved"  // a person has approved the operation, or tried to
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

// The subjects of the two streams.
const (
	RequestSubjects       = "ob.server.*.request"   // the body names the target
	TargetRequestSubjects = "ob.server.*.request.>" // .<cluster>.<server>
	CancelSubjects        = "ob.server.*.cancel.>"  // .<operation id>.<cluster>.<server>
	RetrySubjects         = "ob.server.*.retry.>"   // .<operation id>.<cluster>.<server>
	ApproveSubjects       = "ob.server.*.approve.>" // .<operation id>.<cluster>.<server>
	EventSubjects         = "ob.server.*.event.>"
)

// RequestSubject is the subject of a request of kind k whose body names the target.
func RequestSubject(k Kind) string { return "ob.server." + string(k) + ".request" }

// TargetRequestSubject names the target too, so that NATS permissions can say who may do what
// to which server.
func TargetRequestSubject(k Kind, cluster, server int64) string {
	return fmt.Sprintf("%s.%d.%d", RequestSubject(k), cluster, server)
}

// Verb names what an order does with an operation that exists.
type Verb string

// The verbs.
const (
	Cancel  Verb = "cancel"  // end an operation that has not been submitted
	Retry   Verb = "retry"   // have OCP run the failed task again
	Approve Verb = "approve" // allow an operation that waits for a person
)

// Verbs lists every verb, in the order in which documents show them.
func Verbs() []Verb { return []Verb{Cancel, Retry, Approve} }

// EventSubject is the subject of an event of an operation. The token is a state, or Progress,
// Stalled, Duplicate or Approved. An unknown cluster or server is 0.
func EventSubject(k Kind, operationID string, cluster, server int64, token State) string {
	return fmt.Sprintf("ob.server.%s.event.%s.%d.%d.%s", k, operationID, cluster, server, token)
}

// OperationSubjects matches every event of one operation, and nothing else. The kind is a
// wildcard, because one key is one operation, whatever its kind.
func OperationSubjects(operationID string) string { return "ob.server.*.event." + operationID + ".>" }

// OperationID is the id of the operation that an idempotency key stands for: the first 128
// bits of its SHA-256, as 26 characters of lower-case base32.
func OperationID(key string) string {
	sum := sha256.Sum256([]byte(key))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// EventToken returns the last token of the subject of an event: the state, or Progress,
// Stalled, Duplicate or Approved.
func EventToken(subject string) State {
	return State(subject[strings.LastIndexByte(subject, '.')+1:])
}

// target is the kind and the server that the subject of a request names.
type target struct {
	kind            Kind
	cluster, server int64 // 0: not in the subject
}

// parseRequestSubject reads kind and target. Beside an error it returns the parts that it
// could read.
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
	return t, fmt.Errorf("subject %q: only .<cluster>.<server> may follow request", subject)
}

// parseID reads an id as the documents write it: at least 1, in digits alone.
func parseID(s string) (int64, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil || id < 1 || s[0] < '1' || s[0] > '9' {
		return 0, fmt.Errorf("must be an integer of at least 1")
	}
	return id, nil
}
