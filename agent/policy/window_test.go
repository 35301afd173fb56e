package policy

import (
	"testing"
	"time"

	"github.com/prometheus/alertmanager/timeinterval"
)

// now is a Tuesday.
var now = time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)

// hours is a window of whole hours of the day.
func hours(name, location string, from, to int, days ...int) Window {
	i := timeinterval.TimeInterval{Times: []timeinterval.TimeRange{{StartMinute: from * 60, EndMinute: to * 60}}}
	if location != "" {
		l, err := time.LoadLocation(location)
		if err != nil {
			panic(err)
		}
		i.Location = &timeinterval.Location{Location: l}
	}
	for _, d := range days {
		i.Weekdays = append(i.Weekdays, timeinterval.WeekdayRange{InclusiveRange: timeinterval.InclusiveRange{Begin: d, End: d}})
	}
	return Window{Name: name, Intervals: []timeinterval.TimeInterval{i}}
}

func TestLongestCoversWhatAnyOverrideLooksBackOn(t *testing.T) {
	t.Parallel()
	p := &Policy{Limits: Limits{Cooldown: Cooldown{Server: time.Minute, Zone: 2 * time.Minute, Failure: 3 * time.Minute}}}
	if got := p.Longest(); got != 3*time.Minute {
		t.Errorf("got %s, want 3m", got)
	}
	p.Override = []Override{{Apply: func(l *Limits) { l.Budget.Window = time.Hour }}, {Apply: func(l *Limits) { l.Cooldown.Failure = 0 }}}
	if got := p.Longest(); got != time.Hour {
		t.Errorf("got %s, want 1h", got)
	}
	if p.Limits.Budget.Window != 0 {
		t.Error("the policy was changed")
	}
}

// Minute by minute is what the search for the next window must not do, and what it must agree with.
func TestTheNextWindowIsTheFirstMinuteInside(t *testing.T) {
	t.Parallel()
	for _, l := range []Limits{
		{Allow: []Window{hours("a", "", 3, 4)}},
		{Allow: []Window{hours("a", "America/New_York", 3, 4, 0, 6)}},
		{Allow: []Window{hours("a", "Asia/Kolkata", 22, 24), hours("b", "Australia/Adelaide", 1, 2, 3)}},
		{Allow: []Window{hours("a", "", 0, 24, 1)}, Block: []Window{hours("b", "Europe/Berlin", 0, 9)}},
		{Block: []Window{hours("a", "", 0, 24, 2, 3, 4)}},
	} {
		for at := now; at.Before(now.Add(7 * 24 * time.Hour)); at = at.Add(97 * time.Minute) {
			if l.open(at) {
				continue
			}
			want := at.Truncate(time.Minute)
			for !l.open(want) {
				want = want.Add(time.Minute)
			}
			if got := l.NextOpen(at); !got.Equal(want) {
				t.Fatalf("%v: after %s comes %s, want %s", l.Allow, at, got, want)
			}
		}
	}
}
