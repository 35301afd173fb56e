// Package web serves HTTP: metrics, health and Alertmanager's webhook on one listener, and profiles on a listener of
// their own.
//
// It has no state: everything that it shows comes from functions in its Config. It imports no other package of
// obwarden.
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

// Paths that Handler serves.
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
	// Ready returns nil while the agent can take requests: NATS and the streams are usable.
	Ready func(context.Context) error
	// OCP says how the latest exchange with OCP went. The ready page shows it, but its status does not depend on it: an
	// agent whose OCP is away still takes requests, and must not be restarted for that.
	OCP func() string
	// Alertmanager receives the notifications posted to AlertmanagerPath; nil: the path is not served.
	Alertmanager http.Handler
}

// Handler serves the paths above.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+MetricsPath, promhttp.HandlerFor(c.Gatherer, promhttp.HandlerOpts{
		DisableCompression: true, // compressing 200 kB would double the time of a scrape
		EnableOpenMetrics:  true,
		// Says when each counter began. The Prometheus in deploy drops these samples, which it would keep as series of
		// their own.
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
		_ = json.NewEncoder(w).Encode(answer) // an error means that the client is gone
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

// Serve serves h on l until ctx ends. Requests under way then have shutdownTimeout to end.
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
		return errors.Join(server.Close()) // cuts off requests that hang
	}
	return nil
}
