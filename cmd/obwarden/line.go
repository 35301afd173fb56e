package main

import (
	"fmt"
	"strings"
)

// ink is the SGR code that a piece of text is coloured with; empty: it is not coloured. Only the 16 colours of the
// terminal are used, so that a tree looks at home in everybody's terminal.
type ink string

const (
	dim    ink = "2"
	bold   ink = "1"
	red    ink = "31"
	green  ink = "32"
	yellow ink = "33"
	cyan   ink = "36"
)

// span is a piece of text in one ink.
type span struct {
	text string
	ink  ink
}

// line is one line of a tree, before it is cut to the terminal's width and coloured.
type line []span

func (l line) with(text string, i ink) line { return append(l[:len(l):len(l)], span{text, i}) }

func (l line) width() int {
	w := 0
	for _, s := range l {
		w += textWidth(s.text)
	}
	return w
}

// render cuts and colours a line.
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

// trimmed is l without the blanks at its end.
func (l line) trimmed() line {
	for n := len(l) - 1; n >= 0; n-- {
		if text := strings.TrimRight(l[n].text, " "); text != "" {
			return l[:n:n].with(text, l[n].ink)
		}
	}
	return nil
}

// cut shortens l to width columns, with an ellipsis at its end.
func (l line) cut(width int) line {
	var short line
	left := width
	for _, p := range l {
		w := textWidth(p.text)
		if w >= left { // the next span would not be seen, so this one must end with an ellipsis
			if w > left || p.text == "" {
				return short.with(cut(p.text, left), p.ink)
			}
			return short.with(cut(p.text+" ", left), p.ink)
		}
		short, left = short.with(p.text, p.ink), left-w
	}
	return short
}
