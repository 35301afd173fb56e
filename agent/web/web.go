// Package web serves the agent's HTTP side: metrics, health and Alertmanager's webhook,
// and profiles on a listener of their own.
//
// It shows what others know and knows nothing itself. It imports nothing of ours.
package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Paths that are served.
const (
	MetricsPath = "/metrics"
	HealthyPath = "/-/healthy"
	ReadyPath   = "/-/ready"

	AlertmanagerPath = "/alertmanager"
)

const (
	readyTimeout    = 2 * time.Second
	shutdownTimeout = time.Second
)

// Config is what the pages show.
type Config struct {
	Gatherer prometheus.Gatherer
	// Ready returns nil when requests can be taken: NATS and the streams are usable.
	Ready func(context.Context) error
	// OCP says how the latest exchange with OCP went. It is shown and does not
	// decide: an agent whose OCP is away still takes requests, and must not be
	// restarted for it.
	OCP func() string
	// Alertmanager takes the notifications posted to AlertmanagerPath; nil: nobody does.
	Alertmanager http.Handler
}

// Handler serves the paths above.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+MetricsPath, promhttp.HandlerFor(c.Gatherer, promhttp.HandlerOpts{
		DisableCompression: true, // it would take as long as all else of a scrape, for 200 kB
		EnableOpenMetrics:  true,
		// When each counter began, for scrapers that read it; the example's Prometheus
		// drops what it would keep as series of their own.
		EnableOpenMetricsTextCreatedSamples: true,
	}))
	mux.HandleFunc("GET "+HealthyPath, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "healthy") })
	mux.HandleFunc("GET "+ReadyPath, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		status, answer := http.StatusOK, readiness{Ready: true, NATS: "ok", OCP: c.OCP()}
		if err := c.Ready(ctx); err != nil {
			status, answer.Ready, answer.NATS = http.StatusServiceUnavailable, false, err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(answer) // the client is gone: nobody to tell
	})
	if c.Alertmanager != nil {
		mux.Handle("POST "+AlertmanagerPath, c.Alertmanager)
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "obwarden\n\n%s\n%s\n%s\n", MetricsPath, HealthyPath, ReadyPath)
	})
	return mux
}

type readiness struct {
	Ready bool   `json:"ready"`
	NATS  string `json:"nats"`
	OCP   string `json:"ocp"`
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	return serve(ctx, l, &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	})
}

func serve(ctx context.Context, l net.Listener, server *http.Server) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		stopped <- server.Shutdown(ctx)
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
	}
	if err := <-stopped; err != nil {
		return errors.Join(server.Close()) // a scrape that hangs is cut off
	}
	return nil
}
