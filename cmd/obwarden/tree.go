package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/obwarden/obwarden/events"
)

// style is what a tree is drawn for. Width and height 0: no limit.
type style struct {
	width, height int
	color         bool
	spin          bool // running things turn, frame by frame; else they are a still dot
	frame         int
	full          bool // every fact, not only what one wants to see while it runs
}

const (
	barColumns   = 28
	narrowBelow  = 64 // columns, below which the progress bar has a line of its own
	crampedBelow = 12 // rows, below which blank lines and the like are left out
	tailLines    = 10 // of a failed subtask's log, in a tree that is not full
	tailNotes    = 3  // warnings, in a tree that is not full
	labelColumn  = 13
)

// ink is the SGR code of a piece of text; empty: as it is. The 16 colours only, so
// that a tree looks at home in everybody's terminal.
type ink string

const (
	dim    ink = "2"
	bold   ink = "1"
	red    ink = "31"
	green  ink = "32"
	yellow ink = "33"
	cyan   ink = "36"
)

type span struct {
	text string
	ink  ink
}

// line is one line of a tree before it is cut to the width and coloured.
type line []span

func (l line) with(text string, i ink) line { return append(l[:len(l):len(l)], span{text, i}) }

func (l line) width() int {
	w := 0
	for _, s := range l {
		w += textWidth(s.text)
	}
	return w
}

func (s style) render(l line) string {
	l = l.trimmed()
	if s.width > 0 && l.width() > s.width {
		l = l.cut(s.width)
	}
	var b strings.Builder
	for _, p := range l {
		if s.color && p.ink != "" && strings.TrimSpace(p.text) != "" {
			fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", p.ink, p.text)
		} else {
			b.WriteString(p.text)
		}
	}
	return b.String()
}

// trimmed is l without blanks at its end.
func (l line) trimmed() line {
	for n := len(l) - 1; n >= 0; n-- {
		if text := strings.TrimRight(l[n].text, " "); text != "" {
			return l[:n:n].with(text, l[n].ink)
		}
	}
	return nil
}

func (l line) cut(width int) line {
	var short line
	left := width
	for _, p := range l {
		w := textWidth(p.text)
		if w >= left { // what follows would not be seen, so there must be an ellipsis
			if w > left || p.text == "" {
				return short.with(cut(p.text, left), p.ink)
			}
			return short.with(cut(p.text+" ", left), p.ink)
		}
		short, left = short.with(p.text, p.ink), left-w
	}
	return short
}

// renderTree draws an operation: what it is, how far OCP's task has come, subtask
// by subtask, and what there is to say about it. It is pure, and safe to print
// whatever the operation's texts hold.
func renderTree(op events.Operation, now time.Time, s style) []string {
	op = cleaned(op)
	head := s.header(op, now)
	var foot []line
	if notes := s.notes(op, now); len(notes) > 0 {
		foot = append(append(foot, nil), notes...)
	}
	if s.full {
		foot = append(append(foot, nil), s.facts(op)...)
	}
	lines := head
	if op.Task != nil {
		title := s.taskTitle(op, now)
		if !s.cramped() {
			lines = append(lines, nil)
		}
		lines = append(lines, title...)
		rows := s.height - 1 - len(lines) - len(foot)
		if s.height == 0 {
			rows = len(op.Task.Subtasks)
		}
		lines = append(lines, s.subtasks(*op.Task, now, max(rows, 1))...)
	}
	lines = append(lines, foot...)
	if s.height > 0 && len(lines) > s.height-1 {
		lines = lines[:s.height-1]
	}
	rendered := make([]string, len(lines))
	for i, l := range lines {
		rendered[i] = s.render(l)
	}
	return rendered
}

// stateInk and stateIcon are an operation's state at a glance.
func stateInk(state events.State) ink {
	switch state {
	case events.Succeeded:
		return green
	case events.Failed:
		return red
	case events.Waiting, events.Stalled, events.Rejected, events.Expired, events.Cancelled:
		return yellow
	case events.Duplicate:
		return dim
	}
	return cyan
}

func (s style) stateIcon(state events.State) string {
	switch state {
	case events.Succeeded:
		return "✓"
	case events.Failed:
		return "✗"
	case events.Waiting:
		return "◔"
	case events.Rejected, events.Expired, events.Cancelled:
		return "⊘"
	}
	return s.dot()
}

// dot marks what runs.
func (s style) dot() string {
	const turning = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
	if !s.spin {
		return "●"
	}
	frames := []rune(turning)
	return string(frames[s.frame%len(frames)])
}

