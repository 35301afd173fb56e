package agent

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
	// listFrom is how many followed tasks make one list of OCP's running tasks cheaper
	// than a look at each, also while one of them moves.
	listFrom = 4
	// fullAfter is how long the list alone is believed: one that is behind hides the
	// end of a task for no longer.
	fullAfter = 5 * time.Minute
	// listPause is for how long no list is made after one that was of no use.
	listPause = time.Minute
	// looksAtOnce keeps the looks that wait for their turn out of the client's budget: in
	// there they would stand before every call, and give up after its timeout.
	looksAtOnce = 16
)

// looks shows OCP's tasks to the operations that follow them. Where these are many,
// one list of what runs serves all whose look is due, whatever the number of tasks and
// clusters; a task of its own is asked for only where the list does not show it as it
// was. All methods may be called concurrently.
type looks struct {
	ocp       *ocp.Client
	pollMin   time.Duration
	following atomic.Int64  // tasks
	turn      chan struct{} // a place for each look on its way; who waits for longest is next

	mu       sync.Mutex
	latest   *listing
	noneTill time.Time
	read     map[uint64]listed // the entries of the latest list, by the hash of how OCP wrote them
	seed     maphash.Seed      // of the hashes
}

// listing is one list of OCP's running tasks. The fields below done are set once it is
// closed.
type listing struct {
	began time.Time
	done  chan struct{}
	tasks map[int64]listed
	err   error
}

// listed is what an entry of a list says of how far a task is, and no more: lists are
// long, and kept until the next one.
type listed struct {
	id                int64
	status, operation string
	subtasks          []listedSubtask
}

type listedSubtask struct {
	id                int64
	status, operation string
}

func listedOf(t ocp.Task) listed {
	entry := listed{id: t.ID, status: word(t.Status), operation: word(t.Operation), subtasks: make([]listedSubtask, 0, len(t.Subtasks))}
	for _, s := range t.Subtasks {
		entry.subtasks = append(entry.subtasks, listedSubtask{s.ID, word(s.Status), word(s.Operation)})
	}
	return entry
}

func newLooks(client *ocp.Client, pollMin time.Duration) *looks {
	return &looks{ocp: client, pollMin: max(pollMin, time.Millisecond), turn: make(chan struct{}, looksAtOnce), seed: maphash.MakeSeed()}
}

// due is when to look where the machine says at: not later, and at the same moment as
// the others, so that one list serves all. Its steps are powers of two of the least
// spacing, so that tasks that are looked at seldom wait for those looked at often.
func (l *looks) due(at, now time.Time) time.Time {
	wait := at.Sub(now)
	if wait < l.pollMin {
		return at
	}
	step := l.pollMin
	for 2*step <= wait {
		step *= 2
	}
	// A duration, and not the moment itself: that would follow the wall clock wherever it jumps.
	return now.Add(at.Round(0).Truncate(step).Sub(now.Round(0)))
}

// task looks at a task that was last seen as known says, in full at the moment full.
// unmoved means that it is as it was, and that task is empty. began is a moment
// before which nothing of what is returned was true.
func (l *looks) task(ctx context.Context, known *events.Task, due, full time.Time) (task ocp.Task, unmoved bool, began time.Time, err error) {
	if list := l.listFor(ctx, known.Status, due, full); list != nil {
		switch {
		case list.err != nil: // no use asking for each
			return ocp.Task{}, false, list.began, list.err
		case asKnown(seenOf(known), list.tasks[known.ID]):
			return ocp.Task{}, true, list.began, nil
		}
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return ocp.Task{}, false, time.Now(), ctx.Err()
	}
	defer func() { <-l.turn }()
	began = time.Now()
	task, err = l.ocp.Task(ctx, known.ID)
	return task, false, began, err
}

// unmoved reports whether a list shows a task as it was seen; false where there is none.
func (l *looks) unmoved(ctx context.Context, id int64, seen listed, due, full time.Time) bool {
	list := l.listFor(ctx, seen.status, due, full)
	return list != nil && list.err == nil && asKnown(seen, list.tasks[id])
}

