package agent

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
	"github.com/obwarden/obwarden/metrics"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set("8") // they wait far more than they work
	}
	goleak.VerifyTestMain(m, eventstest.IgnoreServer()...)
}

// rig is a real NATS server, a simulated OCP over HTTP, and agents between them.
type rig struct {
	t       testing.TB
	sim     *ocpsim.Sim
	url     string // of the simulated OCP
	user    ocpsim.User
	server  *eventstest.Server
	nc      *nats.Conn
	js      jetstream.JetStream
	machine operation.Machine
	timeout time.Duration
	ackWait time.Duration
	policy  *policy.Policy
	logged  *logBuffer
	metrics *metrics.Metrics // of the agent started last
	latest  *Agent           // started
}

const (
	testPatience = eventstest.Patience
	testSpeed    = 1000 // a stop of a minute takes less than 100 ms
)

func newRig(t testing.TB, config ocpsim.Config) *rig {
	t.Helper()
	if config.Speed == 0 {
		config.Speed = testSpeed
	}
	config.Users = ocpsim.DefaultUsers("admin", "secret")
	return newRigOn(t, ocpsim.Start(t, config), config.Users[0])
}

func newRigOn(t testing.TB, sim *ocpsim.Sim, user ocpsim.User) *rig {
	t.Helper()
	r := &rig{
		t: t, sim: sim, url: sim.URL(), user: user,
		machine: operation.Machine{Agent: "test", Settle: time.Second, StallAfter: time.Minute, PollMin: 10 * time.Millisecond, PollMax: 50 * time.Millisecond},
		timeout: 500 * time.Millisecond, ackWait: 2 * time.Second, logged: &logBuffer{},
		policy: laxPolicy(),
	}
	r.server = eventstest.Start(t)
	r.nc, r.js = r.server.Conn(), r.server.JetStream()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("agent's log:\n%s", r.logged)
		}
	})
	return r
}

// laxPolicy lets one operation a cluster go at a time and holds nothing else back:
// most tests are about something else.
func laxPolicy() *policy.Policy {
	return &policy.Policy{Hash: "lax", Limits: policy.Limits{MaxConcurrent: 1}}
}

