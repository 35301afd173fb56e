//go:build linux

package bench

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/events"
)

// seeds are the numbers of requests and events that an earlier agent has left behind.
type seeds struct {
	ended    int // events of operations that have ended
	open     int // operations whose task OCP runs
	waiting  int // operations that wait for a slot
	clusters int // over which the operations are spread
}

// seedDir fills the data directory of an agent's own NATS server. It does not flush:
// a million events would take minutes.
func seedDir(t *testing.T, ocp *fastOCP, dir string, n seeds) {
	t.Helper()
	ns, err := server.NewServer(&server.Options{ServerName: "obwarden", Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true,
		StoreDir: filepath.Join(dir, "nats"), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	defer func() { ns.Shutdown(); ns.WaitForShutdown() }()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS server did not start")
	}
	nc, err := nats.Connect(ns.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		t.Fatal(err)
	}
	(&rig{t: t, ocp: ocp, js: js}).seed(n)
}

// slot is one in the record of a cluster.
type slot struct {
	OperationID string      `json:"operation_id"`
	Kind        events.Kind `json:"kind"`
	ServerID    int64       `json:"server_id"`
	Since       time.Time   `json:"since"`
}

// seed writes requests and events as an agent would have, and returns OCP's tasks.
func (r *rig) seed(n seeds) (tasks []int64) {
	t := r.t
	t.Helper()
	streams, err := events.OpenStreams(t.Context(), r.js, events.StreamOptions{Replicas: 1, Retention: 720 * time.Hour, AckWait: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	active := map[int64]slot{}
	var msgs []*nats.Msg
	for i, op := range r.seedRequests(n) {
		if at := op.RequestedAt; i < n.open {
			tasks = append(tasks, r.ocp.open(op.ClusterID, op.ServerID))
			op.State, op.Attempt, op.SubmittedAt, op.OCPTime = events.Running, 1, at, at
			op.Task = taskOf(tasks[i], at)
			if _, taken := active[op.ClusterID]; !taken { // one is enough for all others to wait
				active[op.ClusterID] = slot{op.OperationID, op.Kind, op.ServerID, at}
			}
		} else {
			op.State, op.Reason = events.Waiting, &events.Reason{Code: "CLUSTER_BUSY", Message: "waits", Until: at}
		}
		msgs = append(msgs, messageOf(t, op))
	}
	r.publish(msgs)
	r.seedEnded(n.ended)
	for cluster, taken := range active {
		record, err := json.Marshal(map[string]any{"active": []slot{taken}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := streams.Clusters.Put(t.Context(), fmt.Sprint(cluster), record); err != nil {
			t.Fatal(err)
		}
	}
	return tasks
}

// seedRequests publishes the requests of operations that have not ended, and returns the operations as they begin.
func (r *rig) seedRequests(n seeds) (begun []events.Operation) {
	t := r.t
	t.Helper()
	var msgs []*nats.Msg
	for i := range n.open + n.waiting {
		msgs = append(msgs, requestFor(fmt.Sprint("seed-", i), int64(1+i%n.clusters), int64(1+i/n.clusters)))
	}
	r.publish(msgs)
	requests, err := r.js.Stream(t.Context(), events.RequestStream)
	if err != nil {
		t.Fatal(err)
	}
	for i := range msgs {
		raw, err := requests.GetMsg(t.Context(), uint64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		received, err := events.DecodeRequest(raw.Subject, raw.Header, raw.Data, "")
		if err != nil {
			t.Fatal(err)
		}
		begun = append(begun, operationOf(received, raw.Sequence, raw.Time))
	}
	return begun
}

// seedEnded publishes n events of operations that have ended, four for each operation.
func (r *rig) seedEnded(n int) {
	var msgs []*nats.Msg
	for i := range n {
		received := events.Received{Kind: events.Restart, Source: "nats", Request: events.Request{IdempotencyKey: fmt.Sprint("ended-", i/4),
			ClusterID: int64(1 + i%100), ServerID: int64(1 + i/100%100), Reason: "replace a disk", RequestedBy: "bench"}}
		op := operationOf(received, uint64(i), time.Now())
		op.State, op.N = []events.State{events.Accepted, events.Submitting, events.Running, events.Succeeded}[i%4], 1+i%4
		if i%4 > 1 {
			op.Task = taskOf(int64(i), time.Now())
		}
		msg := messageOf(r.t, op)
		delete(msg.Header, nats.MsgIdHdr) // NATS remembers ids for minutes, and these are old
		msgs = append(msgs, msg)
		if len(msgs) >= 10_000 {
			r.publish(msgs)
			msgs = nil
		}
	}
	r.publish(msgs)
}

func operationOf(received events.Received, sequence uint64, at time.Time) events.Operation {
	request := received.Request
	return events.Operation{
		Schema: events.OperationSchema, OperationID: events.OperationID(request.IdempotencyKey), N: 1, Steps: 1, Kind: received.Kind,
		ClusterID: request.ClusterID, ServerID: request.ServerID, IdempotencyKey: request.IdempotencyKey, Agent: "seed", Source: received.Source,
		Request: request, RequestSequence: sequence, RequestedAt: at.UTC(), UpdatedAt: at.UTC(),
	}
}

// taskOf is a task as the agent would have seen it, with its first subtask running.
func taskOf(id int64, at time.Time) *events.Task {
	task := &events.Task{ID: id, Name: "Restart OB server", Status: "RUNNING", Operation: "EXECUTE", StartedAt: at.UTC(), MovedAt: at.UTC()}
	for i := range int64(subtasks) {
		s := events.Subtask{ID: id + i + 1, Name: fmt.Sprint("Step ", i+1), Status: "PENDING", Operation: "EXECUTE", Upstreams: []int64{}, Runs: 1}
		if i == 0 {
			s.Status, s.StartedAt, s.Timing = "RUNNING", at.UTC(), events.TimingOCP
		} else {
			s.Upstreams = []int64{id + i}
		}
		task.Subtasks = append(task.Subtasks, s)
	}
	return task
}

func messageOf(t *testing.T, op events.Operation) *nats.Msg {
	msg, err := events.Event{Operation: op, Token: op.State}.Message()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}
