package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

const (
	readyInterval = 10 * time.Second // between looks at whether the agent is ready
	embeddedTries = 6                // looks in a row at an embedded server out of order, until the process ends
)

// usable reports why requests cannot be taken now, or not be relied upon: streams
// that are gone, or changed under the agent.
func usable(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, c Config) error {
	if !nc.IsConnected() {
		return errors.New("not connected")
	}
	return events.CheckStreams(ctx, js, streamOptions(c))
}

// watchReady says so when the agent stops being ready, and when it is again, also
// where nobody asks. An embedded server that stays out of order ends the process: it
// does not recover from a full disk by itself, and a supervisor restarts it.
func watchReady(ctx context.Context, ready func(context.Context) error, embedded bool, measured prometheus.Gauge, log *slog.Logger) error {
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	was := ""
	failed := 0
	measured.Set(1) // its streams were opened a moment ago
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		failed++
		now := ""
		try, cancel := context.WithTimeout(ctx, readyInterval)
		if err := ready(try); err != nil && ctx.Err() == nil {
			now = err.Error()
		}
		cancel()
		switch {
		case now != "" && now != was:
			log.Error("not ready: requests cannot be taken, or not be relied upon; nothing is repaired behind your back", "error", now)
		case now == "" && was != "":
			log.Info("ready again")
		}
		if now == "" {
			failed = 0
			measured.Set(1)
		} else {
			measured.Set(0)
		}
		if embedded && failed >= embeddedTries {
			return fmt.Errorf("the embedded NATS server is out of order: %s; is the disk of OBWARDEN_DATA_DIR full? Requests that were acknowledged are kept there; ending, to start anew", now)
		}
		was = now
	}
}

// ocpHealth is how the latest exchange with OCP went.
type ocpHealth struct{ latest atomic.Pointer[string] }

func (h *ocpHealth) saw(endpoint, code string) {
	s := fmt.Sprintf("ok (%s: %s)", endpoint, code)
	if !strings.HasPrefix(code, "2") {
		s = fmt.Sprintf("in trouble (%s: %s)", endpoint, code)
	}
	h.latest.Store(&s)
}

func (h *ocpHealth) String() string {
	if s := h.latest.Load(); s != nil {
		return *s
	}
	return "not asked yet"
}

// newOCPClient returns a client whose exchanges are measured, and whose breaker is told to the log.
func newOCPClient(c Config, m *metrics.Metrics, health *ocpHealth, log *slog.Logger) (*ocp.Client, error) {
	return ocp.New(ocp.Config{
		URL: c.OCPURL, Username: c.OCPUsername, Password: c.OCPPassword, AccessKey: c.OCPAccessKey, SecretKey: c.OCPSecretKey,
		API: ocp.API(c.OCPAPI), Params: ocp.ParamStyle(c.OCPParams), CAFile: c.OCPCAFile,
		Timeout: c.OCPTimeout, MaxRPS: c.OCPMaxRPS, UserAgent: "obwarden/" + version(),
		Observe: func(endpoint, code string, took time.Duration) {
			m.OCPRequestDuration.WithLabelValues(endpoint, code).Observe(took.Seconds())
			health.saw(endpoint, code)
		},
		Retried: func(endpoint string) { m.OCPRetries.WithLabelValues(endpoint).Inc() },
		OnBreaker: func(open bool) {
			if open {
				m.OCPUp.Set(0)
				log.Error("OCP does not answer; it is left alone and tried now and then, operations wait", "ocp", c.OCPURL)
			} else {
				m.OCPUp.Set(1)
				log.Info("OCP answers again", "ocp", c.OCPURL)
			}
		},
	})
}