// agent starts an agent and returns what ends it and waits for it.
func (r *rig) agent() (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := r.agentRunning(ctx)
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("agent ended: %v", err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

// agentRunning starts an agent that runs until ctx ends, and returns where it says how it ended.
func (r *rig) agentRunning(ctx context.Context) <-chan error {
	r.t.Helper()
	streams, err := events.OpenStreams(r.t.Context(), r.js, events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: r.ackWait})
	if err != nil {
		r.t.Fatal(err)
	}
	client, err := ocp.New(ocp.Config{URL: r.url, Username: r.user.Name, Password: r.user.Password, Timeout: r.timeout, MaxRPS: 1000})
	if err != nil {
		r.t.Fatal(err)
	}
	r.metrics = metrics.New(prometheus.NewRegistry(), "test", "go", metrics.Scraped{})
	a := New(Config{
		JetStream: r.js, Streams: streams, OCP: client, Directory: facts.NewDirectory(client), Metrics: r.metrics, Policy: policy.NewLive(r.policy),
		Log:     slog.New(slog.NewTextHandler(r.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Machine: r.machine, AckWait: r.ackWait, Timeout: r.timeout,
	})
	r.latest = a
	done := make(chan error, 1)
	go func() {
		err := a.Run(ctx)
		client.Close()
		done <- err
	}()
	return done
}

// publish sends a request and returns its sequence.
func (r *rig) publish(subject, body string, header ...string) uint64 {
	r.t.Helper()
	msg := nats.NewMsg(subject)
	msg.Data = []byte(body)
	for i := 0; i < len(header); i += 2 {
		msg.Header[header[i]] = []string{header[i+1]}
	}
	ack, err := r.js.PublishMsg(r.t.Context(), msg)
	if err != nil {
		r.t.Fatalf("publish %s: %v", subject, err)
	}
	return ack.Sequence
}

func (r *rig) stop(key string, cluster, server int64) { r.operate(events.Stop, key, cluster, server) }

func (r *rig) operate(kind events.Kind, key string, cluster, server int64) {
	r.t.Helper()
	r.publish(events.RequestSubject(kind), fmt.Sprintf(`{"idempotency_key":%q,"cluster_id":%d,"server_id":%d}`, key, cluster, server))
}

// await reads events from the beginning until one that matches, and returns all
// of the same operation up to it.
func (r *rig) await(what string, match func(events.Event) bool) []events.Event {
	r.t.Helper()
	return r.awaitFor(testPatience, what, match)
}

func (r *rig) awaitFor(patience time.Duration, what string, match func(events.Event) bool) []events.Event {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	consumer, err := r.js.OrderedConsumer(ctx, events.OperationStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		r.t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		r.t.Fatal(err)
	}
	defer messages.Stop()
	context.AfterFunc(ctx, messages.Stop)
	seen := map[string][]events.Event{}
	for {
		msg, err := messages.Next()
		if err != nil {
			var all []string
			for _, es := range seen {
				for _, e := range es {
					all = append(all, show(e))
				}
			}
			r.t.Fatalf("no event with %s (%v); there were:\n%s", what, err, strings.Join(all, "\n"))
		}
		e, err := events.DecodeEvent(msg.Subject(), msg.Data())
		if err != nil {
			r.t.Fatal(err)
		}
		seen[e.OperationID] = append(seen[e.OperationID], e)
		if match(e) {
			return seen[e.OperationID]
		}
	}
}

// awaitToken waits for an event of the key's operation.
func (r *rig) awaitToken(key string, token events.State) []events.Event {
	r.t.Helper()
	id := events.OperationID(key)
	return r.await(string(token)+" of "+key, func(e events.Event) bool { return e.OperationID == id && e.Token == token })
}

// awaitEnd waits for the operation's end and checks what holds for every one:
// numbers without a gap, and the state it must end in.
func (r *rig) awaitEnd(key string, want events.State) events.Operation {
	r.t.Helper()
	id := events.OperationID(key)
	all := r.await("the end of "+key, func(e events.Event) bool { return e.OperationID == id && e.Token.Final() })
	for i, e := range all {
		if e.N != i+1 {
			r.t.Errorf("event %d has number %d", i+1, e.N)
		}
	}
	last := all[len(all)-1].Operation
	if last.State != want {
		r.t.Fatalf("%s ended %s (%+v), want %s", key, last.State, last.Reason, want)
	}
	return last
}

func (r *rig) wantPosts(want int) {
	r.t.Helper()
	if got := r.sim.Posts(ocpsim.ServerStop, ocpsim.ServerStart, ocpsim.ServerRestart); got != want {
		r.t.Errorf("OCP got %d calls, want %d", got, want)
	}
}

func (r *rig) wantTasks(want int) {
	r.t.Helper()
	if got := len(r.sim.Tasks()); got != want {
		r.t.Errorf("OCP has %d tasks, want %d", got, want)
	}
}

func (r *rig) fault(text string) {
	r.t.Helper()
	f, err := ocpsim.ParseFault(text)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.sim.AddFault(f); err != nil {
		r.t.Fatal(err)
	}
}

// awaitNoOpenRequests waits until every request is acknowledged.
func (r *rig) awaitNoOpenRequests() {
	r.t.Helper()
	r.awaitOpenRequests(0)
}

func (r *rig) awaitOpenRequests(n uint64) {
	r.t.Helper()
	deadline := time.Now().Add(testPatience)
	for {
		stream, err := r.js.Stream(r.t.Context(), events.RequestStream)
		if err != nil {
			r.t.Fatal(err)
		}
		if stream.CachedInfo().State.Msgs == n {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d requests are open, want %d", stream.CachedInfo().State.Msgs, n)
		}
		time.Sleep(5 * time.Millisecond) // the server tells nobody of an acknowledgement
	}
}

// nextEvent moves an operation on, as another agent would.
func nextEvent(op *events.Operation, token events.State) events.Event {
	op.N, op.Steps, op.Agent, op.UpdatedAt = op.N+1, op.Steps+1, "another", time.Now().UTC()
	if token != events.Progress {
		op.State = token
	}
	return events.Event{Operation: *op, Token: token}
}

// show is one line on an event.
func show(e events.Event) string {
	reason := ""
	if e.Reason != nil {
		reason = e.Reason.Code + ": " + e.Reason.Message
	}
	return fmt.Sprintf("%s %d %s (%s) by %s %s", e.OperationID, e.N, e.Token, e.State, e.Agent, reason)
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// await waits until the log has the text in it.
func (l *logBuffer) await(t testing.TB, text string) {
	t.Helper()
	eventually(t, "the log says "+text, func() bool { return strings.Contains(l.String(), text) })
}

// eventually waits for what tells nobody.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.After(testPatience)
	for tick := time.NewTicker(time.Millisecond); !is(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestEveryKindEndsInEveryShapeOfTask(t *testing.T) {
	t.Parallel()
	for _, shape := range []ocpsim.Shape{ocpsim.ShapeTasks, ocpsim.ShapeSubtasks, ocpsim.ShapeV43} {
		t.Run(fmt.Sprint("shape ", shape), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{Shape: shape})
			r.agent()
			r.stop("stop", 1, 2)
			stopped := r.awaitEnd("stop", events.Succeeded)
			r.operate(events.Start, "start", 1, 2)
			r.awaitEnd("start", events.Succeeded)
			r.operate(events.Restart, "restart", 1, 2)
			r.awaitEnd("restart", events.Succeeded)
			r.wantPosts(3)
			r.awaitNoOpenRequests()

			var names []string
			for _, s := range stopped.Task.Subtasks {
				names = append(names, s.Name)
				if s.Status != ocp.StatusSuccessful || s.Timing != events.TimingOCP {
					t.Errorf("subtask %s is %s, timed by %s", s.Name, s.Status, s.Timing)
				}
			}
			want := []string{"Prepare stop observer", "Stop server", "Stop observer process", "Wait observer stop",
				"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}
			if !slices.Equal(names, want) {
				t.Errorf("subtasks of a stop:\n got %v\nwant %v", names, want)
			}
			if got := testutil.ToFloat64(r.metrics.Operations.WithLabelValues("stop", "succeeded")); got != 1 {
				t.Errorf("operations_total{stop,succeeded} = %v, want 1", got)
			}
			if got := testutil.CollectAndCount(r.metrics.SubtasksRunning); got != 0 {
				for _, name := range want {
					if v := testutil.ToFloat64(r.metrics.SubtasksRunning.WithLabelValues("stop", r.metrics.Subtask(name))); v != 0 {
						t.Errorf("subtasks_running{stop,%s} = %v after the end", name, v)
					}
				}
			}
		})
	}
}

// Each answer below leaves unknown whether the call arrived. In OCP there must be
// one task in the end, whichever way it was.
func TestAnAnswerThatIsLostLeavesOneTask(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fault string
		posts int
	}{
		{"server_stop:lose_before,count=1", 2},
		{"server_stop:lose_after,count=1", 1},
		{"server_stop:reset,count=1", 2},
		{"server_stop:reset_after,count=1", 1},
		{"server_stop:truncate,count=1", 1},
		{"server_stop:html,count=1", 2},
		{"server_stop:html_after,count=1", 1},
		{"server_stop:empty_after,count=1", 1},
		{"server_stop:status_after,status=502,count=1", 1},
		{"server_stop:status,status=503,count=1", 2},
		{"server_stop:status,status=429,count=1", 2},
		{"server_stop:delay_after,delay=700ms,count=1", 1},
		{"server_stop:delay,delay=700ms,count=1", 1},
	} {
		t.Run(test.fault, func(t *testing.T) {
			t.Parallel()
			for _, shape := range []ocpsim.Shape{ocpsim.ShapeTasks, ocpsim.ShapeV43} {
				r := newRig(t, ocpsim.Config{Shape: shape, Speed: 50})
				r.fault(test.fault)
				r.agent()
				r.stop("k", 1, 2)
				op := r.awaitEnd("k", events.Succeeded)
				r.wantPosts(test.posts)
				r.wantTasks(1)
				if op.Attempt != test.posts {
					t.Errorf("attempt %d, want %d", op.Attempt, test.posts)
				}
			}
		})
	}
}

// Nor is what OCP says of something else.
func TestAGatewaysNoIsNotOCPs(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{
		"zones_list:html,status=403,count=1", "zones_list:html,status=404,count=1",
		"tasks_list:html,status=403,count=1", "tasks_list:status,status=400,count=1", "tasks_list:status,status=404,count=1",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{Speed: 100})
			r.fault(fault)
			r.agent()
			r.stop("k", 1, 2)
			if all := r.awaitToken("k", events.Waiting); all[len(all)-1].Reason.Code != events.CodeStaleTopology {
				t.Errorf("waits for %+v, want %s", all[len(all)-1].Reason, events.CodeStaleTopology)
			}
			r.awaitEnd("k", events.Succeeded)
			r.wantPosts(1)
		})
	}
}

