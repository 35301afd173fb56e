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
	startTimeout = 30 * time.Second // until NATS is there when the agent starts
	callTimeout  = 2 * time.Second  // of JetStream's answer to a read, until it counts as lost
	// closeTimeout is how long the connection to NATS may take to close: it writes out what it holds, and waits for
	// everybody who uses it.
	closeTimeout = 200 * time.Millisecond
)

// natsLink is the agent's connection to NATS, with its own server where none is configured.
type natsLink struct {
	url       string
	conn      *nats.Conn
	js        jetstream.JetStream
	checkDisk func() error // of the own server
	closeAll  []func() error
}

// linkNATS connects to NATS, after it has started a server where none is configured.
func linkNATS(ctx context.Context, c Config, log *slog.Logger) (link *natsLink, err error) {
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
		link.closeAll = append(link.closeAll, server.Close)
		link.url, link.checkDisk = server.URL(), server.CheckDisk
	}
	if link.conn, err = connectAgent(ctx, link.url, c.NATSCredsFile, log); err != nil {
		return link, err
	}
	link.closeAll = append(link.closeAll, func() error { atMost(closeTimeout, link.conn.Close); return nil })
	if link.js, err = jetstream.New(link.conn, jetstream.WithDefaultTimeout(callTimeout)); err != nil {
		return link, fmt.Errorf("JetStream on %s: %w", link.conn.ConnectedUrlRedacted(), err)
	}
	return link, nil
}

// close ends the connection, then the server.
func (l *natsLink) close() error {
	var errs []error
	for i := len(l.closeAll) - 1; i >= 0; i-- {
		errs = append(errs, l.closeAll[i]())
	}
	return errors.Join(errs...)
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

// stores are the streams and buckets that agents share.
type stores struct {
	events.Streams
	alerts jetstream.KeyValue
}

// openStores tries until a NATS cluster that is just starting has its leaders: until then its servers give no answer at
// all. A definite error ends it at once.
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
