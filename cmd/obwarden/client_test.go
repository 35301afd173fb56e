package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

// commandLine is one that runs.
type commandLine struct {
	stdout, stderr *agenttest.Output
	interrupt      context.CancelFunc
	code           chan int
}

func begin(t *testing.T, url string, args ...string) *commandLine {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &commandLine{stdout: agenttest.NewOutput(), stderr: agenttest.NewOutput(), interrupt: cancel, code: make(chan int, 1)}
	environ := map[string]string{"OBWARDEN_NATS_URL": url, "OBWARDEN_OCP_PASSWORD_FILE": "/nobody/may/read"}
	go func() { c.code <- execute(ctx, args, c.stdout, c.stderr, environ) }()
	t.Cleanup(cancel)
	return c
}

func (c *commandLine) end(t *testing.T, want int) *commandLine {
	t.Helper()
	select {
	case got := <-c.code:
		if got != want {
			t.Fatalf("exit code %d, want %d\nstdout\n%s\nstderr\n%s", got, want, c.stdout, c.stderr)
		}
	case <-time.After(patience):
		t.Fatalf("does not end\nstdout\n%s\nstderr\n%s", c.stdout, c.stderr)
	}
	return c
}

// testAgent is the test itself in the place of an agent.
type testAgent struct {
	t       *testing.T
	url     string
	js      jetstream.JetStream
	streams events.Streams
}

func newTestAgent(t *testing.T) *testAgent {
	return joinAs(t, eventstest.Start(t).URL())
}

func joinAs(t *testing.T, url string) *testAgent {
	t.Helper()
	js := eventstest.Connect(t, url)
	streams, err := events.OpenStreams(t.Context(), js, eventstest.Options())
	if err != nil {
		t.Fatal(err)
	}
	return &testAgent{t, url, js, streams}
}

// receive takes the next request and returns its operation as it begins.
func (a *testAgent) receive() events.Operation {
	a.t.Helper()
	msg, err := a.streams.Requests.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		a.t.Fatalf("no request came: %v", err)
	}
	meta, err := msg.Metadata()
	if err != nil {
		a.t.Fatal(err)
	}
	got, err := events.DecodeRequest(msg.Subject(), msg.Headers(), msg.Data(), "none")
	if err != nil {
		a.t.Fatal(err)
	}
	if err := msg.DoubleAck(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	return events.Operation{
		Schema: events.OperationSchema, OperationID: events.OperationID(got.Request.IdempotencyKey), Kind: got.Kind,
		ClusterID: got.Request.ClusterID, ServerID: got.Request.ServerID, IdempotencyKey: got.Request.IdempotencyKey,
		Agent: "test", Source: got.Source, Request: got.Request, RequestSequence: meta.Sequence.Stream, RequestedAt: meta.Timestamp,
	}
}

func (a *testAgent) publish(op *events.Operation, token events.State) {
	a.t.Helper()
	op.N++
	op.UpdatedAt = time.Now().UTC()
	if token != events.Progress && token != events.Duplicate && token != events.Stalled {
		op.State = token
	}
	if token.Final() {
		op.EndedAt = op.UpdatedAt
	}
	msg, err := events.Event{Operation: *op, Token: token}.Message()
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.js.PublishMsg(a.t.Context(), msg); err != nil {
		a.t.Fatal(err)
	}
}

// past is an operation that is in the journal from before.
func (a *testAgent) past(key string, cluster int64, tokens ...events.State) events.Operation {
	op := events.Operation{
		Schema: events.OperationSchema, OperationID: events.OperationID(key), Kind: events.Stop, ClusterID: cluster, ServerID: 2,
		IdempotencyKey: key, Agent: "test", Request: events.Request{IdempotencyKey: key, ClusterID: cluster, ServerID: 2, Reason: "from before"},
		RequestSequence: 1 << 40, RequestedAt: time.Now().UTC(),
	}
	for _, token := range tokens {
		if token == events.Failed || token == events.Rejected || token == events.Waiting {
			op.Reason = &events.Reason{Code: "BECAUSE", Message: "it is a test"}
		}
		if token == events.Running {
			op.Task = chain("SUCCESSFUL", "RUNNING")
		}
		a.publish(&op, token)
	}
	return op
}

func contains(t *testing.T, what fmt.Stringer, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(what.String(), want) {
			t.Errorf("%q is missing in\n%s", want, what)
		}
	}
}

