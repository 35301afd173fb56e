package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/web"
	"github.com/obwarden/obwarden/events"
)

const demoPassword = "obdemo"

// demo runs an agent, its NATS server and a simulated OCP in one process, and plays a story with them. Nothing is
// staged: every line comes from an event, from the simulator's log of requests or from /metrics.
type demo struct {
	app
	speed   float64
	exit    bool
	verbose bool

	out *ui
	sim *ocpsim.Sim
	at  endpoints
}

func newDemo(a app) *cobra.Command {
	d := &demo{app: a}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See everything at work, with nothing to set up",
		Long: `Run an agent with an embedded NATS server against a simulated OCP, and play a story: a
server is stopped, the same request comes again, a faulty request is refused, and so is a
request that would cost the cluster its majority, and a stop fails. After that everything
goes on running until Ctrl-C, so that it can be tried from another terminal.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) },
	}
	cmd.Flags().Float64Var(&d.speed, "speed", 8, "speed of the simulated OCP: seconds of its work that pass in one second")
	cmd.Flags().BoolVar(&d.exit, "exit", false, "end after the story")
	cmd.Flags().BoolVarP(&d.verbose, "verbose", "v", false, "show the agent's log")
	return cmd
}

func (d *demo) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "obwarden-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo's NATS server: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d.sim, err = ocpsim.New(ocpsim.Config{Users: ocpsim.DefaultUsers("admin", demoPassword), Speed: d.speed, Seed: 1})
	if err != nil {
		return usage(err)
	}
	defer d.sim.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("simulated OCP: %w", err)
	}
	config, err := loadConfig(map[string]string{
		"OBWARDEN_OCP_URL": "http://" + listener.Addr().String(), "OBWARDEN_OCP_USERNAME": "admin", "OBWARDEN_OCP_PASSWORD": demoPassword,
		"OBWARDEN_NATS_LISTEN": freeOr("127.0.0.1:4222"), "OBWARDEN_HTTP_LISTEN": freeOr("127.0.0.1:9480"),
		"OBWARDEN_DATA_DIR": filepath.Join(dir, "data"), "OBWARDEN_POLL_MIN": "200ms",
	})
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	if d.verbose {
		log = newLogger(d.stderr, config)
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	running := make(chan endpoints, 1)
	group.Go(func() error { return d.sim.Serve(ctx, listener) })
	group.Go(func() error { return runAgent(ctx, config, log, nil, func(s endpoints) { running <- s }) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case d.at = <-running:
		}
		d.out = newUI(d.app, false)
		err := d.story(ctx)
		if ctx.Err() != nil { // asked to end: nothing failed
			return nil
		}
		if err == nil && !d.exit {
			d.invite()
			<-ctx.Done()
		}
		stop()
		return err
	})
	return group.Wait()
}

// freeOr is address, or any free port of this host if somebody already listens on address.
func freeOr(address string) string {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "127.0.0.1:0"
	}
	_ = l.Close() // it was free
	return address
}

func (d *demo) story(ctx context.Context) error {
	d.say("", "An agent, its NATS server and a simulated OCP with one cluster: three zones, two servers each.",
		"Metrics fill up at "+d.at.HTTP+web.MetricsPath)

	stop := events.Request{IdempotencyKey: "demo-1", ClusterID: 1, ServerID: 2, Reason: "replace a disk", RequestedBy: "demo"}
	d.say("1  Stop server 2", "One message on "+events.RequestSubject(events.Stop)+". OCP's task has eight subtasks; each change is an event.")
	if err := d.follow(ctx, stop); err != nil {
		return err
	}

	d.say("2  The same request again", "The same idempotency key: whoever sends it, and however often, OCP is not called again.")
	if err := d.follow(ctx, stop); err != nil {
		return err
	}
	d.say("", fmt.Sprintf("OCP's own log: %d call of stop.", d.sim.Posts(ocpsim.ServerStop)))

	d.say("3  A typing error", `"dry_runn" is no field. A request that is not understood stops nothing.`)
	if err := d.publish(ctx, events.RequestSubject(events.Stop), `{"idempotency_key":"demo-3","cluster_id":1,"server_id":3,"dry_runn":true}`, "demo-3"); err != nil {
		return err
	}

	d.say("4  A stop that would be an outage", "Server 2 in zone1 is down. If server 4 in zone2 stopped, too, only one of three zones would remain fully running: no majority.")
	if err := d.follow(ctx, events.Request{IdempotencyKey: "demo-4", ClusterID: 1, ServerID: 4, Reason: "an alert fires", RequestedBy: "demo"}); err != nil {
		return err
	}

	const broken = "Stop observer process"
	d.say("5  A stop that fails in OCP", fmt.Sprintf("Subtask %q of server 1 will fail. The event names it, with the end of its log.", broken))
	if err := d.sim.AddFault(ocpsim.Fault{Match: ocpsim.Match{Endpoint: ocpsim.ServerStop, Server: 1}, Action: ocpsim.FailSubtask, Subtask: broken}); err != nil {
		return err
	}
	if err := d.follow(ctx, events.Request{IdempotencyKey: "demo-5", ClusterID: 1, ServerID: 1, Reason: "show a failure", RequestedBy: "demo"}); err != nil {
		return err
	}

	d.say("6  What Prometheus sees")
	return d.showMetrics(ctx)
}

// say prints a heading and lines below it.
func (d *demo) say(heading string, lines ...string) {
	s := d.out.style()
	d.out.println("")
	if heading != "" {
		d.out.println(s.render(line{{heading, bold}}))
	}
	for _, text := range lines {
		d.out.println(s.render(line{{text, dim}}))
	}
	d.out.println("")
}

func (d *demo) follow(ctx context.Context, r events.Request) error {
	_, err := follow(ctx, d.at.NATS, followTarget{
		OperationID: events.OperationID(r.IdempotencyKey),
		Submit:      func(ctx context.Context) (uint64, error) { return r.Publish(ctx, d.at.NATS, events.Stop, "cli") },
	}, d.out)
	return err
}

// publish sends a body that our own client would refuse to send.
func (d *demo) publish(ctx context.Context, subject, body, key string) error {
	_, err := follow(ctx, d.at.NATS, followTarget{
		OperationID: events.OperationID(key),
		Submit: func(ctx context.Context) (uint64, error) {
			ack, err := d.at.NATS.Publish(ctx, subject, []byte(body))
			if err != nil {
				return 0, fmt.Errorf("publish on %s: %w", subject, err)
			}
			return ack.Sequence, nil
		},
	}, d.out)
	return err
}

// showMetrics prints the lines of /metrics that tell the same story. An operation is counted a moment after its last
// event is published, so the lines are read again until the last operation is among them.
func (d *demo) showMetrics(ctx context.Context) error {
	const last = `obwarden_operations_total{kind="stop",outcome="failed"} 1`
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for tries := 0; ; tries++ {
		lines, err := d.readMetrics(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(lines, last) || tries == 100 {
			for _, l := range lines {
				d.out.println("  " + l)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}

// readMetrics reads the counters of the story that are not 0.
func (d *demo) readMetrics(ctx context.Context) ([]string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.at.HTTP+web.MetricsPath, nil)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer response.Body.Close()
	var lines []string
	scanner := bufio.NewScanner(io.LimitReader(response.Body, 8<<20))
	for scanner.Scan() {
		for _, name := range []string{"requests_total", "operations_total", "operation_duration_seconds_sum",
			"subtask_failures_total", "guard_decisions_total", "journal_append_duration_seconds_count"} {
			if strings.HasPrefix(scanner.Text(), "obwarden_"+name) && !strings.HasSuffix(scanner.Text(), " 0") {
				lines = append(lines, scanner.Text())
			}
		}
	}
	return lines, scanner.Err()
}

// invite shows commands to go on with in another terminal.
func (d *demo) invite() {
	env := ""
	if d.at.URL != "nats://127.0.0.1:4222" {
		env = "OBWARDEN_NATS_URL=" + d.at.URL + " "
	}
	d.say("Everything goes on running. In another terminal, try:")
	for _, command := range []string{
		env + "go run ./cmd/obwarden start 1 2 --wait",
		env + "go run ./cmd/obwarden explain stop 1 4",
		env + "go run ./cmd/obwarden list",
		env + "go run ./cmd/obwarden watch",
		"curl " + d.at.HTTP + web.MetricsPath,
	} {
		d.out.println("  " + command)
	}
	d.say("Ctrl-C ends it.")
}
