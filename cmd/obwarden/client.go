package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/events"
)

const (
	dialTimeout    = 2 * time.Second // of one NATS server
	requestTimeout = 10 * time.Second
	reconnectWait  = 250 * time.Millisecond
	// inactiveThreshold is how long a consumer without readers stays on the server.
	inactiveThreshold = time.Minute
)

var errNoJournal = fmt.Errorf("stream %s does not exist: is an agent running on this NATS server (obwarden run)?", events.OperationStream)

// client is a command's connection to NATS.
type client struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	url string

	// refused ends when the server refuses a permission, with the server's message as the cause. The server sends that
	// message apart from the answer, which then never comes.
	refused context.Context

	mu     sync.Mutex
	notice func(string) // tells the person that the connection is lost, or back
	lost   bool         // the person knows that it is lost
}

// natsFlag adds --nats to a command that connects.
func natsFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("nats", "", "NATS servers, comma-separated (default: OBWARDEN_NATS_URL, else the embedded server of obwarden run on this host)")
}

// dial connects to the NATS server that the flag names, or else the environment. If neither names one, it connects to
// the embedded server of `obwarden run` on this host.
func (a app) dial(flag string) (*client, error) {
	config, err := loadConfig(a.clientEnvironment())
	if err != nil {
		return nil, exit(exitUsage, err)
	}
	for _, name := range unknownVariables(a.environ) {
		if strings.HasPrefix(name, envPrefix+"NATS") {
			fmt.Fprintf(a.stderr, "obwarden: %s is no variable of obwarden and has no effect; `obwarden run --help` lists all variables\n", name)
		}
	}
	url := flag
	if url == "" {
		url = config.NATSURL
	}
	if url == "" {
		url = embeddedURL(config.NATSListen)
	}
	c := &client{url: redact(url), notice: func(s string) { fmt.Fprintf(a.stderr, "obwarden: %s\n", s) }}
	var refuse context.CancelCauseFunc
	c.refused, refuse = context.WithCancelCause(context.Background())
	options := []nats.Option{
		nats.Name("obwarden cli"),
		nats.Timeout(dialTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.DisconnectErrHandler(func(nc *nats.Conn, _ error) {
			if !nc.IsClosed() {
				c.say(true, "the connection to NATS is lost, reconnecting; no event is missed")
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { c.say(false, "connected to NATS again") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				refuse(err)
			}
		}),
	}
	if file := config.NATSCredsFile; file != "" {
		if _, err := os.Stat(file); err != nil {
			return nil, exit(exitUsage, fmt.Errorf("OBWARDEN_NATS_CREDS_FILE: %w", err))
		}
		options = append(options, nats.UserCredentials(file))
	}
	if c.nc, err = nats.Connect(url, options...); err != nil {
		return nil, exit(exitUnreachable, fmt.Errorf("cannot connect to NATS at %s: %w\n%s", c.url, err, dialAdvice(err)))
	}
	if c.js, err = jetstream.New(c.nc); err != nil {
		c.nc.Close()
		return nil, err
	}
	return c, nil
}

func (c *client) close() { c.nc.Close() }

// onNotice sets the function that tells the person about the connection, once for each loss.
func (c *client) onNotice(f func(string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notice = f
}

func (c *client) say(lost bool, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != lost {
		c.lost = lost
		c.notice(text)
	}
}

// unreachable explains an error of JetStream.
func (c *client) unreachable(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(exitError)):
		return err
	case c.refusal() != nil:
		err = fmt.Errorf("NATS at %s: %w; ask for permission, or use other credentials (OBWARDEN_NATS_CREDS_FILE)", c.url, c.refusal())
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse):
		err = fmt.Errorf("NATS at %s: %w", c.url, errNoJournal)
	default:
		err = fmt.Errorf("NATS at %s: %w", c.url, err)
	}
	return exit(exitUnreachable, err)
}

// refusal is what the server refused, nil where it did not.
func (c *client) refusal() error {
	if c.refused == nil {
		return nil
	}
	return context.Cause(c.refused)
}

// clientEnvironment leaves OCP's variables out: a client has no use for OCP's
// password, and may not be able to read its file.
func (a app) clientEnvironment() map[string]string {
	environ := maps.Clone(a.environ)
	maps.DeleteFunc(environ, func(name, _ string) bool { return strings.HasPrefix(name, envPrefix+"OCP_") })
	return environ
}