// documents reads one operation a line.
func documents(t *testing.T, text fmt.Stringer) []events.Operation {
	t.Helper()
	var all []events.Operation
	for l := range strings.Lines(text.String()) {
		var op events.Operation
		if err := json.Unmarshal([]byte(l), &op); err != nil {
			t.Fatalf("%v in line %q", err, l)
		}
		all = append(all, op)
	}
	return all
}

func TestSubmitWithoutWaiting(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	c := begin(t, a.url, "restart", "1", "2", "--key", "k", "--reason", "r", "--requested-by", "me", "--label", "a=b=c", "--label", "x=",
		"--force", "--freeze-server=false", "--expires-at", "2126-11-24T21:30:00+01:00", "--dry-run", "-o", "json").end(t, 0)
	var printed map[string]any
	if err := json.Unmarshal([]byte(c.stdout.String()), &printed); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"operation_id": events.OperationID("k"), "idempotency_key": "k", "subject": "ob.server.restart.request.1.2", "sequence": 1.0}
	if fmt.Sprint(printed) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", printed, want)
	}
	op := a.receive()
	no := false
	request := events.Request{
		IdempotencyKey: "k", ClusterID: 1, ServerID: 2, Reason: "r", RequestedBy: "me", Labels: map[string]string{"a": "b=c", "x": ""},
		Force: true, FreezeServer: &no, ExpiresAt: time.Date(2126, 11, 24, 20, 30, 0, 0, time.UTC), DryRun: true,
	}
	if !op.Request.Same(request) || op.Source != "cli" || op.Kind != events.Restart {
		t.Errorf("got %+v, want %+v", op, request)
	}

	c = begin(t, a.url, "stop", "1", "2", "--stop-type", "STOP_SERVICE", "--expires-in", "10m").end(t, 0)
	op = a.receive()
	contains(t, c.stdout, op.OperationID, op.IdempotencyKey, "obwarden watch "+op.OperationID)
	if lines := strings.Count(c.stdout.String(), "\n"); lines != 1 {
		t.Errorf("%d lines, want 1: %s", lines, c.stdout)
	}
	if op.Request.FreezeServer != nil || op.Request.StopType != "STOP_SERVICE" || !strings.Contains(op.Request.RequestedBy, "@") {
		t.Errorf("got %+v", op.Request)
	}
	if left := time.Until(op.Request.ExpiresAt); left <= 9*time.Minute || left > 10*time.Minute {
		t.Errorf("expires in %s, want about 10m", left)
	}
}

func TestWaitForOutcome(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	for _, test := range []struct {
		outcome events.State
		code    int
	}{
		{events.Succeeded, 0}, {events.Failed, exitFailed}, {events.Rejected, exitRejected}, {events.Expired, exitRejected}, {events.Cancelled, exitRejected},
	} {
		c := begin(t, a.url, "stop", "1", "2", "--wait", "--timeout", "1m")
		op := a.receive()
		a.publish(&op, events.Accepted)
		op.Task = chain("RUNNING")
		a.publish(&op, events.Running)
		op.Task = chain("SUCCESSFUL", "RUNNING")
		op.Changes = []events.Change{{SubtaskID: 133820, Name: "Prepare stop observer", From: "RUNNING", To: "SUCCESSFUL"}}
		a.publish(&op, events.Progress)
		op.Changes = nil
		if test.code != 0 {
			op.Reason = &events.Reason{Code: "BECAUSE", Message: "it is a test"}
		}
		a.publish(&op, test.outcome)
		c.end(t, test.code)
		contains(t, c.stdout, "accepted", "running", "1 of 8  Prepare stop observer: successful in 2.0s", string(test.outcome))
		if test.code != 0 {
			contains(t, c.stdout, "BECAUSE: it is a test")
			contains(t, c.stderr, "obwarden: stop server 2 of cluster 1", "obwarden get "+op.OperationID)
		} else if c.stderr.String() != "" {
			t.Errorf("stderr: %s", c.stderr)
		}
		if strings.Contains(c.stdout.String(), "\x1b") {
			t.Errorf("escape sequences in a pipe: %q", c.stdout)
		}
	}
}

func TestWaitJSON(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	c := begin(t, a.url, "stop", "1", "2", "--wait", "-o", "json")
	op := a.receive()
	a.publish(&op, events.Accepted)
	a.publish(&op, events.Submitting)
	a.publish(&op, events.Succeeded)
	got := documents(t, c.end(t, 0).stdout)
	if len(got) != 3 || got[0].State != events.Accepted || got[2].State != events.Succeeded || got[2].N != 3 {
		t.Errorf("got %+v", got)
	}
}

