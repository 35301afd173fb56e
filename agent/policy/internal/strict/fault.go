package strict

import (
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/token"
)

// Fault is one thing that is wrong with a file: where, what, and what to do.
type Fault struct {
	File         string
	Line, Column int // from 1
	Message      string
}

func (f Fault) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Message)
}

// Faults is everything that is wrong with a file, in the order of its lines.
type Faults []Fault

func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Position is a place in a file. If a struct has a field At of this type, the decoder sets
// it to the place where the struct begins.
type Position struct{ Line, Column int }

func positionOf(t *token.Token) Position {
	if t == nil || t.Position == nil {
		return Position{1, 1}
	}
	return Position{t.Position.Line, t.Position.Column}
}

// Word is a text that remembers its place in the file.
type Word struct {
	Text string
	At   Position
}