func (s style) header(op events.Operation, now time.Time) []line {
	i := stateInk(op.State)
	took := wholeDuration(now.Sub(op.RequestedAt))
	if op.State.Final() {
		took = "in " + shortDuration(op.EndedAt.Sub(op.RequestedAt))
	}
	what := line{}.with(s.stateIcon(op.State), i).with(" "+subject(op), bold)
	how := line{}.with(string(op.State), i).with(" "+took, "")
	if op.Request.DryRun {
		how = how.with("   dry run", yellow)
	}
	var lines []line
	for _, part := range []line{what, how, {{op.OperationID, dim}}} { // on one line as far as it fits
		if n := len(lines) - 1; n >= 0 && (s.width == 0 || lines[n].width()+3+part.width() <= s.width) {
			lines[n] = append(lines[n].with("   ", ""), part...)
		} else if n >= 0 {
			lines = append(lines, append(line{{"  ", ""}}, part...))
		} else {
			lines = append(lines, part)
		}
	}
	if s.cramped() {
		return lines[:1]
	}
	why := op.Request.Reason
	if by := op.Request.RequestedBy; by != "" && why != "" {
		why = by + ": " + why
	} else if by != "" {
		why = "requested by " + by
	}
	if op.Duplicates > 0 {
		why = joined(" · ", why, fmt.Sprintf("requested %d times", op.Duplicates+1))
	}
	if why != "" && !s.full {
		lines = append(lines, line{{"  " + why, dim}})
	}
	return lines
}

// subject says what an operation does, in one breath.
func subject(op events.Operation) string {
	number := func(id int64) string {
		if id == 0 {
			return "?"
		}
		return strconv.FormatInt(id, 10)
	}
	return fmt.Sprintf("%s server %s of cluster %s", op.Kind, number(op.ServerID), number(op.ClusterID))
}

func done(t events.Task) int {
	n := 0
	for _, s := range t.Subtasks {
		if s.Status == "SUCCESSFUL" {
			n++
		}
	}
	return n
}

// cramped: there is no room for what is merely good to know.
func (s style) cramped() bool { return s.height > 0 && s.height < crampedBelow }

func (s style) narrow() bool { return s.width > 0 && s.width < narrowBelow }

// nameColumn is where the times begin, and the bar: behind the longest name.
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

func (s style) taskTitle(op events.Operation, now time.Time) []line {
	t := *op.Task
	title := line{{"  " + taskName(t), bold}}
	i := cyan
	switch {
	case op.State == events.Succeeded:
		i = green
	case op.State == events.Failed, t.Status == "FAILED":
		i = red
	case !t.StalledAt.IsZero():
		i = yellow
	}
	count := fmt.Sprintf("  %d of %d", done(t), len(t.Subtasks))
	if unusual := unusualOperation(t.Operation); unusual != "" {
		count += " · " + unusual
	}
	if s.narrow() {
		return []line{title, s.bar(line{{"  ", ""}}, t, s.width-2-textWidth(count), i).with(count, "")}
	}
	column := s.nameColumn(t)
	columns := barColumns
	if s.width > 0 {
		columns = min(columns, s.width-column-textWidth(count))
	}
	title = line{{pad(cut("  "+taskName(t), column-2), column), bold}}
	return []line{s.bar(title, t, columns, i).with(count, "")}
}

// bar draws progress in half columns.
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

// depths is the length of the longest way from a root to each subtask. Subtasks
// of one depth may run at the same time.
func depths(t events.Task) map[int64]int {
	depth := make(map[int64]int, len(t.Subtasks))
	for _, s := range t.Subtasks { // in topological order
		for _, up := range s.Upstreams {
			if d, ok := depth[up]; ok {
				depth[s.ID] = max(depth[s.ID], d+1)
			}
		}
		depth[s.ID] += 0
	}
	return depth
}

// row is a subtask, or a note in place of some that are folded away.
type row struct {
	subtask events.Subtask
	depth   int
	folded  int // subtasks in its place
	done    bool
}

