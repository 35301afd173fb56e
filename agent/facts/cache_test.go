package facts

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events/eventstest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, eventstest.IgnoreServer()...)
}

// asker asks a cached number for a value of at most maxAge, and counts the readings.
type asker struct {
	t *testing.T
	cached[int]
	readings int
	err      error         // of a reading
	took     time.Duration // of a reading
}

func (a *asker) ask(maxAge time.Duration) (int, error) {
	return a.get(a.t.Context(), func(_ int, age time.Duration) bool { return age <= maxAge }, func() (int, error) {
		a.readings++
		time.Sleep(a.took) // of the bubble's clock
		return a.readings, a.err
	})
}

func (a *asker) want(maxAge time.Duration, value, readings int) {
	a.t.Helper()
	if got, err := a.ask(maxAge); err != nil || got != value || a.readings != readings {
		a.t.Errorf("got %d after %d readings, %v, want %d after %d", got, a.readings, err, value, readings)
	}
}

func TestAValueIsReadAgainOnceItIsTooOldForItsCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := asker{t: t}
		a.want(time.Minute, 1, 1)
		time.Sleep(30 * time.Second)
		a.want(time.Minute, 1, 1)
		a.want(10*time.Second, 2, 2)
		a.want(time.Minute, 2, 2)
	})
}

func TestAValueReadSinceItWasAskedForIsFreshHoweverLongItsReadingTook(t *testing.T) {
	t.Parallel()
	a := asker{t: t}
	a.value, a.began = 7, time.Now().Add(time.Hour) // after this caller asks
	a.want(0, 7, 0)
}

func TestOneReadingServesAllCallersThatWaitForIt(t *testing.T) {
	t.Parallel()
	const askers = 40
	var c cached[int]
	var readings atomic.Int64
	began, finish := make(chan struct{}), make(chan struct{})
	get := func() {
		_, _ = c.get(t.Context(), func(_ int, age time.Duration) bool { return age < time.Minute }, func() (int, error) {
			readings.Add(1)
			close(began)
			<-finish
			return 1, nil
		})
	}
	var all sync.WaitGroup
	all.Go(get)
	<-began
	for range askers {
		all.Go(get)
	}
	if _, _, ok := c.peek(); ok || c.outdated(0) {
		t.Error("a value that is being read can be peeked at, or is outdated")
	}
	close(finish)
	all.Wait()
	if n := readings.Load(); n != 1 {
		t.Errorf("%d readings, want 1", n)
	}
}

func TestAnErrorIsEverybodysForASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		failure := errors.New("OCP is away")
		a := asker{t: t, err: failure}
		for range 3 {
			if _, err := a.ask(time.Minute); !errors.Is(err, failure) || a.readings != 1 {
				t.Errorf("got %v after %d readings, want %v after 1", err, a.readings, failure)
			}
			time.Sleep(400 * time.Millisecond)
		}
		if _, _, ok := a.peek(); ok {
			t.Error("an error is peeked at as a value")
		}
		a.err = nil
		a.want(time.Minute, 2, 2)
	})
}

func TestAnErrorOfACallThatWasNotSentIsNotKept(t *testing.T) {
	t.Parallel()
	a := asker{t: t, err: &ocp.Error{Class: ocp.NotSent}}
	if _, err := a.ask(time.Minute); err == nil {
		t.Fatal("no error")
	}
	a.err = nil
	a.want(time.Minute, 2, 2)
}

func TestReadingsThatAreCutOffSayNothing(t *testing.T) {
	t.Parallel()
	var c cached[int]
	ctx, cancel := context.WithCancel(t.Context())
	always := func(int, time.Duration) bool { return true }
	if _, err := c.get(ctx, always, func() (int, error) { cancel(); return 1, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if got, err := c.get(t.Context(), always, func() (int, error) { return 2, nil }); got != 2 || err != nil {
		t.Errorf("got %d, %v, want a reading of its own", got, err)
	}
}

func TestReadingsOfASlowOCPAreFurtherApart(t *testing.T) {
	t.Parallel()
	for took, pause := range map[time.Duration]time.Duration{
		0:                     0,
		20 * time.Millisecond: 200 * time.Millisecond, // from beginning to beginning
		10 * time.Second:      10 * time.Second,       // a pause is a second at most, which is over when the reading ends
	} {
		synctest.Test(t, func(t *testing.T) {
			a := asker{t: t, took: took}
			began := time.Now()
			a.want(-1, 1, 1)
			a.want(-1, 2, 2)
			if got := time.Since(began) - took; got != pause {
				t.Errorf("readings of %s: the second begins %s after the first, want %s", took, got, pause)
			}
		})
	}
}

func TestAPauseBetweenReadingsEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c := cached[int]{began: time.Now(), pause: time.Hour}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(int, time.Duration) bool { return false }
	if _, err := c.get(ctx, never, func() (int, error) { return 1, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestEntriesTooOldForAnybodyArePruned(t *testing.T) {
	t.Parallel()
	b := byCluster[int]{maxAge: time.Minute}
	add := func(cluster int64, age time.Duration) *cached[int] {
		c := b.of(cluster)
		c.began = time.Now().Add(-age)
		return c
	}
	read := add(1, 2*b.maxAge)
	read.reading.Lock() // by somebody, for as long as this test runs
	fresh := add(2, 0)
	for cluster := range int64(10_000) {
		add(10+cluster, 2*b.maxAge)
		if len(b.entries) > 2*minPruneAt {
			t.Fatalf("%d entries, want %d at most", len(b.entries), 2*minPruneAt)
		}
	}
	if b.of(1) != read || b.of(2) != fresh {
		t.Error("entries that are being read, or good still, are pruned")
	}
	if _, age, ok := b.peek(2); !ok || age > b.maxAge {
		t.Errorf("peek at an entry that is good: %v, age %s", ok, age)
	}
	if _, _, ok := b.peek(3); ok {
		t.Error("peek finds an entry that is not there")
	}
}
