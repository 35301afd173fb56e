package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sethvargo/go-retry"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/obwarden/obwarden/agent"
	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/web"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

const (
	startTimeout  = 30 * time.Second // until NATS is there when the agent starts
	readyInterval = 10 * time.Second // between looks at whether the agent is ready

	callTimeout   = 2 * time.Second // of JetStream's answer to a read, until it counts as lost
	embeddedTries = 6               // looks in a row at an embedded server out of order, until the process ends

	// endTimeout is how long everything may take to end by itself, and closeTimeout
	// how long the connection to NATS then may: together less than two seconds,
	// also while NATS stands still.
	endTimeout   = 1700 * time.Millisecond
	closeTimeout = 200 * time.Millisecond
)

func newRun(a app) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long:  "Run the agent until SIGINT or SIGTERM. It is configured by environment variables:\n\n" + variableTable(),
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(a.environ)
			_, policyErr := c.policy()
			if err = errors.Join(err, c.checkOCP(), policyErr); err != nil {
				return exit(exitUsage, err)
			}
			log := newLogger(a.stderr, c)
			hangups := make(chan os.Signal, 1)
			signal.Notify(hangups, syscall.SIGHUP)
			defer signal.Stop(hangups)
			for _, name := range unknownVariables(a.environ) {
				log.Warn("no such variable, it has no effect; `obwarden run --help` lists all", "variable", name)
			}
			return runAgent(cmd.Context(), c, log, hangups, nil)
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
// configured. At each hangup it reads its policy anew. running, if not nil, is called
// once requests are taken.
func runAgent(ctx context.Context, c Config, log *slog.Logger, hangups <-chan os.Signal, running func(started)) (err error) {
	policy, err := c.policy()
	if err != nil {
		return exit(exitUsage, err)
	}
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

	url, checkDisk := c.NATSURL, func() error { return nil }
	if url == "" {
		server, err := events.StartServer(c.NATSListen, c.DataDir, log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Close()) }()
		url, checkDisk = server.URL(), server.CheckDisk
	}
	nc, err := connectAgent(ctx, url, c.NATSCredsFile, log)
	if err != nil {
		return err
	}
	defer func() { atMost(closeTimeout, nc.Close) }() // it writes out what it holds, and waits for whoever is at that
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(callTimeout))
	if err != nil {
		return fmt.Errorf("JetStream on %s: %w", nc.ConnectedUrlRedacted(), err)
	}
	streams, err := openStreams(ctx, js, c)
	if err != nil {
		return err
	}

	bucket, err := alerts.OpenBucket(ctx, js, streamOptions(c))
	if err != nil {
		return err
	}

	registry := prometheus.NewRegistry()
	var a *agent.Agent
	m := metrics.New(registry, version(), runtime.Version(), metrics.Scraped{
		OldestProgress: func() time.Duration { return a.OldestProgress() },
		OldestWait:     func() time.Duration { return a.OldestWait() },
		NATSConnected:  nc.IsConnected,
	})
	var health ocpHealth
	client, err := newOCPClient(c, m, &health, log, func(alone bool) { a.OCPLeftAlone(alone) })
	if err != nil {
		return exit(exitUsage, err)
	}
	defer client.Close()
	var inForce atomic.Pointer[guard.Policy]
	inForce.Store(policy)
	directory := facts.NewDirectory(client)
	var silencer *alerts.Silencer // nil: nothing is silenced
	if c.AlertmanagerURL != "" {
		if silencer, err = alerts.NewSilencer(alerts.SilencerConfig{
			URL: c.AlertmanagerURL, Username: c.AlertmanagerUsername, Password: c.AlertmanagerPassword,
			Journal: streams.Operations, Directory: directory, Policy: inForce.Load, Metrics: m, Log: log,
		}); err != nil {
			return exit(exitUsage, err)
		}
	}
	a = agent.New(agent.Config{
		JetStream: js, Streams: streams, OCP: client, Metrics: m, Log: log,
		Machine: agent.Machine{Agent: hostname(), Settle: c.Settle, StallAfter: c.StallAfter, PollMin: c.PollMin, PollMax: c.PollMax, Refresh: c.Retention / 3},
		Policy:  policy, Silencer: silencer,
		AckWait: c.AckWait,
		// A call must be over well before anybody may take it for lost.
		Timeout: min(c.OCPTimeout, c.Settle/2),
	})
	ready := func(ctx context.Context) error {
		return errors.Join(checkDisk(), usable(ctx, nc, js, c), a.JournalError())
	}
	webhook := alerts.NewWebhook(alerts.Config{
		JetStream: js, Journal: streams.Operations, Bucket: bucket, Directory: directory, Policy: inForce.Load, Metrics: m, Log: log, Retention: c.Retention,
		Credentials: alerts.Credentials{Username: c.WebhookUsername, Password: c.WebhookPassword, Token: c.WebhookToken},
		Loopback:    listener.Addr().(*net.TCPAddr).IP.IsLoopback(),
	})
	handler := web.Handler(web.Config{Gatherer: registry, OCP: health.String, Ready: ready, Alertmanager: webhook})

	if c.anonymous() {
		log.Warn("no credentials for OCP: set OBWARDEN_OCP_USERNAME and OBWARDEN_OCP_PASSWORD, or OBWARDEN_OCP_ACCESS_KEY and OBWARDEN_OCP_SECRET_KEY")
	}
	group, alive := errgroup.WithContext(ctx)
	group.Go(func() error { return web.Serve(alive, listener, handler) })
	if profiles != nil {
		group.Go(func() error { return web.ServeProfiles(alive, profiles) })
		log.Info("profiles are served", "pprof", "http://"+profiles.Addr().String()+web.ProfilesPath)
	}
	group.Go(func() error { return a.Run(alive) })
	group.Go(func() error { keepMemory(alive); return nil })
	if silencer != nil {
		group.Go(func() error { return silencer.Run(alive) })
	}
	group.Go(func() error {
		// OCP is asked something harmless at the start, so that wrong credentials are in the log before a request fails by them.
		clusters, err := directory.Clusters(alive, facts.DirectoryAge)
		if alive.Err() == nil {
			sayHello(len(clusters), err, c, log)
		}
		facts.KeepInventory(alive, directory, streams.Control, log)
		return nil
	})
	group.Go(func() error {
		apply := func(p *guard.Policy) {
			alerts.InitMetrics(m, p)
			inForce.Store(p)
			a.SetPolicy(p)
		}
		w := policyWatch{file: c.PolicyFile, taken: policy.Hash, apply: apply, reloaded: m.PolicyReloaded, log: log}
		w.run(alive, hangups)
		return nil
	})
	group.Go(func() error { return watchReady(alive, ready, c.NATSURL == "", m.Ready, log) })
	log.Info("ready", "version", version(), "nats", nc.ConnectedUrlRedacted(), "http", "http://"+listener.Addr().String(), "ocp", c.OCPURL)
	if running != nil {
		running(started{NATS: js, URL: url, HTTP: "http://" + listener.Addr().String()})
	}
	<-alive.Done()
	ended := make(chan error, 1)
	if !atMost(endTimeout, func() { ended <- group.Wait() }) {
		log.Warn("something does not end; leaving it. Requests that are not handed back go to another agent after the ack wait")
		if ctx.Err() == nil {
			return context.Cause(alive) // nobody told it to end
		}
		return nil
	}
	log.Info("stopped")
	return <-ended
}

