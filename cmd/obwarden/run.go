package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/obwarden/obwarden/agent"
	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/agent/web"
	"github.com/obwarden/obwarden/metrics"
)

// endTimeout is how long all parts may take to end by themselves. Together with closeTimeout, the agent ends in less
// than two seconds, even while NATS stands still.
const endTimeout = 1700 * time.Millisecond

func newRun(a app) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: "Run the agent until SIGINT or SIGTERM. Environment variables configure it:\n\n" +
			variableTable(),
		Args: exactArgs(),
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

// endpoints are the addresses of a running agent.
type endpoints struct {
	NATS jetstream.JetStream
	URL  string // of NATS
	HTTP string // base URL
}

// runAgent runs an agent until ctx ends, with an embedded NATS server if none is configured. At each hangup the agent
// reads its policy again. running, if not nil, is called once the agent takes requests.
func runAgent(
	ctx context.Context, c Config, log *slog.Logger, hangups <-chan os.Signal, running func(endpoints),
) (err error) {
	loaded, err := c.policy()
	if err != nil {
		return exit(exitUsage, err)
	}
	addresses, err := listen(c)
	if err != nil {
		return err
	}
	defer addresses.close()
	link, err := linkNATS(c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, link.close()) }()
	p, err := assemble(ctx, c, policy.NewLive(loaded), link, addresses, log)
	if err != nil {
		return err
	}
	defer p.ocp.Close()
	if c.anonymous() {
		log.Warn("no credentials for OCP: set OBWARDEN_OCP_USERNAME and OBWARDEN_OCP_PASSWORD, " +
			"or OBWARDEN_OCP_ACCESS_KEY and OBWARDEN_OCP_SECRET_KEY")
	}

	group, alive := errgroup.WithContext(ctx)
	p.start(alive, group, hangups)
	at := endpoints{NATS: link.js, URL: link.url, HTTP: "http://" + addresses.http.Addr().String()}
	log.Info("ready", "version", version(), "nats", link.conn.ConnectedUrlRedacted(), "http", at.HTTP, "ocp", c.OCPURL)
	if running != nil {
		running(at)
	}
	<-alive.Done()
	return waitForEnd(ctx, alive, group, log)
}

// waitForEnd waits until all parts have ended, but not for longer than endTimeout.
func waitForEnd(ctx, alive context.Context, group *errgroup.Group, log *slog.Logger) error {
	ended := make(chan error, 1)
	if !atMost(endTimeout, func() { ended <- group.Wait() }) {
		log.Warn("a part of the agent does not end in time, the process ends without it; " +
			"requests that were not handed back go to another agent after the ack wait")
		if ctx.Err() == nil {
			return context.Cause(alive) // nobody asked it to end
		}
		return nil
	}
	log.Info("stopped")
	return <-ended
}

// listeners are the addresses on which the agent serves HTTP.
type listeners struct {
	http     net.Listener
	profiles net.Listener // nil: no profiles are served
}

func listen(c Config) (l listeners, err error) {
	if l.http, err = net.Listen("tcp", c.HTTPListen); err != nil {
		return l, fmt.Errorf("HTTP listen address: %w; free it, or choose another OBWARDEN_HTTP_LISTEN", err)
	}
	if c.PprofListen == "" {
		return l, nil
	}
	if l.profiles, err = net.Listen("tcp", c.PprofListen); err != nil {
		l.close()
		return l, fmt.Errorf("listen address of profiles: %w; free it, or choose another OBWARDEN_PPROF_LISTEN", err)
	}
	return l, nil
}

func (l listeners) close() {
	_ = l.http.Close() // the server that used it may have closed it already
	if l.profiles != nil {
		_ = l.profiles.Close()
	}
}

// parts are all parts of an agent's process.
type parts struct {
	config    Config
	log       *slog.Logger
	addresses listeners
	link      *natsLink
	stores    stores
	metrics   *metrics.Metrics
	registry  *prometheus.Registry
	health    ocpHealth
	ocp       *ocp.Client
	directory *facts.Directory
	policy    *policy.Live
	silencer  *alerts.Silencer // nil: nothing is silenced
	agent     *agent.Agent
	webhook   *alerts.Webhook
}

