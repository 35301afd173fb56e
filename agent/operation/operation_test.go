package operation

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

// TestScenarios plays the text files of testdata/operation: each reads as the life
// of one operation. See the head of testdata/operation/stop.txt for the words.
func TestScenarios(t *testing.T) {
	t.Parallel()
	datadriven.Walk(t, "testdata/operation", func(t *testing.T, path string) {
		s := &scenario{
			now:     time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC),
			machine: Machine{Agent: "a", Settle: 30 * time.Second, StallAfter: 10 * time.Minute, PollMin: time.Second, PollMax: 15 * time.Second},
			task:    ocp.Task{ID: 111102, Name: "Stop OB server", Status: "RUNNING", ClusterID: 1, ServerIDs: []int64{2}},
		}
		for i, name := range []string{"Prepare stop observer", "Stop server", "Wait observer stop"} {
			sub := ocp.Subtask{ID: int64(i + 1), Name: name, Status: "PENDING"}
			if i > 0 {
				sub.Upstreams = []int64{int64(i)}
			}
			s.task.Subtasks = append(s.task.Subtasks, sub)
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return s.run(t, d) })
	})
}

type scenario struct {
	machine Machine
	now     time.Time
	op      events.Operation
	task    ocp.Task
	since   time.Time
}

func (s *scenario) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "later":
		by, err := time.ParseDuration(d.CmdArgs[0].Key)
		if err != nil {
			t.Fatal(err)
		}
		s.now = s.now.Add(by)
		return s.now.Format(time.TimeOnly)
	case "task":
		s.changeTask(t, d)
		return ""
	case "refresh":
		after, err := time.ParseDuration(d.CmdArgs[0].Key)
		if err != nil {
			t.Fatal(err)
		}
		s.machine.Refresh = after
		return ""
	}
	effects := s.machine.Step(s.op, s.input(t, d), s.now)
	var b strings.Builder
	for _, e := range effects.Append {
		fmt.Fprintf(&b, "append %s\n", show(e))
		if e.N != s.op.N+1 {
			t.Errorf("event %d follows %d", e.N, s.op.N)
		}
		s.op = e.Operation
	}
	switch {
	case effects.Do == "" && len(effects.Append) == 0:
		b.WriteString("refused\n")
	case effects.Do == "":
		b.WriteString("go on\n")
	default:
		b.WriteString(string(effects.Do))
		if !effects.At.IsZero() {
			fmt.Fprintf(&b, " in %s", effects.At.Sub(s.now))
		}
		if effects.IfLost != "" {
			fmt.Fprintf(&b, ", if lost: %s", effects.IfLost)
		}
		b.WriteByte('\n')
	}
	if effects.Do == Submit {
		s.since = s.now
	}
	return b.String()
}

func (s *scenario) input(t *testing.T, d *datadriven.TestData) Input {
	arg := func(name, byDefault string) string {
		for _, a := range d.CmdArgs {
			if a.Key == name {
				return strings.Join(a.Vals, ",")
			}
		}
		return byDefault
	}
	word := ""
	if len(d.CmdArgs) > 0 && len(d.CmdArgs[0].Vals) == 0 {
		word = d.CmdArgs[0].Key
	}
	reason := events.Reason{Code: arg("code", ""), Message: "because", Until: s.now.Add(5 * time.Second)}
	failure := map[string]error{
		"":          nil,
		"refused":   &ocp.Error{Endpoint: "server_stop", Status: 409, Code: 50002, Message: "operation not allowed", TraceID: "1f3a", Class: ocp.Refused},
		"forbidden": &ocp.Error{Endpoint: "task_retry", Status: 403, Message: "no permission", Class: ocp.Refused},
		"not-sent":  &ocp.Error{Endpoint: "server_stop", Class: ocp.NotSent, Err: errors.New("connection refused")},
		"ambiguous": &ocp.Error{Endpoint: "server_stop", Class: ocp.Ambiguous, Err: errors.New("connection reset")},
	}
	switch d.Cmd {
	case "received":
		r := Received{Sequence: 7, At: s.now, Received: events.Received{Kind: events.Stop, Source: "nats",
			Request: events.Request{IdempotencyKey: "k", ClusterID: 1, ServerID: 2, DryRun: arg("dry_run", "") == "true"}}}
		if in := arg("expires_in", ""); in != "" {
			by, err := time.ParseDuration(in)
			if err != nil {
				t.Fatal(err)
			}
			r.Request.ExpiresAt = s.now.Add(by)
		}
		if word == "invalid" {
			r.Refusal = &events.Reason{Code: events.CodeInvalidRequest, Message: "because"}
		}
		return r
	case "resumed":
		s.since = s.now
		return Resumed{}
	case "duplicated":
		return Duplicated{Count: 1}
	case "ordered":
		order := events.OrderTo(events.Verb(word), s.op)
		order.RequestedBy, order.Reason = "me", "why not"
		return Ordered{Order: order, Sequence: s.op.RequestSequence + 1, At: s.now}
	case "again":
		return Again{Err: failure[word]}
	case "decided", "readmitted":
		return Decided{Retry: d.Cmd == "readmitted", Decision: guard.Decision{Verdict: guard.Verdict(word), Reason: reason}, Error: &events.Error{Code: events.CodeOCPRefused, Message: "because"}}
	case "answered":
		if word == "" {
			return Answered{Task: s.task}
		}
		return Answered{Err: failure[word]}
	case "reconciled":
		return Reconciled{Finding: Finding{Outcome: Outcome(word), Task: s.task, Note: "note"}, Since: s.since, Cause: failure["ambiguous"]}
	case "looked":
		failures, err := strconv.Atoi(arg("in_a_row", "1"))
		if err != nil {
			t.Fatal(err)
		}
		in := Looked{Task: s.task, Err: failure[word], Failures: failures, Refusals: failures, Refused: time.Duration(failures) * 6 * time.Second}
		if s.task.Status == ocp.StatusFailed {
			in.Log = "INFO begin\nERROR observer does not stop"
		}
		return in
	}
	t.Fatalf("%s: unknown word %q", d.Pos, d.Cmd)
	return nil
}