// The agent refuses a key that stands for another request under an operation of its own.
func TestWaitKeyReused(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	a.past("other refusal", 9, events.Rejected)
	running := a.past("k", 1, events.Accepted, events.Running)
	c := begin(t, a.url, "stop", "7", "8", "--key", "k", "--wait")
	op := a.receive()
	stranger := op
	stranger.OperationID, stranger.RequestSequence = events.OperationID("stranger"), op.RequestSequence+1
	a.publish(&stranger, events.Rejected)
	op.OperationID = events.OperationID("sequence 1")
	op.Reason = &events.Reason{Code: "IDEMPOTENCY_KEY_REUSED", Message: "the key stands for operation " + running.OperationID}
	a.publish(&op, events.Rejected)
	c.end(t, exitRejected)
	contains(t, c.stdout, "IDEMPOTENCY_KEY_REUSED", running.OperationID)
	contains(t, c.stderr, "obwarden get "+op.OperationID)
	if strings.Contains(c.stdout.String(), stranger.OperationID) {
		t.Errorf("shows somebody else's refusal:\n%s", c.stdout)
	}
}

func TestWaitDuplicate(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	t.Run("of one that has ended", func(t *testing.T) {
		ended := a.past("ended", 1, events.Accepted, events.Failed)
		c := begin(t, a.url, "stop", "1", "2", "--key", "ended", "--wait")
		a.receive()
		c.stdout.Await(t, "failed")
		select {
		case code := <-c.code:
			t.Fatalf("ended with %d before the request was answered", code)
		default:
		}
		ended.Duplicates++
		a.publish(&ended, events.Duplicate)
		c.end(t, exitFailed)
		contains(t, c.stdout, "requested again, stays failed")
	})
	t.Run("of one that is under way", func(t *testing.T) {
		running := a.past("running", 1, events.Accepted, events.Running)
		c := begin(t, a.url, "stop", "1", "2", "--key", "running", "--wait")
		a.receive()
		a.publish(&running, events.Duplicate)
		c.stdout.Await(t, "requested again")
		a.publish(&running, events.Succeeded)
		c.end(t, 0)
	})
}

func TestWaitGivesUp(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	c := begin(t, a.url, "stop", "1", "2", "--key", "k", "--wait", "--timeout", "50ms").end(t, exitGaveUp)
	contains(t, c.stderr, "gave up waiting after 50ms", "no agent has taken it yet", "obwarden watch "+events.OperationID("k"))

	c = begin(t, a.url, "stop", "1", "3", "--key", "l", "--wait")
	a.receive() // k
	op := a.receive()
	a.publish(&op, events.Accepted)
	c.stdout.Await(t, "accepted")
	c.interrupt()
	contains(t, c.end(t, exitGaveUp).stderr, "interrupted", "obwarden watch "+op.OperationID)
}

func TestWaitSurvivesLostServer(t *testing.T) {
	t.Parallel()
	server := eventstest.Start(t)
	a := joinAs(t, server.URL())
	c := begin(t, a.url, "stop", "1", "2", "--wait")
	op := a.receive()
	a.publish(&op, events.Accepted)
	c.stdout.Await(t, "accepted")
	server.Stop()
	c.stderr.Await(t, "lost")
	server.Restart()
	b := joinAs(t, a.url)
	b.publish(&op, events.Running)
	b.publish(&op, events.Succeeded)
	c.end(t, 0)
	contains(t, c.stdout, "running", "succeeded")
	if n := strings.Count(c.stderr.String(), "lost"); n != 1 {
		t.Errorf("said %d times that the connection is lost, want once:\n%s", n, c.stderr)
	}
}