// atMost waits for do, but not longer than d, and reports whether do has ended.
func atMost(d time.Duration, do func()) bool {
	done := make(chan struct{})
	go func() { do(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

// sayHello logs whether OCP answers.
func sayHello(clusters int, err error, c Config, log *slog.Logger) {
	var refusal *ocp.Error
	switch {
	case err == nil:
		log.Info("OCP answers", "ocp", c.OCPURL, "clusters", clusters)
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
		// A connection that is dead without a sign is found out: within half a minute by
		// pings, or sooner by a write that is stuck, for which everything else would wait.
		nats.CustomReconnectDelay(reconnectDelay),
		nats.PingInterval(10 * time.Second),
		nats.FlusherTimeout(5 * time.Second),
		nats.ReconnectOnFlusherError(),
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

// reconnectDelay is the pause after so many rounds of servers that were all away:
// NATS that is started anew is back in a moment, and is not to be waited for.
func reconnectDelay(rounds int) time.Duration {
	return min(100*time.Millisecond<<min(rounds, 8), 2*time.Second) + rand.N(100*time.Millisecond)
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

// newOCPClient calls leftAlone when OCP is, because it does not answer, and when it does again.
func newOCPClient(c Config, m *metrics.Metrics, health *ocpHealth, log *slog.Logger, leftAlone func(bool)) (*ocp.Client, error) {
	return ocp.New(ocp.Config{
		URL: c.OCPURL, Username: c.OCPUsername, Password: c.OCPPassword, AccessKey: c.OCPAccessKey, SecretKey: c.OCPSecretKey,
		API: ocp.API(c.OCPAPI), Params: ocp.ParamStyle(c.OCPParams), CAFile: c.OCPCAFile,
		Timeout: c.OCPTimeout, MaxRPS: c.OCPMaxRPS, UserAgent: "github.com/obwarden/obwarden/" + version(),
		Observe: func(endpoint, code string, took time.Duration) {
			m.OCPRequestDuration.WithLabelValues(endpoint, code).Observe(took.Seconds())
			health.saw(endpoint, code)
		},
		Retried: func(endpoint string) { m.OCPRetries.WithLabelValues(endpoint).Inc() },
		LeftAlone: func(alone bool) {
			if alone {
				m.OCPUp.Set(0)
				log.Error("OCP does not answer; it is left alone and tried now and then, operations wait", "ocp", c.OCPURL)
			} else {
				m.OCPUp.Set(1)
				log.Info("OCP answers again", "ocp", c.OCPURL)
			}
			leftAlone(alone)
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
