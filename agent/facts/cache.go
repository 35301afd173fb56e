package facts

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
)

const (
	// errorShared is how long everybody who asks gets the error of a reading that failed: a storm of requests must
	// not become a storm of calls.
	errorShared = time.Second
	// readPauseFactor is how many times as long as a reading took the value is not read again, so that readings cost
	// a slow OCP no greater a share of its time than a quick one. The pause is readPauseMax at most.
	readPauseFactor = 10
	readPauseMax    = time.Second
	// prunedFrom is the number of entries from which pruning is worthwhile.
	prunedFrom = 64
)

// cached is a value that many ask for and one of them reads for all. The zero value has not been read yet.
type cached[T any] struct {
	reading sync.Mutex // held for as long as a reading takes; guards all below
	value   T
	err     error
	began   time.Time     // when the latest reading began; zero: there is none that counts
	pause   time.Duration // from began to the beginning of the next reading, at least
}

// get returns the value if it is good enough, else it reads the value anew. A value that was read while get waited
// counts as of age 0, however long the reading took.
func (c *cached[T]) get(
	ctx context.Context, good func(value T, age time.Duration) bool, read func() (T, error),
) (T, error) {
	asked := time.Now()
	c.reading.Lock()
	defer c.reading.Unlock()
	var none T
	if !c.began.IsZero() {
		age := time.Since(c.began)
		if c.began.After(asked) { // as fresh as a reading of its own would have been
			age = 0
		}
		if c.err == nil && good(c.value, age) {
			return c.value, nil
		}
		if c.err != nil && age < errorShared {
			return none, c.err
		}
		if rest := time.Until(c.began.Add(c.pause)); rest > 0 {
			select {
			case <-ctx.Done():
				return none, ctx.Err()
			case <-time.After(rest):
			}
		}
	}
	c.began = time.Now()
	value, err := read()
	if ctx.Err() != nil { // cut off, which says nothing about OCP
		c.began = time.Time{}
		return none, ctx.Err()
	}
	c.value, c.err = value, err
	c.pause = min(readPauseMax, readPauseFactor*time.Since(c.began))
	if ocp.ClassOf(err) == ocp.NotSent { // OCP was not asked: ask it as soon as that is possible
		c.began = time.Time{}
	}
	return value, err
}

// peek returns the value and its age without waiting and without reading. ok is false while somebody reads the value,
// and where the latest reading failed or none counts.
func (c *cached[T]) peek() (value T, age time.Duration, ok bool) {
	if !c.reading.TryLock() {
		return value, 0, false
	}
	defer c.reading.Unlock()
	if c.err != nil || c.began.IsZero() {
		return value, 0, false
	}
	return c.value, time.Since(c.began), true
}

// outdated reports whether nobody reads the value now and its latest reading began more than maxAge ago.
func (c *cached[T]) outdated(maxAge time.Duration) bool {
	if !c.reading.TryLock() {
		return false
	}
	defer c.reading.Unlock()
	return time.Since(c.began) > maxAge
}

// byCluster is a cached value for each cluster. A request may name any cluster, also one that does not exist, so
// outdated entries are pruned whenever there are twice as many entries as the last pruning left.
type byCluster[T any] struct {
	maxAge time.Duration // an entry that is older serves nobody

	mu      sync.Mutex // guards all below; never held while OCP is asked
	entries map[int64]*cached[T]
	pruneAt int // number of entries
}

// of returns the entry of a cluster, a new one where there is none.
func (b *byCluster[T]) of(cluster int64) *cached[T] {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.entries) >= b.pruneAt {
		maps.DeleteFunc(b.entries, func(_ int64, c *cached[T]) bool { return c.outdated(b.maxAge) })
		b.pruneAt = max(prunedFrom, 2*len(b.entries))
	}
	if b.entries == nil {
		b.entries = map[int64]*cached[T]{}
	}
	c := b.entries[cluster]
	if c == nil {
		c = &cached[T]{}
		b.entries[cluster] = c
	}
	return c
}

// peek is cached.peek for a cluster; ok is false where the cluster has no entry.
func (b *byCluster[T]) peek(cluster int64) (value T, age time.Duration, ok bool) {
	b.mu.Lock()
	c := b.entries[cluster]
	b.mu.Unlock()
	if c == nil {
		return value, 0, false
	}
	return c.peek()
}
