package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/web"
	"github.com/obwarden/obwarden/events"
)

const downPolicy = `alerts:
  - name: down
    matchers: ['alertname="ObserverDown"']
    kind: stop
    target: {cluster_id: cid, server_id: sid}
    for: 1m
`

func webhookBody(startsAt time.Time, server string) string {
	return fmt.Sprintf(`{"version":"4","alerts":[{"status":"firing","labels":{"alertname":"ObserverDown","cid":"1","sid":%q},"startsAt":%q}]}`,
		server, startsAt.UTC().Format(time.RFC3339Nano))
}

// The whole way, with the real program: environment, policy, HTTP, NATS, OCP.
func TestAnAlertStopsAServerByThePolicyOfARunningAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{Speed: 1000})
	s.environ["OBWARDEN_POLICY_FILE"] = writeFile(t, "policy.yaml", downPolicy)
	s.environ["OBWARDEN_WEBHOOK_TOKEN_FILE"] = writeFile(t, "token", "secret token\n")
	s.environ["OBWARDEN_HTTP_LISTEN"] = agenttest.FreeAddress(t)
	agent := startProcess(t, s.environ, "run")
	s.ready(t)
	post := func(token string) (int, string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.environ["OBWARDEN_HTTP_LISTEN"]+web.AlertmanagerPath,
			strings.NewReader(webhookBody(time.Now().Add(-time.Hour), "2")))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	if status, body := post("another"); status != http.StatusUnauthorized {
		t.Errorf("with a wrong token: %d %s", status, body)
	}
	status, body := post("secret token")
	var answer struct{ Alerts []alerts.Outcome }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 || len(answer.Alerts) != 1 || answer.Alerts[0].OperationID == "" {
		t.Fatalf("%d %s", status, body)
	}
	awaitState(t, s.connect(t), answer.Alerts[0].OperationID, events.Succeeded)
	if posts := s.sim.Posts(ocpsim.ServerStop); posts != 1 {
		t.Errorf("OCP got %d calls, want 1", posts)
	}

	// The counters of a rule that a reload brings begin at 0.
	if err := os.WriteFile(s.environ["OBWARDEN_POLICY_FILE"], []byte(downPolicy+`  - {name: added, matchers: ['alertname="Added"'], kind: stop, target: {host: instance}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	agent.Signal(syscall.SIGHUP)
	agenttest.Eventually(t, "counters of the rule that was added", patience, 20*time.Millisecond, func() error {
		response, err := http.Get("http://" + s.environ["OBWARDEN_HTTP_LISTEN"] + "/metrics")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(body), `obwarden_alerts_total{result="requested",rule="added"} 0`) {
			err = errors.New("they are not there yet")
		}
		return err
	})
}

func TestCheckAlertShowsWhatWouldBecomeOfABody(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{})
	policy := writeFile(t, "policy.yaml", downPolicy+`  - name: by-address
    matchers: ['alertname="Sick"']
    kind: restart
    target: {address: instance}
    dry_run: true
`)
	fired := time.Now().Add(-time.Hour)
	sick := strings.Replace(webhookBody(fired, "2"), `"ObserverDown"`, `"Sick","instance":"192.0.2.1:2882"`, 1)
	away := s.environ["OBWARDEN_OCP_URL"]
	for _, test := range []struct {
		name, body, ocp string
		code            int
		want            []string
	}{
		{"taken", webhookBody(fired, "2"), away, 0, []string{"✓ ObserverDown ", "rule down, requested: stop server 2 of cluster 1", "reason  alert ObserverDown", "label   alert_rule=down", "key     alert/down/"}},
		{"not yet", webhookBody(time.Now(), "2"), away, 0, []string{"not_yet", "the rule wants 1m0s"}},
		{"resolved", strings.Replace(webhookBody(fired, "2"), "firing", "resolved", 1), away, 0, []string{"resolved: cancels what waits"}},
		{"refused", webhookBody(fired, "two"), away, exitFailed, []string{"✗ ObserverDown", "refused", `"two" is not an integer`}},
		{"no rule", strings.Replace(webhookBody(fired, "2"), "ObserverDown", "x\\u0007y", 1), away, exitFailed, []string{"✗", "refused", "control characters"}},
		{"looked up", sick, away, exitFailed, []string{"no server with the address"}},
		{"OCP away", sick, "http://127.0.0.1:1", exitUnreachable, []string{"failed", "look clusters up in OCP"}},
		{"no body", "{}", away, exitUsage, []string{"the webhook"}},
		{"no file", "", away, exitUsage, []string{"no such file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := writeFile(t, "body.json", test.body)
			if test.body == "" {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
			environ := map[string]string{"OBWARDEN_OCP_URL": test.ocp, "OBWARDEN_OCP_USERNAME": "admin", "OBWARDEN_OCP_PASSWORD": "secret", "OBWARDEN_POLICY_FILE": policy, "OBWARDEN_OCP_TIMEOUT": "500ms"}
			stdout, stderr, code := command(t, environ, "check", "alert", file)
			if code != test.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, test.code, stdout, stderr)
			}
			for _, want := range test.want {
				if !strings.Contains(stdout+stderr, want) {
					t.Errorf("no %q in\n%s%s", want, stdout, stderr)
				}
			}
			if code == 0 {
				stdout, _, _ = command(t, environ, "check", "alert", "-o", "json", file)
				var previews []alerts.Preview
				if err := json.Unmarshal([]byte(stdout), &previews); err != nil || len(previews) != 1 || previews[0].Kind != events.Stop || previews[0].Request.ServerID != 2 {
					t.Errorf("%v in %s", err, stdout)
				}
			}
		})
	}
}

func TestCheckConnectionTriesAlertmanager(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{})
	am := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" || r.URL.Path != "/prefix/api/v2/silences" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		fmt.Fprint(w, "[]")
	}))
	t.Cleanup(am.Close)
	for name, test := range map[string]struct {
		url, password string
		code          int
		want          string
	}{
		"answers": {am.URL + "/prefix/", "secret", 0, "0 silences"},
		"refuses": {am.URL + "/prefix/", "another", exitUnreachable, "HTTP status 401"},
		"away":    {"http://127.0.0.1:1", "secret", exitUnreachable, "is OBWARDEN_ALERTMANAGER_URL right?"},
		"no URL":  {"alertmanager:9093", "secret", exitUsage, "OBWARDEN_ALERTMANAGER_URL: must be http:// or https://"},
	} {
		environ := maps.Clone(s.environ)
		environ["OBWARDEN_ALERTMANAGER_URL"], environ["OBWARDEN_ALERTMANAGER_USERNAME"], environ["OBWARDEN_ALERTMANAGER_PASSWORD"] = test.url, "me", test.password
		stdout, stderr, code := command(t, environ, "check", "connection")
		if code != test.code || !strings.Contains(stdout+stderr, test.want) {
			t.Errorf("%s: exit code %d, want %d and %q in\n%s%s", name, code, test.code, test.want, stdout, stderr)
		}
	}
}

func TestCheckPolicyShowsTheAlertRules(t *testing.T) {
	t.Parallel()
	stdout, _, code := command(t, nil, "check", "policy", writeFile(t, "policy.yaml", downPolicy))
	if code != 0 || !strings.Contains(stdout, "alerts: 1") || !strings.Contains(stdout, `alert rule down: stop after 1m0s of {alertname="ObserverDown"}`) {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
}
