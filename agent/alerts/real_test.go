package alerts_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// The example configurations in deploy, with the programs that they are for: an alert fires in Alertmanager, the server
// is restarted, the alert is resolved.
func TestTheExamplesWorkWithARealAlertmanager(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1000})
	policy, err := policy.Load("../../deploy/policy/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r.policy = *policy
	notified := &recorded{t: t, webhook: alerts.NewWebhook(r.config), answers: make(chan string, 100)}
	server := httptest.NewServer(notified)
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
	fires := map[string]any{
		"labels": map[string]string{
			"alertname": "OceanBaseServerDown", "severity": "critical", "ob_cluster_name": "obdemo", "svr_ip": ip,
			"replica": "a",
		},
		"annotations": map[string]string{"summary": "no answer"},
		"startsAt":    time.Now().Add(-10 * time.Minute).UTC().Format(time.RFC3339Nano),
	}
	sendTo(t, url, fires)
	got := notified.next()
	if got.Result != "requested" || got.Rule != "server-down" {
		t.Fatalf("%+v", got)
	}
	op := r.await(got.OperationID, events.Succeeded, events.Failed)
	if op.State != events.Succeeded || op.Kind != events.Restart || op.ServerID != 2 ||
		op.Request.Reason != "OceanBaseServerDown on "+ip {
		t.Errorf("operation %+v", op)
	}
	if all := fingerprints(t, url); !slices.Equal(all, []string{got.Fingerprint}) {
		t.Errorf("Alertmanager's fingerprints %v, want %s", all, got.Fingerprint)
	}
	fires["endsAt"] = time.Now().UTC().Format(time.RFC3339Nano)
	sendTo(t, url, fires)
	if got := notified.next(); got.Result != "resolved" {
		t.Errorf("%+v, want resolved", got)
	}
	r.mustHavePublished(1)
}

// recorded passes calls on to a webhook and keeps its answers.
type recorded struct {
	t       *testing.T
	webhook http.Handler
	answers chan string // status and body
}

func (n *recorded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	recorder := httptest.NewRecorder()
	n.webhook.ServeHTTP(recorder, r)
	n.answers <- fmt.Sprint(recorder.Code, " ", recorder.Body.String())
	w.WriteHeader(recorder.Code)
}

// next is what the webhook answers to Alertmanager's next notification.
func (n *recorded) next() (o alerts.Outcome) {
	n.t.Helper()
	select {
	case text := <-n.answers:
		var got struct {
			Alerts []alerts.Outcome `json:"alerts"`
		}
		code, body, _ := strings.Cut(text, " ")
		if err := json.Unmarshal([]byte(body), &got); err != nil || code != "200" || len(got.Alerts) != 1 {
			n.t.Fatalf("answer %s", text)
		}
		return got.Alerts[0]
	case <-time.After(patience):
		n.t.Fatal("Alertmanager never called")
	}
	return o
}

// sendTo sends an alert to Alertmanager as Prometheus does.
func sendTo(t *testing.T, url string, alert map[string]any) {
	t.Helper()
	body, err := json.Marshal([]any{alert})
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

// fingerprints are those of all alerts in Alertmanager.
func fingerprints(t *testing.T, url string) (all []string) {
	t.Helper()
	response, err := http.Get(url + "/api/v2/alerts")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var known []struct {
		Fingerprint string `json:"fingerprint"`
	}
	if err := json.NewDecoder(response.Body).Decode(&known); err != nil {
		t.Fatal(err)
	}
	for _, a := range known {
		all = append(all, a.Fingerprint)
	}
	return all
}
