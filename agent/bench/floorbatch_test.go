//go:build linux

package bench

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

const (
	batchLoops = 2   // one loop flushes while the other makes calls
	batchMost  = 128 // operations in a batch
	batchPosts = 64  // calls of a loop at a time
)

// floorBatches does the same as floorOneByOne with the appends of many operations in one atomic batch: as little as the
// guarantees allow, and as much of it at once as NATS takes.
func (r *rig) floorBatches() (stop func()) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: batchLoops * batchPosts}}
	var ended atomic.Bool
	var group sync.WaitGroup
	for range batchLoops {
		group.Go(func() {
			for !ended.Load() {
				if err := r.floorBatch(client); err != nil {
					r.t.Error("floor:", err)
					return
				}
			}
		})
	}
	return func() { ended.Store(true); group.Wait(); client.CloseIdleConnections() }
}

// floorBatch takes the requests that are there and carries them out together.
func (r *rig) floorBatch(client *http.Client) error {
	msgs, numbers, err := r.takeBatch()
	if err != nil || len(msgs) == 0 {
		return err
	}
	written, err := r.appendBatch(r.before, numbers, func(int) uint64 { return 0 })
	if err != nil {
		return err
	}
	if err := r.postAll(client, numbers); err != nil {
		return err
	}
	// The events of one operation lie next to each other in the batch.
	last := func(i int) uint64 { return written - uint64((len(numbers)-1-i)*len(r.before)) }
	if _, err := r.appendBatch(r.after, numbers, last); err != nil {
		return err
	}
	for _, msg := range msgs {
		if err := msg.Ack(); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) takeBatch() (msgs []jetstream.Msg, numbers []int64, err error) {
	fetched, err := r.floorIn.Fetch(batchMost, jetstream.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return nil, nil, err
	}
	for msg := range fetched.Messages() {
		n, err := sequenceOf(msg)
		if err != nil {
			return nil, nil, err
		}
		msgs, numbers = append(msgs, msg), append(numbers, n)
	}
	return msgs, numbers, nil
}

// appendBatch writes events of several operations, each behind the last of its own, and returns the sequence of the
// last one written.
func (r *rig) appendBatch(templates []*nats.Msg, numbers []int64, last func(i int) uint64) (uint64, error) {
	var batch []*nats.Msg
	for i, n := range numbers {
		batch = append(batch, r.appends(templates, n, last(i))...)
	}
	ack, err := jetstreamext.PublishMsgBatch(context.Background(), r.js, batch)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// postAll makes the calls of a batch, batchPosts at a time.
func (r *rig) postAll(client *http.Client, numbers []int64) (err error) {
	slot, failed := make(chan struct{}, batchPosts), make(chan error, len(numbers))
	for _, n := range numbers {
		slot <- struct{}{}
		go func() { failed <- r.post(client, n); <-slot }()
	}
	for range numbers {
		err = errors.Join(err, <-failed)
	}
	return err
}
