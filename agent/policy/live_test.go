package policy

import (
	"fmt"
	"sync"
	"testing"
)

func TestALivePolicyIsTheOneThatWasSetLast(t *testing.T) {
	t.Parallel()
	l := NewLive(&Policy{Hash: "first"})
	if got := l.Load().Hash; got != "first" {
		t.Errorf("got %s", got)
	}
	select {
	case <-l.Changed():
		t.Error("a signal, though nothing has changed")
	default:
	}
	l.Set(&Policy{Hash: "second"})
	l.Set(&Policy{Hash: "third"}) // does not block, though nobody has received the signal
	<-l.Changed()
	if got := l.Load().Hash; got != "third" {
		t.Errorf("got %s after the signal, want the latest", got)
	}
}

// Whoever waits for changes sees the last policy, however the changes fall.
func TestNoChangeOfALivePolicyIsLost(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 500
	l := NewLive(&Policy{})
	var setting sync.WaitGroup
	done := make(chan struct{})
	for w := range writers {
		setting.Go(func() {
			for i := range each {
				l.Set(&Policy{Hash: fmt.Sprint(w, ".", i)})
			}
		})
	}
	go func() {
		setting.Wait()
		l.Set(&Policy{Hash: "last"})
		close(done)
	}()
	for l.Load().Hash != "last" {
		<-l.Changed()
	}
	<-done
}
