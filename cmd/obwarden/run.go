package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sethvargo/go-retry"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"obwarden/agent"
	"obwarden/agent/ocp"
	"obwarden/agent/web"
	"obwarden/events"
	"obwarden/metrics"
)

const (
	startTimeout  = 30 * time.Second // until NATS is there when the agent starts
	readyInterval = 10 * time.Second // between looks at whether the agent is ready
	embeddedTries = 6                // looks in a row at an embedded server out of order, until the process ends
)

func newRun(a app) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long:  "Run the agent until SIGINT or SIGTERM. It is configured by environment variables:\n\n" + variableTable(),
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(a.environ)
			if err = errors.Join(err, c.checkOCP()); err != nil {
				return exit(exitUsage, err)
			}
			log := newLogger(a.stderr, c)
			for _, name := range unknownVariables(a.environ) {
				log.Warn("no such variable, it has no effect; `obwarden run --help` lists all", "variable", name)
			}
			return runAgent(cmd.Context(), c, log, nil)
		},
	}
}

// started is where a running agent is to be found.
type started struct {
	NATS jetstream.JetStream
	URL  string // of NATS
	HTTP string // base URL
}

// runAgent runs an agent until ctx ends, with its NATS server where none is
// configured. running, if not nil, is called once requests are taken.
func runAgent(ctx context.Context, c Config, log *slog.Logger, running func(started)) (err error) {
	listener, err := net.Listen("tcp", c.HTTPListen)
	if err != nil {
		return fmt.Errorf("HTTP listen address: %w; free it, or choose another OBWARDEN_HTTP_LISTEN", err)
	}
	defer listener.Close()
	var profiles net.Listener
	if c.PprofListen != "" {
		if profiles, err = net.Listen("tcp", c.PprofListen); err != nil {
			return fmt.Errorf("listen address of profiles: %w; free it, or choose another OBWARDEN_PPROF_LISTEN", err)
		}
		defer profiles.Close()
	}

	url := c.NATSURL
	if url == "" {
		server, err := events.StartServer(c.NATSListen, c.DataDir, log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Close()) }()
		url = server.URL()
	}
	nc, err := connectAgent(ctx, url, c.NATSCredsFile, log)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("JetStream on %s: %w", nc.ConnectedUrlRedacted(), err)
	}
	streams, err := openStreams(ctx, js, c)
	if err != nil {
		return err
	}

	registry := prometheus.NewRegistry()
	var a *agent.Agent
	m := metrics.New(registry, version(), runtime.Version(), func() time.Duration { return a.OldestProgress() })
	var health ocpHealth
	client, err := newOCPClient(c, m, &health, log)
	if err != nil {
		return exit(exitUsage, err)
	}
	defer client.Close()
	a = agent.New(agent.Config{
		JetStream: js, Streams: streams, OCP: client, Metrics: m, Log: log,
		Machine: agent.Machine{Agent: hostname(), Settle: c.Settle, StallAfter: c.StallAfter, PollMin: c.PollMin, PollMax: c.PollMax, Refresh: c.Retention / 3},
		Policy:  agent.DefaultPolicy(),
		AckWait: c.AckWait,
		// A call must be over well before anybody may take it for lost.
		Timeout: min(c.OCPTimeout, c.Settle/2),
	})
	ready := func(ctx context.Context) error {
		return errors.Join(usable(ctx, nc, js, c), a.JournalError())
	}
	handler := web.Handler(web.Config{Gatherer: registry, OCP: health.String, Ready: ready})

	if c.anonymous() {
		log.Warn("no credentials for OCP: set OBWARDEN_OCP_USERNAME and OBWARDEN_OCP_PASSWORD, or OBWARDEN_OCP_ACCESS_KEY and OBWARDEN_OCP_SECRET_KEY")
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return web.Serve(ctx, listener, handler) })
	if profiles != nil {
		group.Go(func() error { return web.ServeProfiles(ctx, profiles) })
		log.Info("profiles are served", "pprof", "http://"+profiles.Addr().String()+web.ProfilesPath)
	}
	group.Go(func() error { return a.Run(ctx) })
	group.Go(func() error { sayHello(ctx, client, c, log); return nil })
	group.Go(func() error { return watchReady(ctx, ready, c.NATSURL == "", log) })
	log.Info("ready", "version", version(), "nats", nc.ConnectedUrlRedacted(), "http", "http://"+listener.Addr().String(), "ocp", c.OCPURL)
	if running != nil {
		running(started{NATS: js, URL: url, HTTP: "http://" + listener.Addr().String()})
	}
	err = group.Wait()
	log.Info("stopped")
	return err
}

