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
	// listThreshold is how many followed tasks make one list of OCP's running tasks cheaper than a look at each, also
	// while one of them moves.
	listThreshold = 4
	// fullAfter is how long the list alone is believed: an outdated list hides the end of a task for no longer.
	fullAfter = 5 * time.Minute
	// listPause is for how long no list is made after one that was of no use.
	listPause = time.Minute
	// looksAtOnce keeps the looks that wait for their turn out of the client's budget: in there they would stand before
	// every call, and give up after its timeout.
	looksAtOnce = 16
)

// TaskPoller looks at OCP's tasks for the operations that follow them. Where these are many, one list of running tasks
// serves every look that is due, whatever the number of tasks and clusters; a single task is asked for only where the
// list does not show it as before. All methods may be called concurrently.
type TaskPoller struct {
	ocp      *ocp.Client
	pollMin  time.Duration
	followed atomic.Int64  // tasks
	turn     chan struct{} // a place for each look on its way; the look that waits for longest is next

	mu       sync.Mutex
	latest   *listing
	noneTill time.Time
	read     map[uint64]TaskDigest // the entries of the latest list, by the hash of how OCP wrote them
	seed     maphash.Seed          // of the hashes
}

// listing is one list of OCP's running tasks. The fields below done are set once it is closed.
type listing struct {
	began time.Time
	done  chan struct{}
	tasks map[int64]TaskDigest
	err   error
}

// TaskDigest is what an entry of a list says of how far a task is, and no more: lists are long, and kept until the next
// one.
type TaskDigest struct {
	id                int64
	status, operation string
	subtasks          []subtaskDigest
}

type subtaskDigest struct {
	id                int64
	status, operation string
}

// DigestOf is what an entry of a list would say of a task.
func DigestOf(t *events.Task) TaskDigest {
	digest := TaskDigest{id: t.ID, status: intern(t.Status), operation: intern(t.Operation), subtasks: make([]subtaskDigest, 0, len(t.Subtasks))}
	for _, s := range t.Subtasks {
		digest.subtasks = append(digest.subtasks, subtaskDigest{s.ID, intern(s.Status), intern(s.Operation)})
	}
	return digest
}

func digestOf(t ocp.Task) TaskDigest {
	digest := TaskDigest{id: t.ID, status: intern(t.Status), operation: intern(t.Operation), subtasks: make([]subtaskDigest, 0, len(t.Subtasks))}
	for _, s := range t.Subtasks {
		digest.subtasks = append(digest.subtasks, subtaskDigest{s.ID, intern(s.Status), intern(s.Operation)})
	}
	return digest
}

// intern is one of OCP's words, of which there is one copy for all tasks.
func intern(s string) string {
	for _, w := range []string{
		ocp.StatusPending, ocp.StatusReady, ocp.StatusRunning, ocp.StatusCanceling, ocp.StatusFailed, ocp.StatusSuccessful,
		ocp.OperationExecute, ocp.OperationRetry, ocp.OperationRollback, ocp.OperationSkip, ocp.OperationCancel, ocp.OperationRollbackSkip,
	} {
		if s == w {
			return w
		}
	}
	return s
}

// NewTaskPoller makes a poller whose looks at one task are pollMin apart at least.
func NewTaskPoller(client *ocp.Client, pollMin time.Duration) *TaskPoller {
	return &TaskPoller{ocp: client, pollMin: max(pollMin, time.Millisecond), turn: make(chan struct{}, looksAtOnce), seed: maphash.MakeSeed()}
}

// Follow adds n to the number of tasks that are followed, which decides whether lists are worthwhile.
func (p *TaskPoller) Follow(n int) { p.followed.Add(int64(n)) }

// Due is when to look at a task that should be looked at by the moment at: not later, and together with the others, so
// that one list serves all. Its steps are powers of two of the least spacing, so that a task that is looked at seldom
// shares the moment of tasks that are looked at often.
func (p *TaskPoller) Due(at, now time.Time) time.Time {
	wait := at.Sub(now)
	if wait < p.pollMin {
		return at
	}
	step := p.pollMin
	for 2*step <= wait {
		step *= 2
	}
	// A duration, and not the moment itself: that would follow the wall clock wherever it jumps.
	return now.Add(at.Round(0).Truncate(step).Sub(now.Round(0)))
}

