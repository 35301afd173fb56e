package alerts

import (
	"strings"
	"testing"
	"unicode"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// Whatever body comes in, nothing panics, and each alert makes a valid request or none.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		`{"version":"4","alerts":[{"status":"firing","labels":{"alertname":"Down","cid":"1","sid":"2"},` +
			`"annotations":{"summary":"s"},"startsAt":"2026-11-24T21:30:00Z","endsAt":"0001-01-01T00:00:00Z",` +
			`"generatorURL":"http://p","fingerprint":"00"}],"truncatedAlerts":0}`,
		`{"version":"1","orgId":1,"alerts":[{"status":"resolved","labels":{"a":"b"},` +
			`"startsAt":"2026-11-24T21:30:00+08:00","values":{"B":22}}]}`,
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
	rules := []policy.AlertRule{{
		Name: "r", Matchers: labels.Matchers{any}, Kind: events.Stop, Reason: reason,
		Target: policy.AlertTarget{ClusterID: "cid", ServerID: "sid"},
	}}
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
			if r.Force || r.ClusterID != 1 || r.ServerID != 2 || strings.ContainsFunc(r.Reason, unicode.IsControl) ||
				len(r.IdempotencyKey) > events.MaxKeyBytes {
				t.Fatalf("request %+v", r)
			}
		}
	})
}

func TestTheFingerprintIsThatOfPrometheus(t *testing.T) {
	t.Parallel()
	// The fingerprint that the API of Alertmanager 0.25 shows for these labels.
	a, err := decodeAlert([]byte(`{"status":"firing","labels":{"alertname":"ObserverDown","instance":"10.0.0.1:2881"},` +
		`"startsAt":"2026-11-24T21:30:00.123Z"}`))
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
