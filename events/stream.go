package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Names of the streams, buckets and the consumer that the agents share in JetStream.
const (
	RequestStream   = "OB_REQUESTS"   // work queue: the requests of the open operations, and orders
	OperationStream = "OB_OPERATIONS" // the journal
	ClusterBucket   = "OB_CLUSTERS"   // key-value: which operations hold the slots of a cluster
	ControlBucket   = "OB_CONTROL"    // key-value: which clusters people have paused
	Consumer        = "obwarden"      // durable, shared by all agents
)

// maxOpenRequests limits the request stream. A full stream refuses new messages: the
// publisher gets an error, and no request is dropped.
const maxOpenRequests = 1_000_000

// StreamOptions are the settings of the streams that the person who runs the agent chooses.
type StreamOptions struct {
	Replicas  int
	Retention time.Duration // how long events are kept and keys are remembered
	AckWait   time.Duration // how long after an agent died its requests go to another agent
}

// Streams are the parts of JetStream that an agent uses.
type Streams struct {
	Requests   jetstream.Consumer
	Operations jetstream.Stream
	Clusters   jetstream.KeyValue
	Control    jetstream.KeyValue
}

// OpenStreams opens the streams and buckets, and creates missing ones. It never changes an
// existing stream: if the settings of one differ, the error names each difference. Somebody
// chose these settings, and an agent must not rely on a journal that keeps less than it
// expects.
func OpenStreams(ctx context.Context, js jetstream.JetStream, o StreamOptions) (Streams, error) {
	requests, err := openStream(ctx, js, requestStream(o))
	if err != nil {
		return Streams{}, err
	}
	operations, err := openStream(ctx, js, operationStream(o))
	if err != nil {
		return Streams{}, err
	}
	consumer, err := requests.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:       Consumer,
		Description:   "shared by all obwarden agents: one unacknowledged message is one open operation",
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       o.AckWait,
		MaxDeliver:    -1,
		MaxAckPending: -1,
	})
	if err != nil {
		return Streams{}, fmt.Errorf("open consumer %s of stream %s: %w", Consumer, RequestStream, err)
	}
	clusters, err := openClusters(ctx, js, o)
	if err != nil {
		return Streams{}, err
	}
	control, err := openBucket(ctx, js, jetstream.KeyValueConfig{
		Bucket:      ControlBucket,
		Description: "obwarden: what people have paused, by whom and why",
		Replicas:    o.Replicas,
		History:     64, // so that people can see who paused and resumed
	})
	if err != nil {
		return Streams{}, err
	}
	return Streams{Requests: consumer, Operations: operations, Clusters: clusters, Control: control}, nil
}

// openClusters is openBucket for a bucket that takes values of several keys in one batch. A
// bucket that was created without that works as well, only slower.
func openClusters(ctx context.Context, js jetstream.JetStream, o StreamOptions) (jetstream.KeyValue, error) {
	_, err := js.KeyValue(ctx, ClusterBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{ // a bucket by another name
			Name:               "KV_" + ClusterBucket,
			Description:        "obwarden: one key a cluster, the operations that hold its slots",
			Subjects:           []string{BucketKey(ClusterBucket, ">")},
			Storage:            jetstream.FileStorage,
			Discard:            jetstream.DiscardNew,
			MaxMsgsPerSubject:  1,
			Replicas:           o.Replicas,
			Duplicates:         2 * time.Minute,
			AllowRollup:        true,
			AllowDirect:        true,
			AllowAtomicPublish: true,
			DenyDelete:         true,
		})
	}
	if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another agent was first
		return nil, fmt.Errorf("open key-value bucket %s: %w", ClusterBucket, err)
	}
	return js.KeyValue(ctx, ClusterBucket)
}

// BucketKey is the subject of a key in a key-value bucket.
func BucketKey(bucket, key string) string { return "$KV." + bucket + "." + key }

func openBucket(
	ctx context.Context, js jetstream.JetStream, want jetstream.KeyValueConfig,
) (jetstream.KeyValue, error) {
	bucket, err := js.KeyValue(ctx, want.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		bucket, err = js.CreateKeyValue(ctx, want)
		if errors.Is(err, jetstream.ErrBucketExists) { // another agent was first
			bucket, err = js.KeyValue(ctx, want.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open key-value bucket %s: %w", want.Bucket, err)
	}
	return bucket, nil
}

func requestStream(o StreamOptions) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        RequestStream,
		Description: "obwarden: requests, each kept until its operation has ended",
		Subjects:    []string{RequestSubjects, TargetRequestSubjects, CancelSubjects, RetrySubjects, ApproveSubjects},
		Retention:   jetstream.WorkQueuePolicy,
		Discard:     jetstream.DiscardNew,
		Storage:     jetstream.FileStorage,
		MaxMsgs:     maxOpenRequests,
		Replicas:    o.Replicas,
		// The agent recognises duplicates by the journal, and reports them. JetStream's own window
		// would silently drop a second message with the same Nats-Msg-Id, whatever the message asks
		// for. So this is the shortest window that the server allows.
		Duplicates: 100 * time.Millisecond,
	}
}

func operationStream(o StreamOptions) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:               OperationStream,
		Description:        "obwarden: the journal of all operations, which is the event stream",
		Subjects:           []string{EventSubjects},
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardOld,
		Storage:            jetstream.FileStorage,
		MaxAge:             o.Retention,
		Replicas:           o.Replicas,
		Duplicates:         min(2*time.Minute, o.Retention),
		AllowAtomicPublish: true,
		AllowDirect:        false, // a replica that lags would show an agent a past state
		DenyDelete:         true,
	}
}

func openStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (jetstream.Stream, error) {
	stream, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another agent was first
			stream, err = js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", want.Name, err)
	}
	if err := sameStream(want, stream); err != nil {
		return nil, err
	}
	return stream, nil
}

// CheckStreams reports streams and buckets that are missing or were changed since they were
// opened.
func CheckStreams(ctx context.Context, js jetstream.JetStream, o StreamOptions) error {
	for _, want := range []jetstream.StreamConfig{requestStream(o), operationStream(o)} {
		stream, err := js.Stream(ctx, want.Name)
		if err != nil {
			return fmt.Errorf("stream %s: %w", want.Name, err)
		}
		if err := sameStream(want, stream); err != nil {
			return err
		}
	}
	for _, bucket := range []string{ClusterBucket, ControlBucket} {
		if _, err := js.Stream(ctx, "KV_"+bucket); err != nil {
			return fmt.Errorf("key-value bucket %s: %w; restart the agent to create it again", bucket, err)
		}
	}
	return nil
}

// DropAcknowledged removes the requests up to a sequence that the consumer of the request
// stream has acknowledged. It returns the sequence of the first of them, or 0 if there are
// none, and the sequence up to which all requests are acknowledged by now.
//
// NATS removes each request with its acknowledgement. But a server that was killed may come up
// with many of them again (2.15 does) and keep them. The consumer delivers none of them, but
// they fill the stream, and a new consumer would deliver them all. A caller that passes the
// acknowledged sequence of a while ago finds no request that NATS is about to remove.
func DropAcknowledged(
	ctx context.Context, js jetstream.JetStream, upTo uint64,
) (dropped, acknowledged uint64, err error) {
	// The consumer comes first: a request that it has acknowledged stays acknowledged in the
	// later state of the stream.
	consumer, err := js.Consumer(ctx, RequestStream, Consumer)
	if err != nil {
		return 0, 0, fmt.Errorf("look at consumer %s of stream %s: %w", Consumer, RequestStream, err)
	}
	acknowledged = consumer.CachedInfo().AckFloor.Stream
	stream, err := js.Stream(ctx, RequestStream)
	if err != nil {
		return 0, acknowledged, fmt.Errorf("look at stream %s: %w", RequestStream, err)
	}
	state := stream.CachedInfo().State
	upTo = min(upTo, acknowledged)
	if state.Msgs == 0 || state.FirstSeq > upTo {
		return 0, acknowledged, nil
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSequence(upTo+1)); err != nil {
		return 0, acknowledged, fmt.Errorf("drop requests %d to %d, all acknowledged, from stream %s "+
			"(`nats stream purge %s --seq %d` does it too): %w", state.FirstSeq, upTo, RequestStream, RequestStream, upTo+1, err)
	}
	return state.FirstSeq, acknowledged, nil
}

func sameStream(want jetstream.StreamConfig, stream jetstream.Stream) error {
	if diff := streamDifferences(want, stream.CachedInfo().Config); len(diff) > 0 {
		return fmt.Errorf("stream %s is not as this agent would create it: %s; "+
			"set OBWARDEN_* to the settings of the stream, or change it with `nats stream edit %s`",
			want.Name, strings.Join(diff, ", "), want.Name)
	}
	return nil
}

// streamDifferences compares the settings that the guarantees rest on. Limits on size and
// placement are up to the operator.
func streamDifferences(want, got jetstream.StreamConfig) []string {
	var diff []string
	differ := func(name string, want, got any) {
		if fmt.Sprint(want) != fmt.Sprint(got) {
			diff = append(diff, fmt.Sprintf("%s is %v instead of %v", name, got, want))
		}
	}
	sorted := func(s []string) []string { return slices.Sorted(slices.Values(s)) }
	differ("subjects", sorted(want.Subjects), sorted(got.Subjects))
	differ("retention", want.Retention, got.Retention)
	differ("storage", want.Storage, got.Storage)
	differ("replicas", want.Replicas, got.Replicas)
	differ("max age", want.MaxAge, got.MaxAge)
	if want.Retention == jetstream.WorkQueuePolicy {
		differ("discard policy", want.Discard, got.Discard)
		differ("duplicate window", want.Duplicates, got.Duplicates)
	}
	differ("allow direct", want.AllowDirect, got.AllowDirect)
	return diff
}

// Publish sends a request. It returns the sequence in the request stream once JetStream has
// the request on disk, and ErrNoStream if no stream takes requests.
func (r Request) Publish(ctx context.Context, js jetstream.JetStream, kind Kind, source string) (uint64, error) {
	msg, err := r.Message(kind, source)
	if err != nil {
		return 0, err
	}
	return publish(ctx, js, msg)
}

// Publish sends an order; see Request.Publish.
func (o Order) Publish(ctx context.Context, js jetstream.JetStream) (uint64, error) {
	msg, err := o.Message()
	if err != nil {
		return 0, err
	}
	return publish(ctx, js, msg)
}

func publish(ctx context.Context, js jetstream.JetStream, msg *nats.Msg) (uint64, error) {
	ack, err := js.PublishMsg(ctx, msg)
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		return 0, fmt.Errorf("publish on %s: %w", msg.Subject, ErrNoStream)
	}
	if err != nil {
		return 0, fmt.Errorf("publish on %s: %w", msg.Subject, err)
	}
	return ack.Sequence, nil
}

// ErrNoStream means that no stream takes requests.
var ErrNoStream = errors.New("no stream takes the message: is an agent running on this NATS server (obwarden run)?")
