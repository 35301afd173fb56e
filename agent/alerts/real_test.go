package alerts_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// The example configurations in deploy, with the programs that they are for: an alert fires in Alertmanager, the server
// is restarted, the alert is resolved.
func TestTheExamplesWorkWithARealAlertmanager(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1000})
	policy, err := guard.Load("../../deploy/policy/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r.policy = *policy
	answers := make(chan string, 100)
	webhook := alerts.NewWebhook(r.config)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		recorder := httptest.NewRecorder()
		webhook.ServeHTTP(recorder, request)
		answers <- fmt.Sprint(recorder.Code, " ", recorder.Body.String())
		w.WriteHeader(recorder.Code)
	}))
	t.Cleanup(server.Close)
	config, err := os.ReadFile("../../deploy/alertmanager/alertmanager.yml")
	if err != nil {
		t.Fatal(err)
	}
	url := realAlertmanager(t, strings.NewReplacer(
		"http://127.0.0.1:9480", server.URL, "group_wait: 10s", "group_wait: 0s", "group_interval: 1m", "group_interval: 1s",
	).Replace(string(config)))
	r.agent()

	ip, _, _ := strings.Cut(r.address(1, 2), ":")
	fires := []map[string]any{{
		"labels": map[string]string{
			"alertname": "OceanBaseServerDown", "severity": "critical", "ob_cluster_name": "obdemo", "svr_ip": ip,
			"replica": "a",
		},
		"annotations": map[string]string{"summary": "no answer"},
		"startsAt":    time.Now().Add(-10 * time.Minute).UTC().Format(time.RFC3339Nano),
	}}
	send := func() {
		body, err := json.Marshal(fires)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.Post(url+"/api/v2/alerts", "application/json", strings.NewReader(string(body)))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Fatalf("Alertmanager answers %d", response.StatusCode)
		}
	}
	// answer is what the webhook says to Alertmanager's next notification.
	answer := func() alerts.Outcome {
		t.Helper()
		select {
		case text := <-answers:
			var got struct {
				Alerts []alerts.Outcome `json:"alerts"`
			}
			code, body, _ := strings.Cut(text, " ")
			if err := json.Unmarshal([]byte(body), &got); err != nil || code != "200" || len(got.Alerts) != 1 {
				t.Fatalf("answer %s", text)
			}
			return got.Alerts[0]
		case <-time.After(patience):
			t.Fatal("Alertmanager never called")
		}
		return alerts.Outcome{}
	}
	send()
	got := answer()
	if got.Result != "requested" || got.Rule != "server-down" {
		t.Fatalf("%+v", got)
	}
	op := r.await(got.OperationID, events.Succeeded, events.Failed)
	if op.State != events.Succeeded || op.Kind != events.Restart || op.ServerID != 2 ||
		op.Request.Reason != "OceanBaseServerDown on "+ip {
		t.Errorf("operation %+v", op)
	}
	response, err := http.Get(url + "/api/v2/alerts")
	if err != nil {
		t.Fatal(err)
	}
	var all []struct {
		Fingerprint string `json:"fingerprint"`
	}
	err = json.NewDecoder(response.Body).Decode(&all)
	response.Body.Close()
	if err != nil || len(all) != 1 || all[0].Fingerprint != got.Fingerprint {
		t.Errorf("Alertmanager's fingerprints %+v, %v, want %s", all, err, got.Fingerprint)
	}
	fires[0]["endsAt"] = time.Now().UTC().Format(time.RFC3339Nano)
	send()
	if got := answer(); got.Result != "resolved" {
		t.Errorf("%+v, want resolved", got)
	}
	r.mustHavePublished(1)
}
