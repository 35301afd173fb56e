package agent

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
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

// awaitOpenRequests waits until so many requests are open: the server tells nobody of an acknowledgement.
func (r *rig) awaitOpenRequests(n uint64) {
	r.t.Helper()
	eventually(r.t, fmt.Sprint(n, " requests are open"), func() bool {
		stream, err := r.js.Stream(r.t.Context(), events.RequestStream)
		if err != nil {
			r.t.Fatal(err)
		}
		return stream.CachedInfo().State.Msgs == n
	})
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
