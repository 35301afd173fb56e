package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func options() StreamOptions {
	return StreamOptions{Replicas: 1, Retention: 30 * 24 * time.Hour, AckWait: 30 * time.Second}
}

func open(t *testing.T, js jetstream.JetStream) Streams {
	t.Helper()
	s, err := OpenStreams(t.Context(), js, options())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func config(t *testing.T, js jetstream.JetStream, name string) jetstream.StreamConfig {
	t.Helper()
	stream, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().Config
}

// conflict is JetStream's error code where a compare-and-set fails.
const conflict = 10071

func wantCode(t *testing.T, err error, want jetstream.ErrorCode) {
	t.Helper()
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != want {
		t.Errorf("got error %v, want JetStream's code %d", err, want)
	}
}

func TestStreamsAreAsTheDesignSays(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	streams := open(t, js)
	requests, operations := config(t, js, "OB_REQUESTS"), config(t, js, "OB_OPERATIONS")
	bucket := config(t, js, "KV_OB_CLUSTERS")
	consumer := streams.Requests.CachedInfo().Config
	for _, tt := range []struct {
		name      string
		got, want any
	}{
		{"requests: subjects", requests.Subjects[:2], []string{"ob.server.*.request", "ob.server.*.request.>"}},
		{"requests: retention", requests.Retention, jetstream.WorkQueuePolicy},
		{"requests: when full", requests.Discard, jetstream.DiscardNew},
		{"requests: storage", requests.Storage, jetstream.FileStorage},
		{"requests: messages", requests.MaxMsgs, int64(1_000_000)},
		{"requests: age", requests.MaxAge, time.Duration(0)},
		{"requests: bytes", requests.MaxBytes, int64(-1)},
		{"requests: duplicate window", requests.Duplicates, 100 * time.Millisecond},
		{"operations: subjects", operations.Subjects, []string{"ob.server.*.event.>"}},
		{"operations: retention", operations.Retention, jetstream.LimitsPolicy},
		{"operations: storage", operations.Storage, jetstream.FileStorage},
		{"operations: age", operations.MaxAge, 720 * time.Hour},
		{"operations: messages", operations.MaxMsgs, int64(-1)},
		{"operations: messages a subject", operations.MaxMsgsPerSubject, int64(-1)},
		{"operations: atomic batches", operations.AllowAtomicPublish, true},
		{"operations: answers from replicas", operations.AllowDirect, false},
		{"operations: deleting", operations.DenyDelete, true},
		{"clusters: history", bucket.MaxMsgsPerSubject, int64(1)},
		{"clusters: subjects", bucket.Subjects, []string{"$KV.OB_CLUSTERS.>"}},
		{"clusters: when full", bucket.Discard, jetstream.DiscardNew},
		{"clusters: atomic batches", bucket.AllowAtomicPublish, true},
		{"clusters: marks of deletion", bucket.AllowRollup, true},
		{"clusters: deleting", bucket.DenyDelete, true},
		{"clusters: storage", bucket.Storage, jetstream.FileStorage},
		{"clusters: age", bucket.MaxAge, time.Duration(0)},
		{"replicas", []int{requests.Replicas, operations.Replicas, bucket.Replicas}, []int{1, 1, 1}},
		{"consumer: name", consumer.Durable, "obwarden"},
		{"consumer: acknowledgement", consumer.AckPolicy, jetstream.AckExplicitPolicy},
		{"consumer: ack wait", consumer.AckWait, 30 * time.Second},
		{"consumer: pending acks", consumer.MaxAckPending, -1},
		{"consumer: deliveries", consumer.MaxDeliver, -1},
		{"consumer: subjects", consumer.FilterSubject, ""},
	} {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, tt.got, tt.want)
		}
	}
}

func TestARetentionShorterThanTheDuplicateWindowIsPossible(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	o := options()
	o.Retention = time.Minute
	if _, err := OpenStreams(t.Context(), js, o); err != nil {
		t.Fatal(err)
	}
	if got := config(t, js, OperationStream); got.MaxAge != time.Minute || got.Duplicates != time.Minute {
		t.Errorf("got age %s, duplicate window %s, want a minute for both", got.MaxAge, got.Duplicates)
	}
}

