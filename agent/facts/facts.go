package facts

import (
	"cmp"
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/ocp"
)

const (
	// Fresh is how old facts may be that an operation is allowed by.
	Fresh = time.Second
	// Old is how old facts may be that an operation only waits by.
	Old = time.Minute

	// failedWithin is how far back failed tasks are looked for.
	failedWithin = 7 * 24 * time.Hour
	// inFullAtMost is how many tasks are asked for one by one where the list does not say what they are about.
	inFullAtMost = 4
)

// ErrNoZones is an answer that cannot be: every cluster has zones.
var ErrNoZones = errors.New("OCP shows no zones of the cluster")

// Clusters is what OCP shows of each cluster, shared by all decisions of this agent. All methods may be called
// concurrently.
type Clusters struct {
	ocp   *ocp.Client
	facts byCluster[guard.Facts]
}

// NewClusters makes the cache. It asks OCP when it is first used.
func NewClusters(client *ocp.Client) *Clusters {
	return &Clusters{ocp: client, facts: byCluster[guard.Facts]{maxAge: Old}}
}

// Of returns facts of a cluster: fresh ones, of the generation that its record has once it is this caller's turn, or else
// old ones, which cost nothing.
func (c *Clusters) Of(ctx context.Context, cluster int64, generation func() uint64, fresh bool) (guard.Facts, error) {
	return c.facts.of(cluster).get(ctx, func(known guard.Facts, age time.Duration) bool {
		if fresh {
			return known.Generation == generation() && age <= Fresh
		}
		return age <= Old
	}, func() (guard.Facts, error) { return c.read(ctx, cluster, generation()) })
}

// ReadAt is when the facts of a cluster were read by which an operation that waits would be decided on now; zero where
// they are to be read first.
func (c *Clusters) ReadAt(cluster int64) time.Time {
	known, age, ok := c.facts.peek(cluster)
	if !ok || age > Old {
		return time.Time{}
	}
	return known.ReadAt
}

// read asks OCP for the topology and for the running tasks at the same time. If one fails the other is not cut off: of
// an OCP whose breaker is open only one request is let through, and its answer closes the breaker.
func (c *Clusters) read(ctx context.Context, cluster int64, generation uint64) (guard.Facts, error) {
	read := guard.Facts{ClusterID: cluster, Generation: generation, ReadAt: time.Now()}
	var group errgroup.Group
	group.Go(func() (err error) {
		read.Zones, err = c.ocp.Zones(ctx, cluster)
		if err == nil && len(read.Zones) == 0 { // there is no such cluster, or the answer is none
			if _, err = c.ocp.Cluster(ctx, cluster); err == nil {
				err = ErrNoZones
			}
		}
		return err
	})
	group.Go(func() (err error) {
		read.Tasks, err = c.ocp.Tasks(ctx, ocp.TaskQuery{ClusterID: cluster, Status: []string{ocp.StatusRunning}, Decode: withoutSubtasks})
		switch {
		case ocp.Forbidden(err): // a user without TASK_VIEWER
			read.Tasks, read.TasksHidden, err = nil, true, nil
		case ocp.ClassOf(err) == ocp.Refused: // says nothing about the cluster
			err = errors.New("OCP does not list its tasks: " + err.Error())
		}
		if err == nil {
			read.Tasks, err = c.inFull(ctx, read.Tasks)
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return read, err
	}
	if len(read.Tasks) == 0 && !read.TasksHidden && read.Zones.InBetween() {
		return read, c.readFailed(ctx, &read)
	}
	return read, nil
}

// readFailed adds the tasks that failed lately: one of them may have left the cluster in between, and an operation that
// waits for it must say so.
func (c *Clusters) readFailed(ctx context.Context, read *guard.Facts) error {
	since := read.ReadAt.Add(c.ocp.ClockOffset() - failedWithin)
	failed, err := c.ocp.Tasks(ctx, ocp.TaskQuery{ClusterID: read.ClusterID, Status: []string{ocp.StatusFailed}, Since: since, Decode: withoutSubtasks})
	if err != nil {
		return err
	}
	read.Tasks, err = c.inFull(ctx, failed[:min(len(failed), inFullAtMost)])
	return err
}

// inFull replaces those of the first tasks that do not say what they are about: not every list of OCP's does.
func (c *Clusters) inFull(ctx context.Context, tasks []ocp.Task) ([]ocp.Task, error) {
	for i, t := range tasks[:min(len(tasks), inFullAtMost)] {
		if len(t.ServerIDs) > 0 || t.ZoneName != "" || t.HostID != 0 {
			continue
		}
		full, err := c.ocp.Task(ctx, t.ID)
		switch {
		case err == nil:
			full.Subtasks = nil
			full.ClusterID = cmp.Or(full.ClusterID, t.ClusterID) // not every full shape says it
			tasks[i] = full
		case ocp.ClassOf(err) != ocp.Refused: // a refusal: it is gone meanwhile, or not for this user
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