func TestWaitAsTree(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	out := agenttest.NewOutput()
	u := &ui{out: out, err: out, live: true, now: time.Now, size: func() (int, int) { return 80, 24 }}
	type result struct {
		op  events.Operation
		err error
	}
	done := make(chan result, 1)
	r := events.Request{IdempotencyKey: "k", ClusterID: 1, ServerID: 2}
	go func() {
		op, err := follow(t.Context(), a.js, followTarget{
			OperationID: events.OperationID("k"),
			Submit:      func(ctx context.Context) (uint64, error) { return r.Publish(ctx, a.js, events.Stop, "cli") },
		}, u)
		done <- result{op, err}
	}()
	out.Await(t, "waiting for an agent")
	op := a.receive()
	op.Task = chain("RUNNING")
	a.publish(&op, events.Running)
	out.Await(t, "Stop observer process")
	u.notice("by the way")
	op.Task = allDone()
	a.publish(&op, events.Succeeded)
	got := <-done
	if got.err != nil || got.op.State != events.Succeeded {
		t.Fatalf("got %+v", got)
	}
	contains(t, out, "obwarden: by the way\n", "\x1b[?25l")
	if _, last, _ := cutLast(out.String(), "\x1b[?2026h"); !strings.Contains(last, "✓ stop server 2 of cluster 1   succeeded") || !strings.HasSuffix(last, "\x1b[?25h") {
		t.Errorf("the last picture is %q", last)
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func TestWatch(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	past := a.past("past", 1, events.Accepted, events.Running, events.Failed)

	c := begin(t, a.url, "watch", "past").end(t, exitFailed)
	contains(t, c.stdout, "accepted", "running", "BECAUSE: it is a test")
	if got := documents(t, begin(t, a.url, "watch", past.OperationID, "-o", "json").end(t, exitFailed).stdout); len(got) != 3 {
		t.Errorf("%d documents, want 3", len(got))
	}
	contains(t, begin(t, a.url, "watch", "nothing").end(t, exitFailed).stderr, `"nothing"`, "obwarden list")

	all := begin(t, a.url, "watch", "--since", "1h")
	all.stdout.Await(t, "BECAUSE: it is a test")
	live := a.past("live", 3, events.Accepted)
	all.stdout.Await(t, live.OperationID)
	all.interrupt()
	contains(t, all.end(t, 0).stdout, past.OperationID, "stop 1 2", "stop 3 2", "from before")

	a.publish(&live, events.Submitting)
	one := begin(t, a.url, "watch", "live")
	one.stdout.Await(t, "submitting")
	a.publish(&live, events.Succeeded)
	one.end(t, 0)
}

func TestWatchShowsOnlyNewEvents(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	past := a.past("past", 1, events.Accepted, events.Succeeded)
	out := agenttest.NewOutput()
	c, err := app{stdout: out, stderr: out, environ: map[string]string{"OBWARDEN_NATS_URL": a.url}}.dial("")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- watchAll(ctx, c, 0, newUI(app{stdout: out, stderr: out}, true)) }()
	// Nobody knows when it has subscribed, so there are new events until one is seen.
	for seen, i := false, 0; !seen; i++ {
		a.past(fmt.Sprint("live ", i), 1, events.Accepted)
		seen = out.String() != ""
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), past.OperationID) {
		t.Errorf("shows a past event:\n%s", out)
	}
}

func TestGet(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	op := a.past("key of it", 1, events.Accepted, events.Waiting, events.Running)
	for _, operation := range []string{op.OperationID, "key of it"} {
		contains(t, begin(t, a.url, "get", operation).end(t, 0).stdout, op.OperationID, "key of it", "Stop observer process", "from before", "sequence")
	}
	var got events.Operation
	if err := json.Unmarshal([]byte(begin(t, a.url, "get", "key of it", "-o", "json").end(t, 0).stdout.String()), &got); err != nil || got.N != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
	trail := begin(t, a.url, "get", "key of it", "--events").end(t, 0).stdout
	contains(t, trail, "accepted", "waiting", "BECAUSE: it is a test", "running", "agent test")
	if n := strings.Count(trail.String(), "\n"); n != 3 {
		t.Errorf("%d lines, want 3:\n%s", n, trail)
	}
	if n := len(documents(t, begin(t, a.url, "get", "key of it", "--events", "-o", "json").end(t, 0).stdout)); n != 3 {
		t.Errorf("%d documents, want 3", n)
	}
	contains(t, begin(t, a.url, "get", "no such").end(t, exitFailed).stderr, "no such", "obwarden list")
}

