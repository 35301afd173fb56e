package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// OperationSchema names the version of the document. Within a version, fields are only ever
// added.
const OperationSchema = "obwarden.operation.v1"

// Operation is an operation as it stands after its nth event: the body of every event. The
// document has no nulls and no zero times: fields without a value are absent. Times are UTC.
type Operation struct {
	Schema      string `json:"schema"`
	OperationID string `json:"operation_id"`
	N           int    `json:"n"`     // counts the operation's events from 1
	Steps       int    `json:"steps"` // counts the events that are no duplicates: who wrote the latest owns the operation
	Kind        Kind   `json:"kind"`
	State       State  `json:"state"`
	ClusterID   int64  `json:"cluster_id"` // 0: unknown, in a refusal
	ServerID    int64  `json:"server_id"`

	IdempotencyKey  string  `json:"idempotency_key"`
	Attempt         int     `json:"attempt"` // calls to OCP that may have arrived
	Agent           string  `json:"agent"`   // the agent that wrote this event
	Source          string  `json:"source,omitempty"`
	Request         Request `json:"request"`
	RequestSequence uint64  `json:"request_sequence"` // of the message in OB_REQUESTS that owns the operation
	Duplicates      int     `json:"duplicates,omitempty"`
	Traceparent     string  `json:"traceparent,omitempty"`

	RequestedAt time.Time `json:"requested_at"`
	UpdatedAt   time.Time `json:"updated_at"`
	SubmittedAt time.Time `json:"submitted_at,omitzero"` // of the latest attempt
	OCPTime     time.Time `json:"ocp_time,omitzero"`     // of the first attempt, by OCP's clock
	SeenMoving  bool      `json:"seen_moving,omitempty"` // since then the server has moved, while OCP showed no task
	RetriedAt   time.Time `json:"retried_at,omitzero"`   // of the latest retry of OCP's task
	EndedAt     time.Time `json:"ended_at,omitzero"`

	Policy    string     `json:"policy,omitempty"`    // hash of the policy of the latest decision
	Approvals []Approval `json:"approvals,omitempty"` // the latest last
	Decision  []Finding  `json:"decision,omitempty"`  // of a dry run, rule by rule

	Reason   *Reason  `json:"reason,omitempty"` // why the operation waits, was rejected or failed
	Error    *Error   `json:"error,omitempty"`  // the failure in full
	Warnings []string `json:"warnings,omitempty"`
	Changes  []Change `json:"changes,omitempty"` // what this event changed in the task
	Task     *Task    `json:"task,omitempty"`
}

// Reason says why an operation waits or how it ended.
type Reason struct {
	Code    string    `json:"code"`
	Message string    `json:"message"`
	Until   time.Time `json:"until,omitzero"` // when the agent looks again, while the operation waits
	// Position among the operations that wait for a slot in the cluster, from 1; 0: not in the queue.
	Position int `json:"position,omitempty"`
}

// Approval is an order to approve an operation, which counts or was refused.
type Approval struct {
	By     string `json:"by"`
	Reason string `json:"reason,omitempty"`
	// Sequence of the order in the request stream: the person who gave the order recognises it by that.
	Sequence uint64    `json:"sequence"`
	At       time.Time `json:"at"`                // when the order came into the request stream
	Refused  string    `json:"refused,omitempty"` // why the approval does not count; empty if it counts
}

// Finding is the verdict of one rule of the guard.
type Finding struct {
	Rule    string `json:"rule"`
	Verdict string `json:"verdict"`           // allow, wait, reject, done
	Code    string `json:"code,omitempty"`    // empty for allow
	Message string `json:"message,omitempty"` // the facts behind the verdict
}

// Error is a failure in full. OCP's support asks for the TraceID.
type Error struct {
	Code       string `json:"code"`
	Message    string `json:"message"`
	OCPCode    int    `json:"ocp_code,omitempty"`
	HTTPStatus int    `json:"http_status,omitempty"`
	TraceID    string `json:"trace_id,omitempty"`
	SubtaskID  int64  `json:"subtask_id,omitempty"`
	Subtask    string `json:"subtask,omitempty"`
	Log        string `json:"log,omitempty"` // the end of the failed subtask's log in OCP
}

