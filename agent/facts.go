package agent

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"obwarden/agent/guard"
	"obwarden/agent/ocp"
)

const (
	// factsFresh is how old facts may be that an operation is allowed by, and how
	// seldom OCP is asked for those of one cluster, unless a slot in it was taken or
	// given back since.
	factsFresh = time.Second
	// factsOld is how old facts may be that an operation only waits by.
	factsOld = time.Minute
	// namesFresh is how long names of clusters are believed: they hardly ever change.
	namesFresh = time.Minute
)

// facts is what OCP shows of clusters, shared by all decisions of this agent. All
// methods may be called concurrently.
type facts struct {
	ocp   *ocp.Client
	names shared[map[int64]string]
	back  atomic.Int64 // when OCP answered again that had been left alone, in nanoseconds of Unix time

	mu       sync.Mutex
	clusters map[int64]*shared[guard.Facts]
}

func newFacts(client *ocp.Client) *facts {
	f := &facts{ocp: client, clusters: map[int64]*shared[guard.Facts]{}}
	f.names = shared[map[int64]string]{pause: factsFresh, back: &f.back}
	return f
}

// forgetErrors: OCP answers again.
func (f *facts) forgetErrors() { f.back.Store(time.Now().UnixNano()) }

// of returns facts of a cluster: fresh, and of the generation that its record has
// once it is this one's turn, or else old ones, which cost nothing.
func (f *facts) of(ctx context.Context, cluster int64, generation func() uint64, fresh bool) (guard.Facts, error) {
	f.mu.Lock()
	s := f.clusters[cluster]
	if s == nil {
		s = &shared[guard.Facts]{back: &f.back}
		f.clusters[cluster] = s
	}
	f.mu.Unlock()
	return s.get(ctx, func(known guard.Facts, age time.Duration) bool {
		if fresh {
			return known.Generation == generation() && age <= factsFresh
		}
		return age <= factsOld
	}, func() (guard.Facts, error) { return f.read(ctx, cluster, generation()) })
}

// read asks OCP for the topology and for what runs there, at the same time. One that
// fails does not cut off the other: of an OCP that was left alone only one is let
// through, and its answer is what ends that.
func (f *facts) read(ctx context.Context, cluster int64, generation uint64) (guard.Facts, error) {
	read := guard.Facts{ClusterID: cluster, Generation: generation, ReadAt: time.Now()}
	var group errgroup.Group
	group.Go(func() (err error) {
		read.Zones, err = f.ocp.Zones(ctx, cluster)
		if err == nil && len(read.Zones) == 0 { // no cluster is without zones: none such, or an answer that is none
			if _, err = f.ocp.Cluster(ctx, cluster); err == nil {
				err = errNoZones
			}
		}
		return err
	})
	group.Go(func() (err error) {
		read.Tasks, err = f.ocp.Tasks(ctx, ocp.TaskQuery{ClusterID: cluster, Status: []string{ocp.StatusRunning}})
		if ocp.ClassOf(err) == ocp.Refused { // a user without TASK_VIEWER
			read.Tasks, read.TasksHidden, err = nil, true, nil
		}
		return err
	})
	err := group.Wait()
	return read, err
}

// name is a cluster's name in OCP; empty where OCP knows no such cluster.
func (f *facts) name(ctx context.Context, cluster int64) (string, error) {
	names, err := f.names.get(ctx, func(known map[int64]string, age time.Duration) bool {
		_, ok := known[cluster]
		return ok && age <= namesFresh
	}, func() (map[int64]string, error) {
		clusters, err := f.ocp.Clusters(ctx)
		if err != nil {
			return nil, fmt.Errorf("read names of clusters: %w", err)
		}
		names := map[int64]string{}
		for _, c := range clusters {
			names[c.ID] = c.Name
		}
		return names, nil
	})
	return names[cluster], err
}

// shared is a value that many ask for and one reads. An error is everybody's for a
// second: a storm of requests must not become a storm of calls.
type shared[T any] struct {
	pause   time.Duration // between the beginnings of two readings, at least
	back    *atomic.Int64 // errors from before this moment are nobody's
	reading sync.Mutex
	value   T
	err     error
	began   time.Time // of the latest reading; zero: none
}

// get returns the value if it is good enough, else reads it anew.
func (s *shared[T]) get(ctx context.Context, good func(value T, age time.Duration) bool, read func() (T, error)) (T, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	var none T
	if !s.began.IsZero() {
		if s.err == nil && good(s.value, time.Since(s.began)) {
			return s.value, nil
		}
		if s.err != nil && time.Since(s.began) < factsFresh && s.began.UnixNano() > s.back.Load() {
			return none, s.err
		}
		if rest := time.Until(s.began.Add(s.pause)); rest > 0 {
			select {
			case <-ctx.Done():
				return none, ctx.Err()
			case <-time.After(rest):
			}
		}
	}
	s.began = time.Now()
	value, err := read()
	if ctx.Err() != nil { // cut off, which says nothing about OCP
		s.began = time.Time{}
		return none, ctx.Err()
	}
	s.value, s.err = value, err
	return value, err
}
