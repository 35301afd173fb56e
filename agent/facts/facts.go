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
	// Fresh is how old facts may be if a decision allows an operation.
	Fresh = time.Second
	// Old is how old facts may be if a decision only lets an operation wait.
	Old = time.Minute

	// failedWithin is how far back readFailed looks for failed tasks.
	failedWithin = 7 * 24 * time.Hour
	// maxInFull is how many tasks inFull reads one by one.
	maxInFull = 4
)

// ErrNoZones means that an answer of OCP is wrong: every cluster has zones.
var ErrNoZones = errors.New("OCP shows no zones of the cluster")

// Clusters caches the facts of each cluster for all decisions of this agent. All methods may be called concurrently.
type Clusters struct {
	ocp   *ocp.Client
	facts byCluster[guard.Facts]
}

// NewClusters returns an empty cache. It asks OCP when it is first used.
func NewClusters(client *ocp.Client) *Clusters {
	return &Clusters{ocp: client, facts: byCluster[guard.Facts]{maxAge: Old}}
}

// Of returns facts of a cluster: at most Old, or, if fresh is set, at most Fresh and of the current generation of the
// cluster's record.
func (c *Clusters) Of(ctx context.Context, cluster int64, generation func() uint64, fresh bool) (guard.Facts, error) {
	return c.facts.of(cluster).get(ctx, func(known guard.Facts, age time.Duration) bool {
		if fresh {
			return known.Generation == generation() && age <= Fresh
		}
		return age <= Old
	}, func() (guard.Facts, error) { return c.read(ctx, cluster, generation()) })
}

// ReadAt returns when the facts were read that Of would return for old facts now; zero if it would have to read them
// first.
func (c *Clusters) ReadAt(cluster int64) time.Time {
	known, age, ok := c.facts.peek(cluster)
	if !ok || age > Old {
		return time.Time{}
	}
	return known.ReadAt
}

// read asks OCP for the topology and for the running tasks at the same time. If one request fails, the other goes on:
// while the breaker is open it lets only one of them through, and the answer to that one closes the breaker.
func (c *Clusters) read(ctx context.Context, cluster int64, generation uint64) (guard.Facts, error) {
	read := guard.Facts{ClusterID: cluster, Generation: generation, ReadAt: time.Now()}
	var group errgroup.Group
	group.Go(func() (err error) {
		read.Zones, err = c.ocp.Zones(ctx, cluster)
		if err == nil && len(read.Zones) == 0 { // there is no such cluster, or the answer is wrong
			if _, err = c.ocp.Cluster(ctx, cluster); err == nil {
				err = ErrNoZones
			}
		}
		return err
	})
	group.Go(func() (err error) {
		read.Tasks, err = c.ocp.Tasks(ctx, ocp.TaskQuery{
			ClusterID: cluster, Status: []string{ocp.StatusRunning}, Decode: withoutSubtasks,
		})
		switch {
		case ocp.Forbidden(err): // the user has no TASK_VIEWER
			read.Tasks, read.TasksHidden, err = nil, true, nil
		case ocp.ClassOf(err) == ocp.Refused: // a plain error, because the refusal says nothing about the cluster
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

// readFailed adds the tasks that failed lately: one of them may have left servers between two statuses, and an
// operation that waits for it must name it.
func (c *Clusters) readFailed(ctx context.Context, read *guard.Facts) error {
	since := read.ReadAt.Add(c.ocp.ClockOffset() - failedWithin)
	failed, err := c.ocp.Tasks(ctx, ocp.TaskQuery{
		ClusterID: read.ClusterID, Status: []string{ocp.StatusFailed}, Since: since, Decode: withoutSubtasks,
	})
	if err != nil {
		return err
	}
	read.Tasks, err = c.inFull(ctx, failed[:min(len(failed), maxInFull)])
	return err
}

// inFull reads the first tasks in full, unless the list says what they are about: not every list of OCP does.
func (c *Clusters) inFull(ctx context.Context, tasks []ocp.Task) ([]ocp.Task, error) {
	for i, t := range tasks[:min(len(tasks), maxInFull)] {
		if len(t.ServerIDs) > 0 || t.ZoneName != "" || t.HostID != 0 {
			continue
		}
		full, err := c.ocp.Task(ctx, t.ID)
		switch {
		case err == nil:
			full.Subtasks = nil
			full.ClusterID = cmp.Or(full.ClusterID, t.ClusterID) // some full answers leave it out
			tasks[i] = full
		case ocp.ClassOf(err) != ocp.Refused: // OCP refuses a task that is gone, or that this user may not see
			return nil, err
		}
	}
	return tasks, nil
}

// withoutSubtasks drops the subtasks, which the guard does not need: facts stay in memory.
func withoutSubtasks(entry []byte) (ocp.Task, error) {
	task, err := ocp.DecodeTask(entry)
	task.Subtasks = nil
	return task, err
}
