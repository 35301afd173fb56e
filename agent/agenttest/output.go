package agenttest

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// Output collects what is written to it and lets a test wait for it. Its methods may be called concurrently.
type Output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed at the next write
}

// NewOutput returns an empty Output.
func NewOutput() *Output { return &Output{changed: make(chan struct{})} }

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(p)
}

// String is everything that was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Changed is closed at the next write.
func (o *Output) Changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// Await waits until text has been written, and fails the test if it is not in time.
func (o *Output) Await(t testing.TB, text string) {
	t.Helper()
	if found, all := o.await(text, nil); !found {
		t.Fatalf("%q was not written; got\n%s", text, all)
	}
}

// await reports whether text is written before Patience is over and before ended is closed.
func (o *Output) await(text string, ended <-chan struct{}) (found bool, all string) {
	deadline := time.After(Patience)
	for over := false; ; {
		changed := o.Changed()
		all = o.String()
		if strings.Contains(all, text) || over {
			return strings.Contains(all, text), all
		}
		select {
		case <-changed:
		case <-ended:
			over = true // everything is written by now
		case <-deadline:
			over = true
		}
	}
}
