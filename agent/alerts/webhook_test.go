package alerts_test

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

func TestAFiringAlertIsOneOperationHoweverOftenItIsSent(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1000}, down(t))
	r.policy.Alerts[0].Reason = reason(t, "{{.Labels.alertname}} on {{.Labels.instance}}: {{.Annotations.summary}}")
	r.agent()
	a := firing(r.address(1, 2), time.Now().Add(-time.Hour))
	a.Annotations = map[string]string{"summary": "no answer\nfor 5 minutes"}
	first := r.sendOne(a, "requested")
	var wg sync.WaitGroup
	for range 8 { // several Alertmanagers, at several agents, later: other words
		again := a
		again.Annotations = map[string]string{"summary": "no answer for 6 minutes"}
		wg.Go(func() { r.sendOne(again, "duplicate") })
	}
	wg.Wait()
	op := r.await(first.OperationID, events.Succeeded)
	if op.ClusterID != 1 || op.ServerID != 2 || op.Kind != events.Stop || op.Source != "alertmanager" ||
		op.Request.RequestedBy != "alertmanager" || op.Request.Force {
		t.Errorf("operation %+v", op)
	}
	if want := "ObserverDown on " + a.Labels["instance"] + ": no answer for 5 minutes"; op.Request.Reason != want {
		t.Errorf("reason %q, want %q", op.Request.Reason, want)
	}
	if got := op.Request.Labels; got["alert_rule"] != "down" || got["instance"] != a.Labels["instance"] || len(got) != 4 {
		t.Errorf("labels %v", got)
	}
	r.sendOne(a, "duplicate")
	r.mustHavePublished(1)
	r.mustHaveCounted("down", "requested", 1)
	r.mustHaveCounted("down", "duplicate", 9)
}

func TestAlertmanagersThatSendAtTheSameTimeMakeOneOperation(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1000}, down(t))
	a := firing(r.address(1, 2), time.Now())
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		other := a
		other.Labels = map[string]string{"replica": string(rune('a' + i))} // of Prometheus: another alert, to Alertmanager
		for name, value := range a.Labels {
			other.Labels[name] = value
		}
		wg.Go(func() { ids[i] = r.send(http.StatusOK, other)[0].OperationID })
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("operations %v, want one", ids)
		}
	}
	r.agent()
	r.await(ids[0], events.Succeeded)
}

func TestARequestThatWasNotAcknowledgedIsPublishedLaterWordForWord(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1000}, down(t))
	r.policy.Alerts[0].Reason = reason(t, "{{.Annotations.summary}}")
	if err := r.js.DeleteStream(t.Context(), events.RequestStream); err != nil {
		t.Fatal(err)
	}
	a := firing(r.address(1, 2), time.Now())
	a.Annotations = map[string]string{"summary": "first words"}
	r.sendOne(a, "failed")
	r.openStreams()
	r.agent()
	a.Annotations = map[string]string{"summary": "other words"}
	o := r.sendOne(a, "requested")
	if op := r.await(o.OperationID, events.Succeeded); op.Request.Reason != "first words" {
		t.Errorf("reason %q: it must be the one that was written down", op.Request.Reason)
	}
	r.mustHaveCounted("down", "failed", 1)
}

func TestARequestWhoseAlertIsResolvedBeforeItIsPublishedNeverIs(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{}, down(t))
	if err := r.js.DeleteStream(t.Context(), events.RequestStream); err != nil {
		t.Fatal(err)
	}
	a := firing(r.address(1, 2), time.Now())
	r.sendOne(a, "failed")
	r.openStreams()
	r.sendOne(a.resolved(), "cancelled")
	r.sendOne(a, "resolved") // a slower Alertmanager
	r.mustHavePublished(1)   // the order to cancel: the request may have arrived after all
}

func TestALostBucketMakesNoSecondOperation(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1000}, down(t))
	r.policy.Alerts[0].Reason = reason(t, "{{.Annotations.summary}}")
	r.agent()
	a := firing(r.address(1, 2), time.Now())
	a.Annotations = map[string]string{"summary": "first words"}
	r.await(r.sendOne(a, "requested").OperationID, events.Succeeded)
	if err := r.js.DeleteKeyValue(t.Context(), alerts.Bucket); err != nil {
		t.Fatal(err)
	}
	bucket, err := alerts.OpenBucket(t.Context(), r.js, options)
	if err != nil {
		t.Fatal(err)
	}
	r.config.Bucket = bucket
	a.Annotations = map[string]string{"summary": "other words"}
	r.sendOne(a, "duplicate")
	r.mustHavePublished(1)
}