func TestList(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t)
	contains(t, begin(t, a.url, "list").end(t, 0).stderr, "no operations")
	failed := a.past("failed", 1, events.Accepted, events.Running, events.Progress, events.Failed)
	a.publish(&failed, events.Duplicate)
	running := a.past("running", 1, events.Accepted, events.Running, events.Progress)
	waiting := a.past("waiting", 2, events.Accepted, events.Waiting)

	for _, test := range []struct {
		args []string
		want []events.Operation // newest first
	}{
		{nil, []events.Operation{waiting, running, failed}},
		{[]string{"--open"}, []events.Operation{waiting, running}},
		{[]string{"--limit", "1"}, []events.Operation{waiting}},
		{[]string{"--limit", "0"}, []events.Operation{waiting, running, failed}},
		{[]string{"--cluster", "1"}, []events.Operation{running, failed}},
		{[]string{"--state", "failed"}, []events.Operation{failed}},
		{[]string{"--state", "running", "--cluster", "2"}, nil},
	} {
		got := documents(t, begin(t, a.url, append([]string{"list", "-o", "json"}, test.args...)...).end(t, 0).stdout)
		var gotIDs, wantIDs []string
		for _, op := range got {
			gotIDs = append(gotIDs, op.EventID())
		}
		for _, op := range test.want {
			wantIDs = append(wantIDs, op.EventID())
		}
		if fmt.Sprint(gotIDs) != fmt.Sprint(wantIDs) {
			t.Errorf("list %v: got %v, want %v", test.args, gotIDs, wantIDs)
		}
	}
	table := begin(t, a.url, "list").end(t, 0).stdout
	contains(t, table, "OPERATION", "CLUSTER", waiting.OperationID, "BECAUSE: it is a test", "1 of 8")
	if n := strings.Count(table.String(), "\n"); n != 4 {
		t.Errorf("%d lines, want 4:\n%s", n, table)
	}
}

func TestNoNATS(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port on which nothing listens
	if err != nil {
		t.Fatal(err)
	}
	url := "nats://user:secret@" + l.Addr().String()
	l.Close()
	for _, args := range [][]string{{"stop", "1", "2"}, {"stop", "1", "2", "--wait"}, {"watch"}, {"watch", "x"}, {"get", "x"}, {"list"}} {
		c := begin(t, url, args...).end(t, exitUnreachable)
		contains(t, c.stderr, l.Addr().String(), "obwarden run", "OBWARDEN_NATS_URL")
		if strings.Contains(c.stderr.String(), "secret") {
			t.Errorf("prints the password: %s", c.stderr)
		}
	}
}

