package ocp

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

var errLeftAlone = errors.New("OCP has not answered for a while and is left alone for some seconds")

// An OCP that has failed to answer so many requests in a row gets none for a pause,
// and then one. If that one fails too the next pause is twice as long, up to a limit,
// and a quarter longer at most, so that agents do not come all at the same moment.
const (
	breakerTrips    = 10
	breakerMinPause = time.Second
	breakerMaxPause = 15 * time.Second
)

// breaker spares an OCP that is in trouble. It is gobreaker's, whose pause is always
// the same, with pauses that grow.
type breaker struct {
	*gobreaker.CircuitBreaker[Envelope]
	leftAlone func(bool) // nil: nobody wants to know

	mu    sync.Mutex
	pause time.Duration // the latest, without jitter
	until time.Time
}

func newBreaker(leftAlone func(bool)) *breaker {
	b := &breaker{leftAlone: leftAlone}
	b.CircuitBreaker = gobreaker.NewCircuitBreaker[Envelope](gobreaker.Settings{
		Timeout:       breakerMinPause,
		ReadyToTrip:   func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= breakerTrips },
		IsSuccessful:  func(err error) bool { return err == nil || ClassOf(err) == Refused }, // a definite no is an answer
		IsExcluded:    func(err error) bool { return errors.Is(err, context.Canceled) },
		OnStateChange: func(_ string, from, to gobreaker.State) { b.changed(from, to) },
	})
	return b
}

// do makes the request, or returns errLeftAlone.
func (b *breaker) do(request func() (Envelope, error)) (Envelope, error) {
	b.mu.Lock()
	pausing := time.Now().Before(b.until)
	b.mu.Unlock()
	if pausing {
		return Envelope{}, errLeftAlone
	}
	envelope, err := b.Execute(request)
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return Envelope{}, errLeftAlone
	}
	return envelope, err
}

func (b *breaker) changed(from, to gobreaker.State) {
	first := from == gobreaker.StateClosed
	if to == gobreaker.StateOpen {
		b.mu.Lock()
		b.pause = min(2*b.pause, breakerMaxPause)
		if first {
			b.pause = breakerMinPause
		}
		b.until = time.Now().Add(b.pause + rand.N(b.pause/4))
		b.mu.Unlock()
	}
	if b.leftAlone != nil && (to == gobreaker.StateOpen && first || to == gobreaker.StateClosed) {
		b.leftAlone(to == gobreaker.StateOpen)
	}
}