// listFor returns the list that a look at a task is taken by; nil where it is to be
// asked for by itself.
func (l *looks) listFor(ctx context.Context, status string, due, full time.Time) *listing {
	if l.following.Load() < listFrom || time.Since(full) >= fullAfter || due.IsZero() || status != ocp.StatusRunning {
		return nil
	}
	list := l.list(ctx, due)
	if list == nil || ocp.ClassOf(list.err) == ocp.Refused {
		return nil
	}
	return list
}

// list returns one that was begun when the look was due, or later; nil where none is
// made for now. Its error is everybody's.
func (l *looks) list(ctx context.Context, due time.Time) *listing {
	l.mu.Lock()
	now := time.Now()
	if now.Before(l.noneTill) {
		l.mu.Unlock()
		return nil
	}
	// Those that are due together differ by the time it took to say so.
	if last := l.latest; last != nil && last.began.Add(time.Millisecond).After(due) && now.Sub(last.began) < l.pollMin {
		l.mu.Unlock()
		select {
		case <-last.done:
			return last
		case <-ctx.Done():
			return &listing{began: now, err: ctx.Err()}
		}
	}
	list := &listing{began: now, done: make(chan struct{})}
	l.latest = list
	l.mu.Unlock()

	list.tasks, list.err = l.running(ctx)
	if !l.useful(list.tasks, list.err) {
		l.mu.Lock()
		l.noneTill = time.Now().Add(listPause)
		l.mu.Unlock()
	}
	close(list.done)
	return list
}

func (l *looks) running(ctx context.Context) (map[int64]listed, error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-l.turn }()
	l.mu.Lock()
	before := l.read
	l.mu.Unlock()
	tasks, read := make(map[int64]listed, len(before)), make(map[uint64]listed, len(before))
	_, err := l.ocp.Tasks(ctx, ocp.TaskQuery{Status: []string{ocp.StatusRunning}, Decode: func(written []byte) (ocp.Task, error) {
		// Of most tasks OCP writes the same again and again.
		hash := maphash.Bytes(l.seed, written)
		entry, again := before[hash]
		if !again {
			task, err := ocp.DecodeTask(written)
			if err != nil {
				return ocp.Task{}, err
			}
			entry = listedOf(task)
		}
		tasks[entry.id], read[hash] = entry, entry
		return ocp.Task{ID: entry.id}, nil
	}})
	if err == nil {
		l.mu.Lock()
		l.read = read
		l.mu.Unlock()
	}
	return tasks, err
}

// useful reports whether it is worth while to make another list: OCP shows one to this
// user, with subtasks, and it is not long by the tasks of others.
func (l *looks) useful(all map[int64]listed, err error) bool {
	if err != nil {
		return ocp.ClassOf(err) != ocp.Refused
	}
	bare := len(all) > 0
	for _, t := range all {
		bare = bare && len(t.subtasks) == 0
	}
	return !bare && int64(len(all)/ocp.PageSize) < l.following.Load()
}

// asKnown reports whether an entry of a list shows a running task as it was. Entries
// do not say how often a subtask ran, so that a failed one may have failed again.
func asKnown(known, entry listed) bool {
	if entry.status != known.status || entry.operation != "" && entry.operation != known.operation ||
		len(known.subtasks) == 0 || len(entry.subtasks) != len(known.subtasks) {
		return false
	}
	for i, s := range entry.subtasks {
		if known.subtasks[i].id != s.id { // they are mostly in the same order
			i = slices.IndexFunc(known.subtasks, func(old listedSubtask) bool { return old.id == s.id })
		}
		if i < 0 || s.status != known.subtasks[i].status || s.status == ocp.StatusFailed || s.operation != "" && s.operation != known.subtasks[i].operation {
			return false
		}
	}
	return true
}
