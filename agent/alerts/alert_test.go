package alerts

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// Whatever comes in, nothing panics, and what is taken makes a sound request or none.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		`{"version":"4","alerts":[{"status":"firing","labels":{"alertname":"Down","cid":"1","sid":"2"},"annotations":{"summary":"s"},"startsAt":"2026-11-24T21:30:00Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://p","fingerprint":"00"}],"truncatedAlerts":0}`,
		`{"version":"1","orgId":1,"alerts":[{"status":"resolved","labels":{"a":"b"},"startsAt":"2026-11-24T21:30:00+08:00","values":{"B":22}}]}`,
		`{"version":"4","alerts":[{"status":"firing","labels":{"a":null},"startsAt":"9999-12-31T23:59:59-23:59"}]}`,
		`{"version":"4","alerts":null}`,
		`{"version":"4","alerts":[[],{},"",{"startsAt":1}]}`,
	} {
		f.Add([]byte(seed))
	}
	reason, err := policy.ParseReason("{{.Labels.alertname}} {{.Annotations.summary}}")
	if err != nil {
		f.Fatal(err)
	}
	any, err := labels.NewMatcher(labels.MatchRegexp, "alertname", ".*")
	if err != nil {
		f.Fatal(err)
	}
	rules := []policy.AlertRule{{Name: "r", Matchers: labels.Matchers{any}, Kind: events.Stop, Target: policy.AlertTarget{ClusterID: "cid", ServerID: "sid"}, Reason: reason}}
	f.Fuzz(func(t *testing.T, body []byte) {
		all, err := decodeBody(body)
		if err != nil {
			return
		}
		for _, raw := range all {
			a, err := decodeAlert(raw)
			if err != nil {
				continue
			}
			if again, err := decodeAlert(raw); err != nil || again.Fingerprint != a.Fingerprint {
				t.Fatalf("decoded twice: %+v, %+v, %v", a, again, err)
			}
			rule := match(rules, a.Labels)
			if rule == nil {
				continue
			}
			r, err := requestOf(rule, a, 1, 2)
			if err != nil {
				continue
			}
			if r.Force || r.ClusterID != 1 || r.ServerID != 2 || strings.ContainsFunc(r.Reason, unicode.IsControl) || len(r.IdempotencyKey) > events.MaxKeyBytes {
				t.Fatalf("request %+v", r)
			}
		}
	})
}

func TestTheFingerprintIsPrometheusOwn(t *testing.T) {
	t.Parallel()
	// Of Alertmanager 0.25, by its API, for these labels.
	a, err := decodeAlert([]byte(`{"status":"firing","labels":{"alertname":"ObserverDown","instance":"10.0.0.1:2881"},"startsAt":"2026-11-24T21:30:00.123Z"}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := "1219054b166b7132"; a.Fingerprint != want {
		t.Errorf("fingerprint %s, want %s", a.Fingerprint, want)
	}
	if got, want := keyOf("down", a), "alert/down/1219054b166b7132/2026-11-24T21:30:00.123Z"; got != want {
		t.Errorf("key %s, want %s", got, want)
	}
}

// Whatever is told in whatever order, a firing that was resolved stays so, and a
// matter is resolved only when no alert of it is known to fire.
func TestWhatWasResolvedStaysResolved(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(fingerprint string, minute int, firing bool) alert {
		return alert{Fingerprint: fingerprint, StartsAt: start.Add(time.Duration(minute) * time.Minute), Firing: firing}
	}
	m := matter{Request: &events.Request{}}
	for i, step := range []struct {
		alert          alert
		news, resolved bool
		over           bool // afterwards
	}{
		{at("a", 0, true), true, false, false},
		{at("a", 0, true), false, false, false},
		{at("b", 0, true), true, false, false},
		{at("a", 0, false), true, false, true},
		{at("a", 0, true), false, false, true},  // a slower Alertmanager
		{at("a", 1, true), true, false, false},  // it fires anew
		{at("a", 0, false), false, false, true}, // what ended before does not end this
		{at("b", 0, false), true, false, true},  // a still fires
		{at("a", 1, false), true, true, true},   // now all is well
		{at("a", 1, false), false, true, true},
	} {
		if news := m.tell(step.alert); news != step.news || m.Resolved != step.resolved || m.over(step.alert) != step.over {
			t.Errorf("step %d: news %v, resolved %v, over %v, want %v, %v, %v", i+1, news, m.Resolved, m.over(step.alert), step.news, step.resolved, step.over)
		}
	}
}

func TestAMatterRemembersNoMoreThanItMay(t *testing.T) {
	t.Parallel()
	var m matter
	for i := range 2 * maxTold {
		m.tell(alert{Fingerprint: string(rune('a' + i)), StartsAt: time.Now(), Firing: i%2 == 0})
	}
	if len(m.Told) != maxTold || slices.ContainsFunc(m.Told, func(t told) bool { return t.Resolved }) {
		t.Errorf("%d are remembered, want %d and only what fires", len(m.Told), maxTold)
	}
}