func TestStreamsMayBeOpenedAgain(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	open(t, js)
	if _, err := fullRequest().Publish(t.Context(), js, Stop, "cli"); err != nil {
		t.Fatal(err)
	}
	before := config(t, js, RequestStream)
	again := open(t, js)
	if after := config(t, js, RequestStream); !reflect.DeepEqual(before, after) {
		t.Errorf("got  %+v\nwant %+v", after, before)
	}
	if info, err := again.Requests.Info(t.Context()); err != nil || info.NumPending != 1 {
		t.Errorf("got %+v and error %v, want the request still there", info, err)
	}
}

func TestManyAgentsMayOpenTheStreamsAtOnce(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	errs := make([]error, 8)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { _, errs[i] = OpenStreams(t.Context(), js, options()) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func TestAStreamWithOtherSettingsIsReportedAndLeftAlone(t *testing.T) {
	t.Parallel()
	edited := func(c jetstream.StreamConfig, edit func(*jetstream.StreamConfig)) jetstream.StreamConfig {
		edit(&c)
		return c
	}
	tests := []struct {
		name string
		is   jetstream.StreamConfig
		o    StreamOptions
		want []string
	}{
		{"another retention", operationStream(options()), StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: time.Second},
			[]string{"max age is 720h0m0s instead of 1h0m0s"}},
		{"another number of replicas", requestStream(options()), StreamOptions{Replicas: 3, Retention: 720 * time.Hour, AckWait: time.Second},
			[]string{"replicas is 1 instead of 3"}},
		{"a journal in memory, for some kinds, for a while", edited(operationStream(options()), func(c *jetstream.StreamConfig) {
			c.Storage, c.MaxAge, c.Subjects, c.Retention = jetstream.MemoryStorage, time.Hour, []string{"ob.server.stop.event.>"}, jetstream.InterestPolicy
			c.Duplicates = time.Minute
		}), options(), []string{
			"subjects is [ob.server.stop.event.>] instead of [ob.server.*.event.>]", "retention is Interest instead of Limits",
			"storage is Memory instead of File", "max age is 1h0m0s instead of 720h0m0s",
		}},
		{"requests that are dropped when full", edited(requestStream(options()), func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }),
			options(), []string{"discard policy is DiscardOld instead of DiscardNew"}},
		{"requests that expire", edited(requestStream(options()), func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }),
			options(), []string{"max age is 1h0m0s instead of 0s"}},
		{"requests that stay", edited(requestStream(options()), func(c *jetstream.StreamConfig) { c.Retention = jetstream.LimitsPolicy }),
			options(), []string{"retention is Limits instead of WorkQueue"}},
		{"requests without targets in subjects", edited(requestStream(options()), func(c *jetstream.StreamConfig) { c.Subjects = []string{RequestSubjects} }),
			options(), []string{"subjects is [ob.server.*.request] instead of ["}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			js := newJetStream(t)
			if _, err := js.CreateStream(t.Context(), tt.is); err != nil {
				t.Fatal(err)
			}
			before := config(t, js, tt.is.Name)
			_, err := OpenStreams(t.Context(), js, tt.o)
			wantError(t, err, append(tt.want, "stream "+tt.is.Name+" is not as", "nats stream edit "+tt.is.Name)...)
			if after := config(t, js, tt.is.Name); !reflect.DeepEqual(before, after) {
				t.Errorf("got the stream changed:\n%+v\nwant it left alone:\n%+v", after, before)
			}
		})
	}
}

