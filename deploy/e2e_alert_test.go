//go:build linux

package deploy

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

const webhookToken = "tokenOfWebhook"

// oceanbaseRules stand for the database's own alerts, which policy/example.yaml and
// alertmanager/alertmanager.yml are made for.
const oceanbaseRules = `groups:
  - name: oceanbase
    rules:
      - alert: OceanBaseServerDown
        expr: ob_server_up == 0
        labels: {severity: critical}
`

// sickServer is a server that fails. The load leaves its cluster alone.
type sickServer struct {
	up            atomic.Bool // as its exporter sees it
	cluster       int64
	id            int64
	ip            string
	journal       jetstream.Consumer // of its restarts
	first, second events.Operation
}

const sickCluster = "obdemo8"

// labels are those of its alert.
func (s *sickServer) labels() map[string]string {
	return map[string]string{"alertname": "OceanBaseServerDown", "severity": "critical", "ob_cluster_name": sickCluster, "svr_ip": s.ip}
}

// exporter serves what OceanBase's own agent for Prometheus would of the server that
// fails, and returns its address.
func (w *world) exporter() string {
	w.t.Helper()
	var state ocpsim.State
	if err := get("http://"+w.ocp+"/sim/state", &state); err != nil {
		w.t.Fatal(err)
	}
	for _, c := range state.Clusters {
		if c.Name == sickCluster {
			server := c.Zones[0].Servers[1]
			w.sick.cluster, w.sick.id, w.sick.ip = c.ID, server.ID, server.IP
		}
	}
	w.sick.up.Store(true)
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		up := 0
		if w.sick.up.Load() {
			up = 1
		}
		fmt.Fprintf(rw, "ob_server_up{ob_cluster_name=%q,svr_ip=%q} %d\n", sickCluster, w.sick.ip, up)
	}))
	w.t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// failServer makes the server fail, in OCP and for its exporter.
func (w *world) failServer(t *testing.T) {
	t.Helper()
	response, err := http.Post(fmt.Sprintf("http://%s/sim/servers/%d/%d", w.ocp, w.sick.cluster, w.sick.id), "application/json",
		strings.NewReader(`{"status": "UNAVAILABLE", "innerStatus": "INACTIVE"}`))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		t.Fatalf("the simulator answers %s", response.Status)
	}
	w.sick.up.Store(false)
}

// restarts are the calls that OCP got to restart the server.
func (w *world) restarts(t *testing.T) (calls []ocpsim.LogEntry) {
	t.Helper()
	var all []ocpsim.LogEntry
	if err := get("http://"+w.ocp+"/sim/log", &all); err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Endpoint == ocpsim.ServerRestart && e.Server == w.sick.id {
			calls = append(calls, e)
		}
	}
	return calls
}

// follow reads the journal of the server's restarts until an event has the token, and
// returns the tokens on the way.
func (w *world) follow(t *testing.T, until events.State) (tokens []events.State, e events.Event) {
	t.Helper()
	for {
		msg, err := w.sick.journal.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatalf("after events %v: %v", tokens, err)
		}
		if e, err = events.DecodeEvent(msg.Subject(), msg.Data()); err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, e.Token)
		if e.Token == until {
			return tokens, e
		}
		if e.Token.Final() {
			t.Fatalf("events %v, want %s: %s", tokens, until, msg.Data())
		}
	}
}

// silence is a silence as Alertmanager shows it.
type silence struct {
	ID, Comment      string
	StartsAt, EndsAt time.Time
	Status           struct{ State string }
}

// silences are those of an operation, expired ones too.
func (w *world) silences(t *testing.T, operation string) (found []silence) {
	t.Helper()
	var all []silence
	if err := get("http://"+w.alertmanager+"/api/v2/silences", &all); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if strings.HasSuffix(s.Comment, "operation "+operation) {
			found = append(found, s)
		}
	}
	return found
}

