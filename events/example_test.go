package events_test

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/obwarden/obwarden/events"
)

// A client asks for an operation. Publish of the same Request sends the message and waits
// until it is on disk.
func ExampleRequest_Message() {
	request := events.Request{
		IdempotencyKey: "disk-4711", ClusterID: 1, ServerID: 2, Reason: "replace a disk",
		ExpiresAt: time.Date(2026, 11, 24, 21, 30, 0, 0, time.UTC),
	}
	msg, err := request.Message(events.Stop, "cli")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(msg.Subject)
	fmt.Println(string(msg.Data))
	// Output:
	// ob.server.stop.request.1.2
	// {"idempotency_key":"disk-4711","cluster_id":1,"server_id":2,"reason":"replace a disk","expires_at":"2026-11-24T21:30:00Z"}
}

// The key may be in a header, and the target in the subject.
func ExampleDecodeRequest() {
	header := nats.Header{events.IdempotencyKeyHeader: {"disk-4711"}}
	got, err := events.DecodeRequest("ob.server.restart.request.1.2", header, []byte(`{"dry_run": true}`), "OB_REQUESTS/7")
	fmt.Println(err)
	fmt.Println(got.Kind, got.Request.ClusterID, got.Request.ServerID, got.Request.IdempotencyKey, got.Request.DryRun, got.Source)
	// Output:
	// <nil>
	// restart 1 2 disk-4711 true nats
}

// The error names each fault. What could be read is returned beside it, so that the refusal
// can be addressed.
func ExampleDecodeRequest_refused() {
	body := `{"cluster_id": 1, "server_id": "2", "dryrun": true}`
	got, err := events.DecodeRequest("ob.server.stop.request", nil, []byte(body), "OB_REQUESTS/7")
	fmt.Println(err)
	fmt.Println(got.Kind, got.Request.ClusterID, got.Request.IdempotencyKey)
	// Output:
	// "dryrun": unknown field
	// server_id: must be an integer of at least 1
	// stop 1 OB_REQUESTS/7
}

// The same key is always the same operation, so that a client knows which events to follow
// before it has asked.
func ExampleOperationSubjects() {
	id := events.OperationID("disk-4711")
	fmt.Println(events.OperationSubjects(id))
	fmt.Println(events.EventSubject(events.Stop, id, 1, 2, events.Running))
	// Output:
	// ob.server.*.event.ohlemnwzp37pfkzro7agqr4lyq.>
	// ob.server.stop.event.ohlemnwzp37pfkzro7agqr4lyq.1.2.running
}

// The body of an event is the whole operation.
func ExampleDecodeEvent() {
	subject := "ob.server.stop.event.ohlemnwzp37pfkzro7agqr4lyq.1.2.progress"
	body := `{"schema": "obwarden.operation.v1", "operation_id": "ohlemnwzp37pfkzro7agqr4lyq", "n": 4, "kind": "stop", "state": "running",
		"cluster_id": 1, "server_id": 2, "changes": [{"subtask_id": 12, "name": "Stop observer process", "from": "READY", "to": "RUNNING"}]}`
	e, err := events.DecodeEvent(subject, []byte(body))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(e.EventID(), e.Token, e.State, e.State.Final())
	for _, c := range e.Changes {
		fmt.Printf("%s: %s → %s\n", c.Name, c.From, c.To)
	}
	// Output:
	// ohlemnwzp37pfkzro7agqr4lyq.4 progress running false
	// Stop observer process: READY → RUNNING
}

// An operation knows which orders it takes.
func ExampleOperation_Accepts() {
	op := events.Operation{OperationID: "ohlemnwzp37pfkzro7agqr4lyq", N: 3, Kind: events.Stop, State: events.Running, ClusterID: 1, ServerID: 2}
	order := events.OrderTo(events.Cancel, op)
	order.RequestedBy, order.Reason = "ann", "the disk is fine"
	fmt.Println(order.Subject())
	fmt.Println(op.Accepts(order))
	// Output:
	// ob.server.stop.cancel.ohlemnwzp37pfkzro7agqr4lyq.1.2
	// it is running: only an operation that has not been submitted to OCP can be cancelled
}

func ExampleDecodeOrder() {
	order, err := events.DecodeOrder("ob.server.stop.approve.ohlemnwzp37pfkzro7agqr4lyq.1.2", []byte(`{"requested_by": "ann"}`))
	fmt.Println(err)
	fmt.Println(order.Verb, order.OperationID, order.RequestedBy)
	// Output:
	// <nil>
	// approve ohlemnwzp37pfkzro7agqr4lyq ann
}

// A value that cannot be parsed counts as a pause.
func ExampleDecodePause() {
	for _, value := range []string{`{"paused": true, "by": "ann", "reason": "moving racks"}`, `{"paused": false}`, `{"pause": "yes"}`} {
		cluster, p, err := events.DecodePause(events.PauseKey(7), []byte(value))
		fmt.Println(cluster, p.Paused, p.By, err)
	}
	// Output:
	// 7 true ann <nil>
	// 7 false  <nil>
	// 7 true somebody <nil>
}

func ExampleCodes() {
	for _, c := range events.Codes() {
		if c.In(events.Cancelled) {
			fmt.Println(c.Name+":", c.Meaning)
		}
	}
	// Output:
	// SUPERSEDED: A newer request for the server replaces this one, as the policy says.
	// CANCELLED: A person cancelled the operation before it was submitted.
}

// The document of an operation has no nulls and no zero times.
func ExampleOperation() {
	op := events.Operation{
		Schema: events.OperationSchema, OperationID: events.OperationID("disk-4711"), N: 2, Steps: 2, Kind: events.Stop, State: events.Waiting,
		ClusterID: 1, ServerID: 2, IdempotencyKey: "disk-4711", Agent: "warden-1", Request: events.Request{ClusterID: 1, ServerID: 2},
		RequestedAt: time.Date(2026, 11, 24, 21, 0, 0, 0, time.UTC), UpdatedAt: time.Date(2026, 11, 24, 21, 0, 1, 0, time.UTC),
		Reason: &events.Reason{Code: events.CodeClusterBusy, Message: "cluster 1 waits for the stop of server 3", Position: 1},
	}
	document, err := json.MarshalIndent(op, "", "  ")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(document))
	// Output:
	// {
	//   "schema": "obwarden.operation.v1",
	//   "operation_id": "ohlemnwzp37pfkzro7agqr4lyq",
	//   "n": 2,
	//   "steps": 2,
	//   "kind": "stop",
	//   "state": "waiting",
	//   "cluster_id": 1,
	//   "server_id": 2,
	//   "idempotency_key": "disk-4711",
	//   "attempt": 0,
	//   "agent": "warden-1",
	//   "request": {
	//     "cluster_id": 1,
	//     "server_id": 2
	//   },
	//   "request_sequence": 0,
	//   "requested_at": "2026-11-24T21:00:00Z",
	//   "updated_at": "2026-11-24T21:00:01Z",
	//   "reason": {
	//     "code": "CLUSTER_BUSY",
	//     "message": "cluster 1 waits for the stop of server 3",
	//     "position": 1
	//   }
	// }
}
