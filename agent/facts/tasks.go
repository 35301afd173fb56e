package facts

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

const (
	// listThreshold is the number of followed tasks from which one list of OCP's running tasks is cheaper than a look
	// at each, even while one of them moves.
	listThreshold = 4
	// fullAfter is how long a poller relies on lists alone: an outdated list cannot hide the end of a task for longer.
	fullAfter = 5 * time.Minute
	// listPause is how long a poller makes no list after a list that was not worthwhile.
	listPause = time.Minute
	// maxRequests is how many requests of a poller may be under way. Further ones wait here and not for the client's
	// budget, where they would delay every call and give up after its timeout.
	maxRequests = 16
)

// TaskPoller looks at OCP's tasks for the operations that follow them. If there are many, one list of running tasks
// serves every look that is due, whatever the number of tasks and clusters. The poller reads a single task only if the
// list does not show it as before. All methods may be called concurrently.
type TaskPoller struct {
	ocp      *ocp.Client
	pollMin  time.Duration
	followed atomic.Int64  // tasks
	requests chan struct{} // one element for each request under way

	mu          sync.Mutex
	latest      *listing
	pausedUntil time.Time             // no list before that
	read        map[uint64]TaskDigest // the entries of the latest list, by the hash of their JSON
	seed        maphash.Seed          // of the hashes
}

// listing is one list of OCP's running tasks. The fields below done are set once it is closed.
type listing struct {
	began time.Time
	done  chan struct{}
	tasks map[int64]TaskDigest
	err   error
}

// TaskDigest is the part of a list's entry that shows the progress of a task. It is small, because lists are long and
// stay in memory until the next one.
type TaskDigest struct {
	id                int64
	status, operation string
	subtasks          []subtaskDigest
}

type subtaskDigest struct {
	id                int64
	status, operation string
}

// DigestOf returns the digest that an entry of a list would have if the task has not changed.
func DigestOf(t *events.Task) TaskDigest {
	digest := TaskDigest{id: t.ID, status: intern(t.Status), operation: intern(t.Operation)}
	digest.subtasks = make([]subtaskDigest, 0, len(t.Subtasks))
	for _, s := range t.Subtasks {
		digest.subtasks = append(digest.subtasks, subtaskDigest{s.ID, intern(s.Status), intern(s.Operation)})
	}
	return digest
}

// digestOf is DigestOf for an entry of a list.
func digestOf(t ocp.Task) TaskDigest {
	digest := TaskDigest{id: t.ID, status: intern(t.Status), operation: intern(t.Operation)}
	digest.subtasks = make([]subtaskDigest, 0, len(t.Subtasks))
	for _, s := range t.Subtasks {
		digest.subtasks = append(digest.subtasks, subtaskDigest{s.ID, intern(s.Status), intern(s.Operation)})
	}
	return digest
}

// intern returns a word of OCP's API as one copy that all tasks share.
func intern(s string) string {
	for _, w := range []string{
		ocp.StatusPending, ocp.StatusReady, ocp.StatusRunning, ocp.StatusCanceling, ocp.StatusFailed,
		ocp.StatusSuccessful, ocp.OperationExecute, ocp.OperationRetry, ocp.OperationRollback, ocp.OperationSkip,
		ocp.OperationCancel, ocp.OperationRollbackSkip,
	} {
		if s == w {
			return w
		}
	}
	return s
}

// NewTaskPoller returns a poller whose looks at one task are at least pollMin apart.
func NewTaskPoller(client *ocp.Client, pollMin time.Duration) *TaskPoller {
	return &TaskPoller{
		ocp: client, pollMin: max(pollMin, time.Millisecond),
		requests: make(chan struct{}, maxRequests), seed: maphash.MakeSeed(),
	}
}

// Follow adds n to the number of followed tasks, which decides whether lists are worthwhile.
func (p *TaskPoller) Follow(n int) { p.followed.Add(int64(n)) }

// Due returns when to look at a task whose next look is due at the moment at: not later, and together with other tasks,
// so that one list serves all. Looks are due at multiples of pollMin times a power of two, so that a rare look at one
// task shares its moment with frequent looks at others.
func (p *TaskPoller) Due(at, now time.Time) time.Time {
	wait := at.Sub(now)
	if wait < p.pollMin {
		return at
	}
	step := p.pollMin
	for 2*step <= wait {
		step *= 2
	}
	// Add a duration to now, and do not return the rounded moment: it would depend on jumps of the wall clock.
	return now.Add(at.Round(0).Truncate(step).Sub(now.Round(0)))
}