// assemble makes every part, each from the parts before it, and starts none.
func assemble(
	ctx context.Context, c Config, live *policy.Live, link *natsLink, addresses listeners, log *slog.Logger,
) (*parts, error) {
	p := &parts{
		config: c, log: log, addresses: addresses, link: link, policy: live, registry: prometheus.NewRegistry(),
	}
	var err error
	if p.stores, err = openStores(ctx, link.js, c); err != nil {
		return nil, err
	}
	scraped := metrics.Scraped{NATSConnected: link.conn.IsConnected}
	p.metrics = metrics.New(p.registry, version(), runtime.Version(), scraped)
	if p.ocp, err = newOCPClient(c, p.metrics, &p.health, log); err != nil {
		return nil, exit(exitUsage, err)
	}
	p.directory = facts.NewDirectory(p.ocp)
	if err := p.makeSilencer(); err != nil {
		return nil, exit(exitUsage, err)
	}
	p.agent = agent.New(agent.Config{
		JetStream: link.js, Streams: p.stores.Streams, OCP: p.ocp, Directory: p.directory,
		Metrics: p.metrics, Log: log,
		Machine: operation.Machine{
			Agent: hostname(), Settle: c.Settle, StallAfter: c.StallAfter,
			PollMin: c.PollMin, PollMax: c.PollMax, Refresh: c.Retention / 3,
		},
		Policy: live, Silencer: p.silencer,
		AckWait: c.AckWait,
		// A call must be over well before another agent may assume that it was lost.
		Timeout: min(c.OCPTimeout, c.Settle/2),
	})
	p.registry.MustRegister(p.agent.Collector())
	p.webhook = alerts.NewWebhook(alerts.Config{
		JetStream: link.js, Journal: p.stores.Operations, Bucket: p.stores.alerts, Directory: p.directory,
		Policy: live.Load, Metrics: p.metrics, Log: log, Retention: c.Retention,
		Credentials: alerts.Credentials{
			Username: c.WebhookUsername, Password: c.WebhookPassword, Token: c.WebhookToken,
		},
		Loopback: addresses.http.Addr().(*net.TCPAddr).IP.IsLoopback(),
	})
	return p, nil
}

func (p *parts) makeSilencer() (err error) {
	c := p.config
	if c.AlertmanagerURL == "" {
		return nil
	}
	p.silencer, err = alerts.NewSilencer(alerts.SilencerConfig{
		URL: c.AlertmanagerURL, Username: c.AlertmanagerUsername, Password: c.AlertmanagerPassword,
		Journal: p.stores.Operations, Directory: p.directory, Policy: p.policy.Load, Metrics: p.metrics, Log: p.log,
	})
	return err
}

// start starts every part; each ends with ctx.
func (p *parts) start(ctx context.Context, group *errgroup.Group, hangups <-chan os.Signal) {
	handler := web.Handler(web.Config{
		Gatherer: p.registry, OCP: p.health.String, Ready: p.ready, Alertmanager: p.webhook,
	})
	group.Go(func() error { return web.Serve(ctx, p.addresses.http, handler) })
	if profiles := p.addresses.profiles; profiles != nil {
		group.Go(func() error { return web.ServeProfiles(ctx, profiles) })
		p.log.Info("serving profiles", "pprof", "http://"+profiles.Addr().String()+web.ProfilesPath)
	}
	group.Go(func() error { return p.agent.Run(ctx) })
	if p.silencer != nil {
		group.Go(func() error { return p.silencer.Run(ctx) })
	}
	group.Go(func() error { keepMemory(ctx); return nil })
	group.Go(func() error { p.followClusters(ctx); return nil })
	group.Go(func() error { p.followPolicyFile(ctx, hangups); return nil })
	group.Go(func() error { return watchReady(ctx, p.ready, p.config.NATSURL == "", p.metrics.Ready, p.log) })
}

// ready returns why the agent cannot take requests now, or cannot keep its guarantees; nil if it can.
func (p *parts) ready(ctx context.Context) error {
	return errors.Join(p.link.checkDisk(), checkNATS(ctx, p.link.conn, p.link.js, p.config), p.agent.JournalError())
}

// followPolicyFile puts every valid change of the policy file in force.
func (p *parts) followPolicyFile(ctx context.Context, hangups <-chan os.Signal) {
	w := policyWatch{
		file: p.config.PolicyFile, taken: p.policy.Load().Hash, reloaded: p.metrics.PolicyReloaded, log: p.log,
	}
	w.apply = func(changed *policy.Policy) {
		alerts.InitMetrics(p.metrics, changed)
		p.policy.Set(changed)
	}
	w.run(ctx, hangups)
}

// followClusters keeps the list of clusters in NATS up to date. Its first call to OCP also shows in the log whether the
// credentials are right, before the first request fails.
func (p *parts) followClusters(ctx context.Context) {
	clusters, err := p.directory.Clusters(ctx, facts.DirectoryAge)
	if ctx.Err() == nil {
		logFirstAnswer(len(clusters), err, p.config, p.log)
	}
	facts.KeepInventory(ctx, p.directory, p.stores.Control, p.log)
}

// logFirstAnswer logs whether OCP answers.
func logFirstAnswer(clusters int, err error, c Config, log *slog.Logger) {
	var refusal *ocp.Error
	switch {
	case err == nil:
		log.Info("OCP answers", "ocp", c.OCPURL, "clusters", clusters)
	case errors.As(err, &refusal) && (refusal.Status == 401 || refusal.Status == 403):
		log.Error("OCP refuses this user, every operation will fail: set OBWARDEN_OCP_USERNAME and "+
			"OBWARDEN_OCP_PASSWORD (or OBWARDEN_OCP_ACCESS_KEY and OBWARDEN_OCP_SECRET_KEY) to a user who may manage "+
			"the clusters and has TASK_VIEWER; `obwarden check connection` tries them",
			"ocp", c.OCPURL, "error", err)
	default:
		log.Warn("OCP does not answer as it should; operations wait until it does: is OBWARDEN_OCP_URL right?",
			"ocp", c.OCPURL, "error", err)
	}
}

// atMost runs do and waits for it, but not for longer than d. It reports whether do has ended.
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

func newLogger(w io.Writer, c Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo // loadConfig reports the error
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
