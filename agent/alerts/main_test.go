package alerts_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"text/template"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/agent"
	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
	"github.com/obwarden/obwarden/metrics"
)

const patience = 30 * time.Second // for an event that must come; a test that passes never waits so long

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, eventstest.IgnoreServer()...)
}

// rig is a webhook with a real NATS server and a simulated OCP over HTTP behind it.
type rig struct {
	t       *testing.T
	sim     *ocpsim.Sim
	client  *ocp.Client
	js      jetstream.JetStream
	streams events.Streams
	config  alerts.Config
	policy  policy.Policy
}

var options = events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: 5 * time.Second}

func newRig(t *testing.T, config ocpsim.Config, rules ...policy.AlertRule) *rig {
	t.Helper()
	config.Users = ocpsim.DefaultUsers("admin", "secret")
	r := &rig{t: t, sim: ocpsim.Start(t, config), policy: policy.Policy{Alerts: rules}}
	r.js = eventstest.Start(t).JetStream()
	r.openStreams()
	bucket, err := alerts.OpenBucket(t.Context(), r.js, options)
	if err != nil {
		t.Fatal(err)
	}
	r.client, err = ocp.New(ocp.Config{URL: r.sim.URL(), Username: "admin", Password: "secret", Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.client.Close)
	r.config = alerts.Config{
		JetStream: r.js, Journal: r.streams.Operations, Bucket: bucket,
		Directory: facts.NewDirectory(r.client),
		Policy:    func() *policy.Policy { return &r.policy },
		Metrics:   metrics.New(prometheus.NewRegistry(), "", "", metrics.Scraped{}),
		Log:       slog.New(slog.DiscardHandler),
		Retention: options.Retention, Loopback: true,
	}
	return r
}

func (r *rig) openStreams() {
	r.t.Helper()
	var err error
	if r.streams, err = events.OpenStreams(r.t.Context(), r.js, options); err != nil {
		r.t.Fatal(err)
	}
}

// agent runs an agent until the test ends.
func (r *rig) agent() {
	r.t.Helper()
	a := agent.New(agent.Config{
		JetStream: r.js, Streams: r.streams, OCP: r.client, Metrics: r.config.Metrics, Log: r.config.Log,
		Machine: operation.Machine{
			Agent: "test", Settle: time.Second, StallAfter: time.Minute,
			PollMin: 10 * time.Millisecond, PollMax: 50 * time.Millisecond,
		},
		Directory: facts.NewDirectory(r.client), Policy: policy.NewLive(&policy.Policy{Hash: "lax", Limits: policy.Limits{MaxConcurrent: 1}}),
		AckWait: options.AckWait, Timeout: 500 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	r.t.Cleanup(sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("agent ended: %v", err)
		}
	}))
}

// await waits until an operation has an event with one of the tokens, and returns it.
func (r *rig) await(operationID string, tokens ...events.State) events.Operation {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	consumer, err := r.streams.Operations.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{events.OperationSubjects(operationID)},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		r.t.Fatal(err)
	}
	defer messages.Stop()
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			r.t.Fatalf("operation %s never came to %v: %v", operationID, tokens, err)
		}
		e, err := events.DecodeEvent(msg.Subject(), msg.Data())
		if err != nil {
			r.t.Fatal(err)
		}
		if slices.Contains(tokens, e.Token) {
			return e.Operation
		}
	}
}

// message is a webhook body.
type message struct {
	Version string  `json:"version"`
	Alerts  []alert `json:"alerts"`
}

type alert struct {
	Status      string            `json:"status"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations,omitempty"`
	StartsAt    time.Time         `json:"startsAt"`
}

func (a alert) resolved() alert { a.Status = "resolved"; return a }

// firing is an alert about a server of the cluster obdemo, with labels as Prometheus has them.
func firing(instance string, startsAt time.Time) alert {
	return alert{
		Status: "firing", StartsAt: startsAt,
		Labels: map[string]string{"alertname": "ObserverDown", "ob_cluster": "obdemo", "instance": instance},
	}
}

// post sends a body to a webhook and returns status and answer.
func post(t testing.TB, h http.Handler, body []byte, header http.Header) (int, string) {
	t.Helper()
	request := httptest.NewRequest(http.MethodPost, "/alertmanager", bytes.NewReader(body))
	request.Header = http.Header{"Content-Type": {"application/json"}}
	request.Host = "127.0.0.1:9480"
	for name, values := range header {
		request.Header[name] = values
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, request)
	return w.Code, w.Body.String()
}

// send sends alerts through a new webhook, as if the agent had just started.
func (r *rig) send(wantStatus int, all ...alert) []alerts.Outcome {
	r.t.Helper()
	body, err := json.Marshal(message{Version: "4", Alerts: all})
	if err != nil {
		r.t.Fatal(err)
	}
	status, answered := post(r.t, alerts.NewWebhook(r.config), body, nil)
	var got struct {
		Alerts []alerts.Outcome `json:"alerts"`
	}
	if err := json.Unmarshal([]byte(answered), &got); err != nil || status != wantStatus || len(got.Alerts) != len(all) {
		r.t.Fatalf("answer %d %s, want %d and %d alerts", status, answered, wantStatus, len(all))
	}
	return got.Alerts
}

// sendOne sends one alert and fails the test unless its result is want.
func (r *rig) sendOne(a alert, want string) alerts.Outcome {
	r.t.Helper()
	status := http.StatusOK
	if want == "failed" {
		status = http.StatusServiceUnavailable
	}
	got := r.send(status, a)[0]
	if got.Result != want {
		r.t.Fatalf("%+v, want %s", got, want)
	}
	return got
}

// mustHavePublished fails the test unless n messages were published to the request stream in all.
func (r *rig) mustHavePublished(n uint64) {
	r.t.Helper()
	stream, err := r.js.Stream(r.t.Context(), events.RequestStream)
	if err != nil {
		r.t.Fatal(err)
	}
	if got := stream.CachedInfo().State.LastSeq; got != n {
		r.t.Errorf("%d messages were published to %s, want %d", got, events.RequestStream, n)
	}
}

func (r *rig) mustHaveCounted(rule, result string, n int) {
	r.t.Helper()
	if got := testutil.ToFloat64(r.config.Metrics.Alerts.WithLabelValues(rule, result)); got != float64(n) {
		r.t.Errorf("obwarden_alerts_total{rule=%q,result=%q} is %g, want %d", rule, result, got, n)
	}
}

func matchers(t testing.TB, s string) labels.Matchers {
	t.Helper()
	m, err := labels.ParseMatchers(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// down is a rule that stops servers whose observer is down.
func down(t testing.TB) policy.AlertRule {
	t.Helper()
	return policy.AlertRule{
		Name: "down", Matchers: matchers(t, `alertname="ObserverDown"`), Kind: events.Stop,
		Target: policy.AlertTarget{Cluster: "ob_cluster", Address: "instance"},
	}
}

// address is the ip:port of one of the simulator's servers.
func (r *rig) address(cluster, server int64) string {
	r.t.Helper()
	servers, err := r.client.Servers(r.t.Context(), cluster)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range servers {
		if s.ID == server {
			return fmt.Sprintf("%s:%d", s.IP, s.Port)
		}
	}
	r.t.Fatalf("no server %d", server)
	return ""
}

func reason(t testing.TB, text string) *template.Template {
	t.Helper()
	parsed, err := policy.ParseReason(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}