// Look looks at a task that was last seen as known, and was last read in full at the moment full. unmoved means that
// the task has not changed; then task is empty. began is when the answer was requested.
func (p *TaskPoller) Look(
	ctx context.Context, known *events.Task, due, full time.Time,
) (task ocp.Task, unmoved bool, began time.Time, err error) {
	if list := p.listFor(ctx, known.Status, due, full); list != nil {
		switch {
		case list.err != nil: // a request for the task alone would fail, too
			return ocp.Task{}, false, list.began, list.err
		case sameAsBefore(DigestOf(known), list.tasks[known.ID]):
			return ocp.Task{}, true, list.began, nil
		}
	}
	select {
	case p.requests <- struct{}{}:
	case <-ctx.Done():
		return ocp.Task{}, false, time.Now(), ctx.Err()
	}
	defer func() { <-p.requests }()
	began = time.Now()
	task, err = p.ocp.Task(ctx, known.ID)
	return task, false, began, err
}

// Unmoved reports whether a list shows a task as it was seen; false if there is no list.
func (p *TaskPoller) Unmoved(ctx context.Context, seen TaskDigest, due, full time.Time) bool {
	list := p.listFor(ctx, seen.status, due, full)
	return list != nil && list.err == nil && sameAsBefore(seen, list.tasks[seen.id])
}

// listFor returns the list that serves a look at a task; nil if the task must be read by itself.
func (p *TaskPoller) listFor(ctx context.Context, status string, due, full time.Time) *listing {
	if p.followed.Load() < listThreshold || time.Since(full) >= fullAfter || due.IsZero() ||
		status != ocp.StatusRunning {
		return nil
	}
	list := p.list(ctx, due)
	if list == nil || ocp.ClassOf(list.err) == ocp.Refused {
		return nil
	}
	return list
}

// list returns a list that was begun when the look was due, or later; nil while lists are paused. All looks that share
// the list get its error.
func (p *TaskPoller) list(ctx context.Context, due time.Time) *listing {
	p.mu.Lock()
	now := time.Now()
	if now.Before(p.pausedUntil) {
		p.mu.Unlock()
		return nil
	}
	// The due times of looks that belong together differ by the time that it took to compute them.
	if last := p.latest; last != nil && last.began.Add(time.Millisecond).After(due) && now.Sub(last.began) < p.pollMin {
		p.mu.Unlock()
		select {
		case <-last.done:
			return last
		case <-ctx.Done():
			return &listing{began: now, err: ctx.Err()}
		}
	}
	list := &listing{began: now, done: make(chan struct{})}
	p.latest = list
	p.mu.Unlock()

	list.tasks, list.err = p.running(ctx)
	if !p.worthListing(list.tasks, list.err) {
		p.mu.Lock()
		p.pausedUntil = time.Now().Add(listPause)
		p.mu.Unlock()
	}
	close(list.done)
	return list
}

// running reads the list of running tasks.
func (p *TaskPoller) running(ctx context.Context) (map[int64]TaskDigest, error) {
	select {
	case p.requests <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.requests }()
	p.mu.Lock()
	before := p.read
	p.mu.Unlock()
	tasks, read := make(map[int64]TaskDigest, len(before)), make(map[uint64]TaskDigest, len(before))
	decode := func(encoded []byte) (ocp.Task, error) {
		// Most entries are the same in every list: decode only those that have changed.
		hash := maphash.Bytes(p.seed, encoded)
		entry, again := before[hash]
		if !again {
			task, err := ocp.DecodeTask(encoded)
			if err != nil {
				return ocp.Task{}, err
			}
			entry = digestOf(task)
		}
		tasks[entry.id], read[hash] = entry, entry
		return ocp.Task{ID: entry.id}, nil
	}
	_, err := p.ocp.Tasks(ctx, ocp.TaskQuery{Status: []string{ocp.StatusRunning}, Decode: decode})
	if err == nil {
		p.mu.Lock()
		p.read = read
		p.mu.Unlock()
	}
	return tasks, err
}

// worthListing reports whether another list is worthwhile: OCP shows it to this user, with subtasks, and tasks of other
// people do not make it long.
func (p *TaskPoller) worthListing(all map[int64]TaskDigest, err error) bool {
	if err != nil {
		return ocp.ClassOf(err) != ocp.Refused
	}
	bare := len(all) > 0
	for _, t := range all {
		bare = bare && len(t.subtasks) == 0
	}
	return !bare && int64(len(all)/ocp.PageSize) < p.followed.Load()
}

// sameAsBefore reports whether an entry of a list shows a running task unchanged. Entries do not say how often a
// subtask ran, so a task with a failed subtask never counts as unchanged: the subtask may have failed again.
func sameAsBefore(known, entry TaskDigest) bool {
	if entry.status != known.status || entry.operation != "" && entry.operation != known.operation ||
		len(known.subtasks) == 0 || len(entry.subtasks) != len(known.subtasks) {
		return false
	}
	for i, s := range entry.subtasks {
		if known.subtasks[i].id != s.id { // the order is mostly the same
			i = slices.IndexFunc(known.subtasks, func(old subtaskDigest) bool { return old.id == s.id })
		}
		if i < 0 || s.status != known.subtasks[i].status || s.status == ocp.StatusFailed ||
			s.operation != "" && s.operation != known.subtasks[i].operation {
			return false
		}
	}
	return true
}
