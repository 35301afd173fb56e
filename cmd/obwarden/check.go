package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

func newCheck(a app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, the policy, what it makes of an alert, or the connections to NATS and OCP",
		Args:  exactArgs(),
		RunE:  func(*cobra.Command, []string) error { return usagef("check what? config, policy, alert or connection") },
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "config",
			Short: "Show the configuration as the agent would take it, or all that is wrong with it",
			Args:  exactArgs(),
			RunE:  func(*cobra.Command, []string) error { return checkConfig(a) },
		},
		newCheckPolicy(a),
		newCheckAlert(a),
		&cobra.Command{
			Use:   "connection",
			Short: "Try NATS, OCP, Alertmanager, the credentials and the permissions; changes nothing",
			Long: `Try NATS, OCP, the credentials and the permissions, each by a call that changes
nothing. The permission to stop and start cannot be tried that way: it is missing
if an operation fails with HTTP status 403.

Exit codes: 0 all is well, 1 something is refused, 2 wrong configuration, 5 NATS, OCP or
Alertmanager cannot be reached.`,
			Args: exactArgs(),
			RunE: func(cmd *cobra.Command, _ []string) error { return checkConnection(cmd.Context(), a) },
		},
	)
	return cmd
}

func checkConfig(a app) error {
	c, err := loadConfig(a.environ)
	_, policyErr := c.policy()
	if err = errors.Join(err, c.checkOCP(), policyErr); err != nil {
		return exit(exitUsage, err)
	}
	for _, v := range variables() {
		switch {
		case a.environ[v.Name] != "":
			fmt.Fprintf(a.stdout, "%-26s %-30s set\n", v.Name, cleanLine(v.shown(a.environ[v.Name])))
		case v.Secret && a.environ[v.Name+"_FILE"] != "":
			fmt.Fprintf(a.stdout, "%-26s %-30s from a file\n", v.Name, v.shown(""))
		case v.Default != "":
			fmt.Fprintf(a.stdout, "%-26s %-30q default\n", v.Name, v.Default)
		}
	}
	for _, name := range unknownVariables(a.environ) {
		fmt.Fprintf(a.stdout, "%s: no such variable, it has no effect\n", name)
	}
	return nil
}

// checks prints one line for each thing tried and keeps the worst.
type checks struct {
	app
	style style
	worst int // exit code
}

// tried says how it went. A definite no has another exit code than an answer that does not
// come.
func (c *checks) tried(what string, err error, ok, advice string) bool {
	if err == nil {
		fmt.Fprintln(c.stdout, c.style.render(line{{"✓ ", green}, {what, bold}, {": " + cleanLine(ok), ""}}))
		return true
	}
	fmt.Fprintln(c.stdout, c.style.render(line{{"✗ ", red}, {what, bold}, {": " + cleanLine(err.Error()), ""}}))
	if advice != "" {
		fmt.Fprintln(c.stdout, c.style.render(line{{"  " + advice, dim}}))
	}
	c.worst = max(c.worst, exitFailed)
	if ocp.ClassOf(err) != ocp.Refused {
		c.worst = exitUnreachable
	}
	return false
}

func checkConnection(ctx context.Context, a app) error {
	config, err := loadConfig(a.environ)
	if err = errors.Join(err, config.checkOCP()); err != nil {
		return exit(exitUsage, err)
	}
	c := &checks{app: a, style: newUI(a, false).style()}
	c.style.width = 0 // addresses and trace ids must stay whole
	c.nats(ctx, config)
	var health ocpHealth
	m := metrics.New(prometheus.NewRegistry(), version(), "", metrics.Scraped{})
	client, err := newOCPClient(config, m, &health, slog.New(slog.DiscardHandler))
	if err != nil {
		return exit(exitUsage, err)
	}
	defer client.Close()
	c.ocp(ctx, config, client)
	c.alertmanager(ctx, config)
	if c.worst != 0 {
		return exitError{code: c.worst}
	}
	return nil
}