func TestARequestThatOCPRefusesFailsWithItsWords(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, fault, code string
		user              int
		status            int
	}{
		{"read-only user", "", events.CodeOCPRefused, 1, 403},
		{"conflict", "server_stop:status,status=409,count=1", events.CodeOCPRefused, 0, 409},
		{"success that is none", "server_stop:not_successful,count=1", events.CodeOCPRefused, 0, 0},
		{"no task viewer", "", events.CodeOutcomeUnknown, 2, 403},
		{"topology refused", "zones_list:status,status=401", events.CodeOCPRefused, 0, 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{})
			r.user = ocpsim.DefaultUsers("admin", "secret")[test.user]
			if test.fault != "" {
				r.fault(test.fault)
			}
			r.agent()
			r.stop("k", 1, 2)
			op := r.awaitEnd("k", events.Failed)
			if op.Error == nil || op.Error.Code != test.code || op.Reason.Code != test.code {
				t.Fatalf("error %+v, want code %s", op.Error, test.code)
			}
			if op.Error.TraceID == "" || test.status != 0 && op.Error.HTTPStatus != test.status {
				t.Errorf("error %+v, want HTTP status %d and a trace id", op.Error, test.status)
			}
			r.awaitNoOpenRequests()
		})
	}
}

func TestAFailedSubtaskIsNamedWithTheEndOfItsLog(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.fault("server_stop:fail_subtask,subtask=Stop observer process")
	r.agent()
	r.stop("k", 1, 2)
	op := r.awaitEnd("k", events.Failed)
	if op.Error.Code != events.CodeSubtaskFailed || op.Error.Subtask != "Stop observer process" || !strings.Contains(op.Error.Log, "ERROR") {
		t.Errorf("error %+v", op.Error)
	}
	r.awaitNoOpenRequests() // an event is counted right after it is in the journal
	if got := testutil.ToFloat64(r.metrics.SubtaskFailures.WithLabelValues("stop", "stop_observer_process")); got != 1 {
		t.Errorf("subtask_failures_total = %v, want 1", got)
	}
}

