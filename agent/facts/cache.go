package facts

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
)

const (
	// errorMaxAge is how long all callers get the error of a reading that failed: a storm of requests must not become a
	// storm of calls.
	errorMaxAge = time.Second
	// readPauseFactor times the duration of a reading is the pause before the next one, so that readings take no more
	// of a slow OCP's time than of a quick one's. The pause is readPauseMax at most.
	readPauseFactor = 10
	readPauseMax    = time.Second
	// minPruneAt is the number of entries from which pruning is worthwhile.
	minPruneAt = 64
)

// cached is a value that many callers ask for; one of them reads it for all. The zero value has not been read yet.
type cached[T any] struct {
	reading sync.Mutex // held during a reading; guards all below
	value   T
	err     error
	began   time.Time     // when the latest reading began; zero: no reading counts
	pause   time.Duration // the least time from began to the beginning of the next reading
}

// get returns the value if it is good enough, and otherwise reads it again. A value whose reading began while get
// waited counts as of age 0, however long the reading took.
func (c *cached[T]) get(
	ctx context.Context, good func(value T, age time.Duration) bool, read func() (T, error),
) (T, error) {
	asked := time.Now()
	c.reading.Lock()
	defer c.reading.Unlock()
	var none T
	if !c.began.IsZero() {
		age := time.Since(c.began)
		if c.began.After(asked) { // it is as fresh as if this caller had read it
			age = 0
		}
		if c.err == nil && good(c.value, age) {
			return c.value, nil
		}
		if c.err != nil && age < errorMaxAge {
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
	if ctx.Err() != nil { // the reading was cut off, which says nothing about OCP
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
// if the latest reading failed, and if no reading counts.
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

// outdated reports whether the latest reading began more than maxAge ago, and nobody reads the value now.
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
	maxAge time.Duration // an older entry is of no use

	mu      sync.Mutex // guards all below; never held while OCP is asked
	entries map[int64]*cached[T]
	pruneAt int // number of entries
}

// of returns the entry of a cluster, or creates it.
func (b *byCluster[T]) of(cluster int64) *cached[T] {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.entries) >= b.pruneAt {
		maps.DeleteFunc(b.entries, func(_ int64, c *cached[T]) bool { return c.outdated(b.maxAge) })
		b.pruneAt = max(minPruneAt, 2*len(b.entries))
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

// peek is cached.peek for a cluster; ok is false if the cluster has no entry.
func (b *byCluster[T]) peek(cluster int64) (value T, age time.Duration, ok bool) {
	b.mu.Lock()
	c := b.entries[cluster]
	b.mu.Unlock()
	if c == nil {
		return value, 0, false
	}
	return c.peek()
}
