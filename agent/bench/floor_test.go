//go:build linux

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/obwarden/obwarden/events"
)

// rig is a NATS server and an OCP that agent and floor share.
type rig struct {
	t    *testing.T
	ocp  *fastOCP
	url  string // of NATS
	nc   *nats.Conn
	js   jetstream.JetStream
	sent int // keys are used once

	floorIn       jetstream.Consumer
	operations    jetstream.Stream // the floor's
	before, after []*nats.Msg      // events of one operation before and after the call, as the agent wrote them
}

const (
	servers  = 60 // of each cluster
	clusters = 64
)

func newRig(t *testing.T) *rig {
	t.Helper()
	server, err := events.StartServer("127.0.0.1:0", t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, ocp: newOCP(t, servers), url: server.URL()}
	if r.nc, err = nats.Connect(r.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.nc.Close)
	if r.js, err = jetstream.New(r.nc, jetstream.WithPublishAsyncMaxPending(1024)); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) agent(environ ...string) *agentProcess {
	r.t.Helper()
	all := map[string]string{"OBWARDEN_NATS_URL": r.url, "OBWARDEN_OCP_URL": r.ocp.URL}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		all[name] = value
	}
	return startAgent(r.t, all)
}

// request is a new request about the next server of the next cluster.
func (r *rig) request() *nats.Msg {
	r.sent++
	return requestFor(fmt.Sprint("key-", r.sent), int64(1+r.sent%clusters), int64(1+r.sent/clusters%servers))
}

func requestFor(key string, cluster, server int64) *nats.Msg {
	msg := nats.NewMsg(events.RequestSubject(events.Restart))
	msg.Data = fmt.Appendf(nil, `{"idempotency_key":%q,"cluster_id":%d,"server_id":%d,"reason":"replace a disk","requested_by":"bench"}`, key, cluster, server)
	return msg
}

// publish sends all messages and waits until the stream has them.
func (r *rig) publish(msgs []*nats.Msg) {
	r.t.Helper()
	for _, msg := range msgs {
		if _, err := r.js.PublishMsgAsync(msg, jetstream.WithStallWait(patience)); err != nil {
			r.t.Fatal(err)
		}
	}
	select {
	case <-r.js.PublishAsyncComplete():
	case <-time.After(patience):
		r.t.Fatal("NATS does not take the requests")
	}
}

// awaitEmpty waits until a work queue holds no more than n messages.
func (r *rig) awaitEmpty(stream string, n uint64) {
	r.t.Helper()
	r.awaitState(stream, fmt.Sprint("no more than ", n, " messages"), func(s jetstream.StreamState) bool { return s.Msgs <= n })
}

// awaitState polls a stream's state, whose changes NATS does not announce.
func (r *rig) awaitState(stream, what string, good func(jetstream.StreamState) bool) {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, stream+" has "+what, 2*time.Millisecond, func() error {
		info, err := s.Info(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		if !good(info.State) {
			return fmt.Errorf("it is %+v", info.State)
		}
		return nil
	})
}

// last is the sequence of a stream's latest message.
func (r *rig) last(stream string) uint64 {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	return s.CachedInfo().State.LastSeq
}

// learn makes the floor's streams and takes the payloads from an operation that an
// agent carries out.
func (r *rig) learn() {
	r.t.Helper()
	a := r.agent()
	request := r.request()
	r.publish([]*nats.Msg{request})
	r.awaitEmpty(events.RequestStream, 0)
	stream, err := r.js.Stream(r.t.Context(), events.OperationStream)
	if err != nil {
		r.t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.Name, config.Subjects = "FLOOR_OUT", []string{"floor.out.>"}
	if r.operations, err = r.js.CreateStream(r.t.Context(), config); err != nil {
		r.t.Fatal(err)
	}
	for sequence := uint64(1); sequence <= stream.CachedInfo().State.LastSeq; sequence++ {
		raw, err := stream.GetMsg(r.t.Context(), sequence)
		if err != nil {
			r.t.Fatal(err)
		}
		msg := &nats.Msg{Subject: string(events.EventToken(raw.Subject)), Header: raw.Header, Data: raw.Data}
		for name := range msg.Header {
			if strings.HasPrefix(name, "Nats-") {
				delete(msg.Header, name)
			}
		}
		if token := events.EventToken(raw.Subject); token == events.Accepted || token == events.Submitting {
			r.before = append(r.before, msg)
		} else {
			r.after = append(r.after, msg)
		}
	}
	requests, err := r.js.Stream(r.t.Context(), events.RequestStream)
	if err != nil {
		r.t.Fatal(err)
	}
	config = requests.CachedInfo().Config
	config.Name, config.Subjects = "FLOOR_IN", []string{"floor.in"}
	in, err := r.js.CreateStream(r.t.Context(), config)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.floorIn, err = in.CreateConsumer(r.t.Context(), jetstream.ConsumerConfig{Durable: "floor", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: -1}); err != nil {
		r.t.Fatal(err)
	}
	a.Stop()
}

func (r *rig) floorRequest() *nats.Msg {
	msg := r.request()
	msg.Subject = "floor.in"
	return msg
}

// appends are events of the floor's nth operation. Only the first one has a condition, which decides for all of them.
func (r *rig) appends(templates []*nats.Msg, n int64, after uint64) []*nats.Msg {
	var msgs []*nats.Msg
	for i, template := range templates {
		msg := nats.NewMsg(fmt.Sprintf("floor.out.%d.%s", n, template.Subject))
		for name, values := range template.Header {
			msg.Header[name] = values
		}
		msg.Header.Set(nats.MsgIdHdr, fmt.Sprintf("%d.%s", n, template.Subject))
		msg.Data = template.Data
		if i == 0 {
			msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, fmt.Sprint(after))
			msg.Header.Set(jetstream.ExpectedLastSubjSeqSubjHeader, fmt.Sprintf("floor.out.%d.>", n))
		}
		msgs = append(msgs, msg)
	}
	return msgs
}