func (c *checks) nats(ctx context.Context, config Config) {
	client, err := c.dial("")
	if err != nil {
		if config.NATSURL == "" {
			fmt.Fprintln(c.stdout, c.style.render(line{{"· ", dim}, {"NATS", bold},
				{": none configured and none running; `obwarden run` brings its own, on " + config.NATSListen, ""}}))
			return
		}
		c.tried("NATS", err, "", "is OBWARDEN_NATS_URL right?")
		return
	}
	defer client.close()
	c.tried("NATS", nil, "connected to "+client.url, "")
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err = client.js.AccountInfo(ctx)
	if !c.tried("JetStream", err, "available", "enable JetStream on the NATS server, and for this user") {
		return
	}
	for _, name := range []string{events.RequestStream, events.OperationStream} {
		stream, err := client.js.Stream(ctx, name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			fmt.Fprintln(c.stdout, c.style.render(line{{"· ", dim}, {"stream " + name, bold},
				{": not there yet; `obwarden run` makes it", ""}}))
		case err != nil:
			c.tried("stream "+name, err, "", "does this user have permissions on $JS.API.>?")
		default:
			c.tried("stream "+name, nil, fmt.Sprintf("%d messages", stream.CachedInfo().State.Msgs), "")
		}
	}
}

func (c *checks) alertmanager(ctx context.Context, config Config) {
	if config.AlertmanagerURL == "" {
		return
	}
	silencer, err := alerts.NewSilencer(alerts.SilencerConfig{URL: config.AlertmanagerURL,
		Username: config.AlertmanagerUsername, Password: config.AlertmanagerPassword})
	silences := 0
	if err == nil {
		silences, err = silencer.Silences(ctx)
	}
	c.tried("Alertmanager", err, fmt.Sprintf("answers at %s, %d silences", config.AlertmanagerURL, silences),
		"is OBWARDEN_ALERTMANAGER_URL right? "+
			"User and password: OBWARDEN_ALERTMANAGER_USERNAME and OBWARDEN_ALERTMANAGER_PASSWORD")
}

func (c *checks) ocp(ctx context.Context, config Config, client *ocp.Client) {
	reachable := "is OBWARDEN_OCP_URL right? With https: OBWARDEN_OCP_CA_FILE?"
	defer func() { // also if a check fails: the clock may be why
		if offset := client.ClockOffset(); offset.Abs() > time.Minute {
			fmt.Fprintln(c.stdout, c.style.render(line{{"! ", yellow}, {"clock", bold},
				{fmt.Sprintf(": OCP's is %s ahead of this host's (negative: behind); signatures allow 15 minutes",
					offset.Round(time.Second)), ""}}))
		}
	}()
	err := client.Status(ctx)
	switch failure, _ := errors.AsType[*ocp.Error](err); {
	case failure != nil && failure.Class == ocp.Refused && failure.Status/100 != 2: // not every OCP lets every user ask
	case failure != nil && failure.Class == ocp.Refused:
		c.tried("OCP", err, "",
			"OCP says itself that it is not well; /api/status?includeUnavailableComponent=true names what is not")
	case !c.tried("OCP", err, "answers at "+config.OCPURL, reachable):
		return
	}
	clusters, err := client.Clusters(ctx)
	if !c.tried("OCP user", err, fmt.Sprintf("may see %d clusters", len(clusters)),
		"set OBWARDEN_OCP_USERNAME and OBWARDEN_OCP_PASSWORD, or OBWARDEN_OCP_ACCESS_KEY and OBWARDEN_OCP_SECRET_KEY; "+
			"with keys, this host's clock must be right") {
		return
	}
	for _, cluster := range clusters {
		zones, err := client.Zones(ctx, cluster.ID)
		servers := 0
		for _, z := range zones {
			servers += len(z.Servers)
		}
		c.tried(fmt.Sprintf("cluster %d", cluster.ID), err, fmt.Sprintf("%s, %s, %d zones, %d servers", cluster.Name,
			cluster.Status, len(zones), servers), "the user needs at least read-only permission on it")
	}
	_, err = client.Tasks(ctx, ocp.TaskQuery{Since: time.Now()})
	c.tried("OCP tasks", err, "may be seen", "give the user TASK_VIEWER: without it no operation can be followed")
}
