package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/obwarden/obwarden/events"
)

// style says for which terminal a tree is drawn. A width or height of 0 means no limit.
type style struct {
	width, height int
	color         bool
	spin          bool // the icons of running subtasks turn, frame by frame; else they are a still dot
	frame         int
	full          bool // show every detail, not only those of interest while the operation runs
}

const (
	barColumns   = 28
	narrowBelow  = 64 // columns; in a narrower terminal the progress bar gets a line of its own
	crampedBelow = 12 // rows; in a lower terminal blank lines and other extras are left out
	tailLines    = 10 // lines of a failed subtask's log that are shown, unless the tree is full
	tailNotes    = 3  // warnings that are shown, unless the tree is full
	labelColumn  = 13
)

// renderTree draws an operation: a header, the progress of OCP's task with its subtasks, and notes. It is pure, and its
// result is safe to print whatever the operation's texts contain.
func renderTree(op events.Operation, now time.Time, s style) []string {
	op = cleaned(op)
	var foot []line
	if notes := s.notes(op, now); len(notes) > 0 {
		foot = append(append(foot, nil), notes...)
	}
	if s.full {
		foot = append(append(foot, nil), s.details(op)...)
	}
	lines := s.header(op, now)
	if op.Task != nil {
		if !s.cramped() {
			lines = append(lines, nil)
		}
		lines = append(lines, s.taskTitle(op)...)
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

// stateInk and stateIcon show an operation's state at a glance.
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

// dot is the icon of a running subtask or operation.
func (s style) dot() string {
	const turning = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
	if !s.spin {
		return "●"
	}
	frames := []rune(turning)
	return string(frames[s.frame%len(frames)])
}

// header says what is done, how far it is and why it was requested. Its parts share a line where there is room.
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
	for _, part := range []line{what, how, {{op.OperationID, dim}}} {
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

// subject is what an operation does to which server, in a few words.
func subject(op events.Operation) string {
	number := func(id int64) string {
		if id == 0 {
			return "?"
		}
		return strconv.FormatInt(id, 10)
	}
	return fmt.Sprintf("%s server %s of cluster %s", op.Kind, number(op.ServerID), number(op.ClusterID))
}

// cramped reports whether only the most important lines have room.
func (s style) cramped() bool { return s.height > 0 && s.height < crampedBelow }

func (s style) narrow() bool { return s.width > 0 && s.width < narrowBelow }