func (r *rig) post(client *http.Client, n int64) error {
	response, err := client.Post(fmt.Sprintf("%s/api/v2/ob/clusters/%d/servers/1/restart", r.ocp.URL, 1+n%clusters), "application/json", nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return errors.Join(err, response.Body.Close())
}

// floorOneByOne takes requests, and for each of them appends every event alone, calls OCP over a kept connection and
// acknowledges. It does so for as many requests at a time as there are workers, until the returned function is called.
func (r *rig) floorOneByOne(workers int, before, after []*nats.Msg) (stop func()) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	place := make(chan struct{}, workers)
	return r.consume(func(msg jetstream.Msg) {
		place <- struct{}{}
		go func() {
			defer func() { <-place }()
			if err := r.oneByOne(client, msg, before, after); err != nil {
				r.t.Error("floor:", err)
			}
		}()
	}, client.CloseIdleConnections)
}

func (r *rig) oneByOne(client *http.Client, msg jetstream.Msg, before, after []*nats.Msg) error {
	n, err := sequenceOf(msg)
	if err != nil {
		return err
	}
	last, err := r.append(n, 0, before)
	if err != nil {
		return err
	}
	if err := r.post(client, n); err != nil {
		return err
	}
	if _, err := r.append(n, last, after); err != nil {
		return err
	}
	return msg.Ack()
}

// asTheGuaranteesAsk makes the same call, but as the guarantees demand: before it, the cluster is read from OCP, and
// the slot and the intent are on disk; and the connection is a new one.
func (r *rig) asTheGuaranteesAsk(reads, posts *http.Client, msg jetstream.Msg) error {
	n, err := sequenceOf(msg)
	if err != nil {
		return err
	}
	if _, err := r.operations.GetLastMsgForSubject(r.t.Context(), fmt.Sprintf("floor.out.%d.>", n)); !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("operation %d is there: %w", n, err)
	}
	var accepted uint64
	var both, shown errgroup.Group
	both.Go(func() (err error) {
		accepted, err = r.append(n, 0, r.before[:1])
		return err
	})
	both.Go(func() error {
		for _, path := range []string{"/api/v2/ob/clusters/%d/zones", "/api/v2/tasks/instances?status=RUNNING&clusterId=%d"} {
			shown.Go(func() error {
				response, err := reads.Get(r.ocp.URL + fmt.Sprintf(path, 1+n%clusters))
				if err != nil {
					return err
				}
				var v any
				return errors.Join(json.NewDecoder(response.Body).Decode(&v), response.Body.Close())
			})
		}
		if err := shown.Wait(); err != nil {
			return err
		}
		slot := nats.NewMsg(fmt.Sprintf("floor.out.slots.%d", n))
		slot.Data = r.before[0].Data[:min(len(r.before[0].Data), 300)]
		_, err := r.js.PublishMsg(r.t.Context(), slot)
		return err
	})
	if err := both.Wait(); err != nil {
		return err
	}
	if _, err := r.append(n, accepted, r.before[1:]); err != nil {
		return err
	}
	if err := r.post(posts, n); err != nil {
		return err
	}
	return msg.Ack()
}

func sequenceOf(msg jetstream.Msg) (int64, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return 0, err
	}
	return int64(meta.Sequence.Stream), nil
}

// append writes events of the floor's nth operation one by one.
func (r *rig) append(n int64, last uint64, templates []*nats.Msg) (uint64, error) {
	for _, template := range templates {
		ack, err := r.js.PublishMsg(context.Background(), r.appends([]*nats.Msg{template}, n, last)[0])
		if err != nil {
			return last, err
		}
		last = ack.Sequence
	}
	return last, nil
}

func (r *rig) consume(each func(jetstream.Msg), after func()) (stop func()) {
	r.t.Helper()
	consume, err := r.floorIn.Consume(each, jetstream.PullMaxMessages(1024))
	if err != nil {
		r.t.Fatal(err)
	}
	return func() { consume.Stop(); <-consume.Closed(); after() }
}
