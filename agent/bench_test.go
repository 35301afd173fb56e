package agent

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// BenchmarkRequestToCall is the time from JetStream's acknowledgement of a request to
// the arrival of the call at OCP, for an idle agent, beside its floor: a bare loop that
// does only the necessary steps (take the message, append once flushed, post), on the
// same NATS server in the same run.
func BenchmarkRequestToCall(b *testing.B) {
	arrived := make(chan time.Time, 1)
	r, _ := benchRig(b, ocpsim.Config{}, func(request *http.Request) {
		if request.Method == http.MethodPost {
			arrived <- time.Now()
		}
	})
	floor := floorLoop(b, r, arrived)
	var ours, bare []time.Duration
	for i := range b.N {
		key := fmt.Sprint("k", i)
		r.stop(key, 1, int64(1+i%6))
		acknowledged := time.Now()
		ours = append(ours, (<-arrived).Sub(acknowledged))
		r.awaitToken(key, events.Running)
		bare = append(bare, floor(i))
		r.await("the end of "+key, func(e events.Event) bool { return e.OperationID == events.OperationID(key) && e.Token.Final() })
		startAgain(r, int64(1+i%6), i, arrived)
	}
	report(b, "ms", ours)
	b.ReportMetric(ratio(ours, bare, 0.5), "p50/floor")
	b.ReportMetric(ratio(ours, bare, 0.99), "p99/floor")
}

// startAgain brings the server back, so that it can be stopped again.
func startAgain(r *rig, server int64, i int, arrived chan time.Time) {
	key := fmt.Sprint("start", i)
	r.operate(events.Start, key, 1, server)
	<-arrived
	r.awaitEnd(key, events.Succeeded)
}

// BenchmarkChangeToEvent is the time from the end of a subtask, by OCP's own clock,
// to the event that tells of it, in poll intervals.
func BenchmarkChangeToEvent(b *testing.B) {
	r, _ := benchRig(b, ocpsim.Config{Speed: 40}, func(*http.Request) {})
	var lags []time.Duration
	for i := range b.N {
		key, kind := fmt.Sprint("k", i), events.Kinds()[i%2]
		r.operate(kind, key, 1, 2)
		for _, e := range r.await("the end of "+key, func(e events.Event) bool { return e.OperationID == events.OperationID(key) && e.Token.Final() }) {
			for _, c := range e.Changes {
				for _, s := range e.Task.Subtasks {
					if s.ID == c.SubtaskID && s.Timing == events.TimingOCP && !s.FinishedAt.IsZero() && c.To == "SUCCESSFUL" {
						lags = append(lags, e.UpdatedAt.Sub(s.FinishedAt))
					}
				}
			}
		}
	}
	report(b, "ms", lags)
	b.ReportMetric(float64(quantile(lags, 0.5))/float64(r.machine.PollMin), "p50/interval")
	b.ReportMetric(float64(quantile(lags, 0.99))/float64(r.machine.PollMin), "p99/interval")
}

// benchRig is a rig whose OCP tells of each request the moment it arrives.
func benchRig(b *testing.B, config ocpsim.Config, arrives func(*http.Request)) (*rig, func()) {
	b.Helper()
	if config.Speed == 0 {
		config.Speed = testSpeed
	}
	config.Users = ocpsim.DefaultUsers("admin", "secret")
	sim, err := ocpsim.New(config)
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		arrives(request)
		sim.Handler().ServeHTTP(w, request)
	}))
	b.Cleanup(func() { sim.Close(); server.Close() })
	r := newRigOn(b, sim, config.Users[0])
	r.url = server.URL
	r.machine.PollMin, r.machine.PollMax = 50*time.Millisecond, 50*time.Millisecond
	return r, r.agent()
}

// floorLoop returns a function that sends one message through the bare loop.
func floorLoop(b *testing.B, r *rig, arrived chan time.Time) func(i int) time.Duration {
	b.Helper()
	if _, err := r.js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "FLOOR_IN", Subjects: []string{"floor.in"}, Retention: jetstream.WorkQueuePolicy}); err != nil {
		b.Fatal(err)
	}
	if _, err := r.js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "FLOOR_OUT", Subjects: []string{"floor.out.>"}}); err != nil {
		b.Fatal(err)
	}
	consumer, err := r.js.CreateConsumer(b.Context(), "FLOOR_IN", jetstream.ConsumerConfig{Durable: "floor", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived <- time.Now() }))
	b.Cleanup(server.Close)
	payload := bytes.Repeat([]byte("x"), 800) // as large as an event before the call
	consume, err := consumer.Consume(func(msg jetstream.Msg) {
		out := nats.NewMsg("floor.out." + string(msg.Data()))
		out.Data = payload
		if _, err := r.js.PublishMsg(b.Context(), out, jetstream.WithExpectLastSequencePerSubject(0)); err != nil {
			b.Error(err)
		}
		response, err := http.Post(server.URL, "application/json", nil)
		if err != nil {
			b.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		_ = msg.Ack()
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(consume.Stop)
	return func(i int) time.Duration {
		if _, err := r.js.Publish(b.Context(), "floor.in", fmt.Append(nil, i)); err != nil {
			b.Fatal(err)
		}
		acknowledged := time.Now()
		return (<-arrived).Sub(acknowledged)
	}
}

func quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(ds))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func ratio(ours, bare []time.Duration, q float64) float64 {
	return float64(quantile(ours, q)) / float64(quantile(bare, q))
}

func report(b *testing.B, unit string, ds []time.Duration) {
	b.Helper()
	b.ReportMetric(0, "ns/op") // of a whole operation: says nothing
	b.ReportMetric(float64(quantile(ds, 0.5))/float64(time.Millisecond), "p50-"+unit)
	b.ReportMetric(float64(quantile(ds, 0.99))/float64(time.Millisecond), "p99-"+unit)
}