func TestBadRequestsAreRejectedAndTheNextGoodOneRuns(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	long := strings.Repeat("x", 70<<10)
	var labels []string
	for i := range 33 {
		labels = append(labels, fmt.Sprintf(`"l%d":"v"`, i))
	}
	bad := []struct{ subject, body, want string }{
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"dry_runn":true}`, "dry_runn"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"Dry_Run":true}`, "Dry_Run"},
		{"ob.server.stop.request", `{"cluster_id":1,"cluster_id":1,"server_id":2}`, "cluster_id"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2} {}`, "behind the end"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2`, "EOF"},
		{"ob.server.stop.request", ``, "empty"},
		{"ob.server.stop.request", `[]`, "object"},
		{"ob.server.stop.request", `null`, "object"},
		{"ob.server.stop.request", `{"cluster_id":1.5,"server_id":2}`, "cluster_id"},
		{"ob.server.stop.request", `{"cluster_id":"1","server_id":2}`, "cluster_id"},
		{"ob.server.stop.request", `{"cluster_id":0,"server_id":2}`, "cluster_id"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":-2}`, "server_id"},
		{"ob.server.stop.request", `{"cluster_id":1}`, "server_id"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":99999999999999999999}`, "server_id"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"force":null}`, "force"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"expires_at":"tomorrow"}`, "expires_at"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"idempotency_key":""}`, "idempotency_key"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"idempotency_key":"a\u0000b"}`, "idempotency_key"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"idempotency_key":"` + strings.Repeat("k", 257) + `"}`, "idempotency_key"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"reason":"` + strings.Repeat("r", 1025) + `"}`, "reason"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"labels":{` + strings.Join(labels, ",") + `}}`, "labels"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"reason":"` + long + `"}`, "65536"},
		{"ob.server.stop.request", "{\"cluster_id\":1,\"server_id\":2,\"reason\":\"\xff\"}", "UTF-8"},
		{"ob.server.stop.request.1.3", `{"cluster_id":1,"server_id":2}`, "server_id"},
		{"ob.server.stop.request.1", `{"cluster_id":1,"server_id":2}`, "subject"},
		{"ob.server.stop.request.one.two", `{}`, "subject"},
		{"ob.server.stopp.request", `{"cluster_id":1,"server_id":2}`, "kind"},
		{"ob.server.stop.request", `{"specversion":"0.3","id":"i","source":"s","type":"t","data":{"cluster_id":1,"server_id":2}}`, "specversion"},
	}
	for _, b := range bad {
		sequence := r.publish(b.subject, b.body)
		all := r.await("rejection of "+b.want, func(e events.Event) bool { return e.RequestSequence == sequence })
		op := all[len(all)-1]
		if op.State != events.Rejected || op.Reason.Code != events.CodeInvalidRequest || !strings.Contains(op.Reason.Message, b.want) {
			t.Errorf("%.80s on %s: %s %+v, want rejected with %q", b.body, b.subject, op.State, op.Reason, b.want)
		}
	}
	r.stop("good", 1, 2)
	r.awaitEnd("good", events.Succeeded)
	r.wantPosts(1)
	r.awaitNoOpenRequests()
	rejected := testutil.ToFloat64(r.metrics.Requests.WithLabelValues("stop", "nats", "rejected")) +
		testutil.ToFloat64(r.metrics.Requests.WithLabelValues("stop", "cloudevent", "rejected")) +
		testutil.ToFloat64(r.metrics.Requests.WithLabelValues("unknown", "nats", "rejected"))
	if int(rejected) != len(bad) {
		t.Errorf("requests_total{result=rejected} = %v, want %d", rejected, len(bad))
	}
}

