package agent

import (
	"container/heap"
	"time"
)

// queue has operations in the order of a time of theirs: whose is earliest is found
// without a look at all of them. The caller holds Agent.mu.
type queue struct {
	of    func(*held) time.Time
	place func(*held) *int // of an operation in all, counted from 1; 0: it is not in it
	all   []*held
}

// put takes h in, or to its place where its time has changed.
func (q *queue) put(h *held) {
	if i := *q.place(h); i > 0 {
		heap.Fix(q, i-1)
		return
	}
	heap.Push(q, h)
}

// drop takes h out, if it is in.
func (q *queue) drop(h *held) {
	if i := *q.place(h); i > 0 {
		heap.Remove(q, i-1)
	}
}

// first is the earliest time; zero where there is no operation.
func (q *queue) first() time.Time {
	if len(q.all) == 0 {
		return time.Time{}
	}
	return q.of(q.all[0])
}

// The rest is for container/heap.

func (q *queue) Len() int           { return len(q.all) }
func (q *queue) Less(i, j int) bool { return q.of(q.all[i]).Before(q.of(q.all[j])) }

func (q *queue) Swap(i, j int) {
	q.all[i], q.all[j] = q.all[j], q.all[i]
	*q.place(q.all[i]), *q.place(q.all[j]) = i+1, j+1
}

func (q *queue) Push(h any) {
	q.all = append(q.all, h.(*held))
	*q.place(h.(*held)) = len(q.all)
}

func (q *queue) Pop() any {
	last := len(q.all) - 1
	h := q.all[last]
	q.all[last] = nil
	q.all = q.all[:last]
	*q.place(h) = 0
	return h
}