// Alerts about a server form one incident, whichever exporter on its host they come from.
func TestAlertsOfTwoExportersOnOneHostFormOneIncident(t *testing.T) {
	t.Parallel()
	rule := down(t)
	rule.Target = policy.AlertTarget{Cluster: "ob_cluster", Host: "instance"}
	r := newRig(t, ocpsim.Config{}, rule)
	ip, _, _ := strings.Cut(r.address(1, 2), ":")
	first := r.sendOne(firing(ip+":9100", time.Now()), "requested")
	if second := r.sendOne(firing(ip+":9308", time.Now()), "grouped"); second.OperationID != first.OperationID {
		t.Errorf("%+v, want operation %s", second, first.OperationID)
	}
	r.mustHavePublished(1)
}

func TestResolvedAlertsCancelAnOperationThatStillWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1}, down(t))
	r.agent()
	running := firing(r.address(1, 1), time.Now())
	r.await(r.sendOne(running, "requested").OperationID, events.Running)
	waiting := firing(r.address(1, 3), time.Now())
	id := r.sendOne(waiting, "requested").OperationID
	r.await(id, events.Waiting)

	another := waiting // about the same server
	another.Labels = maps.Clone(waiting.Labels)
	another.Labels["disk"] = "sdb"
	r.sendOne(another, "grouped")
	r.sendOne(waiting.resolved(), "resolved") // the other still fires
	if got := r.sendOne(another.resolved(), "cancelled"); got.OperationID != id {
		t.Errorf("%+v, want operation %s", got, id)
	}
	if op := r.await(id, events.Cancelled); op.Attempt != 0 || !strings.Contains(op.Reason.Message, "resolved") {
		t.Errorf("cancelled operation: attempt %d, reason %+v", op.Attempt, op.Reason)
	}
	if got := r.sendOne(running.resolved(), "resolved"); !strings.Contains(got.Message, "running") {
		t.Errorf("%+v, want it to say that the operation is running", got)
	}
	r.sendOne(waiting, "resolved") // a slower Alertmanager
	r.mustHaveCounted("down", "cancelled", 1)
}

// While all agents are down or busy, the request waits in the stream and the order is queued behind it.
func TestResolvedAlertsCancelARequestThatNoAgentHasTaken(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1}, down(t))
	blocks := firing(r.address(1, 1), time.Now())
	r.sendOne(blocks, "requested")
	a := firing(r.address(1, 3), time.Now())
	id := r.sendOne(a, "requested").OperationID
	r.sendOne(a.resolved(), "cancelled")
	r.agent()
	r.await(id, events.Cancelled)
}

func TestAnAlertGetsAnotherOperationOnlyOnceResolvedOrCooledDown(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1000}, down(t))
	r.agent()
	start := time.Now().Add(-time.Hour)
	a := firing(r.address(1, 2), start)
	r.await(r.sendOne(a, "requested").OperationID, events.Succeeded)

	flapped := firing(a.Labels["instance"], start.Add(time.Minute))
	r.sendOne(flapped, "cooling_down")
	r.policy.Alerts[0].AgainAfter = time.Hour
	r.sendOne(flapped, "cooling_down")
	r.mustHavePublished(1)
	r.policy.Alerts[0].AgainAfter = time.Nanosecond
	second := r.sendOne(flapped, "requested")
	r.await(second.OperationID, events.Succeeded, events.Failed)
	r.sendOne(flapped, "duplicate") // one firing is one request, however long it goes on
	r.policy.Alerts[0].AgainAfter = time.Hour

	r.sendOne(flapped.resolved(), "resolved")
	r.sendOne(a, "resolved")
	third := r.sendOne(firing(a.Labels["instance"], start.Add(2*time.Minute)), "requested")
	if third.OperationID == second.OperationID {
		t.Error("a new firing must be a new operation")
	}
	r.mustHavePublished(3)
}

