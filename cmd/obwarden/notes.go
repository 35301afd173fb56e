package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/obwarden/obwarden/events"
)

// notes say what a person should know: why the operation waits, what failed, what was unusual.
func (s style) notes(op events.Operation, now time.Time) []line {
	lines := s.reasonNote(op, now)
	if t := op.Task; t != nil && !t.StalledAt.IsZero() && !op.State.Final() {
		lines = append(lines, s.note("stalled", yellow, "", fmt.Sprintf(
			"nothing has moved for %s; the agent keeps following", wholeDuration(now.Sub(t.MovedAt))))...)
	}
	lines = append(lines, s.errorNotes(op)...)
	return append(lines, s.warningNotes(op)...)
}

// reasonNote is the reason of a state. A reason that only repeats the error is left out.
func (s style) reasonNote(op events.Operation, now time.Time) []line {
	r := op.Reason
	if r == nil || op.Error != nil && r.Code == op.Error.Code && r.Message == op.Error.Message {
		return nil
	}
	if op.State != events.Waiting {
		return s.note("reason", stateInk(op.State), r.Code, r.Message)
	}
	lines := s.note("waits", stateInk(op.State), r.Code, r.Message)
	if !r.Until.IsZero() {
		next := "looks again now"
		if in := r.Until.Sub(now); in >= time.Second {
			next = "looks again in " + wholeDuration(in)
		}
		lines = append(lines, line{{strings.Repeat(" ", labelColumn) + next, dim}})
	}
	return lines
}

// errorNotes are the error, what OCP said about it, and the end of the failed subtask's log.
func (s style) errorNotes(op events.Operation) []line {
	e := op.Error
	if e == nil {
		return nil
	}
	lines := s.note("error", red, e.Code, e.Message)
	if facts := errorFacts(*e); facts != "" {
		for _, l := range wrap(facts, s.textColumns()) {
			lines = append(lines, line{{strings.Repeat(" ", labelColumn) + l, dim}})
		}
	}
	return append(lines, s.log(op, e.Log)...)
}

// warningNotes are the latest warnings, or all of them in a full tree.
func (s style) warningNotes(op events.Operation) []line {
	var lines []line
	warnings := op.Warnings
	if hidden := len(warnings) - tailNotes; hidden > 0 && !s.full {
		warnings = warnings[hidden:]
		earlier := fmt.Sprintf("… %d before: obwarden get %s", hidden, op.OperationID)
		lines = append(lines, s.note("warnings", yellow, "", earlier)...)
	}
	for _, w := range warnings {
		lines = append(lines, s.note("warning", yellow, "", w)...)
	}
	return lines
}

// errorFacts are the numbers by which OCP's support finds an error.
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

// textColumns is the width of a note's text, which stands behind the column of labels.
func (s style) textColumns() int {
	if s.width == 0 {
		return 1 << 20
	}
	return max(s.width-labelColumn, 20)
}

// note is a paragraph with a label. Its code stands out in the first line.
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

// log is the end of a subtask's log, or all of it in a full tree.
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

// wrapKeepingIndent is wrap, but a line that fits keeps the blanks at its beginning.
func wrapKeepingIndent(s string, width int) []string {
	if textWidth(s) <= width {
		return []string{s}
	}
	return wrap(s, width)
}
