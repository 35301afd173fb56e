package alerts_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// silence holds the fields of Alertmanager's answer that these tests use.
type silence struct {
	ID       string `json:"id"`
	Matchers []struct {
		Name, Value      string
		IsRegex, IsEqual bool
	} `json:"matchers"`
	StartsAt  time.Time `json:"startsAt"`
	EndsAt    time.Time `json:"endsAt"`
	UpdatedAt time.Time `json:"updatedAt"`
	CreatedBy string    `json:"createdBy"`
	Comment   string    `json:"comment"`
	Status    struct {
		State string `json:"state"`
	} `json:"status"`
}

// fake is the part of Alertmanager's API for silences that the silencer uses.
type fake struct {
	mu       sync.Mutex
	silences map[string]silence
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := func(s silence) silence {
		s.Status.State = "active"
		if !s.EndsAt.After(time.Now()) {
			s.Status.State = "expired"
		}
		return s
	}
	switch id := filepath.Base(r.URL.Path); r.Method {
	case http.MethodGet:
		all := []silence{}
		for s := range maps.Values(f.silences) {
			all = append(all, state(s))
		}
		_ = json.NewEncoder(w).Encode(all)
	case http.MethodPost:
		var s silence
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil || !s.EndsAt.After(time.Now()) {
			http.Error(w, "bad silence", http.StatusBadRequest)
			return
		}
		if _, there := f.silences[s.ID]; s.ID != "" && !there {
			http.Error(w, "no such silence", http.StatusNotFound)
			return
		}
		if s.ID == "" {
			s.ID = fmt.Sprint(len(f.silences) + 1)
		}
		if now := time.Now(); s.StartsAt.Before(now) && f.silences[s.ID].ID == "" {
			s.StartsAt = now
		}
		s.UpdatedAt = time.Now()
		f.silences[s.ID] = s
		fmt.Fprintf(w, `{"silenceID":%q}`, s.ID)
	case http.MethodDelete:
		s := f.silences[id]
		s.EndsAt = time.Now()
		f.silences[id] = s
	}
}

// realAlertmanager runs Debian's alertmanager until the test ends and returns its URL.
func realAlertmanager(t *testing.T, config string) string {
	t.Helper()
	binary, err := exec.LookPath("prometheus-alertmanager")
	if err != nil {
		if binary, err = exec.LookPath("alertmanager"); err != nil {
			t.Skip("no alertmanager installed")
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "alertmanager.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, "--config.file="+file, "--storage.path="+dir, "--web.listen-address="+address,
		"--cluster.listen-address=")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // interrupted
		if t.Failed() {
			t.Logf("alertmanager's log:\n%s", log.String())
		}
	})
	url := "http://" + address
	eventually(t, "alertmanager is ready", func() bool {
		response, err := http.Get(url + "/-/ready")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return url
}

// eventually polls another program until holds is true: there is no signal to wait for.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("never came true: %s", what)
		}
	}
}

// silencing is a rig with a silencer.
type silencing struct {
	*rig
	*alerts.Silencer
	url string // of Alertmanager
}

