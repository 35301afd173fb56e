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
	readyInterval = 10 * time.Second // between two checks whether the agent is ready
	maxNotReady   = 6                // failed checks in a row until an agent with an embedded server ends
)

// checkNATS returns why the agent cannot rely on NATS now: there is no connection, or somebody has deleted or changed a
// stream.
func checkNATS(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, c Config) error {
	if !nc.IsConnected() {
		return errors.New("not connected")
	}
	return events.CheckStreams(ctx, js, streamOptions(c))
}

// watchReady logs when the agent stops being ready, and when it is ready again, even if nobody asks. If an embedded
// server stays out of order, watchReady returns an error, which ends the process: the server does not recover from a
// full disk by itself, and a supervisor restarts the process.
func watchReady(
	ctx context.Context, ready func(context.Context) error, embedded bool, measured prometheus.Gauge, log *slog.Logger,
) error {
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	before := ""
	failed := 0
	measured.Set(1) // the agent has just opened its streams
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
		case now != "" && now != before:
			log.Error("not ready: the agent cannot take requests, or cannot keep its guarantees; "+
				"it repairs nothing by itself", "error", now)
		case now == "" && before != "":
			log.Info("ready again")
		}
		if now == "" {
			failed = 0
			measured.Set(1)
		} else {
			measured.Set(0)
		}
		if embedded && failed >= maxNotReady {
			return fmt.Errorf("the embedded NATS server is out of order: %s; is the disk of OBWARDEN_DATA_DIR full? "+
				"Requests that were acknowledged are kept there; the agent ends, so that it can be restarted", now)
		}
		before = now
	}
}

// ocpHealth remembers how the latest request to OCP ended.
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

// newOCPClient returns a client. Its requests are measured, and changes of its breaker are logged.
func newOCPClient(c Config, m *metrics.Metrics, health *ocpHealth, log *slog.Logger) (*ocp.Client, error) {
	return ocp.New(ocp.Config{
		URL: c.OCPURL, Username: c.OCPUsername, Password: c.OCPPassword,
		AccessKey: c.OCPAccessKey, SecretKey: c.OCPSecretKey,
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
				log.Error("OCP does not answer; operations wait, and the agent tries OCP again now and then",
					"ocp", c.OCPURL)
			} else {
				m.OCPUp.Set(1)
				log.Info("OCP answers again", "ocp", c.OCPURL)
			}
		},
	})
}