func TestLimitsOfSizeAreTheOperatorsOwn(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	requests, operations := requestStream(options()), operationStream(options())
	requests.MaxMsgs, requests.Description = 10, "ours"
	slices.Reverse(requests.Subjects) // order means nothing
	operations.MaxBytes = 1 << 30
	for _, c := range []jetstream.StreamConfig{requests, operations} {
		if _, err := js.CreateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	open(t, js)
}

func TestAFullRequestStreamRefusesAndDropsNothing(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	small := requestStream(options())
	small.MaxMsgs = 2
	if _, err := js.CreateStream(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	streams := open(t, js)
	publish := func(server int64) error {
		_, err := Request{ClusterID: 1, ServerID: server}.Publish(t.Context(), js, Stop, "cli")
		return err
	}
	if err := errors.Join(publish(1), publish(2)); err != nil {
		t.Fatal(err)
	}
	wantError(t, publish(3), "publish on ob.server.stop.request.1.3", "maximum messages exceeded")

	// The first two are there; one of them done makes room.
	for want := range int64(2) {
		msg, err := streams.Requests.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRequest(msg.Subject(), msg.Headers(), msg.Data(), fallback)
		if err != nil || got.Request.ServerID != want+1 {
			t.Errorf("got server %d and error %v, want server %d and none", got.Request.ServerID, err, want+1)
		}
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := publish(3); err != nil {
		t.Errorf("got %v, want room again", err)
	}
}

func TestAnAppendToTheJournalIsACompareAndSet(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	open(t, js)
	message := func(kind Kind, key string, n int, token State) *nats.Msg {
		msg, err := Event{Operation{Schema: OperationSchema, OperationID: OperationID(key), N: n, Kind: kind, State: token, ClusterID: 1, ServerID: 2}, token}.Message()
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	unique := 0
	publish := func(msg *nats.Msg, expect uint64, key string) (uint64, error) {
		unique++
		msg.Header.Set(nats.MsgIdHdr, fmt.Sprint(unique)) // it is not the duplicate window that is tested
		ack, err := js.PublishMsg(t.Context(), msg, jetstream.WithExpectLastSequenceForSubject(expect, OperationSubjects(OperationID(key))))
		if err != nil {
			return 0, err
		}
		return ack.Sequence, nil
	}
	must := func(sequence uint64, err error) uint64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return sequence
	}

	first := must(publish(message(Stop, "a", 1, Accepted), 0, "a"))
	other := must(publish(message(Stop, "b", 1, Accepted), 0, "b")) // another operation is not in the way
	_, err := publish(message(Stop, "a", 1, Accepted), 0, "a")
	wantCode(t, err, conflict)
	_, err = publish(message(Start, "a", 1, Accepted), 0, "a") // one key is one operation, whatever its kind
	wantCode(t, err, conflict)
	_, err = publish(message(Stop, "a", 2, Submitting), other, "a")
	wantCode(t, err, conflict)
	second := must(publish(message(Stop, "a", 2, Submitting), first, "a")) // another last token, the same operation
	_, err = publish(message(Stop, "a", 2, Cancelled), first, "a")         // an agent that was paused
	wantCode(t, err, conflict)
	must(publish(message(Stop, "a", 3, Running), second, "a"))
}

func TestAnEventPublishedTwiceIsStoredOnce(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	streams := open(t, js)
	for i, duplicate := range []bool{false, true} {
		msg, err := Event{fullOperation(), Progress}.Message()
		if err != nil {
			t.Fatal(err)
		}
		ack, err := js.PublishMsg(t.Context(), msg)
		if err != nil || ack.Duplicate != duplicate {
			t.Errorf("publication %d: got %+v and error %v, want duplicate %v and none", i+1, ack, err, duplicate)
		}
	}
	if info, err := streams.Operations.Info(t.Context()); err != nil || info.State.Msgs != 1 {
		t.Errorf("got %+v and error %v, want one message", info.State, err)
	}
}

func TestARequestsMessageIDIsSwallowedFor100msAtMost(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	streams := open(t, js)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	publish := func() (*jetstream.PubAck, time.Time) {
		t.Helper()
		msg, err := fullRequest().Message(Stop, "cli")
		if err != nil {
			t.Fatal(err)
		}
		msg.Header.Set(nats.MsgIdHdr, "again")
		sent := time.Now()
		ack, err := js.PublishMsg(ctx, msg)
		if err != nil {
			t.Fatal(err)
		}
		return ack, sent
	}
	first, sent := publish()
	for {
		again, now := publish()
		if !again.Duplicate {
			if now.Sub(sent) > patience/2 {
				t.Errorf("got it taken after %s, want about 100ms", now.Sub(sent))
			}
			break
		}
		if again.Sequence != first.Sequence {
			t.Fatalf("got a duplicate of %d, want of %d", again.Sequence, first.Sequence)
		}
	}
	for i := range 2 {
		msg, err := streams.Requests.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatalf("delivery %d: got %v, want both", i+1, err)
		}
		if got := msg.Headers().Get(nats.MsgIdHdr); got != "again" {
			t.Errorf("delivery %d: got id %q, want again", i+1, got)
		}
	}
}

func TestWithoutAStreamNobodyTakesARequest(t *testing.T) {
	t.Parallel()
	js := newJetStream(t)
	_, err := fullRequest().Publish(t.Context(), js, Stop, "cli")
	if !errors.Is(err, ErrNoStream) {
		t.Errorf("got error %v, want ErrNoStream", err)
	}
	wantError(t, err, "publish on ob.server.stop.request.1.2", "obwarden run")
}

func TestStreamsOfAServerThatIsGoneAreAnError(t *testing.T) {
	t.Parallel()
	s := startServer(t, t.TempDir())
	js := connect(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := OpenStreams(ctx, js, options())
	wantError(t, err, "open stream OB_REQUESTS")
}

// What NATS does when it is killed at a bad moment: its stream comes up as it was, its
// consumer with all that it has acknowledged since.
func TestRequestsThatNATSBringsBackAreDroppedAndOpenOnesAreNot(t *testing.T) {
	t.Parallel()
	dataDir := t.TempDir()
	messages := filepath.Join(dataDir, "nats", "jetstream", "$G", "streams", RequestStream, "msgs")
	before := filepath.Join(t.TempDir(), "msgs")
	publish := func(js jetstream.JetStream, key string) {
		t.Helper()
		if _, err := (Request{IdempotencyKey: key, ClusterID: 1, ServerID: 2}).Publish(t.Context(), js, Stop, "cli"); err != nil {
			t.Fatal(err)
		}
	}
	take := func(s Streams) jetstream.Msg {
		t.Helper()
		msg, err := s.Requests.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	drop := func(js jetstream.JetStream, upTo uint64) (dropped, acknowledged uint64) {
		t.Helper()
		dropped, acknowledged, err := DropAcknowledged(t.Context(), js, upTo)
		if err != nil {
			t.Fatal(err)
		}
		return dropped, acknowledged
	}
	left := func(js jetstream.JetStream) uint64 {
		t.Helper()
		stream, err := js.Stream(t.Context(), RequestStream)
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo().State.Msgs
	}
	life := func(do func(jetstream.JetStream, Streams)) {
		t.Helper()
		server := startServer(t, dataDir)
		js := connect(t, server)
		do(js, open(t, js))
		js.Conn().Close()
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}

	life(func(js jetstream.JetStream, _ Streams) {
		for i := range 4 {
			publish(js, fmt.Sprint("key-", i+1))
		}
	})
	if err := os.CopyFS(before, os.DirFS(messages)); err != nil {
		t.Fatal(err)
	}
	life(func(js jetstream.JetStream, s Streams) {
		for range 3 {
			if err := take(s).DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if dropped, acknowledged := drop(js, 4); dropped != 0 || acknowledged != 3 {
			t.Errorf("dropped from %d on, acknowledged up to %d, want nothing, 3", dropped, acknowledged)
		}
	})
	if err := errors.Join(os.RemoveAll(messages), os.CopyFS(messages, os.DirFS(before))); err != nil {
		t.Fatal(err)
	}
	life(func(js jetstream.JetStream, s Streams) {
		if got := left(js); got != 4 {
			t.Fatalf("%d requests in the stream, want 4: NATS has changed, and this is needed no more", got)
		}
		publish(js, "key-5")
		taken := take(s)
		if dropped, _ := drop(js, 0); dropped != 0 {
			t.Errorf("dropped from %d on, which may be on their way out", dropped)
		}
		if dropped, acknowledged := drop(js, 1000); dropped != 1 || acknowledged != 3 {
			t.Errorf("dropped from %d on, acknowledged up to %d, want 1, 3", dropped, acknowledged)
		}
		if got := left(js); got != 2 {
			t.Errorf("%d requests in the stream, want 2: one that is taken, and one that waits", got)
		}
		if err := errors.Join(taken.DoubleAck(t.Context()), take(s).DoubleAck(t.Context())); err != nil {
			t.Error(err)
		}
		if got := left(js); got != 0 {
			t.Errorf("%d requests in the stream when all are acknowledged", got)
		}
	})
}
