package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sethvargo/go-retry"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/events"
)

const (
	startTimeout = 30 * time.Second // until the streams can be opened when the agent starts
	callTimeout  = 2 * time.Second  // until an answer of JetStream counts as lost
	// closeTimeout is how long the connection to NATS may take to close: it flushes its buffer, and waits for its
	// users.
	closeTimeout = 200 * time.Millisecond
)

// natsLink is the agent's connection to NATS, and the embedded server if none is configured.
type natsLink struct {
	url       string
	conn      *nats.Conn
	js        jetstream.JetStream
	checkDisk func() error   // of the embedded server
	closers   []func() error // in the order in which the parts were opened
}

// linkNATS connects to NATS. If no server is configured, it starts an embedded one first.
func linkNATS(c Config, log *slog.Logger) (link *natsLink, err error) {
	link = &natsLink{url: c.NATSURL, checkDisk: func() error { return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, link.close())
		}
	}()
	if link.url == "" {
		server, err := events.StartServer(c.NATSListen, c.DataDir, log)
		if err != nil {
			return link, err
		}
		link.closers = append(link.closers, server.Close)
		link.url, link.checkDisk = server.URL(), server.CheckDisk
	}
	if link.conn, err = connectAgent(link.url, c.NATSCredsFile, log); err != nil {
		return link, err
	}
	link.closers = append(link.closers, func() error { atMost(closeTimeout, link.conn.Close); return nil })
	if link.js, err = jetstream.New(link.conn, jetstream.WithDefaultTimeout(callTimeout)); err != nil {
		return link, fmt.Errorf("JetStream on %s: %w", link.conn.ConnectedUrlRedacted(), err)
	}
	return link, nil
}

// close closes the connection, then the embedded server.
func (l *natsLink) close() error {
	var errs []error
	for i := len(l.closers) - 1; i >= 0; i-- {
		errs = append(errs, l.closers[i]())
	}
	return errors.Join(errs...)
}

// connectAgent connects to NATS. The connection reconnects by itself, whatever happens to NATS.
func connectAgent(url, creds string, log *slog.Logger) (*nats.Conn, error) {
	options := []nats.Option{
		nats.Name("obwarden " + hostname()),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // keep trying if the user is removed for a while
		nats.Timeout(2 * time.Second),
		nats.CustomReconnectDelay(reconnectDelay),
		// Detect a dead connection: within half a minute by pings, or sooner by a write that is stuck, because
		// everything else would wait for it.
		nats.PingInterval(10 * time.Second),
		nats.FlusherTimeout(5 * time.Second),
		nats.ReconnectOnFlusherError(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Error("connection to NATS lost; requests wait in NATS, and operations stand still until it is back",
					"error", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info("reconnected to NATS", "nats", nc.ConnectedUrlRedacted())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("NATS reports an error", "error", err)
		}),
	}
	if creds != "" {
		options = append(options, nats.UserCredentials(creds))
	}
	nc, err := nats.Connect(url, options...)
	if err != nil {
		return nil, exit(exitUnreachable, fmt.Errorf(
			"connect to NATS at %s: %w; is OBWARDEN_NATS_URL right, and OBWARDEN_NATS_CREDS_FILE?", redact(url), err))
	}
	return nc, nil
}

// reconnectDelay returns the pause after a number of rounds in which no server answered. The first pauses are short,
// because a NATS server that restarts is back in a moment.
func reconnectDelay(rounds int) time.Duration {
	return min(100*time.Millisecond<<min(rounds, 8), 2*time.Second) + rand.N(100*time.Millisecond)
}

// stores are the streams and buckets that agents share.
type stores struct {
	events.Streams
	alerts jetstream.KeyValue
}

// openStores opens the streams and buckets. It tries again while no answer comes, because the servers of a NATS cluster
// that is starting do not answer before they have elected leaders. Any other error is returned at once.
func openStores(ctx context.Context, js jetstream.JetStream, c Config) (s stores, err error) {
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = retry.Do(starting, retry.NewConstant(200*time.Millisecond), func(ctx context.Context) error {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		s.Streams, err = events.OpenStreams(try, js, streamOptions(c))
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) {
			return retry.RetryableError(err)
		}
		return err
	})
	if err != nil {
		return s, err
	}
	s.alerts, err = alerts.OpenBucket(ctx, js, streamOptions(c))
	return s, err
}

func streamOptions(c Config) events.StreamOptions {
	return events.StreamOptions{Replicas: c.Replicas, Retention: c.Retention, AckWait: c.AckWait}
}
