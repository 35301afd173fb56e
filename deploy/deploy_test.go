// Package deploy holds the examples of how to run obwarden, and tests that they
// do what they say.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/agent"
	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// patience is for what must happen; it is never waited out.
const patience = time.Minute

// options reads a configuration as nats-server would.
func options(t *testing.T, file string) *server.Options {
	t.Helper()
	for _, user := range []string{"AGENT", "REQUESTER", "OPERATOR", "READER"} {
		t.Setenv("OBWARDEN_"+user+"_PASSWORD", "secretOf"+user)
	}
	o, err := server.ProcessConfigFile(filepath.Join("nats", file))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// natsServer runs nats.conf, on a free port and a directory of its own, and returns its URL.
func natsServer(t *testing.T) string {
	t.Helper()
	return start(t, options(t, "nats.conf")).ClientURL()
}

func start(t *testing.T, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.Port, o.HTTPPort = "127.0.0.1", server.RANDOM_PORT, 0
	o.StoreDir, o.NoSigs, o.NoLog = t.TempDir(), true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(patience) {
		t.Fatal("NATS server does not start")
	}
	return s
}

// user is a connection with the permissions of one of the users.
type user struct {
	t       *testing.T
	nc      *nats.Conn
	js      jetstream.JetStream
	refused chan error // permissions violations, which come apart from the answers
}

func connect(t *testing.T, url, name string) user {
	t.Helper()
	u := user{t: t, refused: make(chan error, 64)}
	var err error
	u.nc, err = nats.Connect(url, nats.UserInfo(name, "secretOf"+strings.ToUpper(name)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { u.refused <- err }))
	if err != nil {
		t.Fatalf("connect as %s: %v", name, err)
	}
	t.Cleanup(u.nc.Close)
	if u.js, err = jetstream.New(u.nc); err != nil {
		t.Fatal(err)
	}
	return u
}

// mustNotPublish publishes and wants the server to say no.
func (u user) mustNotPublish(subject string) {
	u.t.Helper()
	if err := u.nc.Publish(subject, []byte("{}")); err != nil {
		u.t.Fatal(err)
	}
	u.mustBeRefused("publish on " + subject)
}

func (u user) mustNotSubscribe(subject string) {
	u.t.Helper()
	if _, err := u.nc.SubscribeSync(subject); err != nil {
		u.t.Fatal(err)
	}
	u.mustBeRefused("subscribe to " + subject)
}

// mustBeRefused relies on the order of the server's words: a refusal comes before
// the answer to a later ping.
func (u user) mustBeRefused(what string) {
	u.t.Helper()
	if err := u.nc.FlushTimeout(patience); err != nil {
		u.t.Fatal(err)
	}
	select {
	case err := <-u.refused:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			u.t.Errorf("%s: got %v, want a permissions violation", what, err)
		}
	case <-time.After(patience):
		u.t.Errorf("%s: allowed, want a permissions violation", what)
	}
}

// mustHaveBeenAllowed fails if anything was refused since.
func (u user) mustHaveBeenAllowed() {
	u.t.Helper()
	if err := u.nc.FlushTimeout(patience); err != nil {
		u.t.Fatal(err)
	}
	select {
	case err := <-u.refused:
		u.t.Errorf("refused: %v", err)
	default:
	}
}

func (u user) openStreams() events.Streams {
	u.t.Helper()
	streams, err := events.OpenStreams(u.t.Context(), u.js, events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: 10 * time.Second})
	if err != nil {
		u.t.Fatal(err)
	}
	return streams
}

// openStreamsOfCluster asks until there is an answer: servers that have not elected
// their leader yet give none.
func (u user) openStreamsOfCluster() events.Streams {
	u.t.Helper()
	for began := time.Now(); ; {
		ctx, cancel := context.WithTimeout(u.t.Context(), time.Second)
		streams, err := events.OpenStreams(ctx, u.js, events.StreamOptions{Replicas: 3, Retention: time.Hour, AckWait: 10 * time.Second})
		cancel()
		if err == nil {
			return streams
		}
		if time.Since(began) > patience {
			u.t.Fatal(err)
		}
	}
}

func accepted(n int) events.Event {
	key := fmt.Sprint("key-", n)
	return events.Event{Token: events.Accepted, Operation: events.Operation{
		OperationID: events.OperationID(key), N: 1, Kind: events.Stop, State: events.Accepted, ClusterID: 1, ServerID: 2,
		Request: events.Request{IdempotencyKey: key, ClusterID: 1, ServerID: 2},
	}}
}

func subject(e events.Event) string {
	return events.EventSubject(e.Kind, e.OperationID, e.ClusterID, e.ServerID, e.Token)
}

