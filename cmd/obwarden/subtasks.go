package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/obwarden/obwarden/events"
)

// done is the number of subtasks that have succeeded.
func done(t events.Task) int {
	n := 0
	for _, s := range t.Subtasks {
		if s.Status == "SUCCESSFUL" {
			n++
		}
	}
	return n
}

// nameColumn is the column behind the longest name, where the bar and the times begin.
func (s style) nameColumn(t events.Task) int {
	longest := textWidth(taskName(t))
	if s.narrow() {
		longest = 0
	}
	depths := depths(t)
	parallel := map[int]int{}
	for _, d := range depths {
		parallel[d]++
	}
	for _, sub := range t.Subtasks {
		indent := 5
		if parallel[depths[sub.ID]] > 1 {
			indent = 7
		}
		longest = max(longest, indent+textWidth(sub.Name))
	}
	column := longest + 5
	if s.width > 0 {
		column = min(column, s.width-8)
		if !s.narrow() {
			column = min(column, s.width-8-12) // room for a bar
		}
	}
	return column
}

func taskName(t events.Task) string { return fmt.Sprintf("%s · task %d", t.Name, t.ID) }

// taskTitle is the line above the subtasks: the task's name, its bar and how many subtasks are done. In a narrow
// terminal it takes two lines.
func (s style) taskTitle(op events.Operation) []line {
	t := *op.Task
	i := barInk(op)
	count := fmt.Sprintf("  %d of %d", done(t), len(t.Subtasks))
	if unusual := unusualOperation(t.Operation); unusual != "" {
		count += " · " + unusual
	}
	if s.narrow() {
		title := line{{"  " + taskName(t), bold}}
		return []line{title, s.bar(line{{"  ", ""}}, t, s.width-2-textWidth(count), i).with(count, "")}
	}
	column := s.nameColumn(t)
	columns := barColumns
	if s.width > 0 {
		columns = min(columns, s.width-column-textWidth(count))
	}
	title := line{{pad(cut("  "+taskName(t), column-2), column), bold}}
	return []line{s.bar(title, t, columns, i).with(count, "")}
}

func barInk(op events.Operation) ink {
	switch {
	case op.State == events.Succeeded:
		return green
	case op.State == events.Failed, op.Task.Status == "FAILED":
		return red
	case !op.Task.StalledAt.IsZero():
		return yellow
	}
	return cyan
}

// bar draws the task's progress behind l, with a resolution of half a column.
func (s style) bar(l line, t events.Task, columns int, i ink) line {
	columns = max(columns, 4)
	if len(t.Subtasks) == 0 {
		return l.with(strings.Repeat("─", columns), dim)
	}
	halves := 2 * columns * done(t) / len(t.Subtasks)
	filled := strings.Repeat("━", halves/2)
	if halves%2 == 1 {
		filled += "╸"
	}
	return l.with(filled, i).with(strings.Repeat("─", columns-textWidth(filled)), dim)
}

// depths is, for each subtask, the length of the longest path that leads to it from a root of the DAG. Subtasks of the
// same depth may run at the same time.
func depths(t events.Task) map[int64]int {
	depth := make(map[int64]int, len(t.Subtasks))
	for _, s := range t.Subtasks { // which are in topological order
		for _, up := range s.Upstreams {
			if d, ok := depth[up]; ok {
				depth[s.ID] = max(depth[s.ID], d+1)
			}
		}
		depth[s.ID] += 0
	}
	return depth
}

// row is one line of the DAG: a subtask, or a note that stands for several subtasks which are folded away.
type row struct {
	subtask events.Subtask
	depth   int
	folded  int  // number of subtasks that the note stands for; 0: the row is a subtask
	done    bool // of a note: its subtasks are done, not still to come
}

// subtasks draws the DAG with one line for each subtask. A bracket joins the subtasks that may run in parallel. If
// there is not room for all of them, the finished subtasks are folded first, then the ones that will run last.
func (s style) subtasks(t events.Task, now time.Time, room int) []line {
	depth := depths(t)
	rows := make([]row, len(t.Subtasks))
	for i, sub := range t.Subtasks {
		rows[i] = row{subtask: sub, depth: depth[sub.ID]}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return a.depth - b.depth })
	rows = fold(rows, room)
	column := s.nameColumn(t)
	lines := make([]line, len(rows))
	for i, r := range rows {
		lines[i] = s.row(r, line{{"  " + branches(rows, i) + " ", dim}}, column, now)
	}
	return lines
}

// branches are the box-drawing characters in front of row i: the trunk of the tree and, for subtasks that may run in
// parallel, the bracket around them.
func branches(rows []row, i int) string {
	parallel := func(j int) bool {
		return j >= 0 && j < len(rows) && rows[j].folded == 0 && rows[i].folded == 0 && rows[j].depth == rows[i].depth
	}
	groupEnd := i
	for parallel(groupEnd + 1) {
		groupEnd++
	}
	endsTree := groupEnd == len(rows)-1 // nothing follows row i and its group
	trunk := "├─"
	if endsTree {
		trunk = "└─"
	}
	if !parallel(i - 1) {
		if parallel(i + 1) {
			return trunk + "┬─"
		}
		return trunk
	}
	trunk = "│ "
	if endsTree {
		trunk = "  "
	}
	if i == groupEnd {
		return trunk + "└─"
	}
	return trunk + "├─"
}