func (w *world) alertRestarts(t *testing.T) {
	var err error
	w.sick.journal, err = connect(w.t, "nats://"+w.nats, "reader").js.OrderedConsumer(w.t.Context(), events.OperationStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{events.EventSubject(events.Restart, "*", w.sick.cluster, w.sick.id, "*")},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.failServer(t)
	a := w.untilAlert(t, "suppressed", w.sick.labels()) // there, and silenced since
	if len(a.Receivers) != 2 || a.Receivers[0].Name != "obwarden" || a.Receivers[1].Name != "on-call" {
		t.Errorf("the alert goes to %v, want obwarden and on-call", a.Receivers)
	}

	tokens, e := w.follow(t, events.Succeeded)
	op := e.Operation
	w.sick.first = op
	want := []events.State{events.Accepted, events.Submitting, events.Running, events.Progress, events.Succeeded}
	if got := slices.Compact(tokens); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if op.Source != "alertmanager" || op.Request.Reason != "OceanBaseServerDown on "+w.sick.ip || op.Request.Labels["alert_rule"] != "server-down" || op.Attempt != 1 {
		t.Errorf("operation %+v", op)
	}
	if p, err := policy.Load(w.policy); err != nil || op.Policy != p.Hash {
		t.Errorf("decided by policy %q, want the one of the file, %v", op.Policy, err)
	}
	if op.Task == nil || op.Task.Status != "SUCCESSFUL" || op.Task.Progress != 1 || len(op.Task.Subtasks) != 11 {
		t.Errorf("task %+v", op.Task)
	}

	calls := w.restarts(t)
	if len(calls) != 1 || calls[0].IdempotencyKey != op.OperationID || op.Task != nil && calls[0].TaskID != op.Task.ID {
		t.Errorf("OCP got %+v, want one call of operation %s", calls, op.OperationID)
	}
	silences := w.silences(t, op.OperationID)
	if len(silences) != 1 || !slices.Contains(a.Status.SilencedBy, silences[0].ID) {
		t.Fatalf("silences %+v, want the one that the alert is silenced by: %v", silences, a.Status.SilencedBy)
	}
	if s := silences[0]; s.StartsAt.After(op.SubmittedAt) || s.EndsAt.Before(op.EndedAt) {
		t.Errorf("silence %+v, want from before the call at %s until after the end at %s", s, op.SubmittedAt, op.EndedAt)
	}
	w.untilFound(t, `obwarden_requests_total{kind="restart",source="alertmanager",result="accepted"} == 1`)
	w.untilFound(t, `obwarden_alerts_total{rule="server-down",result="requested"} == 1`)
	w.untilFound(t, `obwarden_silences_total{result="created"} >= 1`)
	w.untilFound(t, `obwarden_cluster_operations_total{cluster="8",outcome="succeeded"} == 1`)
}

// repeatsDoNothing keeps the alert firing: the database is slow to say that it is back.
func (w *world) repeatsDoNothing(t *testing.T) {
	w.processes["agent"].Stop()
	w.startAgent()
	until(t, "the silence ends", func() string {
		for _, s := range w.silences(t, w.sick.first.OperationID) {
			if s.Status.State != "expired" {
				return fmt.Sprintf("the end of %+v", s)
			}
		}
		return ""
	})
	w.untilFound(t, `obwarden_silences_total{result="ended"} >= 1`)
	w.untilAlert(t, "active", w.sick.labels())
	w.untilFound(t, `obwarden_alerts_total{rule="server-down",result="duplicate"} >= 2`)
	if calls := w.restarts(t); len(calls) != 1 {
		t.Errorf("OCP got %d calls, want still 1", len(calls))
	}
}

func (w *world) resolvedIsOver(t *testing.T) {
	w.sick.up.Store(true)
	w.untilFound(t, `obwarden_alerts_total{rule="server-down",result="resolved"} >= 1`)
	w.failServer(t)
	_, e := w.follow(t, events.Waiting)
	w.sick.second = e.Operation
	if e.OperationID == w.sick.first.OperationID || e.Reason == nil || e.Reason.Code != events.CodeCooldown {
		t.Errorf("operation %s waits for %+v, want another one than the first, for its cool-down", e.OperationID, e.Reason)
	}
	w.untilFound(t, `obwarden_operations_waiting{reason="COOLDOWN"} >= 1`)
}

func (w *world) resolvedCancels(t *testing.T) {
	w.sick.up.Store(true)
	if _, e := w.follow(t, events.Cancelled); e.OperationID != w.sick.second.OperationID {
		t.Errorf("operation %s was cancelled, want %s", e.OperationID, w.sick.second.OperationID)
	}
	w.untilFound(t, `obwarden_alerts_total{rule="server-down",result="cancelled"} >= 1`)
	if calls := w.restarts(t); len(calls) != 1 {
		t.Errorf("OCP got %d calls, want still 1", len(calls))
	}
	if silences := w.silences(t, w.sick.second.OperationID); len(silences) != 0 {
		t.Errorf("silences %+v for what was never done", silences)
	}
}