func (u user) append(e events.Event) {
	u.t.Helper()
	msg, err := e.Message()
	if err != nil {
		u.t.Fatal(err)
	}
	if _, err := u.js.PublishMsg(u.t.Context(), msg); err != nil {
		u.t.Fatalf("publish on %s: %v", msg.Subject, err)
	}
}

func TestFlushedBeforeAcknowledged(t *testing.T) {
	if o := options(t, "nats.conf"); !o.JetStream || !o.SyncAlways {
		t.Errorf("JetStream %v, sync always %v, want both", o.JetStream, o.SyncAlways)
	}
}

// Three servers from cluster.conf find each other and keep three copies.
func TestCluster(t *testing.T) {
	// The servers must know each other's addresses before the first one starts.
	var ports []int
	var routes []string
	var probes []net.Listener
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, "nats://route:secretOfRoutes@"+l.Addr().String())
		probes = append(probes, l)
	}
	t.Setenv("NATS_CLUSTER_PASSWORD", "secretOfRoutes")
	t.Setenv("NATS_ROUTES", "["+strings.Join(routes, ", ")+"]")
	for _, l := range probes {
		l.Close()
	}
	var servers []*server.Server
	for n, port := range ports {
		t.Setenv("NATS_SERVER_NAME", fmt.Sprint("nats-", n+1))
		o := options(t, "cluster.conf")
		if !o.SyncAlways || o.Cluster.Username == "" || o.Cluster.Password == "" {
			t.Fatalf("sync always %v, user of routes %q: want true and one with a password", o.SyncAlways, o.Cluster.Username)
		}
		o.Cluster.ListenStr, o.Cluster.Host, o.Cluster.Port = "", "127.0.0.1", port
		servers = append(servers, start(t, o))
	}
	agent := connect(t, servers[2].ClientURL(), "agent")
	streams := agent.openStreamsOfCluster()
	if got := len(streams.Operations.CachedInfo().Cluster.Replicas); got != 2 {
		t.Errorf("got %d copies beside the leader's, want 2", got)
	}
	agent.mustHaveBeenAllowed()
}

func TestNobodyWithoutPassword(t *testing.T) {
	url := natsServer(t)
	for name, option := range map[string]nats.Option{
		"no user":        nats.Name("nobody"),
		"empty password": nats.UserInfo("agent", ""),
		"another's":      nats.UserInfo("agent", "secretOfREADER"),
	} {
		if nc, err := nats.Connect(url, option); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: got %v, want %v", name, err, nats.ErrAuthorization)
			nc.Close()
		}
	}
}

