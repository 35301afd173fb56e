package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
)

const (
	// factsFresh is how old facts may be that an operation is allowed by, and the
	// longest that one waits for those of a cluster to be read again.
	factsFresh = time.Second
	// factsEase is how many times as long as they took to read facts of a cluster are
	// left alone, so that they cost a slow OCP no more of its time than a quick one.
	factsEase = 10
	// factsOld is how old facts may be that an operation only waits by.
	factsOld = time.Minute
	// factsKept is how many clusters have facts before it is worth while to forget any.
	factsKept = 64
	// failedWithin is how far back failed tasks are looked for.
	failedWithin = 7 * 24 * time.Hour
	// inFullAtMost is how many tasks are asked for one by one where the list does not
	// say what they are about.
	inFullAtMost = 4
	// namesFresh is how long names of clusters are believed: they hardly ever change.
	namesFresh = time.Minute
)

// facts is what OCP shows of clusters, shared by all decisions of this agent. All
// methods may be called concurrently.
type facts struct {
	ocp   *ocp.Client
	names shared[map[int64]string]

	mu       sync.Mutex
	clusters map[int64]*shared[guard.Facts]
	most     int // of clusters, before those are forgotten that nobody asks for
}

func newFacts(client *ocp.Client) *facts {
	return &facts{ocp: client, clusters: map[int64]*shared[guard.Facts]{}}
}

// of returns facts of a cluster: fresh, and of the generation that its record has
// once it is this one's turn, or else old ones, which cost nothing.
func (f *facts) of(ctx context.Context, cluster int64, generation func() uint64, fresh bool) (guard.Facts, error) {
	f.mu.Lock()
	f.forget()
	s := f.clusters[cluster]
	if s == nil {
		s = &shared[guard.Facts]{}
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

// readAt is when the facts of a cluster were read by which those that wait are decided
// on now; zero where they are to be read first.
func (f *facts) readAt(cluster int64) time.Time {
	f.mu.Lock()
	s := f.clusters[cluster]
	f.mu.Unlock()
	if s == nil || !s.reading.TryLock() { // somebody reads them
		return time.Time{}
	}
	defer s.reading.Unlock()
	if s.err != nil || time.Since(s.began) > factsOld {
		return time.Time{}
	}
	return s.value.ReadAt
}

// forget drops what is too old for any decision, whenever there are twice as many
// clusters as were left the last time: a request may name any, also one that is not
// there. The caller holds f.mu.
func (f *facts) forget() {
	if len(f.clusters) < f.most {
		return
	}
	maps.DeleteFunc(f.clusters, func(_ int64, s *shared[guard.Facts]) bool {
		if !s.reading.TryLock() { // somebody reads it
			return false
		}
		defer s.reading.Unlock()
		return time.Since(s.began) > factsOld
	})
	f.most = max(factsKept, 2*len(f.clusters))
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
		read.Tasks, err = f.ocp.Tasks(ctx, ocp.TaskQuery{ClusterID: cluster, Status: []string{ocp.StatusRunning}, Decode: withoutSubtasks})
		switch {
		case forbidden(err): // a user without TASK_VIEWER
			read.Tasks, read.TasksHidden, err = nil, true, nil
		case ocp.ClassOf(err) == ocp.Refused: // says nothing about the cluster
			err = errors.New("OCP does not list its tasks: " + err.Error())
		}
		if err == nil {
			read.Tasks, err = f.inFull(ctx, read.Tasks)
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return read, err
	}
	if len(read.Tasks) == 0 && !read.TasksHidden && guard.InBetween(read.Zones) {
		return read, f.readFailed(ctx, &read)
	}
	return read, nil
}

// readFailed adds the tasks that failed lately: one of them may have left the cluster
// in between, and whoever waits for it must be told.
func (f *facts) readFailed(ctx context.Context, read *guard.Facts) (err error) {
	since := read.ReadAt.Add(f.ocp.ClockOffset() - failedWithin)
	failed, err := f.ocp.Tasks(ctx, ocp.TaskQuery{ClusterID: read.ClusterID, Status: []string{ocp.StatusFailed}, Since: since, Decode: withoutSubtasks})
	if err != nil {
		return err
	}
	read.Tasks, err = f.inFull(ctx, failed[:min(len(failed), inFullAtMost)])
	return err
}

// inFull replaces those of the first tasks that do not say what they are about: not
// every list of OCP's does.
func (f *facts) inFull(ctx context.Context, tasks []ocp.Task) ([]ocp.Task, error) {
	for i, t := range tasks[:min(len(tasks), inFullAtMost)] {
		if len(t.ServerIDs) > 0 || t.ZoneName != "" || t.HostID != 0 {
			continue
		}
		full, err := f.ocp.Task(ctx, t.ID)
		switch {
		case err == nil:
			full.Subtasks = nil
			full.ClusterID = cmp.Or(full.ClusterID, t.ClusterID) // not every full shape says it
			tasks[i] = full
		case ocp.ClassOf(err) != ocp.Refused: // gone meanwhile, or not for this user
			return nil, err
		}
	}
	return tasks, nil
}

// withoutSubtasks leaves out what the guard does not ask for: facts are kept.
func withoutSubtasks(entry []byte) (ocp.Task, error) {
	task, err := ocp.DecodeTask(entry)
	task.Subtasks = nil
	return task, err
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
	reading sync.Mutex
	value   T
	err     error
	began   time.Time     // of the latest reading; zero: none
	pause   time.Duration // from then to the beginning of the next, at least
}

// get returns the value if it is good enough, else reads it anew.
func (s *shared[T]) get(ctx context.Context, good func(value T, age time.Duration) bool, read func() (T, error)) (T, error) {
	asked := time.Now()
	s.reading.Lock()
	defer s.reading.Unlock()
	var none T
	if !s.began.IsZero() {
		age := time.Since(s.began)
		if s.began.After(asked) { // while this one waited: as fresh as a reading of its own, however long that took
			age = 0
		}
		if s.err == nil && good(s.value, age) {
			return s.value, nil
		}
		if s.err != nil && age < factsFresh {
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
	s.pause = min(factsFresh, factsEase*time.Since(s.began))
	if ocp.ClassOf(err) == ocp.NotSent { // OCP was not asked: as soon as it may be, it is
		s.began = time.Time{}
	}
	return value, err
}
