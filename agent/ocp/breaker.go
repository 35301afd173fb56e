package ocp

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

var errBreakerOpen = errors.New("OCP has not answered for a while: " +
	"the breaker is open and lets no request through for some seconds")

// The breaker opens after so many requests in a row without an answer. While it is open
// OCP gets no requests for a pause, and then one. If OCP does not answer that one either,
// the next pause is twice as long, up to a limit, and up to a quarter longer, so that
// agents do not all come back at the same moment.
const (
	breakerTrips    = 10
	breakerMinPause = time.Second
	breakerMaxPause = 15 * time.Second
)

// breaker spares an OCP that is in trouble. It is gobreaker's, whose pause is always the
// same, with pauses that grow.
type breaker struct {
	*gobreaker.CircuitBreaker[Envelope]
	open     atomic.Bool   // no answer yet since it tripped
	changed  chan struct{} // open has changed; holds one signal
	onChange func(bool)    // nil: nobody wants to know

	mu    sync.Mutex
	pause time.Duration // the latest, without jitter
	until time.Time
}

func newBreaker(onChange func(bool)) *breaker {
	b := &breaker{changed: make(chan struct{}, 1), onChange: onChange}
	b.CircuitBreaker = gobreaker.NewCircuitBreaker[Envelope](gobreaker.Settings{
		Timeout:       breakerMinPause,
		ReadyToTrip:   func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= breakerTrips },
		IsSuccessful:  func(err error) bool { return err == nil || ClassOf(err) == Refused }, // a definite no is an answer
		IsExcluded:    func(err error) bool { return errors.Is(err, context.Canceled) },
		OnStateChange: func(_ string, from, to gobreaker.State) { b.change(from, to) },
	})
	return b
}

// do makes the request, or returns errBreakerOpen.
func (b *breaker) do(request func() (Envelope, error)) (Envelope, error) {
	b.mu.Lock()
	pausing := time.Now().Before(b.until)
	b.mu.Unlock()
	if pausing {
		return Envelope{}, errBreakerOpen
	}
	envelope, err := b.Execute(request)
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return Envelope{}, errBreakerOpen
	}
	return envelope, err
}

// change follows gobreaker's state. Between two pauses that is half open: for us the
// breaker stays open until OCP answers.
func (b *breaker) change(from, to gobreaker.State) {
	tripped := from == gobreaker.StateClosed
	if to == gobreaker.StateOpen {
		b.mu.Lock()
		b.pause = min(2*b.pause, breakerMaxPause)
		if tripped {
			b.pause = breakerMinPause
		}
		b.until = time.Now().Add(b.pause + rand.N(b.pause/4))
		b.mu.Unlock()
	}
	if open := to != gobreaker.StateClosed; b.open.Swap(open) != open {
		select {
		case b.changed <- struct{}{}:
		default: // a signal nobody has received yet covers this change too
		}
		if b.onChange != nil {
			b.onChange(open)
		}
	}
}

// BreakerOpen reports whether OCP has stopped answering and so gets no requests but one
// now and then, until it answers again.
func (c *Client) BreakerOpen() bool { return c.breaker.open.Load() }

// BreakerChanged returns the channel that receives a signal after each change of
// BreakerOpen, for one goroutine to wait on: read BreakerOpen after each signal. Several
// changes may come as one signal, which then may find the breaker as it was before.
func (c *Client) BreakerChanged() <-chan struct{} { return c.breaker.changed }