// Look looks at a task that was last seen as known says, and in full at the moment full. unmoved means that it has not
// changed, and that task is empty. began is a moment before which nothing of the answer was true.
func (p *TaskPoller) Look(ctx context.Context, known *events.Task, due, full time.Time) (task ocp.Task, unmoved bool, began time.Time, err error) {
	if list := p.listFor(ctx, known.Status, due, full); list != nil {
		switch {
		case list.err != nil: // no use asking for each
			return ocp.Task{}, false, list.began, list.err
		case sameAsBefore(DigestOf(known), list.tasks[known.ID]):
			return ocp.Task{}, true, list.began, nil
		}
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return ocp.Task{}, false, time.Now(), ctx.Err()
	}
	defer func() { <-p.turn }()
	began = time.Now()
	task, err = p.ocp.Task(ctx, known.ID)
	return task, false, began, err
}

// Unmoved reports whether a list shows a task as it was seen; false where there is no list.
func (p *TaskPoller) Unmoved(ctx context.Context, seen TaskDigest, due, full time.Time) bool {
	list := p.listFor(ctx, seen.status, due, full)
	return list != nil && list.err == nil && sameAsBefore(seen, list.tasks[seen.id])
}

// listFor returns the list that serves a look at a task; nil where the task is to be asked for by itself.
func (p *TaskPoller) listFor(ctx context.Context, status string, due, full time.Time) *listing {
	if p.followed.Load() < listThreshold || time.Since(full) >= fullAfter || due.IsZero() || status != ocp.StatusRunning {
		return nil
	}
	list := p.list(ctx, due)
	if list == nil || ocp.ClassOf(list.err) == ocp.Refused {
		return nil
	}
	return list
}

// list returns a list that was begun when the look was due, or later; nil where no list is made for now. Its error is
// everybody's.
func (p *TaskPoller) list(ctx context.Context, due time.Time) *listing {
	p.mu.Lock()
	now := time.Now()
	if now.Before(p.noneTill) {
		p.mu.Unlock()
		return nil
	}
	// Those that are due together differ by the time it took to say so.
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
		p.noneTill = time.Now().Add(listPause)
		p.mu.Unlock()
	}
	close(list.done)
	return list
}

func (p *TaskPoller) running(ctx context.Context) (map[int64]TaskDigest, error) {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.turn }()
	p.mu.Lock()
	before := p.read
	p.mu.Unlock()
	tasks, read := make(map[int64]TaskDigest, len(before)), make(map[uint64]TaskDigest, len(before))
	_, err := p.ocp.Tasks(ctx, ocp.TaskQuery{Status: []string{ocp.StatusRunning}, Decode: func(written []byte) (ocp.Task, error) {
		// Of most tasks OCP writes the same again and again.
		hash := maphash.Bytes(p.seed, written)
		entry, again := before[hash]
		if !again {
			task, err := ocp.DecodeTask(written)
			if err != nil {
				return ocp.Task{}, err
			}
			entry = digestOf(task)
		}
		tasks[entry.id], read[hash] = entry, entry
		return ocp.Task{ID: entry.id}, nil
	}})
	if err == nil {
		p.mu.Lock()
		p.read = read
		p.mu.Unlock()
	}
	return tasks, err
}

// worthListing reports whether another list is worthwhile: OCP shows one to this user, with subtasks, and the tasks of
// others do not make it long.
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

// sameAsBefore reports whether an entry of a list shows a running task unchanged. Entries do not say how often a subtask
// ran, so that a failed one may have failed again.
func sameAsBefore(known, entry TaskDigest) bool {
	if entry.status != known.status || entry.operation != "" && entry.operation != known.operation ||
		len(known.subtasks) == 0 || len(entry.subtasks) != len(known.subtasks) {
		return false
	}
	for i, s := range entry.subtasks {
		if known.subtasks[i].id != s.id { // they are mostly in the same order
			i = slices.IndexFunc(known.subtasks, func(old subtaskDigest) bool { return old.id == s.id })
		}
		if i < 0 || s.status != known.subtasks[i].status || s.status == ocp.StatusFailed || s.operation != "" && s.operation != known.subtasks[i].operation {
			return false
		}
	}
	return true
}