func TestUnknownTargetsAreRejected(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.stop("no cluster", 77, 2)
	r.stop("no server", 1, 77)
	for _, key := range []string{"no cluster", "no server"} {
		if op := r.awaitEnd(key, events.Rejected); op.Reason.Code != events.CodeNotFound {
			t.Errorf("%s: %+v, want %s", key, op.Reason, events.CodeNotFound)
		}
	}
	r.wantPosts(0)
	r.awaitNoOpenRequests()
}

func TestDuplicatesAreRecordedAndCallNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 100})
	r.agent()
	for range 20 {
		r.stop("k", 1, 2)
	}
	r.awaitEndAmongDuplicates("k")
	r.awaitNoOpenRequests()
	r.stop("k", 1, 2)
	last := r.await("20 duplicates", func(e events.Event) bool { return e.Duplicates == 20 })
	for i, e := range last {
		if e.N != i+1 {
			t.Errorf("event %d has number %d", i+1, e.N)
		}
	}
	if op := last[len(last)-1]; op.Token != events.Duplicate || op.State != events.Succeeded {
		t.Errorf("last event is %s, state %s, want a duplicate of a success", op.Token, op.State)
	}
	r.wantPosts(1)
}

// The journal has room for others in a storm of duplicates, each of which counts.
func TestAStormOfDuplicatesIsToldOnceASecond(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 100})
	r.agent()
	r.stop("k", 1, 2)
	r.awaitEndAmongDuplicates("k")
	const storm = 200
	began := time.Now()
	for range storm { // each is flushed: they come one after the other
		r.stop("k", 1, 2)
	}
	all := r.await("all duplicates", func(e events.Event) bool { return e.Duplicates == storm })
	told := 0
	for _, e := range all {
		if e.Token == events.Duplicate {
			told++
		}
	}
	if most := 2 + int(time.Since(began)/duplicatesEvery); told > most {
		t.Errorf("%d duplicates were told of %d times, want %d at most", storm, told, most)
	}
	r.awaitNoOpenRequests()
}

func (r *rig) awaitEndAmongDuplicates(key string) {
	r.t.Helper()
	r.await("the end of "+key, func(e events.Event) bool {
		return e.OperationID == events.OperationID(key) && e.Token == events.Succeeded
	})
}

func TestAKeyUsedForOtherContentIsRejectedAndTheOperationStays(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	sequence := r.publish("ob.server.stop.request", `{"idempotency_key":"k","cluster_id":1,"server_id":3}`)
	all := r.await("rejection", func(e events.Event) bool { return e.RequestSequence == sequence })
	if op := all[0]; op.State != events.Rejected || op.Reason.Code != events.CodeKeyReused || op.IdempotencyKey != "k" || op.OperationID == events.OperationID("k") {
		t.Errorf("got %s %+v for key %s, operation %s", op.State, op.Reason, op.IdempotencyKey, op.OperationID)
	}
	r.wantPosts(1)
	r.awaitNoOpenRequests()
}

