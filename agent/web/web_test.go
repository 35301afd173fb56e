package web

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestReadinessDependsOnNATSAndNotOnOCP(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		nats   error
		status int
		want   string
	}{
		{"NATS usable, OCP away", nil, 200, `{"ready":true,"nats":"ok","ocp":"in trouble"}`},
		{"NATS away", errors.New("not connected"), 503, `{"ready":false,"nats":"not connected","ocp":"in trouble"}`},
	} {
		h := Handler(Config{
			Gatherer: prometheus.NewRegistry(),
			Ready:    func(context.Context) error { return tt.nats },
			OCP:      func() string { return "in trouble" },
		})
		if status, body := get(t, h, ReadyPath); status != tt.status || strings.TrimSpace(body) != tt.want {
			t.Errorf("%s: %d %s, want %d %s", tt.name, status, body, tt.status, tt.want)
		}
		if status, _ := get(t, h, HealthyPath); status != 200 {
			t.Errorf("%s: healthy answers %d", tt.name, status)
		}
	}
}

func TestMetricsAreServedAndOtherPathsAreNot(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "seen_total", Help: "Seen."})
	registry.MustRegister(counter)
	h := Handler(Config{Gatherer: registry})
	if status, body := get(t, h, MetricsPath); status != 200 || !strings.Contains(body, "seen_total 0") {
		t.Errorf("metrics: %d %s", status, body)
	}
	if status, _ := get(t, h, "/nothing"); status != 404 {
		t.Errorf("another path answers %d, want 404", status)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, MetricsPath, nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST answers %d, want 405", w.Code)
	}
}

func TestAlertmanagerMayPostWhereAWebhookIsSet(t *testing.T) {
	t.Parallel()
	taken := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	for _, test := range []struct {
		handler http.Handler
		method  string
		status  int
	}{{taken, http.MethodPost, 202}, {taken, http.MethodGet, 405}, {nil, http.MethodPost, 404}} {
		w := httptest.NewRecorder()
		h := Handler(Config{Gatherer: prometheus.NewRegistry(), Alertmanager: test.handler})
		h.ServeHTTP(w, httptest.NewRequest(test.method, AlertmanagerPath, nil))
		if w.Code != test.status {
			t.Errorf("%s answers %d, want %d", test.method, w.Code, test.status)
		}
	}
}

func TestOpenMetricsHaveTheTimeWhenACounterBegan(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "seen_total", Help: "Seen."}))
	r := httptest.NewRequest(http.MethodGet, MetricsPath, nil)
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	Handler(Config{Gatherer: registry}).ServeHTTP(w, r)
	if kind := w.Header().Get("Content-Type"); !strings.HasPrefix(kind, "application/openmetrics-text") {
		t.Errorf("got %s, want OpenMetrics, which the client asked for", kind)
	}
	if body := w.Body.String(); !strings.Contains(body, "\nseen_created ") || !strings.HasSuffix(body, "# EOF\n") {
		t.Errorf("got\n%s\nwant seen_created, and the end", body)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, Handler(Config{Gatherer: prometheus.NewRegistry()})) }()
	response, err := http.Get("http://" + l.Addr().String() + HealthyPath)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || string(body) != "healthy\n" {
		t.Errorf("healthy: %q, %v", body, err)
	}
	_ = response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestProfilesAreServedOnlyOnTheirOwnListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- ServeProfiles(ctx, l) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, path := range []string{"heap?debug=1", "goroutine?debug=1", "profile?seconds=1", ""} {
		response, err := client.Get("http://" + l.Addr().String() + ProfilesPath + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: %d, %d bytes, %v", path, response.StatusCode, len(body), err)
		}
		_ = response.Body.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	status, _ := get(t, Handler(Config{Gatherer: prometheus.NewRegistry()}), ProfilesPath)
	if status != http.StatusNotFound {
		t.Errorf("the public listener answers %d for profiles, want 404", status)
	}
}