func TestAgent(t *testing.T) {
	agent := connect(t, natsServer(t), "agent")
	streams := agent.openStreams()
	agent.openStreams() // and finds them again
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	request := events.Request{ClusterID: 1, ServerID: 2}
	if _, err := request.Publish(ctx, agent.js, events.Stop, "http"); err != nil {
		t.Fatal(err)
	}
	msg, err := streams.Requests.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(msg.InProgress(), msg.DoubleAck(ctx)); err != nil {
		t.Error(err)
	}
	requests, err := agent.js.Stream(ctx, events.RequestStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := requests.Purge(ctx, jetstream.WithPurgeSequence(1)); err != nil {
		t.Error(err)
	}
	agent.append(accepted(1))
	if _, err := streams.Operations.GetLastMsgForSubject(ctx, events.OperationSubjects(events.OperationID("key-1"))); err != nil {
		t.Error(err)
	}
	revision, err := streams.Clusters.Create(ctx, "1", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := streams.Clusters.Update(ctx, "1", []byte("{}"), revision); err != nil {
		t.Error(err)
	}
	if _, err := streams.Clusters.Get(ctx, "1"); err != nil {
		t.Error(err)
	}
	watcher, err := streams.Clusters.WatchAll(ctx)
	if err != nil {
		t.Fatal(err)
	}
	<-watcher.Updates()
	if err := watcher.Stop(); err != nil {
		t.Error(err)
	}
	for range 2 { // made, and found again
		bucket, err := alerts.OpenBucket(ctx, agent.js, events.StreamOptions{Replicas: 1, Retention: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bucket.Put(ctx, "alert.0", []byte("{}")); err != nil {
			t.Error(err)
		}
		if _, err := bucket.Get(ctx, "alert.0"); err != nil {
			t.Error(err)
		}
	}
	agent.mustHaveBeenAllowed()

	agent.mustNotPublish("$JS.API.STREAM.DELETE." + events.OperationStream)
	agent.mustNotPublish("$JS.API.STREAM.PURGE." + events.OperationStream)
	agent.mustNotPublish("$JS.API.STREAM.UPDATE." + events.OperationStream)
	agent.mustNotPublish("$JS.API.CONSUMER.DELETE." + events.RequestStream + "." + events.Consumer)
}

// What the agent really does, from a request to the end of its operation, with
// the permissions that it has.
func TestOperation(t *testing.T) {
	url := natsServer(t)
	const speed = 1000 // a stop of a minute takes less than 100 ms
	users := ocpsim.DefaultUsers("admin", "secret")
	sim := ocpsim.Start(t, ocpsim.Config{Speed: speed, Users: users})
	client, err := ocp.New(ocp.Config{URL: sim.URL(), Username: "admin", Password: "secret", API: ocp.V3, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	u := connect(t, url, "agent")
	a := agent.New(agent.Config{
		JetStream: u.js, Streams: u.openStreams(), OCP: client, Directory: facts.NewDirectory(client), Policy: policy.NewLive(&policy.Policy{Hash: "lax", Limits: policy.Limits{MaxConcurrent: 1}}), Log: slog.New(slog.DiscardHandler),
		Metrics: metrics.New(prometheus.NewRegistry(), "test", "go", metrics.Scraped{}),
		Machine: operation.Machine{Agent: "test", Settle: 2 * time.Second, StallAfter: time.Minute, PollMin: 10 * time.Millisecond, PollMax: 50 * time.Millisecond},
		AckWait: 10 * time.Second, Timeout: time.Second,
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()

	request := events.Request{ClusterID: 1, ServerID: 1, IdempotencyKey: "key"}
	if _, err := request.Publish(t.Context(), connect(t, url, "requester").js, events.Stop, "cli"); err != nil {
		t.Fatal(err)
	}
	consumer, err := connect(t, url, "reader").js.OrderedConsumer(t.Context(), events.OperationStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{events.OperationSubjects(events.OperationID("key"))},
	})
	if err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := consumer.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatal(err)
		}
		if token := events.EventToken(msg.Subject()); token == events.Succeeded {
			break
		} else if token.Final() {
			t.Fatalf("the operation ended as %s: %s", token, msg.Data())
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	u.mustHaveBeenAllowed()
}

func TestRequester(t *testing.T) {
	url := natsServer(t)
	agent, requester := connect(t, url, "agent"), connect(t, url, "requester")
	request := events.Request{ClusterID: 1, ServerID: 2}
	if _, err := request.Publish(t.Context(), requester.js, events.Stop, "cli"); !errors.Is(err, events.ErrNoStream) {
		t.Errorf("without an agent: got %v, want %v", err, events.ErrNoStream)
	}
	streams := agent.openStreams()

	sequence, err := request.Publish(t.Context(), requester.js, events.Stop, "cli")
	if err != nil || sequence != 1 {
		t.Fatalf("got sequence %d, error %v, want 1", sequence, err)
	}
	msg, err := streams.Requests.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	if want := events.TargetRequestSubject(events.Stop, 1, 2); msg.Subject() != want {
		t.Errorf("got a request on %s, want %s", msg.Subject(), want)
	}
	requester.mustHaveBeenAllowed()

	for _, forbidden := range []string{
		events.TargetRequestSubject(events.Stop, 2, 1),
		events.TargetRequestSubject(events.Restart, 11, 1),
		events.RequestSubject(events.Stop), // the target in the body: any
		subject(accepted(1)),
		"$KV.OB_CLUSTERS.1",
		"$JS.API.STREAM.DELETE." + events.OperationStream,
		"$JS.API.CONSUMER.CREATE." + events.OperationStream + ".mine",
		"$JS.API.CONSUMER.MSG.NEXT." + events.RequestStream + "." + events.Consumer,
		"$JS.ACK.OB_REQUESTS.obwarden.1.1.1.1.0",
	} {
		requester.mustNotPublish(forbidden)
	}
	requester.mustNotSubscribe(events.EventSubjects)
	requester.mustNotSubscribe(events.TargetRequestSubjects)
}

func TestOperator(t *testing.T) {
	url := natsServer(t)
	agent, operator := connect(t, url, "agent"), connect(t, url, "operator")
	streams := agent.openStreams()
	if err := (events.Inventory{Clusters: []events.KnownCluster{{ID: 1, Name: "obtest"}}, At: time.Now()}).Write(t.Context(), streams.Control); err != nil {
		t.Fatal(err)
	}
	bucket, err := operator.js.KeyValue(t.Context(), events.ControlBucket)
	if err != nil {
		t.Fatal(err)
	}
	if known, err := events.ReadInventory(t.Context(), bucket); err != nil || len(known.Clusters) != 1 {
		t.Errorf("got %+v, %v, want the clusters that there are", known, err)
	}
	for _, paused := range []bool{true, false} {
		if err := events.SetPause(t.Context(), bucket, 7, events.Pause{Paused: paused, By: "ann", At: time.Now()}); err != nil {
			t.Errorf("pause %v: %v", paused, err)
		}
	}
	order := events.OrderTo(events.Approve, accepted(1).Operation)
	if _, err := order.Publish(t.Context(), operator.js); err != nil {
		t.Errorf("approve: %v", err)
	}
	operator.mustHaveBeenAllowed()
	agent.mustHaveBeenAllowed()
	agent.mustNotPublish("$KV.OB_CONTROL.pause.all")
	for _, forbidden := range []string{
		events.TargetRequestSubject(events.Stop, 1, 2),
		"ob.server.stop.approve.id.2.1",
		"ob.server.stop.cancel.id.1.2",
		"$KV.OB_CONTROL.clusters",
		"$KV.OB_CLUSTERS.1",
		"$JS.API.STREAM.DELETE.KV_OB_CONTROL",
		"$JS.API.STREAM.PURGE.KV_OB_CONTROL",
	} {
		operator.mustNotPublish(forbidden)
	}
}

// An answer can be sent to any subject, whatever the user may publish on: it must
// stay in the user's own account.
func TestAnswersStayWithWhoAsked(t *testing.T) {
	url := natsServer(t)
	agent, requester, reader := connect(t, url, "agent"), connect(t, url, "requester"), connect(t, url, "reader")
	streams := agent.openStreams()
	revision, err := streams.Clusters.Create(t.Context(), "1", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := []string{"$KV.OB_CLUSTERS.1", events.TargetRequestSubject(events.Stop, 2, 1), subject(accepted(1))}
	for _, reply := range elsewhere {
		if err := requester.nc.PublishRequest(events.TargetRequestSubject(events.Stop, 1, 2), reply, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		if err := reader.nc.PublishRequest("$JS.API.STREAM.INFO."+events.OperationStream, reply, nil); err != nil {
			t.Fatal(err)
		}
	}
	// Behind the stray answers comes one that is waited for.
	if _, err := (events.Request{ClusterID: 1, ServerID: 2}).Publish(t.Context(), requester.js, events.Stop, "cli"); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.js.Stream(t.Context(), events.OperationStream); err != nil {
		t.Fatal(err)
	}
	record, err := streams.Clusters.Get(t.Context(), "1")
	if err != nil || record.Revision() != revision {
		t.Errorf("the cluster's record is %q at revision %d, error %v, want what the agent wrote at %d", record.Value(), record.Revision(), err, revision)
	}
	for stream, want := range map[string]uint64{events.RequestStream: uint64(len(elsewhere)) + 1, events.OperationStream: 0} {
		s, err := agent.js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.CachedInfo().State.LastSeq; got != want {
			t.Errorf("stream %s: got %d messages, want %d", stream, got, want)
		}
	}
}

func TestReader(t *testing.T) {
	url := natsServer(t)
	agent, reader := connect(t, url, "agent"), connect(t, url, "reader")
	agent.openStreams()
	agent.append(accepted(1)) // before the reader comes

	live, err := reader.nc.SubscribeSync(events.EventSubjects)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := reader.js.OrderedConsumer(t.Context(), events.OperationStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{events.EventSubjects}})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	reader.mustHaveBeenAllowed()
	agent.append(accepted(2))
	for n := 1; n <= 2; n++ {
		msg, err := messages.Next(jetstream.NextMaxWait(patience))
		if err != nil {
			t.Fatal(err)
		}
		if want := subject(accepted(n)); msg.Subject() != want {
			t.Errorf("event %d from the journal: got %s, want %s", n, msg.Subject(), want)
		}
	}
	if msg, err := live.NextMsg(patience); err != nil || msg.Subject != subject(accepted(2)) {
		t.Errorf("live: got %v, error %v, want the second event", msg, err)
	}
	journal, err := reader.js.Stream(t.Context(), events.OperationStream)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.GetLastMsgForSubject(t.Context(), events.OperationSubjects(events.OperationID("key-1"))); err != nil {
		t.Errorf("last event of an operation: %v", err)
	}
	reader.mustHaveBeenAllowed()

	for _, forbidden := range []string{
		events.TargetRequestSubject(events.Stop, 1, 2),
		events.RequestSubject(events.Stop),
		subject(accepted(3)),
		"$KV.OB_CLUSTERS.1",
		"$JS.API.STREAM.DELETE." + events.OperationStream,
		"$JS.API.STREAM.PURGE." + events.OperationStream,
		"$JS.API.STREAM.MSG.DELETE." + events.OperationStream,
		"$JS.API.CONSUMER.CREATE." + events.RequestStream + ".mine",
		"$JS.API.CONSUMER.MSG.NEXT." + events.RequestStream + "." + events.Consumer,
		"$JS.API.STREAM.MSG.GET." + events.RequestStream,
	} {
		reader.mustNotPublish(forbidden)
	}
	reader.mustNotSubscribe(events.TargetRequestSubjects)
	reader.mustNotSubscribe("$KV.>")
}