// embeddedURL is how a client on this host reaches a server that listens on listen.
func embeddedURL(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	if port == "" || port == "0" {
		port = "4222"
	}
	return "nats://" + net.JoinHostPort(host, port)
}

// redact takes user and password or token out of a list of URLs.
func redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		scheme, rest, ok := strings.Cut(u, "://")
		if !ok {
			scheme, rest = "nats", u
		}
		list[i] = strings.TrimSpace(scheme) + "://" + rest[strings.LastIndexByte(rest, '@')+1:]
	}
	return strings.Join(list, ",")
}

func dialAdvice(err error) string {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return "it does not let us in: set OBWARDEN_NATS_CREDS_FILE to a valid credentials file"
	}
	return "is an agent running there (obwarden run)? For another server set OBWARDEN_NATS_URL or --nats"
}

// message is one event as it came from the journal.
type message struct {
	events.Event
	body     []byte
	sequence uint64 // in the journal
}

// journal opens the event stream; its cached info is fresh.
func journal(ctx context.Context, js jetstream.JetStream) (jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return js.Stream(ctx, events.OperationStream)
}

// subscribe delivers the events that config selects, in order and across lost
// connections, until ctx ends. Events that this program cannot read go to skipped.
//
// Its ordered consumer starts at a sequence, never with DeliverNew: it would start
// anew after a reconnection and miss what came in between.
func subscribe(ctx context.Context, js jetstream.JetStream, config jetstream.OrderedConsumerConfig, skipped func(error)) (<-chan message, error) {
	config.InactiveThreshold = inactiveThreshold
	create, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	consumer, err := js.OrderedConsumer(create, events.OperationStream, config)
	if err != nil {
		return nil, err
	}
	iterator, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	// Stop waits for a reconnection that is under way: nobody must wait for Stop.
	context.AfterFunc(ctx, iterator.Stop)
	out := make(chan message)
	go func() {
		defer close(out)
		for {
			msg, err := iterator.Next()
			if err != nil {
				return // stopped: everything else the consumer overcomes itself
			}
			m, err := decode(msg)
			if err != nil {
				skipped(err)
				continue
			}
			select {
			case out <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// read calls each for the events that config selects and that are in the journal already.
func read(ctx context.Context, js jetstream.JetStream, config jetstream.OrderedConsumerConfig, each func(jetstream.Msg) error) error {
	config.InactiveThreshold = inactiveThreshold
	create, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	consumer, err := js.OrderedConsumer(create, events.OperationStream, config)
	if err != nil {
		return err
	}
	pending := consumer.CachedInfo().NumPending
	if pending == 0 {
		return nil
	}
	iterator, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, iterator.Stop)()
	defer func() { go iterator.Stop() }()
	for pending > 0 {
		msg, err := iterator.Next(jetstream.NextMaxWait(requestTimeout))
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		pending = meta.NumPending
		if err := each(msg); err != nil {
			return err
		}
	}
	return nil
}

func decode(msg jetstream.Msg) (message, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return message{}, err
	}
	e, err := events.DecodeEvent(msg.Subject(), msg.Data())
	return message{Event: e, body: msg.Data(), sequence: meta.Sequence.Stream}, err
}

// find returns an operation's last event; operation is its id or its key.
func find(ctx context.Context, c *client, operation string) (message, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stream, err := journal(ctx, c.js)
	if err != nil {
		return message{}, c.unreachable(err)
	}
	ids := []string{events.OperationID(operation)}
	if isOperationID(operation) {
		ids = append([]string{operation}, ids...)
	}
	for _, id := range ids {
		msg, err := stream.GetLastMsgForSubject(ctx, events.OperationSubjects(id))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return message{}, c.unreachable(err)
		}
		e, err := events.DecodeEvent(msg.Subject, msg.Data)
		return message{Event: e, body: msg.Data, sequence: msg.Sequence}, err
	}
	return message{}, fmt.Errorf("no operation has the id or the idempotency key %q, or its events are no longer kept; obwarden list shows the operations that are", operation)
}

// isOperationID reports whether s looks like an operation's id: 26 characters of lower-case base32.
func isOperationID(s string) bool {
	return len(s) == 26 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}