func TestTheKeyIsTheFirstThatIsThere(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	body := `{"cluster_id":1,"server_id":2,"dry_run":true}`
	r.publish("ob.server.stop.request", body, "Idempotency-Key", "from header", "Nats-Msg-Id", "id")
	r.publish("ob.server.stop.request", body, "Nats-Msg-Id", "from id")
	r.publish("ob.server.stop.request", body, "ce-specversion", "1.0", "ce-id", "from event", "ce-source", "/x", "ce-type", "t")
	r.publish("ob.server.stop.request.1.2", `{"specversion":"1.0","id":"from structured","source":"/x","type":"t","data":{"dry_run":true}}`, "content-type", "application/cloudevents+json")
	for _, key := range []string{"from header", "from id", "from event", "from structured"} {
		if op := r.awaitEnd(key, events.Succeeded); op.Reason.Code != events.CodeDryRun {
			t.Errorf("%s: %+v, want %s", key, op.Reason, events.CodeDryRun)
		}
	}
	sequence := r.publish("ob.server.stop.request", body)
	all := r.await("keyless", func(e events.Event) bool { return e.RequestSequence == sequence && e.State == events.Succeeded })
	if key := all[0].IdempotencyKey; !strings.HasPrefix(key, fmt.Sprintf("OB_REQUESTS/%d@", sequence)) {
		t.Errorf("key %q of a request without one", key)
	}
	r.wantPosts(0)
}

func TestOneOperationAClusterAtATime(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 200})
	r.agent()
	for server := range int64(4) {
		r.stop(fmt.Sprint("k", server+1), 1, server+1)
	}
	for server := range int64(4) {
		r.awaitEnd(fmt.Sprint("k", server+1), events.Succeeded)
	}
	tasks := r.sim.Tasks()
	for i, task := range tasks[1:] {
		if task.StartTime.Before(tasks[i].FinishTime) {
			t.Errorf("task %d started %s before task %d was over", task.ID, tasks[i].FinishTime.Sub(task.StartTime), tasks[i].ID)
		}
	}
	r.wantPosts(4)
	for server := range int64(4) {
		if tasks[0].Servers[0] == server+1 { // whichever came first
			continue
		}
		waited := r.awaitToken(fmt.Sprint("k", server+1), events.Waiting)
		if reason := waited[len(waited)-1].Reason; reason.Code != events.CodeClusterBusy {
			t.Errorf("waits for %+v, want %s", reason, events.CodeClusterBusy)
		}
	}
}

func TestARequestExpiresWhileItWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1})
	r.agent()
	r.stop("long", 1, 2)
	r.awaitToken("long", events.Running)
	r.publish("ob.server.stop.request", fmt.Sprintf(`{"idempotency_key":"k","cluster_id":1,"server_id":3,"expires_at":%q}`,
		time.Now().Add(500*time.Millisecond).Format(time.RFC3339Nano)))
	r.awaitEnd("k", events.Expired)
	r.wantPosts(1)
}

func TestARequestIsKeptAliveForAsLongAsItTakes(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 20})
	r.ackWait = time.Second
	r.agent()
	r.stop("k", 1, 2)
	op := r.awaitEnd("k", events.Succeeded)
	if took := op.EndedAt.Sub(op.RequestedAt); took < 3*r.ackWait {
		t.Fatalf("took %s, less than three times the ack wait: this proves nothing", took)
	}
	if strings.Contains(r.logged.String(), "operation taken up") {
		t.Error("the request was delivered again")
	}
}

func TestAnAgentThatShutsDownHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 50})
	r.ackWait = time.Minute // nobody waits for that
	first := r.agent()
	r.stop("k", 1, 2)
	r.awaitToken("k", events.Running)
	began := time.Now()
	first()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("shutdown took %s, want less than 2 s", took)
	}
	r.machine.Agent = "second"
	r.agent()
	if op := r.awaitEnd("k", events.Succeeded); op.Agent != "second" {
		t.Errorf("ended by %q", op.Agent)
	}
	r.wantPosts(1)
}