// subtasks draws the DAG: one line a subtask, those that may run in parallel in a
// bracket. Where there is no room for all, the finished ones fold first, then
// those that are farthest from their turn.
func (s style) subtasks(t events.Task, now time.Time, room int) []line {
	depth := depths(t)
	rows := make([]row, len(t.Subtasks))
	for i, sub := range t.Subtasks {
		rows[i] = row{subtask: sub, depth: depth[sub.ID]}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return a.depth - b.depth })
	rows = fold(rows, room)
	column := s.nameColumn(t)
	var lines []line
	for i, r := range rows {
		last := i == len(rows)-1
		inGroup := func(j int) bool {
			return j >= 0 && j < len(rows) && rows[j].folded == 0 && r.folded == 0 && rows[j].depth == r.depth
		}
		groupEnds := i
		for inGroup(groupEnds + 1) {
			groupEnds++
		}
		outer, inner := "├─", ""
		if groupEnds == len(rows)-1 {
			outer = "└─"
		}
		switch {
		case inGroup(i-1) && groupEnds == len(rows)-1:
			outer, inner = "  ", "├─"
		case inGroup(i - 1):
			outer, inner = "│ ", "├─"
		case inGroup(i + 1):
			inner = "┬─"
		}
		if inGroup(i-1) && (last || !inGroup(i+1)) {
			inner = "└─"
		}
		lines = append(lines, s.row(r, line{{"  " + outer + inner + " ", dim}}, column, now))
	}
	return lines
}

func isDone(status string) bool { return status == "SUCCESSFUL" }

func isPending(status string) bool { return status == "PENDING" || status == "READY" || status == "" }

// fold hides rows, one at a time, until what is left fits into room.
func fold(rows []row, room int) []row {
	if len(rows) <= room {
		return rows
	}
	var order []int
	for i, r := range rows {
		if isDone(r.subtask.Status) {
			order = append(order, i)
		}
	}
	for i, r := range slices.Backward(rows) {
		if isPending(r.subtask.Status) {
			order = append(order, i)
		}
	}
	hidden := make([]bool, len(rows))
	for _, i := range order {
		hidden[i] = true
		if folded := foldHidden(rows, hidden); len(folded) <= room {
			return folded
		}
	}
	return foldHidden(rows, hidden)
}

// foldHidden puts one note in place of each run of hidden rows of one sort.
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

// subtaskTook marks with ~ what was measured from outside.
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

func unusualOperation(operation string) string {
	if operation == "EXECUTE" {
		return ""
	}
	return strings.ReplaceAll(strings.ToLower(operation), "_", " ")
}

// notes are what there is to say: why it waits, what failed, what was odd.
func (s style) notes(op events.Operation, now time.Time) []line {
	var lines []line
	reasonIsError := op.Error != nil && op.Reason != nil && op.Reason.Code == op.Error.Code && op.Reason.Message == op.Error.Message
	if r := op.Reason; r != nil && !reasonIsError {
		label := "reason"
		if op.State == events.Waiting {
			label = "waits"
		}
		lines = append(lines, s.note(label, stateInk(op.State), r.Code, r.Message)...)
		if op.State == events.Waiting && !r.Until.IsZero() {
			next := "looks again now"
			if in := r.Until.Sub(now); in >= time.Second {
				next = "looks again in " + wholeDuration(in)
			}
			lines = append(lines, line{{strings.Repeat(" ", labelColumn) + next, dim}})
		}
	}
	if t := op.Task; t != nil && !t.StalledAt.IsZero() && !op.State.Final() {
		lines = append(lines, s.note("stalled", yellow, "", fmt.Sprintf(
			"nothing has moved for %s; the agent keeps following", wholeDuration(now.Sub(t.MovedAt))))...)
	}
	if e := op.Error; e != nil {
		lines = append(lines, s.note("error", red, e.Code, e.Message)...)
		if facts := errorFacts(*e); facts != "" {
			for _, l := range wrap(facts, s.textColumns()) {
				lines = append(lines, line{{strings.Repeat(" ", labelColumn) + l, dim}})
			}
		}
		lines = append(lines, s.log(op, e.Log)...)
	}
	warnings := op.Warnings
	if hidden := len(warnings) - tailNotes; hidden > 0 && !s.full {
		warnings = warnings[hidden:]
		lines = append(lines, s.note("warnings", yellow, "", fmt.Sprintf("… %d before: obwarden get %s", hidden, op.OperationID))...)
	}
	for _, w := range warnings {
		lines = append(lines, s.note("warning", yellow, "", w)...)
	}
	return lines
}

func errorFacts(e events.Error) string {
	var facts []string
	if e.HTTPStatus != 0 {
		facts = append(facts, fmt.Sprintf("HTTP %d", e.HTTPStatus))
	}
	if e.OCPCode != 0 {
		facts = append(facts, fmt.Sprintf("OCP code %d", e.OCPCode))
	}
	if e.TraceID != "" {
		facts = append(facts, "trace id "+e.TraceID)
	}
	return strings.Join(facts, " · ")
}