func TestAnAlertMustHaveFiredForAsLongAsTheRuleWants(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{}, down(t))
	r.policy.Alerts[0].For = 5 * time.Minute
	r.sendOne(firing(r.address(1, 2), time.Now().Add(-4*time.Minute)), "not_yet")
	r.sendOne(firing(r.address(1, 2), time.Now().Add(time.Hour)), "not_yet") // a clock that is ahead
	r.mustHavePublished(0)
	a := firing(r.address(1, 2), time.Now().Add(-6*time.Minute))
	r.sendOne(a, "requested")
	r.policy.Alerts[0].For = 0
	r.sendOne(firing(r.address(1, 3), time.Now().Add(time.Hour)), "requested")
	r.mustHavePublished(2)
}

func TestWhileOCPIsAwayNewAlertsFailAndKnownOnesCount(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{}, down(t))
	a, b := firing(r.address(1, 2), time.Now()), firing(r.address(1, 3), time.Now())
	r.sendOne(a, "requested")
	r.config.Directory = facts.NewDirectory(r.client)
	r.sim.Close()
	r.sendOne(b, "failed")
	r.sendOne(a, "duplicate")
	r.sendOne(a.resolved(), "cancelled")
	r.mustHavePublished(2) // the request and the order
}

func TestWhileNATSIsAwayAlertmanagerMustTryAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{}, down(t))
	a := firing(r.address(1, 2), time.Now())
	r.js.Conn().Close()
	r.sendOne(a, "failed")
	r.sendOne(a.resolved(), "failed")
	r.mustHaveCounted("down", "failed", 2)
}

func TestWithoutRulesEveryAlertIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.sendOne(firing(r.address(1, 2), time.Now()), "refused")
	r.sendOne(firing(r.address(1, 2), time.Now()).resolved(), "refused")
	r.mustHavePublished(0)
	r.mustHaveCounted("none", "refused", 2)
}

func TestTheFirstRuleThatMatchesCounts(t *testing.T) {
	t.Parallel()
	first := down(t)
	first.Name, first.Kind, first.DryRun, first.Labels = "dry", events.Restart, true, []string{"alertname", "missing"}
	first.Matchers = append(first.Matchers, matchers(t, `severity=~"critical|page"`)...)
	r := newRig(t, ocpsim.Config{Speed: 1000}, first, down(t))
	r.agent()
	a := firing(r.address(1, 2), time.Now())
	if got := r.sendOne(a, "requested"); got.Rule != "down" {
		t.Errorf("rule %s", got.Rule)
	}
	a = firing(r.address(1, 3), time.Now())
	a.Labels["severity"] = "page"
	got := r.sendOne(a, "requested")
	op := r.await(got.OperationID, events.Succeeded)
	if got.Rule != "dry" || op.Kind != events.Restart || !op.Request.DryRun || len(op.Request.Labels) != 2 {
		t.Errorf("rule %s, operation %+v", got.Rule, op)
	}
}

