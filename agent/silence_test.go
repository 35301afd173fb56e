package agent

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

func TestAnOperationWaitsForItsSilencesWhereThePolicySaysSo(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	client, err := ocp.New(ocp.Config{URL: r.url, Username: r.user.Name, Password: r.user.Password, Timeout: r.timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	inForce := &policy.Policy{Silence: &policy.SilenceRule{Wait: true}}
	silencer, err := alerts.NewSilencer(alerts.SilencerConfig{
		URL: "http://127.0.0.1:1", Directory: facts.NewDirectory(client), Policy: func() *policy.Policy { return inForce },
		Metrics: r.metrics, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	op := events.Operation{Kind: events.Stop, ClusterID: 1, ServerID: 2}
	if reason := silence(t.Context(), silencer, op, now); reason == nil || reason.Code != events.CodeAlertmanagerUnreachable || !reason.Until.After(now) {
		t.Errorf("reason %+v, want %s", reason, events.CodeAlertmanagerUnreachable)
	}
	dry := op
	dry.Request.DryRun = true
	if reason := silence(t.Context(), silencer, dry, now); reason != nil {
		t.Errorf("a dry run waits: %+v", reason)
	}
	inForce.Silence.Wait = false
	if reason := silence(t.Context(), silencer, op, now); reason != nil {
		t.Errorf("it waits although the policy says to go on: %+v", reason)
	}
	if reason := silence(t.Context(), nil, op, now); reason != nil {
		t.Errorf("it waits without an Alertmanager: %+v", reason)
	}
}

func TestAnOperationThatWaitsForItsSilencesRests(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	alertmanager := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(alertmanager.Close)
	r := newRig(t, ocpsim.Config{})
	r.agent()
	inForce := &policy.Policy{Silence: &policy.SilenceRule{Wait: true}}
	silencer, err := alerts.NewSilencer(alerts.SilencerConfig{
		URL: alertmanager.URL, Directory: r.latest.Directory, Policy: func() *policy.Policy { return inForce },
		Metrics: r.metrics, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.latest.Silencer = silencer // before the first request
	r.stop("k", 1, 2)
	r.awaitReason("k", events.CodeAlertmanagerUnreachable)
	eventually(t, "it has asked twice", func() bool { return asked.Load() > 1 })
	r.awaitRest("k")
}
