package policy

import (
	"cmp"
	"iter"
	"slices"
	"time"
)

// Containing returns the name of the first window that contains t; empty if none does.
func Containing(windows []Window, t time.Time) string {
	for i := range windows {
		for j := range windows[i].Intervals {
			if windows[i].Intervals[j].ContainsTime(t) {
				return cmp.Or(windows[i].Name, "a window without a name")
			}
		}
	}
	return ""
}

// open reports whether the windows let a server be taken down at t.
func (l *Limits) open(t time.Time) bool {
	return Containing(l.Block, t) == "" && (len(l.Allow) == 0 || Containing(l.Allow, t) != "")
}

// NextOpen returns the first moment after t at which the windows let a server be taken
// down; zero if there is none within a year. At t itself they must not.
//
// It looks at each minute of the next hour, because that is when the agent looks again.
// After that hour it looks only at the moments when an interval can begin or end: its
// times of day, and midnight, where it is.
func (l *Limits) NextOpen(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Minute)
	for minutes := 1; minutes <= 60; minutes++ {
		if at := t.Add(time.Duration(minutes) * time.Minute); l.open(at) {
			return at
		}
	}
	edges := l.edges()
	var next time.Time
	for day := range 367 {
		noon := t.AddDate(0, 0, day)
		// Days begin at different moments in different places, two days apart at most.
		if !next.IsZero() && next.Before(noon.AddDate(0, 0, -2)) {
			break
		}
		for e := range edges {
			year, month, date := noon.In(e.in).Date()
			at := time.Date(year, month, date, 0, e.minute, 0, 0, e.in).UTC()
			if at.After(t) && (next.IsZero() || at.Before(next)) && l.open(at) {
				next = at
			}
		}
	}
	return next
}

// edge is a minute of the day, in one place, at which an interval can begin or end.
type edge struct {
	in     *time.Location
	minute int
}

func (l *Limits) edges() map[edge]bool {
	edges := map[edge]bool{}
	for _, w := range slices.Concat(l.Allow, l.Block) {
		for _, interval := range w.Intervals {
			in := time.UTC
			if interval.Location != nil && interval.Location.Location != nil {
				in = interval.Location.Location
			}
			edges[edge{in, 0}] = true
			for _, times := range interval.Times {
				edges[edge{in, times.StartMinute}] = true
				edges[edge{in, times.EndMinute}] = true
			}
		}
	}
	return edges
}

// Spent returns how much of the budget is used at now, given when operations started
// and, if all of it is used, when the next share is free; zero if one is free now.
func (b Budget) Spent(starts iter.Seq[time.Time], now time.Time) (n int, free time.Time) {
	if b.Operations <= 0 {
		return 0, time.Time{}
	}
	over := now.Add(-b.Window)
	for at := range starts {
		if at.After(over) {
			n++
		}
	}
	if n < b.Operations {
		return n, time.Time{}
	}
	lately := slices.SortedFunc(starts, time.Time.Compare)
	return n, lately[len(lately)-b.Operations].Add(b.Window)
}
