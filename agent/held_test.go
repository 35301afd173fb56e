package agent

import (
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
	"github.com/obwarden/obwarden/metrics"
)

// An agent loses an operation to another while it does not know the outcome of its call, which OCP refused. The request
// is delivered again to it, and so it becomes the owner of the later attempt: the old refusal is not that attempt's.
func TestNothingInHandSurvivesAConflict(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	client, err := ocp.New(ocp.Config{URL: r.url, Username: r.user.Name, Password: r.user.Password, Timeout: r.timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	a := New(Config{
		JetStream: r.js, Streams: r.server.Streams(eventstest.Options()), OCP: client, Directory: facts.NewDirectory(client),
		Metrics: metrics.New(prometheus.NewRegistry(), "test", "go", metrics.Scraped{}), Policy: policy.NewLive(laxPolicy()),
		Log: slog.New(slog.DiscardHandler), Machine: r.machine, AckWait: r.ackWait, Timeout: r.timeout,
	})
	request := operation.Received{Sequence: 7, At: time.Now().UTC(), Received: events.Received{
		Kind: events.Stop, Request: events.Request{IdempotencyKey: "k", ClusterID: 1, ServerID: 2}}}
	own := ack{r.nc, r.nc.NewInbox()}
	h := &held{id: events.OperationID("k")}
	if left, err := a.admit(t.Context(), h, []delivery{{ack: own, received: request}}); err != nil {
		t.Fatal(left, err)
	}
	mine := operation.Decided{}
	mine.Verdict = "allow"
	if err := a.step(t.Context(), h, mine); err != nil {
		t.Fatal(err)
	}

	op := h.hand.entry.Operation
	op.Attempt = 2
	theirs, err := a.journal.Append(t.Context(), *h.hand.entry, []events.Event{nextEvent(&op, events.Submitting)})
	if err != nil {
		t.Fatal(err)
	}
	refused := &ocp.Error{Class: ocp.Refused, Status: 409}
	stale := h.hand
	h.hand = hand{
		ack: own, entry: stale.entry, snapshot: &snapshot{}, plan: plan{do: operation.Reconcile, at: time.Now(), ifLost: operation.Look},
		intended: time.Now(), since: time.Now().Add(-time.Hour), cause: refused, full: time.Now(), failures: 3, refusals: 2, refused: time.Now(),
		unmoved: true, decided: &operation.Decided{}, generation: 4, version: 5,
	}
	for value, i := reflect.ValueOf(h.hand), 0; i < value.NumField(); i++ {
		if value.Field(i).IsZero() {
			t.Errorf("field %s is not set: the test knows nothing of it", value.Type().Field(i).Name)
		}
	}
	h.hand.snapshot = nil
	err = a.step(t.Context(), h, operation.Answered{Err: refused})
	a.handleError(t.Context(), h, nil, err)
	if !reflect.ValueOf(h.hand).IsZero() {
		t.Fatalf("after %v it still has %+v in hand", err, h.hand)
	}

	if left, err := a.admit(t.Context(), h, []delivery{{ack: own, received: request, again: true}}); err != nil {
		t.Fatal(left, err)
	}
	if h.hand.entry.Sequence != theirs.Sequence || h.hand.plan.do != operation.Reconcile {
		t.Fatalf("it took up event %d with plan %+v, want event %d and to reconcile", h.hand.entry.Sequence, h.hand.plan, theirs.Sequence)
	}
	in, err := a.reconcile(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if found := in.(operation.Reconciled); found.Cause != nil || time.Since(found.Since) > testPatience {
		t.Errorf("the later attempt is judged by cause %v since %s: those of the attempt before", found.Cause, found.Since)
	}
}