// sayHello asks OCP something harmless, so that wrong credentials are in the log
// before the first request fails by them.
func sayHello(ctx context.Context, client *ocp.Client, c Config, log *slog.Logger) {
	clusters, err := client.Clusters(ctx)
	var refusal *ocp.Error
	switch {
	case ctx.Err() != nil:
	case err == nil:
		log.Info("OCP answers", "ocp", c.OCPURL, "clusters", len(clusters))
	case errors.As(err, &refusal) && (refusal.Status == 401 || refusal.Status == 403):
		log.Error("OCP refuses this user, every operation will fail: set OBWARDEN_OCP_USERNAME and OBWARDEN_OCP_PASSWORD (or OBWARDEN_OCP_ACCESS_KEY and OBWARDEN_OCP_SECRET_KEY) to a user who may manage the clusters and has TASK_VIEWER; `obwarden check connection` tries them",
			"ocp", c.OCPURL, "error", err)
	default:
		log.Warn("OCP does not answer as it should; operations wait until it does: is OBWARDEN_OCP_URL right?", "ocp", c.OCPURL, "error", err)
	}
}

// connectAgent connects for good: it comes back by itself whatever happens to NATS.
func connectAgent(ctx context.Context, url, creds string, log *slog.Logger) (*nats.Conn, error) {
	options := []nats.Option{
		nats.Name("obwarden " + hostname()),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // a user that is taken away for a while comes back
		nats.Timeout(2 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Error("NATS is gone; requests wait there, operations stand still until it is back", "error", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("NATS is back", "nats", nc.ConnectedUrlRedacted()) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("NATS", "error", err) }),
	}
	if creds != "" {
		options = append(options, nats.UserCredentials(creds))
	}
	nc, err := nats.Connect(url, options...)
	if err != nil {
		return nil, exit(exitUnreachable, fmt.Errorf("connect to NATS at %s: %w; is OBWARDEN_NATS_URL right, and OBWARDEN_NATS_CREDS_FILE?", redact(url), err))
	}
	return nc, nil
}

// openStreams tries until a NATS cluster that is just starting has its leaders: until
// then its servers give no answer at all. A definite error ends it at once.
func openStreams(ctx context.Context, js jetstream.JetStream, c Config) (streams events.Streams, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = retry.Do(ctx, retry.NewConstant(200*time.Millisecond), func(ctx context.Context) error {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		streams, err = events.OpenStreams(try, js, streamOptions(c))
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) {
			return retry.RetryableError(err)
		}
		return err
	})
	return streams, err
}

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
func watchReady(ctx context.Context, ready func(context.Context) error, embedded bool, log *slog.Logger) error {
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	was := ""
	failed := 0
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
		}
		if embedded && failed >= embeddedTries {
			return fmt.Errorf("the embedded NATS server is out of order: %s; is the disk of OBWARDEN_DATA_DIR full? Requests that were acknowledged are kept there; ending, to start anew", now)
		}
		was = now
	}
}

func streamOptions(c Config) events.StreamOptions {
	return events.StreamOptions{Replicas: c.Replicas, Retention: c.Retention, AckWait: c.AckWait}
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
		LeftAlone: func(alone bool) {
			if alone {
				log.Error("OCP does not answer; it is left alone and tried now and then, operations wait", "ocp", c.OCPURL)
			} else {
				log.Info("OCP answers again", "ocp", c.OCPURL)
			}
		},
	})
}

func newLogger(w io.Writer, c Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo // a fault of the configuration, reported as such
	}
	options := &slog.HandlerOptions{Level: level}
	file, isFile := w.(*os.File)
	if c.LogFormat == "text" || c.LogFormat == "" && isFile && term.IsTerminal(int(file.Fd())) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

func variableTable() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, v := range variables() {
		name, byDefault := v.Name, v.Default
		if v.Secret {
			name += "[_FILE]"
		}
		if byDefault == "" {
			byDefault = "-"
		}
		help := v.Help
		if len(v.oneOf) > 0 {
			help += " (" + strings.Join(v.oneOf, ", ") + ")"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", name, byDefault, help)
	}
	_ = w.Flush() // into memory
	return b.String()
}