func TestAgentsShareTheWork(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(6, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, ocpsim.Config{Clusters: clusters, Speed: 100})
	for i := range 3 {
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	for i := range 300 { // 50 copies of each of 6 requests
		c := clusters[i%6]
		r.stop(fmt.Sprint("k", i%6), c.ID, c.Zones[0].Servers[0].ID)
	}
	for i := range 6 {
		r.awaitEndAmongDuplicates(fmt.Sprint("k", i))
	}
	r.awaitNoOpenRequests()
	r.wantPosts(6)
	for i := range 6 {
		all := r.await("all duplicates", func(e events.Event) bool {
			return e.OperationID == events.OperationID(fmt.Sprint("k", i)) && e.Duplicates == 49
		})
		for j, e := range all {
			if e.N != j+1 {
				t.Fatalf("k%d: event %d has number %d", i, j+1, e.N)
			}
		}
	}
}

func TestOCPAwayMakesOperationsWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.fault("*:status,status=503,count=5")
	r.agent()
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	waited := r.awaitToken("k", events.Waiting)
	if reason := waited[len(waited)-1].Reason; reason.Code != events.CodeStaleTopology {
		t.Errorf("waits for %+v, want %s", reason, events.CodeStaleTopology)
	}
	r.wantPosts(1)
}

// TestOperationsGoOnAsSoonAsOCPAnswers has OCP answer nothing for so many requests that
// it is left alone, then everything: nobody waits out the time that was set.
func TestOperationsGoOnAsSoonAsOCPAnswers(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(12, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, ocpsim.Config{Clusters: clusters})
	r.fault("*:status,status=503")
	r.agent()
	for i, c := range clusters {
		r.stop(fmt.Sprint("k", i), c.ID, c.Zones[0].Servers[0].ID)
	}
	r.awaitToken("k0", events.Waiting)
	r.sim.ClearFaults()
	waited, early := 0, 0
	for i := range clusters {
		all := r.await("the end", func(e events.Event) bool {
			return e.OperationID == events.OperationID(fmt.Sprint("k", i)) && e.State.Final()
		})
		end := all[len(all)-1]
		for _, e := range all {
			if e.Token != events.Waiting {
				continue
			}
			if code := e.Reason.Code; code != events.CodeStaleTopology && code != events.CodeOCPUnreachable {
				t.Errorf("k%d waits for %+v", i, e.Reason)
			}
			waited++
			if end.EndedAt.Before(e.Reason.Until) {
				early++
			}
		}
	}
	// Those that try OCP while it is left alone are few; a busy machine may hold some up.
	if waited == 0 || early <= waited/2 {
		t.Errorf("%d of %d that waited for OCP went on before they would have looked again by themselves", early, waited)
	}
	r.wantPosts(len(clusters))
}

func TestNATSAwayStandsStillAndGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 30})
	r.agent()
	r.stop("before", 1, 2)
	r.awaitToken("before", events.Running)
	r.server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	request := events.Request{IdempotencyKey: "during", ClusterID: 1, ServerID: 3}
	if _, err := request.Publish(ctx, r.js, events.Stop, "cli"); err == nil {
		t.Error("a request was acknowledged while NATS was away")
	}
	posts := r.sim.Posts(ocpsim.ServerStop)
	r.server.Restart()
	if err := r.nc.ForceReconnect(); err != nil {
		t.Logf("reconnects by itself: %v", err)
	}
	r.awaitEnd("before", events.Succeeded)
	if got := r.sim.Posts(ocpsim.ServerStop); got != posts {
		t.Errorf("%d calls, want %d", got, posts)
	}
	r.stop("after", 1, 4)
	r.awaitEnd("after", events.Succeeded)
}

func TestADeletedStreamEndsTheAgentLoudly(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := r.agentRunning(ctx)
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	if err := r.js.DeleteStream(t.Context(), events.RequestStream); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), events.RequestStream) {
			t.Errorf("ended with %v, want an error that names %s", err, events.RequestStream)
		}
	case <-time.After(testPatience):
		t.Fatal("goes on as if nothing had happened")
	}
}

func (r *rig) order(verb events.Verb, key string, server int64) {
	r.t.Helper()
	o := events.OrderTo(verb, events.Operation{Kind: events.Stop, OperationID: events.OperationID(key), ClusterID: 1, ServerID: server})
	o.Reason, o.RequestedBy = "because", "me"
	if _, err := o.Publish(r.t.Context(), r.js); err != nil {
		r.t.Fatal(err)
	}
}