func TestBadAlertsAreRefusedWithAReasonAndCounted(t *testing.T) {
	t.Parallel()
	many := map[string]string{}
	for i := range 65 {
		many["l"+strings.Repeat("x", i)] = "v"
	}
	start := time.Now()
	sound := func(change func(*alert, *policy.AlertRule)) func(*rig) alert {
		return func(r *rig) alert {
			a := firing(r.address(1, 2), start)
			change(&a, &r.policy.Alerts[0])
			return a
		}
	}
	changed := func(change func(*alert)) func(*rig) alert {
		return sound(func(a *alert, _ *policy.AlertRule) { change(a) })
	}
	for name, test := range map[string]struct {
		alert func(*rig) alert
		rule  string
		want  string
	}{
		"status":             {changed(func(a *alert) { a.Status = "pending" }), "none", `status "pending"`},
		"no start":           {changed(func(a *alert) { a.StartsAt = time.Time{} }), "none", "startsAt is missing"},
		"no labels":          {changed(func(a *alert) { a.Labels = nil }), "none", "no labels"},
		"too many labels":    {changed(func(a *alert) { a.Labels = many }), "none", "65 labels"},
		"control characters": {changed(func(a *alert) { a.Labels["x"] = "a\x1b[31m" }), "none", "control characters"},
		"long value":         {changed(func(a *alert) { a.Labels["x"] = strings.Repeat("v", 2000) }), "none", "2000 bytes"},
		"no name":            {changed(func(a *alert) { a.Labels[""] = "v" }), "none", "a name has 1 to"},
		"no rule":            {changed(func(a *alert) { a.Labels["alertname"] = "Other" }), "none", "no rule"},
		"no cluster label":   {changed(func(a *alert) { delete(a.Labels, "ob_cluster") }), "down", "no label ob_cluster"},
		"no server label":    {changed(func(a *alert) { delete(a.Labels, "instance") }), "down", "no label instance"},
		"unknown server": {changed(func(a *alert) { a.Labels["instance"] = "192.0.2.1:2882" }),
			"down", "no server with the address"},
		"template, no such label": {sound(func(_ *alert, rule *policy.AlertRule) {
			rule.Reason = reason(t, "{{.Labels.nothing}}")
		}), "down", `no entry for key "nothing"`},
		"template, endless": {sound(func(_ *alert, rule *policy.AlertRule) {
			rule.Reason = reason(t, `{{define "x"}}again {{template "x"}}{{end}}{{template "x"}}`)
		}), "down", "over 1024 bytes"},
		"template, long": {sound(func(a *alert, rule *policy.AlertRule) {
			a.Annotations = map[string]string{"d": strings.Repeat("d", 2000)}
			rule.Reason = reason(t, "{{.Annotations.d}}")
		}), "down", "over 1024 bytes"},
		"template, control characters": {sound(func(a *alert, rule *policy.AlertRule) {
			a.Annotations = map[string]string{"d": "a\x00b"}
			rule.Reason = reason(t, "{{.Annotations.d}}")
		}), "down", "control characters"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{}, down(t))
			if got := r.sendOne(test.alert(r), "refused"); !strings.Contains(got.Message, test.want) {
				t.Errorf("%+v, want %q", got, test.want)
			}
			r.mustHavePublished(0)
			r.mustHaveCounted(test.rule, "refused", 1)
		})
	}
}

// An alert storm: an alert about each server of 20 clusters, reported twice.
func TestAStormOf500AlertsIsHandledInOneBody(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(20, 5, 5)
	if err != nil {
		t.Fatal(err)
	}
	rule := down(t)
	rule.Target = policy.AlertTarget{Host: "instance"}
	r := newRig(t, ocpsim.Config{Clusters: clusters}, rule)
	var storm []alert
	for _, cluster := range clusters {
		for _, zone := range cluster.Zones {
			for _, server := range zone.Servers {
				storm = append(storm, firing(server.IP+":9100", time.Now()))
			}
		}
	}
	for _, want := range []string{"requested", "duplicate"} {
		for _, got := range r.send(http.StatusOK, storm...) {
			if got.Result != want {
				t.Fatalf("%+v, want %s", got, want)
			}
		}
	}
	r.mustHavePublished(500)
}

func TestABadAlertDoesNotAffectOthersInItsBody(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{}, down(t))
	bad, good := firing(r.address(1, 2), time.Time{}), firing(r.address(1, 3), time.Now())
	got := r.send(http.StatusOK, bad, good)
	if got[0].Result != "refused" || got[1].Result != "requested" {
		t.Errorf("%+v", got)
	}
}

