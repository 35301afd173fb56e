package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func at(second int) time.Time { return time.Date(2026, 11, 24, 21, 30, second, 0, time.UTC) }

// fullOperation has every field of the document, and of all that it holds.
func fullOperation() Operation {
	return Operation{
		Schema: OperationSchema, OperationID: OperationID("k"), N: 4, Steps: 3, Kind: Stop, State: Running, ClusterID: 1, ServerID: 2,
		IdempotencyKey: "k", Attempt: 1, Agent: "host-1", Source: "cli", Request: fullRequest(), RequestSequence: 7, Duplicates: 1,
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		RequestedAt: at(0), UpdatedAt: at(9), SubmittedAt: at(1), OCPTime: at(1), SeenMoving: true, RetriedAt: at(7), EndedAt: at(10),
		Reason:    &Reason{Code: "CLUSTER_BUSY", Message: "another server of cluster 1 is being stopped", Until: at(5), Position: 2},
		Policy:    "0123456789ab",
		Approvals: []Approval{{By: "ann", Reason: "seen", Sequence: 9, At: at(4), Refused: "ann asked for it"}},
		Decision:  []Finding{{Rule: "max_concurrent", Verdict: "wait", Code: "CLUSTER_BUSY", Message: "1 of 1 under way"}},
		Error: &Error{Code: "OCP_REFUSED", Message: "no", OCPCode: 50002, HTTPStatus: 400, TraceID: "trace-1",
			SubtaskID: 133821, Subtask: "Stop observer process", Log: "exit status 1"},
		Warnings: []string{"the policy is the built-in one"},
		Changes:  []Change{{SubtaskID: 133820, Name: "Prepare stop observer", From: "RUNNING", To: "SUCCESSFUL"}},
		Task: &Task{ID: 111102, Name: "Stop OB server", Status: "RUNNING", Operation: "EXECUTE", StartedAt: at(2), FinishedAt: at(9),
			MovedAt: at(8), StalledAt: at(9), Progress: 0.5, Subtasks: []Subtask{
				{ID: 133820, Name: "Prepare stop observer", Status: "SUCCESSFUL", Operation: "EXECUTE", Upstreams: []int64{}, Runs: 1,
					StartedAt: at(2), FinishedAt: at(5), DurationSeconds: 3.2, Timing: TimingOCP},
				{ID: 133821, Name: "Stop observer process", Status: "RUNNING", Operation: "EXECUTE", Upstreams: []int64{133820}, Runs: 2,
					StartedAt: at(6), FinishedAt: at(8), DurationSeconds: 2, Timing: TimingObserved},
			}},
	}
}

// leastOperation has only what no operation is without: a refusal of what could not be read.
func leastOperation() Operation {
	return Operation{
		Schema: OperationSchema, OperationID: OperationID(fallback), N: 1, Steps: 1, Kind: Stop, State: Rejected, IdempotencyKey: fallback,
		Agent: "host-1", Request: Request{IdempotencyKey: fallback}, RequestSequence: 7, RequestedAt: at(0), UpdatedAt: at(0),
		Reason: &Reason{Code: "INVALID_REQUEST", Message: "body: empty, a JSON object is expected"},
	}
}

func TestTheDocumentIsAsInTheGoldenFile(t *testing.T) {
	t.Parallel()
	for name, op := range map[string]Operation{"operation-full.json": fullOperation(), "operation-least.json": leastOperation()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := json.MarshalIndent(op, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			path := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s (rewrite with -update)\ngot\n%swant\n%s", path, got, want)
			}
		})
	}
}

func TestTheFullOperationOfTheTestsLeavesNothingOut(t *testing.T) {
	t.Parallel()
	var check func(path string, v reflect.Value)
	check = func(path string, v reflect.Value) {
		switch {
		case v.Kind() == reflect.Pointer && !v.IsNil():
			check(path, v.Elem())
			return
		case v.Kind() == reflect.Slice && v.Len() > 0:
			check(path+"[last]", v.Index(v.Len()-1))
			return
		case v.IsZero():
			t.Errorf("got no %s, want one: a new field belongs in fullOperation", path)
		case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]():
			for i := range v.NumField() {
				check(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
		}
	}
	check("Operation", reflect.ValueOf(fullOperation()))
}

// TestEveryFieldOfTheDesignIsThere holds the names that consumers rely on. Names
// may be added here; none may ever leave.
func TestEveryFieldOfTheDesignIsThere(t *testing.T) {
	t.Parallel()
	want := strings.Fields(`
		schema operation_id n kind state cluster_id server_id idempotency_key attempt agent request requested_at updated_at
		submitted_at ended_at reason error changes task
		reason.code reason.message reason.until
		error.code error.message error.ocp_code error.http_status error.trace_id
		changes.subtask_id changes.name changes.from changes.to
		task.id task.name task.status task.operation task.started_at task.finished_at task.progress task.subtasks
		task.subtasks.id task.subtasks.name task.subtasks.status task.subtasks.operation task.subtasks.upstreams task.subtasks.runs
		task.subtasks.started_at task.subtasks.finished_at task.subtasks.duration_seconds task.subtasks.timing
		request.idempotency_key request.cluster_id request.server_id request.force request.freeze_server request.stop_type
		request.reason request.requested_by request.labels request.dry_run request.expires_at`)
	got := map[string]bool{}
	walk(t, fullOperation(), func(path string, _ any) { got[path] = true })
	for _, path := range want {
		if !got[path] {
			t.Errorf("got no %s, want one; there are\n%s", path, strings.Join(slices.Sorted(maps.Keys(got)), "\n"))
		}
	}
}

// walk calls visit for every member of v's JSON, with the names on the way to it.
func walk(t *testing.T, v any, visit func(path string, value any)) {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var document any
	if err := json.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	var descend func(path string, value any)
	descend = func(path string, value any) {
		if path != "" {
			visit(path, value)
		}
		switch value := value.(type) {
		case map[string]any:
			for name, member := range value {
				descend(strings.TrimPrefix(path+"."+name, "."), member)
			}
		case []any:
			for _, element := range value {
				descend(path, element)
			}
		}
	}
	descend("", document)
}

func TestAbsentIsAbsent(t *testing.T) {
	t.Parallel()
	taskOnly := leastOperation()
	taskOnly.Task = &Task{ID: 1, MovedAt: at(0)} // OCP did not tell of subtasks yet
	subtaskOnly := leastOperation()
	subtaskOnly.Task = &Task{ID: 1, MovedAt: at(0), Subtasks: []Subtask{{ID: 1}}}
	partsOnly := leastOperation()
	partsOnly.Reason, partsOnly.Error, partsOnly.Changes, partsOnly.Warnings = &Reason{}, &Error{}, []Change{{}}, []string{}
	for name, op := range map[string]Operation{
		"full": fullOperation(), "least": leastOperation(), "a task without subtasks": taskOnly, "a subtask of which only the id is known": subtaskOnly,
		"empty parts": partsOnly,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			walk(t, op, func(path string, value any) {
				if value == nil {
					t.Errorf("got null at %s, want it absent", path)
				}
				if s, is := value.(string); is && strings.HasPrefix(s, "0001-01-01") {
					t.Errorf("got the zero time at %s, want it absent", path)
				}
			})
		})
	}
}