func isDone(status string) bool { return status == "SUCCESSFUL" }

func isPending(status string) bool { return status == "PENDING" || status == "READY" || status == "" }

// fold hides rows one at a time until the remaining ones fit into room.
func fold(rows []row, room int) []row {
	if len(rows) <= room {
		return rows
	}
	var mayHide []int // indexes of rows, the first to be hidden first
	for i, r := range rows {
		if isDone(r.subtask.Status) {
			mayHide = append(mayHide, i)
		}
	}
	for i, r := range slices.Backward(rows) {
		if isPending(r.subtask.Status) {
			mayHide = append(mayHide, i)
		}
	}
	hidden := make([]bool, len(rows))
	for _, i := range mayHide {
		hidden[i] = true
		if folded := foldHidden(rows, hidden); len(folded) <= room {
			return folded
		}
	}
	return foldHidden(rows, hidden)
}

// foldHidden replaces consecutive hidden rows by one note, unless some of them are done and others still to come.
func foldHidden(rows []row, hidden []bool) []row {
	var folded []row
	for i, r := range rows {
		if !hidden[i] {
			folded = append(folded, r)
			continue
		}
		d := isDone(r.subtask.Status)
		if n := len(folded); i > 0 && hidden[i-1] && folded[n-1].done == d {
			folded[n-1].folded++
			continue
		}
		folded = append(folded, row{folded: 1, done: d, depth: -1})
	}
	return folded
}

// row appends a subtask, or the note about folded ones, to the branches in l.
func (s style) row(r row, l line, column int, now time.Time) line {
	if r.folded > 0 {
		if r.done {
			return l.with("✓", green).with(fmt.Sprintf(" %d done", r.folded), dim)
		}
		return l.with(fmt.Sprintf("○ %d to come", r.folded), dim)
	}
	sub := r.subtask
	icon, i, name := s.subtaskLook(sub)
	l = l.with(icon, i)
	l = l.with(" "+pad(cut(sub.Name, column-l.width()-3), column-l.width()-1), name)
	took := subtaskTook(sub, now)
	l = l.with(padLeft(took, 7), timeInk(sub))
	if extras := subtaskExtras(sub, s.full); extras != "" {
		l = l.with("   "+extras, yellow)
	}
	return l
}

func timeInk(sub events.Subtask) ink {
	if isDone(sub.Status) {
		return dim
	}
	return ""
}

// subtaskLook is a subtask's icon and the inks of icon and name.
func (s style) subtaskLook(sub events.Subtask) (icon string, i, name ink) {
	switch {
	case isDone(sub.Status) && (sub.Operation == "ROLLBACK" || sub.Operation == "ROLLBACK_SKIP"):
		return "↺", yellow, ""
	case isDone(sub.Status) && sub.Operation == "SKIP":
		return "↷", yellow, ""
	case isDone(sub.Status):
		return "✓", green, ""
	case sub.Status == "FAILED":
		return "✗", red, red
	case sub.Status == "RUNNING" && sub.Operation == "RETRY" && !s.spin:
		return "↻", cyan, bold
	case sub.Status == "RUNNING":
		return s.dot(), cyan, bold
	case sub.Status == "CANCELING":
		return "⊘", yellow, bold
	case isPending(sub.Status):
		return "○", dim, dim
	}
	return "?", yellow, ""
}

// subtaskTook is how long a subtask took, or has been running. A ~ marks times that the agent measured, not OCP.
func subtaskTook(sub events.Subtask, now time.Time) string {
	about := ""
	if sub.Timing == events.TimingObserved {
		about = "~"
	}
	switch {
	case isPending(sub.Status):
		return ""
	case sub.DurationSeconds > 0:
		return about + shortDuration(time.Duration(sub.DurationSeconds*float64(time.Second)))
	case sub.StartedAt.IsZero():
		return ""
	case !sub.FinishedAt.IsZero():
		return about + shortDuration(sub.FinishedAt.Sub(sub.StartedAt))
	case isDone(sub.Status) || sub.Status == "FAILED":
		return ""
	}
	return about + shortDuration(now.Sub(sub.StartedAt))
}

// subtaskExtras are the remarks behind a subtask's time: an unusual status or operation, repeated runs, its id.
func subtaskExtras(sub events.Subtask, full bool) string {
	var extras []string
	switch sub.Status {
	case "SUCCESSFUL", "FAILED", "RUNNING", "PENDING", "READY", "":
	default:
		extras = append(extras, strings.ToLower(sub.Status))
	}
	if o := unusualOperation(sub.Operation); o != "" {
		extras = append(extras, o)
	}
	if sub.Runs > 1 {
		extras = append(extras, fmt.Sprintf("run %d", sub.Runs))
	}
	if full {
		extras = append(extras, fmt.Sprint(sub.ID))
	}
	return strings.Join(extras, " · ")
}

// unusualOperation is what OCP was told to do with a task or subtask, if that is anything but to execute it.
func unusualOperation(operation string) string {
	if operation == "EXECUTE" {
		return ""
	}
	return strings.ReplaceAll(strings.ToLower(operation), "_", " ")
}