// Change is the step of one subtask from one status to another. Subtask 0 is the task itself.
// From is empty if the subtask did not exist before.
type Change struct {
	SubtaskID int64  `json:"subtask_id"`
	Name      string `json:"name"`
	From      string `json:"from"`
	To        string `json:"to"`
}

// Task is OCP's task as the agent last saw it.
type Task struct {
	ID         int64     `json:"id"`
	Name       string    `json:"name"`
	Status     string    `json:"status"`
	Operation  string    `json:"operation,omitempty"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	MovedAt    time.Time `json:"moved_at"`            // when the agent last saw a change
	StalledAt  time.Time `json:"stalled_at,omitzero"` // when the agent reported the task as stalled; absent once it moves
	Progress   float64   `json:"progress"`            // finished subtasks / subtasks, 0 to 1
	Subtasks   []Subtask `json:"subtasks,omitzero"`   // in topological order
}

// Timing says whose clock measured a subtask.
type Timing string

// Clocks that measure a subtask.
const (
	TimingOCP      Timing = "ocp"      // OCP's own timestamps
	TimingObserved Timing = "observed" // when the agent saw the change; up to a poll interval late
)

// Subtask is one node of the task's DAG.
type Subtask struct {
	ID              int64     `json:"id"`
	Name            string    `json:"name"`
	Status          string    `json:"status"`
	Operation       string    `json:"operation,omitempty"`
	Upstreams       []int64   `json:"upstreams,omitzero"`
	Runs            int       `json:"runs,omitempty"` // executions, if OCP reports them
	StartedAt       time.Time `json:"started_at,omitzero"`
	FinishedAt      time.Time `json:"finished_at,omitzero"`
	DurationSeconds float64   `json:"duration_seconds,omitempty"`
	Timing          Timing    `json:"timing,omitempty"`
}

// Event is an operation after one change, with the last token of its subject.
type Event struct {
	Operation
	Token State
}

// Accepts returns why an operation that stands at o does not take an order, or nil if it does.
func (o Operation) Accepts(order Order) error {
	switch {
	case o.N == 0:
		return errors.New("there is no such operation")
	case order.Kind != o.Kind || order.ClusterID != o.ClusterID || order.ServerID != o.ServerID:
		return fmt.Errorf("it is the %s of server %d of cluster %d", o.Kind, o.ServerID, o.ClusterID)
	case order.Verb == Cancel && o.State != Accepted && o.State != Waiting:
		return fmt.Errorf("it is %s: only an operation that has not been submitted to OCP can be cancelled", o.State)
	case order.Verb == Approve && o.State != Accepted && o.State != Waiting:
		return fmt.Errorf("it is %s: only an operation that has not been submitted to OCP can be approved", o.State)
	case order.Verb == Retry && o.State != Failed:
		return fmt.Errorf("it is %s: only an operation that has failed can be retried", o.State)
	case order.Verb == Retry && o.Task == nil:
		return errors.New("it failed before OCP started a task: make a new request")
	}
	return nil
}

// EventID identifies this event among the events of all operations: operation and number.
func (o Operation) EventID() string { return fmt.Sprintf("%s.%d", o.OperationID, o.N) }

// Message is the event as it is published.
func (e Event) Message() (*nats.Msg, error) {
	body, err := json.Marshal(e.Operation)
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", e.EventID(), err)
	}
	msg := nats.NewMsg(EventSubject(e.Kind, e.OperationID, e.ClusterID, e.ServerID, e.Token))
	msg.Header = cloudEventHeader(e.Operation, e.Token)
	msg.Header.Set(nats.MsgIdHdr, e.EventID())
	msg.Data = body
	return msg, nil
}

// DecodeEvent reads an event. It ignores fields that a newer version has added.
func DecodeEvent(subject string, body []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(body, &e.Operation); err != nil {
		return Event{}, fmt.Errorf("decode event on %s: %w", subject, err)
	}
	if e.Schema != OperationSchema {
		return Event{}, fmt.Errorf("decode event on %s: schema %q, this program knows %s", subject, e.Schema, OperationSchema)
	}
	e.Token = EventToken(subject)
	return e, nil
}