func TestBodiesThatAreNotFromAlertmanagerAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{}, down(t))
	webhook := alerts.NewWebhook(r.config)
	tests := []struct {
		name, body, contentType string
		status                  int
		want                    string
	}{
		{"empty", "", "application/json", 400, "not a webhook"},
		{"no JSON", "alerts!", "application/json", 400, "not a webhook"},
		{"cut off", `{"version":"4","alerts":[{"sta`, "application/json", 400, "not a webhook"},
		{"an array", `[]`, "application/json", 400, "not a webhook"},
		{"no alerts", `{"version":"4"}`, "application/json", 400, "no alerts"},
		{"another version", `{"version":"5","alerts":[]}`, "application/json", 400, `version \"5\"`},
		{"no UTF-8", "{\"version\":\"4\",\"alerts\":[],\"x\":\"\xff\"}", "application/json", 400, "UTF-8"},
		{"too many alerts", `{"version":"4","alerts":[` + strings.Repeat("1,", 400_000) + `1]}`, "application/json",
			400, "400001 alerts"},
		{"huge", `{"version":"4","alerts":["` + strings.Repeat("x", alerts.MaxBodyBytes) + `"]}`, "application/json",
			413, "max_alerts"},
		{"a form, as a browser sends it", `{"version":"4","alerts":[]}`, "text/plain", 415, "application/json"},
		{"no type", `{"version":"4","alerts":[]}`, "", 415, "application/json"},
	}
	for _, test := range tests {
		status, body := post(t, webhook, []byte(test.body), http.Header{"Content-Type": {test.contentType}})
		if status != test.status || !strings.Contains(body, test.want) {
			t.Errorf("%s: %d %s, want %d and %q", test.name, status, body, test.status, test.want)
		}
	}
	r.mustHavePublished(0)
	r.mustHaveCounted("none", "refused", len(tests))

	for _, body := range []string{
		`{"version":"4","alerts":[],"new":{"of":["Alertmanager"]}}`,
		`{"version":"1","orgId":1,"state":"ok","alerts":[]}`,
	} {
		if status, answered := post(t, webhook, []byte(body), nil); status != 200 {
			t.Errorf("%s: %d %s", body, status, answered)
		}
	}
	// Entries that are no alerts are refused one by one.
	status, body := post(t, webhook,
		[]byte(`{"version":"4","alerts":[1,null,{"status":"firing","labels":{"alertname":7}}]}`), nil)
	if status != 200 || strings.Count(body, `"result":"refused"`) != 3 {
		t.Errorf("%d %s", status, body)
	}
}

func TestOnlyCallersWithTheCredentialsAreLetIn(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{}, down(t))
	basic := func(user, password string) http.Header {
		request, _ := http.NewRequest(http.MethodPost, "/", nil)
		request.SetBasicAuth(user, password)
		return request.Header
	}
	bearer := func(s string) http.Header { return http.Header{"Authorization": {s}} }
	both := alerts.Credentials{Username: "am", Password: "secret", Token: "token"}
	for _, test := range []struct {
		name        string
		credentials alerts.Credentials
		loopback    bool
		header      http.Header
		status      int
	}{
		{"open on loopback", alerts.Credentials{}, true, nil, 200},
		{"closed elsewhere", alerts.Credentials{}, false, basic("", ""), 403},
		{"none given", both, true, nil, 401},
		{"user and password", both, false, basic("am", "secret"), 200},
		{"wrong password", both, true, basic("am", "secre"), 401},
		{"wrong user", both, true, basic("an", "secret"), 401},
		{"no password set", alerts.Credentials{Token: "token"}, true, basic("", ""), 401},
		{"token", both, false, bearer("Bearer token"), 200},
		{"token, other case", both, false, bearer("bearer token"), 200},
		{"wrong token", both, true, bearer("Bearer tokens"), 401},
		{"no token set", alerts.Credentials{Username: "am", Password: "secret"}, true, bearer("Bearer "), 401},
	} {
		config := r.config
		config.Credentials, config.Loopback = test.credentials, test.loopback
		status, body := post(t, alerts.NewWebhook(config), []byte(`{"version":"4","alerts":[]}`), test.header)
		if status != test.status {
			t.Errorf("%s: %d %s, want %d", test.name, status, body, test.status)
		}
	}
	r.mustHaveCounted("none", "refused", 7)
	for host, status := range map[string]int{
		"localhost:9480": 200, "[::1]:9480": 200, "127.0.0.1": 200, "a.page.of.somebody:9480": 403, "": 403,
	} {
		request := httptest.NewRequest(http.MethodPost, "/alertmanager", strings.NewReader(`{"version":"4","alerts":[]}`))
		request.Header.Set("Content-Type", "application/json")
		request.Host = host
		w := httptest.NewRecorder()
		alerts.NewWebhook(r.config).ServeHTTP(w, request)
		if w.Code != status {
			t.Errorf("open, asked for as %q: %d, want %d", host, w.Code, status)
		}
	}
}
