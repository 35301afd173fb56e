package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/obwarden/obwarden/events"
)

// frameTime is how often a live tree moves.
const frameTime = 120 * time.Millisecond

// ui is where a command shows what it sees: as a live tree on a terminal, as lines in a pipe, or as JSON if asked. All
// methods may be called concurrently.
type ui struct {
	out, err io.Writer
	json     bool
	live     bool // out is a terminal that can be redrawn
	color    bool
	size     func() (columns, rows int) // of the terminal; 0, 0: no limits
	now      func() time.Time

	mu    sync.Mutex
	block []string // the live part, which is the last thing on the terminal
}

// newUI chooses the form of the output by where a writes to.
func newUI(a app, asJSON bool) *ui {
	u := &ui{
		out: a.stdout, err: a.stderr, json: asJSON, now: time.Now,
		size: func() (int, int) { return 0, 0 },
	}
	file, ok := a.stdout.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return u
	}
	smart := a.environ["TERM"] != "dumb"
	u.live = smart && !asJSON
	u.color = smart && !asJSON && a.environ["NO_COLOR"] == ""
	u.size = func() (int, int) {
		columns, rows, err := term.GetSize(int(file.Fd()))
		if err != nil || columns <= 0 || rows <= 0 {
			return 80, 24
		}
		return columns, rows
	}
	return u
}

// style is for text that stays: as wide as the terminal, and of any height.
func (u *ui) style() style {
	columns, _ := u.size()
	return style{width: columns, color: u.color}
}

// liveStyle is for text that is redrawn and must fit the terminal.
func (u *ui) liveStyle() style {
	s := u.style()
	_, s.height = u.size()
	s.spin = true
	s.frame = int(u.now().UnixMilli() / frameTime.Milliseconds())
	return s
}

// println prints a line above the live part.
func (u *ui) println(text string) { u.interject(u.out, text) }

// notice prints a line for the person on stderr, so that a pipe does not get it.
func (u *ui) notice(text string) { u.interject(u.err, "obwarden: "+cleanText(text)) }

func (u *ui) interject(w io.Writer, text string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.block) == 0 {
		fmt.Fprintln(w, text)
		return
	}
	block := u.block
	u.write(nil)
	fmt.Fprintln(w, text)
	u.write(block)
}

// draw replaces the live part.
func (u *ui) draw(lines []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.write(lines)
}

// settle ends the live part: lines take its place and stay.
func (u *ui) settle(lines []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.live {
		u.write(lines)
		_, _ = io.WriteString(u.out, "\x1b[?25h") // show the cursor again
		u.block = nil
		return
	}
	for _, l := range lines {
		fmt.Fprintln(u.out, l)
	}
}

// write goes back to the first line of the block and writes over it, in one piece, so that nothing flickers. The caller
// holds mu.
func (u *ui) write(lines []string) {
	var b bytes.Buffer
	b.WriteString("\x1b[?2026h\x1b[?25l") // begin a frame; hide the cursor
	if up := u.blockRows(); up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", up)
	}
	for _, l := range lines {
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J\x1b[?2026l")
	_, _ = u.out.Write(b.Bytes()) // a terminal that is gone sees nothing
	u.block = lines
}

// blockRows is the number of rows that the block takes now. In a window that has become narrower, the terminal has
// broken its lines.
func (u *ui) blockRows() int {
	columns, _ := u.size()
	rows := 0
	for _, l := range u.block {
		rows++
		if w := textWidth(stripSGR(l)); columns > 0 && w > columns {
			rows += (w - 1) / columns
		}
	}
	return rows
}

func stripSGR(s string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "\x1b[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, s, _ = strings.Cut(after, "m")
	}
}

// printJSON prints an event's body on one line.
func (u *ui) printJSON(body []byte) {
	var compact bytes.Buffer
	if json.Compact(&compact, body) != nil {
		return
	}
	u.println(compact.String())
}

// eventLine is an event as one line. With all, it also says which operation it belongs to.
func (u *ui) eventLine(e events.Event, all bool) string {
	s := u.style()
	s.width = 0 // a log line is not cut: the terminal breaks it
	now := u.now()
	op := cleaned(e.Operation)
	l := line{}.with(clockTime(op.UpdatedAt, now)+"  ", dim).
		with(pad(cleanLine(string(e.Token)), 11), stateInk(e.Token))
	if all {
		l = l.with(op.OperationID+"  ", dim).with(pad(fmt.Sprintf("%s %d %d", op.Kind, op.ClusterID, op.ServerID), 13), "")
	}
	return s.render(l.with(eventText(events.Event{Operation: op, Token: e.Token}, all), ""))
}

// eventText says what happened in an event.
func eventText(e events.Event, all bool) string {
	reason := ""
	if e.Reason != nil {
		reason = e.Reason.Code + ": " + e.Reason.Message
	}
	var text string
	switch e.Token {
	case events.Accepted:
		if !all {
			text = fmt.Sprintf("%s, operation %s", subject(e.Operation), e.OperationID)
		}
		text = joined(", ", text, prefixed("by ", e.Request.RequestedBy), strings.Join(parameters(e.Request), ", "))
		text = joined(": ", text, e.Request.Reason)
	case events.Submitting:
		text = fmt.Sprintf("call to OCP, attempt %d", e.Attempt)
	case events.Running:
		if e.Task != nil {
			text = joined(": ", taskName(*e.Task), changesText(e))
		}
	case events.Progress:
		text = changesText(e)
		if e.Task != nil {
			text = fmt.Sprintf("%d of %d  %s", done(*e.Task), len(e.Task.Subtasks), text)
		}
	case events.Stalled:
		if e.Task != nil {
			text = "nothing has moved for " + wholeDuration(e.UpdatedAt.Sub(e.Task.MovedAt))
		}
	case events.Approved:
		if n := len(e.Approvals); n > 0 {
			last := e.Approvals[n-1]
			text = joined(": ", prefixed("by ", last.By), last.Reason)
			if last.Refused != "" {
				text = joined(": ", text+" does not count", last.Refused)
			}
		}
	case events.Duplicate:
		text = joined(": ", "requested again, stays "+string(e.State), reason)
	case events.Succeeded:
		text = joined(", ", "in "+shortDuration(e.EndedAt.Sub(e.RequestedAt)), reason)
	default:
		text = reason
	}
	return text
}

func changesText(e events.Event) string {
	took := map[int64]string{}
	if e.Task != nil {
		for _, s := range e.Task.Subtasks {
			took[s.ID] = subtaskTook(s, e.UpdatedAt)
		}
	}
	var texts []string
	for _, c := range e.Changes {
		step := joined(" → ", c.From, c.To)
		if isPending(c.From) || c.From == "RUNNING" { // the usual way
			step = c.To
		}
		text := fmt.Sprintf("%s: %s", c.Name, strings.ToLower(step))
		if c.SubtaskID == 0 {
			text = "task " + text
		}
		if t := took[c.SubtaskID]; t != "" && (isDone(c.To) || c.To == "FAILED") {
			text += " in " + t
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

func joined(separator string, texts ...string) string {
	var parts []string
	for _, t := range texts {
		if t != "" {
			parts = append(parts, t)
		}
	}
	return strings.Join(parts, separator)
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}