// NATS permissions say who may do what to which server.
func TestPermissions(t *testing.T) {
	t.Parallel()
	ns, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
		Users: []*server.User{
			{Username: "agent", Password: "a"},
			{Username: "oncall", Password: "o", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Allow: []string{"ob.server.start.request.1.*", "$JS.API.>", "_INBOX.>"}},
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(patience) {
		t.Fatal("NATS does not start")
	}
	as := func(user string) string { return "nats://" + user + "@" + ns.Addr().String() }
	joinAs(t, as("agent:a"))
	begin(t, as("oncall:o"), "start", "1", "2").end(t, 0)
	for _, args := range [][]string{{"stop", "1", "2"}, {"start", "2", "1", "--wait"}} {
		c := begin(t, as("oncall:o"), args...).end(t, exitUnreachable)
		contains(t, c.stderr, "ermissions violation", "ask for permission")
		if strings.Contains(c.stderr.String(), "may have arrived") {
			t.Errorf("a refusal is no doubt: %s", c.stderr)
		}
	}
	contains(t, begin(t, as("oncall:wrong"), "list").end(t, exitUnreachable).stderr, "does not let us in")
}

func TestNoStreams(t *testing.T) {
	t.Parallel()
	url := eventstest.Start(t).URL()
	for _, args := range [][]string{{"stop", "1", "2"}, {"stop", "1", "2", "--wait"}, {"watch"}, {"watch", "x"}, {"get", "x"}, {"list"}} {
		contains(t, begin(t, url, args...).end(t, exitUnreachable).stderr, "is an agent running on this NATS server")
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args string
		says string
	}{
		{"stop", "CLUSTER, SERVER: missing"},
		{"stop 1", "SERVER: missing"},
		{"stop 1 2 3", `"3": one argument too many`},
		{"stop one 0", `CLUSTER: "one"`},
		{"stop 1 2 --forse", "unknown flag: --forse"},
		{"start 1 2 --force", "unknown flag: --force"},
		{"restart 1 2 --stop-type x", "unknown flag: --stop-type"},
		{"stop 1 2 --label x", "--label"},
		{"stop 1 2 --label x=1 --label x=2", "given twice"},
		{"stop 1 2 --expires-in -1s", "--expires-in"},
		{"stop 1 2 --expires-in 1s --expires-at 2126-01-01T00:00:00Z", "give one of them"},
		{"stop 1 2 --expires-at tomorrow", "RFC 3339"},
		{"stop 1 2 --timeout 1s", "--wait only"},
		{"stop 1 2 --key=", "--key"},
		{"stop 1 2 --key=ä", "printable ASCII"},
		{"stop 1 2 --reason=" + strings.Repeat("x", 1025), "reason: 1025 bytes"},
		{"stop 1 2 -o yaml", "text or json"},
		{"get", "OPERATION: missing"},
		{"watch a b", "one argument too many"},
		{"watch a --since 1h", "--since"},
		{"list --state done", "--state"},
		{"list --cluster 0", "--cluster"},
		{"list --limit -1", "--limit"},
		{"version now", "one argument too many"},
		{"shop 1 2", `did you mean stop?`},
		{"--colour", "unknown flag"},
	} {
		c := begin(t, "nats://127.0.0.1:1", strings.Fields(test.args)...).end(t, exitUsage)
		contains(t, c.stderr, test.says, "see obwarden", "--help")
		if c.stdout.String() != "" || strings.Contains(c.stderr.String(), "Usage:") {
			t.Errorf("%s: a wall of text\n%s%s", test.args, c.stdout, c.stderr)
		}
	}
	code := execute(t.Context(), []string{"list"}, agenttest.NewOutput(), agenttest.NewOutput(), map[string]string{"OBWARDEN_SETTLE": "soon"})
	if code != exitUsage {
		t.Errorf("a fault in the configuration: exit code %d, want %d", code, exitUsage)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	in := func(s events.State) events.Operation { return events.Operation{State: s, OperationID: "x"} }
	for _, test := range []struct {
		name string
		op   events.Operation
		err  error
		want int
	}{
		{"succeeded", in(events.Succeeded), nil, 0},
		{"failed", in(events.Failed), nil, 1},
		{"rejected", in(events.Rejected), nil, 3},
		{"expired", in(events.Expired), nil, 3},
		{"cancelled", in(events.Cancelled), nil, 3},
		{"gave up", in(events.Running), gaveUp{time.Second}, 4},
		{"interrupted", in(events.Running), context.Canceled, 4},
		{"NATS silent", in(events.Running), nats.ErrTimeout, 5},
		{"no stream", in(events.Running), jetstream.ErrStreamNotFound, 5},
		{"already classified", in(events.Running), fmt.Errorf("wrapped: %w", exit(exitUsage, errors.New("x"))), 2},
	} {
		if got := exitCode(outcome(&client{}, "x", test.op, test.err)); got != test.want {
			t.Errorf("%s: exit code %d, want %d", test.name, got, test.want)
		}
	}
	if got := exitCode(errors.New("anything")); got != exitFailed {
		t.Errorf("an error without code: exit code %d, want %d", got, exitFailed)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	contains(t, begin(t, "", "version").end(t, 0).stdout, "obwarden "+version()+" (go")
	var v map[string]string
	if err := json.Unmarshal([]byte(begin(t, "", "version", "-o", "json").end(t, 0).stdout.String()), &v); err != nil || v["version"] != version() || v["platform"] == "" {
		t.Errorf("got %v, %v", v, err)
	}
}

func TestEmbeddedURL(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		"127.0.0.1:4222": "nats://127.0.0.1:4222", "0.0.0.0:5222": "nats://127.0.0.1:5222", ":5222": "nats://127.0.0.1:5222",
		"[::]:5222": "nats://127.0.0.1:5222", "[::1]:5222": "nats://[::1]:5222", "10.0.0.1:0": "nats://10.0.0.1:4222",
	} {
		if got := embeddedURL(listen); got != want {
			t.Errorf("listen %s: got %s, want %s", listen, got, want)
		}
	}
}

// What is wrong with OCP is said also where the rest cannot be asked for, or is fine.
func TestCheckConnectionSaysThatOCPIsNotWellAndHowLateItIs(t *testing.T) {
	t.Parallel()
	unwell := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(-20*time.Minute).UTC().Format(http.TimeFormat))
		if r.URL.Path == "/api/status" {
			fmt.Fprint(w, "bad")
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(unwell.Close)
	stdout, stderr, code := command(t, map[string]string{
		"OBWARDEN_OCP_URL": unwell.URL, "OBWARDEN_OCP_ACCESS_KEY": "key", "OBWARDEN_OCP_SECRET_KEY": "secret", "OBWARDEN_NATS_URL": "nats://127.0.0.1:1",
	}, "check", "connection")
	for _, want := range []string{"OCP says itself that it is not well", "OCP user", "clock: OCP's is -20m"} {
		if code == 0 || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, want one and %q in\n%s%s", code, want, stdout, stderr)
		}
	}
}