func (s style) textColumns() int {
	if s.width == 0 {
		return 1 << 20
	}
	return max(s.width-labelColumn, 20)
}

// note is a labelled paragraph; code stands out in its first line.
func (s style) note(label string, i ink, code, message string) []line {
	text := message
	if code != "" {
		text = code + " " + message
	}
	var lines []line
	for n, l := range wrap(text, s.textColumns()) {
		rest, isCode := strings.CutPrefix(l, code)
		switch {
		case n == 0 && isCode && code != "":
			lines = append(lines, line{{pad("  "+label, labelColumn), i}, {code, i}, {rest, ""}})
		case n == 0:
			lines = append(lines, line{{pad("  "+label, labelColumn), i}, {l, ""}})
		default:
			lines = append(lines, line{{strings.Repeat(" ", labelColumn) + l, ""}})
		}
	}
	return lines
}

func (s style) log(op events.Operation, text string) []line {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	texts := strings.Split(strings.TrimRight(text, "\n "), "\n")
	hidden := 0
	if !s.full {
		texts = slices.DeleteFunc(texts, func(t string) bool { return strings.TrimSpace(t) == "" })
		hidden = max(0, len(texts)-tailLines)
	}
	var lines []line
	label := "log"
	add := func(text string) {
		lines = append(lines, line{{pad("  "+label, labelColumn), dim}, {"│ ", dim}, {text, ""}})
		label = ""
	}
	if hidden > 0 {
		add(fmt.Sprintf("… %d lines before: obwarden get %s", hidden, op.OperationID))
	}
	for _, t := range texts[hidden:] {
		if !s.full {
			add(cutMiddle(t, s.textColumns()-2))
			continue
		}
		for _, l := range wrapKeepingIndent(t, s.textColumns()-2) {
			add(l)
		}
	}
	return lines
}

func wrapKeepingIndent(s string, width int) []string {
	if textWidth(s) <= width {
		return []string{s}
	}
	return wrap(s, width)
}

// facts are everything else that the document says.
func (s style) facts(op events.Operation) []line {
	var lines []line
	fact := func(label, text string) {
		if text == "" {
			return
		}
		lines = append(lines, s.note(label, dim, "", text)...)
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02 15:04:05.000 UTC")
	}
	r := op.Request
	requested := at(op.RequestedAt)
	if r.RequestedBy != "" {
		requested += " by " + r.RequestedBy
	}
	if op.Source != "" {
		requested += " through " + op.Source
	}
	fact("requested", requested)
	fact("why", r.Reason)
	fact("asks", strings.Join(parameters(r), ", "))
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(r.Labels)) {
		labels = append(labels, name+"="+r.Labels[name])
	}
	fact("labels", strings.Join(labels, " "))
	fact("expires", at(r.ExpiresAt))
	if submitted := at(op.SubmittedAt); submitted != "" {
		fact("submitted", fmt.Sprintf("%s, attempt %d", submitted, op.Attempt))
	}
	fact("ended", at(op.EndedAt))
	written := fmt.Sprintf("%d, the last at %s by agent %s", op.N, at(op.UpdatedAt), op.Agent)
	if op.Duplicates > 0 {
		written += fmt.Sprintf("; requested again %d times", op.Duplicates)
	}
	fact("events", written)
	fact("key", op.IdempotencyKey)
	fact("operation", op.OperationID)
	fact("request", fmt.Sprintf("sequence %d of the request stream", op.RequestSequence))
	fact("trace", op.Traceparent)
	fact("times", timings(op.Task))
	return lines
}

func parameters(r events.Request) []string {
	var asks []string
	if r.Force {
		asks = append(asks, "force")
	}
	if r.FreezeServer != nil {
		asks = append(asks, fmt.Sprintf("freeze server: %t", *r.FreezeServer))
	}
	if r.StopType != "" {
		asks = append(asks, "stop type "+r.StopType)
	}
	if r.DryRun {
		asks = append(asks, "dry run")
	}
	return asks
}

func timings(t *events.Task) string {
	if t == nil {
		return ""
	}
	var ocp, observed bool
	for _, s := range t.Subtasks {
		ocp = ocp || s.Timing == events.TimingOCP
		observed = observed || s.Timing == events.TimingObserved
	}
	switch {
	case ocp && observed:
		return "OCP's own; those with ~ are the agent's, up to a look late"
	case ocp:
		return "OCP's own"
	case observed:
		return "~ as the agent saw them, up to a look late"
	}
	return ""
}