func newSilencing(t *testing.T, url string, rule *policy.SilenceRule) silencing {
	t.Helper()
	r := newRig(t, ocpsim.Config{})
	r.policy.Silence = rule
	s, err := alerts.NewSilencer(alerts.SilencerConfig{
		URL: url, Journal: r.streams.Operations, Directory: r.config.Directory, Policy: r.config.Policy,
		Metrics: r.config.Metrics, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return silencing{r, s, url}
}

// silences returns the silences in Alertmanager that have not expired.
func (s silencing) silences() []silence {
	s.t.Helper()
	response, err := http.Get(s.url + "/api/v2/silences")
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	var all []silence
	if err := json.NewDecoder(response.Body).Decode(&all); err != nil {
		s.t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(s silence) bool { return s.Status.State == "expired" })
}

// one returns the only silence that has not expired.
func (s silencing) one() silence {
	s.t.Helper()
	all := s.silences()
	if len(all) != 1 {
		s.t.Fatalf("%d silences, want 1: %+v", len(all), all)
	}
	return all[0]
}

func (s silencing) tend(now time.Time) {
	s.t.Helper()
	if err := s.Tend(s.t.Context(), now); err != nil {
		s.t.Fatal(err)
	}
}

func (s silencing) before(op events.Operation) {
	s.t.Helper()
	if err := s.Before(s.t.Context(), op); err != nil {
		s.t.Fatal(err)
	}
}

// journal writes an operation as an agent would.
func (s silencing) journal(op events.Operation, state events.State, endedAt time.Time) {
	s.t.Helper()
	op.N++
	op.State, op.EndedAt = state, endedAt.UTC()
	msg, err := events.Event{Operation: op, Token: state}.Message()
	if err != nil {
		s.t.Fatal(err)
	}
	msg.Header.Del("Nats-Msg-Id")
	if _, err := s.js.PublishMsg(s.t.Context(), msg); err != nil {
		s.t.Fatal(err)
	}
}

func (s silencing) mustHaveCounted(result string, n int) {
	s.t.Helper()
	if got := testutil.ToFloat64(s.config.Metrics.Silences.WithLabelValues(result)); got != float64(n) {
		s.t.Errorf("obwarden_silences_total{result=%q} is %g, want %d", result, got, n)
	}
}

func stopOf(server int64) events.Operation {
	key := fmt.Sprint("stop of ", server)
	return events.Operation{
		Schema: events.OperationSchema, OperationID: events.OperationID(key), IdempotencyKey: key,
		Kind: events.Stop, ClusterID: 1, ServerID: server, Agent: "test", UpdatedAt: time.Now().UTC(),
	}
}

func silenceRule(t testing.TB, wait bool, silences ...string) *policy.SilenceRule {
	t.Helper()
	rule := &policy.SilenceRule{Grace: 5 * time.Minute, Wait: wait}
	for _, s := range silences {
		var matchers []policy.SilenceMatcher
		for text := range strings.SplitSeq(s, ";") {
			m, err := policy.ParseSilenceMatcher(text)
			if err != nil {
				t.Fatal(err)
			}
			matchers = append(matchers, m)
		}
		rule.Silences = append(rule.Silences, matchers)
	}
	return rule
}

// onBoth runs a test against the fake, and against the real program where it is installed.
func onBoth(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("fake", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(&fake{silences: map[string]silence{}})
		t.Cleanup(server.Close)
		test(t, server.URL)
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		test(t, realAlertmanager(t, "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"))
	})
}

func TestASilenceLastsAsLongAsItsOperation(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, url string) {
		s := newSilencing(t, url, silenceRule(t, true,
			`alertname=~"Observer.*";instance=~"{{.IP}}:(2881|{{.Port}})";ob_cluster="{{.Cluster}}"`))
		op := stopOf(2)
		s.before(op)
		s.before(op) // decided once more: the same silence
		made := s.one()
		if made.CreatedBy != "obwarden" || !strings.Contains(made.Comment, op.OperationID) {
			t.Errorf("silence by %q, comment %q", made.CreatedBy, made.Comment)
		}
		address := s.address(1, 2)
		values := map[string]string{}
		for _, m := range made.Matchers {
			values[m.Name] = m.Value
			if !m.IsEqual || m.IsRegex != (m.Name != "ob_cluster") {
				t.Errorf("matcher %+v", m)
			}
		}
		instance := regexp.MustCompile("^(?:" + values["instance"] + ")$")
		if !instance.MatchString(address) || instance.MatchString(strings.Replace(address, ".", "x", 1)) ||
			values["ob_cluster"] != "obdemo" {
			t.Errorf("matchers %v, for %s", values, address)
		}
		now := time.Now()
		left := made.EndsAt.Sub(now)
		if left < 9*time.Minute || left > 11*time.Minute || made.StartsAt.After(now.Add(time.Second)) {
			t.Errorf("silence from %s to %s", made.StartsAt, made.EndsAt)
		}

		s.journal(op, events.Running, time.Time{})
		s.tend(now)
		if got := s.one(); !got.EndsAt.Equal(made.EndsAt) {
			t.Errorf("ends at %s, want %s still", got.EndsAt, made.EndsAt)
		}
		s.tend(now.Add(6 * time.Minute))
		if got := s.one(); got.ID != made.ID || got.EndsAt.Sub(made.EndsAt) < 5*time.Minute {
			t.Errorf("ends at %s, want 6 minutes after %s", got.EndsAt, made.EndsAt)
		}

		op.N = 1
		s.journal(op, events.Succeeded, now)
		s.tend(now)
		if got := s.one(); got.EndsAt.Sub(now.Add(5*time.Minute)).Abs() > time.Second {
			t.Errorf("ends at %s, want the grace time of 5 minutes after %s", got.EndsAt, now)
		}
		s.policy.Silence = nil // taken out of the policy: no grace
		s.tend(time.Now())
		if left := s.silences(); len(left) != 0 {
			t.Errorf("silences left: %+v", left)
		}
		s.mustHaveCounted("created", 1)
		s.mustHaveCounted("extended", 1)
		s.mustHaveCounted("ended", 2)
		s.mustHaveCounted("failed", 0)
	})
}

