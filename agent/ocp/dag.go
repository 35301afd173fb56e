package ocp

import (
	"cmp"
	"container/heap"
	"slices"
)

// arrange puts subtasks, whose ids are unique, in an order in which they can run, and makes
// both ends of each edge agree. OCP lists subtasks out of order and leaves ends of edges
// out (observed). The result does not depend on the order of the input.
//
// Edges to unknown subtasks, and from a subtask to itself, are dropped. If the edges do not
// tell the order, because there are none or they form a cycle, the series numbers do, or
// else the ids.
func arrange(subtasks []Subtask) []Subtask {
	slices.SortFunc(subtasks, bySeries)
	if connect(subtasks) > 0 {
		if order := kahn(subtasks); len(order) == len(subtasks) {
			return order
		}
	}
	if slices.ContainsFunc(subtasks, func(s Subtask) bool { return s.SeriesID == nil }) {
		slices.SortFunc(subtasks, func(a, b Subtask) int { return cmp.Compare(a.ID, b.ID) })
	}
	return subtasks
}

// bySeries orders by series number, those without one last, and then by id.
func bySeries(a, b Subtask) int {
	switch {
	case a.SeriesID != nil && b.SeriesID != nil:
		return cmp.Or(cmp.Compare(*a.SeriesID, *b.SeriesID), cmp.Compare(a.ID, b.ID))
	case a.SeriesID != nil:
		return -1
	case b.SeriesID != nil:
		return 1
	}
	return cmp.Compare(a.ID, b.ID)
}

// connect completes each edge from the end that has it, sorts the lists, removes repeats,
// and returns how many edges there are.
func connect(subtasks []Subtask) int {
	type edge struct{ up, down int64 }
	edges := map[edge]struct{}{}
	position := positions(subtasks)
	for _, s := range subtasks {
		for _, up := range s.Upstreams {
			edges[edge{up, s.ID}] = struct{}{}
		}
		for _, down := range s.Downstreams {
			edges[edge{s.ID, down}] = struct{}{}
		}
	}
	for i := range subtasks {
		subtasks[i].Upstreams, subtasks[i].Downstreams = nil, nil
	}
	known := 0
	for e := range edges {
		up, upKnown := position[e.up]
		down, downKnown := position[e.down]
		if !upKnown || !downKnown || up == down {
			continue
		}
		known++
		subtasks[up].Downstreams = append(subtasks[up].Downstreams, e.down)
		subtasks[down].Upstreams = append(subtasks[down].Upstreams, e.up)
	}
	for i := range subtasks {
		slices.Sort(subtasks[i].Upstreams)
		slices.Sort(subtasks[i].Downstreams)
	}
	return known
}

// kahn sorts topologically. Subtasks that are ready keep the order of the input. Subtasks
// on or behind a cycle are missing from the result.
func kahn(subtasks []Subtask) []Subtask {
	position := positions(subtasks)
	waiting := make([]int, len(subtasks)) // upstreams not yet in the order
	var ready intHeap
	for i, s := range subtasks {
		if waiting[i] = len(s.Upstreams); waiting[i] == 0 {
			heap.Push(&ready, i)
		}
	}
	order := make([]Subtask, 0, len(subtasks))
	for len(ready) > 0 {
		s := subtasks[heap.Pop(&ready).(int)]
		order = append(order, s)
		for _, id := range s.Downstreams {
			down := position[id]
			if waiting[down]--; waiting[down] == 0 {
				heap.Push(&ready, down)
			}
		}
	}
	return order
}

func positions(subtasks []Subtask) map[int64]int {
	position := make(map[int64]int, len(subtasks))
	for i, s := range subtasks {
		position[s.ID] = i
	}
	return position
}

// intHeap is a heap for container/heap, the smallest int first.
type intHeap []int

func (h intHeap) Len() int           { return len(h) }
func (h intHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h intHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *intHeap) Push(x any)        { *h = append(*h, x.(int)) }
func (h *intHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