// changeTask is what happens in OCP: task=STATUS, operation=…, <subtask id>=STATUS.
func (s *scenario) changeTask(t *testing.T, d *datadriven.TestData) {
	s.task.Subtasks = slices.Clone(s.task.Subtasks)
	for _, a := range d.CmdArgs {
		switch a.Key {
		case "status":
			s.task.Status = a.Vals[0]
		case "operation":
			s.task.Operation = a.Vals[0]
		case "servers":
			s.task.ServerIDs = []int64{3}
		default:
			id, err := strconv.Atoi(a.Key)
			if err != nil || id < 1 || id > len(s.task.Subtasks) {
				t.Fatalf("%s: no subtask %s", d.Pos, a.Key)
			}
			s.task.Subtasks[id-1].Status = a.Vals[0]
		}
	}
}

func show(e events.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s", e.N, e.Token)
	if e.Token != e.State {
		fmt.Fprintf(&b, " (%s)", e.State)
	}
	if e.Attempt > 0 && e.Token == events.Submitting {
		fmt.Fprintf(&b, " attempt=%d", e.Attempt)
	}
	if e.Duplicates > 0 {
		fmt.Fprintf(&b, " duplicates=%d", e.Duplicates)
	}
	for _, c := range e.Changes {
		fmt.Fprintf(&b, " [%s: %s→%s]", c.Name, c.From, c.To)
	}
	if e.Task != nil {
		fmt.Fprintf(&b, " progress=%.2f", e.Task.Progress)
	}
	if e.Reason != nil {
		fmt.Fprintf(&b, " %s: %s", e.Reason.Code, e.Reason.Message)
	}
	if len(e.Warnings) > 0 {
		fmt.Fprintf(&b, " warning: %s", e.Warnings[len(e.Warnings)-1])
	}
	return b.String()
}

func TestAnUnmovedTaskIsLikeTheSameTaskInFull(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m := Machine{Agent: "a", StallAfter: 10 * time.Minute, PollMin: time.Second, PollMax: 15 * time.Second, Refresh: time.Hour}
	task := ocp.Task{ID: 7, Name: "Stop OB server", Status: ocp.StatusRunning, Operation: ocp.OperationExecute, StartedAt: began, Subtasks: []ocp.Subtask{
		{ID: 1, Name: "Prepare", Status: ocp.StatusSuccessful, Runs: 1, StartedAt: began, FinishedAt: began},
		{ID: 2, Name: "Stop", Status: ocp.StatusRunning, Upstreams: []int64{1}, Runs: 1, StartedAt: began},
	}}
	op := events.Operation{N: 3, Steps: 3, State: events.Running, Kind: events.Stop, RequestedAt: began, UpdatedAt: began}
	merged := mergeTask(nil, task, began)
	op.Task = &merged
	for _, after := range []time.Duration{time.Second, time.Minute, 10 * time.Minute, 2 * time.Hour} {
		full := m.Step(op, Looked{Task: task}, began.Add(after))
		unmoved := m.Step(op, Looked{Unmoved: true}, began.Add(after))
		if !reflect.DeepEqual(full, unmoved) {
			t.Errorf("after %s:\nunmoved %+v\nfull    %+v", after, unmoved, full)
		}
	}
}