func TestLeftOverSilencesAreRemovedAndForeignOnesAreNot(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, url string) {
		s := newSilencing(t, url, silenceRule(t, true, `instance="{{.Address}}"`, `zone="{{.Zone}}"`))
		ended, unknown, waits := stopOf(1), stopOf(2), stopOf(3)
		for _, op := range []events.Operation{ended, unknown, waits} {
			s.before(op)
		}
		s.journal(ended, events.Failed, time.Now().Add(-time.Hour))
		s.journal(waits, events.Waiting, time.Time{}) // allowed, and then not
		body := fmt.Sprintf(`{"matchers":[{"name":"a","value":"b","isRegex":false,"isEqual":true}],`+
			`"startsAt":%q,"endsAt":%q,"createdBy":"kim","comment":"stop, operation %s"}`,
			time.Now().UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339), ended.OperationID)
		response, err := http.Post(url+"/api/v2/silences", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }() // an agent that starts
		eventually(t, "the silences of the ended operation are gone", func() bool { return len(s.silences()) == 5 })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.tend(time.Now().Add(2 * time.Minute))
		var left []string
		for _, silence := range s.silences() {
			left = append(left, silence.CreatedBy)
			if silence.CreatedBy == "obwarden" && !strings.Contains(silence.Comment, unknown.OperationID) {
				t.Errorf("left: %+v", silence)
			}
		}
		slices.Sort(left)
		if !slices.Equal(left, []string{"kim", "obwarden", "obwarden"}) {
			t.Errorf("silences left of %v, want one of kim and two of another installation", left)
		}
	})
}

func TestWithoutAlertmanagerAnOperationGoesOnOrWaitsAsThePolicySays(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]http.HandlerFunc{
		"an error":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"no JSON":   func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"elsewhere": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) },
		"takes none": func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet {
				w.WriteHeader(http.StatusBadRequest)
			}
			fmt.Fprint(w, "[]")
		},
		"not there": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(handler)
			t.Cleanup(server.Close)
			if handler == nil {
				server.Close()
			}
			s := newSilencing(t, server.URL, silenceRule(t, true, `instance="{{.Address}}"`))
			if err := s.Before(t.Context(), stopOf(2)); err == nil {
				t.Error("the operation goes on, the policy says to wait")
			}
			s.policy.Silence.Wait = false
			s.before(stopOf(2))
			s.mustHaveCounted("failed", 2)
			if name != "takes none" {
				if err := s.Tend(t.Context(), time.Now()); err == nil {
					t.Error("tending goes well")
				}
			}
		})
	}
}

// Waiting would not help in either case: the operation goes on, and the log says why it has no silence.
func TestAnOperationDoesNotWaitForASilenceThatCannotBeMade(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&fake{silences: map[string]silence{}})
	t.Cleanup(server.Close)
	for name, test := range map[string]struct {
		rule   *policy.SilenceRule
		server int64
	}{
		"an empty value would silence everything": {silenceRule(t, true, `x="{{if lt .Port 10}}{{.IP}}{{end}}"`), 2},
		"no such server": {silenceRule(t, true, `x="{{.IP}}"`), 99},
	} {
		s := newSilencing(t, server.URL, test.rule)
		s.before(stopOf(test.server))
		if all := s.silences(); len(all) != 0 {
			t.Errorf("%s: silences %+v", name, all)
		}
		s.mustHaveCounted("failed", 1)
	}
}

func TestWithoutASilenceRuleAlertmanagerIsNotCalled(t *testing.T) {
	t.Parallel()
	s := newSilencing(t, "http://127.0.0.1:1", nil)
	s.before(stopOf(2))
	s.mustHaveCounted("failed", 0)
}