func TestWhatWaitsCanBeCancelledAndWhatRunsCannot(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 40})
	for i := range 3 { // the order may reach another agent than the one that holds the operation
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	r.stop("runs", 1, 2)
	r.awaitToken("runs", events.Running)
	r.stop("waits", 1, 3)
	r.awaitToken("waits", events.Waiting)
	r.order(events.Cancel, "waits", 4) // another target: refused
	r.order(events.Cancel, "waits", 3)
	r.order(events.Cancel, "runs", 2)
	r.order(events.Cancel, "nothing", 2)
	if op := r.awaitEnd("waits", events.Cancelled); op.Reason.Code != events.CodeCancelled || !strings.Contains(op.Reason.Message, "me: because") {
		t.Errorf("reason %+v", op.Reason)
	}
	r.awaitEnd("runs", events.Succeeded)
	r.awaitNoOpenRequests()
	r.wantPosts(1)
}

func TestAFailedTaskIsRetriedInTheSameOperation(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 200})
	r.fault("server_stop:fail_subtask,subtask=Stop server")
	r.agent()
	r.stop("k", 1, 2)
	failed := r.awaitEnd("k", events.Failed)
	r.awaitNoOpenRequests()
	r.order(events.Retry, "k", 2)
	all := r.awaitToken("k", events.Succeeded)
	for i, e := range all {
		if e.N != i+1 {
			t.Errorf("event %d has number %d", i+1, e.N)
		}
	}
	op := all[len(all)-1].Operation
	if op.Task.ID != failed.Task.ID || op.Error != nil || op.Task.Subtasks[1].Runs != 2 {
		t.Errorf("task %d, error %+v, %d runs; want task %d, no error, 2 runs", op.Task.ID, op.Error, op.Task.Subtasks[1].Runs, failed.Task.ID)
	}
	r.awaitNoOpenRequests()
	r.wantPosts(1)
}

func TestARetryHoldsItsSlotWhateverItsRequestSays(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 50})
	r.fault("server_stop:fail_subtask,subtask=Stop server,server=2")
	r.agent()
	expires := time.Now().Add(4 * time.Second)
	r.publish("ob.server.stop.request", fmt.Sprintf(`{"idempotency_key":"k","cluster_id":1,"server_id":2,"expires_at":%q}`, expires.Format(time.RFC3339Nano)))
	r.awaitEnd("k", events.Failed)
	r.awaitNoOpenRequests()
	time.Sleep(time.Until(expires)) // what is expired is what this test is about
	r.order(events.Retry, "k", 2)
	r.await("the retry", func(e events.Event) bool { return !e.RetriedAt.IsZero() && e.Token == events.Progress })
	r.stop("other", 1, 3)
	r.awaitToken("other", events.Waiting)
	r.awaitToken("k", events.Succeeded)
	r.awaitEnd("other", events.Succeeded)
}

func TestACancelRightBehindItsRequestIsNotLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1})
	for i := range 2 {
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	r.stop("long", 1, 2)
	r.awaitToken("long", events.Running)
	for i := range 10 {
		key := fmt.Sprint("k", i)
		r.stop(key, 1, 3)
		r.order(events.Cancel, key, 3)
	}
	for i := range 10 {
		r.awaitEnd(fmt.Sprint("k", i), events.Cancelled)
	}
	r.awaitOpenRequests(1) // the long one: whoever held the others has let them go
}

func TestAnAgentEndsWhileNATSIsAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 5})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := r.agentRunning(ctx)
	r.stop("k", 1, 2)
	r.awaitToken("k", events.Running)
	for range 50 {
		r.stop("k", 1, 2)
	}
	r.server.Stop()
	began := time.Now()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(testPatience):
		t.Fatal("goes on")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s to end, want less than 3 s", took)
	}
	r.server.Restart()
}

func TestThoseThatWaitForASlotDoNotAskOCP(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 100})
	r.agent()
	const requests = 10
	for i := range requests {
		r.stop(fmt.Sprint("k", i), 1, int64(1+i%6)) // the second stop of a server is refused by OCP: an end too
	}
	for i := range requests {
		id := events.OperationID(fmt.Sprint("k", i))
		r.await("an end", func(e events.Event) bool { return e.OperationID == id && e.Token.Final() })
	}
	looks := 0
	for _, entry := range r.sim.Log() {
		if entry.Endpoint == ocpsim.ZonesList {
			looks++
		}
	}
	if looks > 2*requests {
		t.Errorf("%d looks at the topology for %d requests", looks, requests)
	}
}