func TestTimesAreRFC3339InUTC(t *testing.T) {
	t.Parallel()
	walk(t, fullOperation(), func(path string, value any) {
		if !strings.HasSuffix(path, "_at") && !strings.HasSuffix(path, "until") {
			return
		}
		s, _ := value.(string)
		if _, err := time.Parse(time.RFC3339, s); err != nil || !strings.HasSuffix(s, "Z") {
			t.Errorf("%s: got %v, want RFC 3339 in UTC", path, value)
		}
	})
}

func TestAnEventIsReadBackAsItWasPublished(t *testing.T) {
	t.Parallel()
	for _, want := range []Event{
		{fullOperation(), Running}, {fullOperation(), Progress}, {fullOperation(), Stalled}, {fullOperation(), Duplicate}, {leastOperation(), Rejected},
	} {
		t.Run(string(want.Token), func(t *testing.T) {
			t.Parallel()
			msg, err := want.Message()
			if err != nil {
				t.Fatal(err)
			}
			subject := fmt.Sprintf("ob.server.stop.event.%s.%d.%d.%s", want.OperationID, want.ClusterID, want.ServerID, want.Token)
			if msg.Subject != subject {
				t.Errorf("got subject %s, want %s", msg.Subject, subject)
			}
			got, err := DecodeEvent(msg.Subject, msg.Data)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestAnEventThatCannotBeEncodedIsAnError(t *testing.T) {
	t.Parallel()
	op := fullOperation()
	op.Task.Progress = math.NaN()
	_, err := Event{op, Progress}.Message()
	wantError(t, err, "encode event "+op.OperationID+".4")
}

func TestDecodeEventToleratesOnlyWhatANewerVersionAdds(t *testing.T) {
	t.Parallel()
	const subject = "ob.server.stop.event.op.1.2.progress"
	tests := []struct {
		name, body string
		err        []string // none where nil
	}{
		{"new fields", `{"schema":"obwarden.operation.v1","operation_id":"op","n":2,"new":{"a":[1]},"task":{"id":1,"new":true}}`, nil},
		{"a new state", `{"schema":"obwarden.operation.v1","operation_id":"op","n":2,"state":"paused"}`, nil},
		{"another schema", `{"schema":"obwarden.operation.v2","operation_id":"op","n":2}`, []string{subject, `schema "obwarden.operation.v2"`, "knows obwarden.operation.v1"}},
		{"no schema", `{"operation_id":"op"}`, []string{subject, `schema ""`}},
		{"null", "null", []string{subject, `schema ""`}},
		{"an array", "[]", []string{"decode event on " + subject}},
		{"nothing", "", []string{"decode event on " + subject}},
		{"half an event", `{"schema":"obwarden.operation.v1"`, []string{"decode event on " + subject}},
		{"another type", `{"schema":"obwarden.operation.v1","n":"2"}`, []string{"decode event on " + subject}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeEvent(subject, []byte(tt.body))
			if tt.err != nil {
				wantError(t, err, tt.err...)
				if !reflect.DeepEqual(got, Event{}) {
					t.Errorf("got %+v beside the error, want nothing", got)
				}
				return
			}
			if err != nil || got.OperationID != "op" || got.N != 2 || got.Token != Progress {
				t.Errorf("got %s.%d %s and error %v, want op.2 progress and none", got.OperationID, got.N, got.Token, err)
			}
		})
	}
}

func BenchmarkEventMessage(b *testing.B) {
	big := fullOperation()
	for i := range 40 { // a restart has about as many subtasks
		s := big.Task.Subtasks[1]
		s.ID += int64(i)
		big.Task.Subtasks = append(big.Task.Subtasks, s)
	}
	for name, op := range map[string]Operation{"least": leastOperation(), "full": fullOperation(), "42 subtasks": big} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				msg, err := Event{op, Progress}.Message()
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(msg.Data)))
			}
		})
	}
}
