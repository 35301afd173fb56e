package alerts

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/obwarden/obwarden/events"
)

// In whatever order notifications arrive, a firing that was resolved stays resolved, and an incident is resolved only
// when none of its alerts is known to fire.
func TestAResolvedFiringStaysResolved(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(fingerprint string, minute int, firing bool) alert {
		return alert{Fingerprint: fingerprint, StartsAt: start.Add(time.Duration(minute) * time.Minute), Firing: firing}
	}
	i := incident{Request: &events.Request{}}
	for n, step := range []struct {
		alert             alert
		changed, resolved bool // resolved: the incident
		wasResolved       bool // afterwards
	}{
		{at("a", 0, true), true, false, false},
		{at("a", 0, true), false, false, false},
		{at("b", 0, true), true, false, false},
		{at("a", 0, false), true, false, true},
		{at("a", 0, true), false, false, true},  // from a slower Alertmanager
		{at("a", 1, true), true, false, false},  // it fires anew
		{at("a", 0, false), false, false, true}, // the end of the earlier firing does not end this one
		{at("b", 0, false), true, false, true},  // a still fires
		{at("a", 1, false), true, true, true},   // now nothing fires
		{at("a", 1, false), false, true, true},
	} {
		changed := i.observe(step.alert)
		was := i.wasResolved(step.alert)
		if changed != step.changed || i.Resolved != step.resolved || was != step.wasResolved {
			t.Errorf("step %d: changed %v, resolved %v, was resolved %v, want %v, %v, %v",
				n+1, changed, i.Resolved, was, step.changed, step.resolved, step.wasResolved)
		}
	}
}

func TestAnIncidentForgetsResolvedAlertsBeforeFiringOnes(t *testing.T) {
	t.Parallel()
	var i incident
	for n := range 2 * maxSightings {
		i.observe(alert{Fingerprint: string(rune('a' + n)), StartsAt: time.Now(), Firing: n%2 == 0})
	}
	if len(i.Sightings) != maxSightings || slices.ContainsFunc(i.Sightings, func(s sighting) bool { return s.Resolved }) {
		t.Errorf("%d alerts are remembered, want %d and only firing ones", len(i.Sightings), maxSightings)
	}
}

// Agents of two versions share the bucket while one is replaced by the other.
func TestIncidentsAreStoredUnderTheNamesOfTheVersionBefore(t *testing.T) {
	t.Parallel()
	const stored = `{` +
		`"told":[{"fingerprint":"1219054b166b7132","starts_at":"2026-11-24T21:30:00Z","resolved":true}],` +
		`"request":{"idempotency_key":"alert/down/1219054b166b7132/2026-11-24T21:30:00Z",` +
		`"cluster_id":1,"server_id":2},` +
		`"kind":"stop","requested_at":"2026-11-24T21:30:01Z","published":true,"resolved":true,` +
		`"updated_at":"2026-11-24T21:40:00Z"}`
	var i incident
	if err := json.Unmarshal([]byte(stored), &i); err != nil {
		t.Fatal(err)
	}
	if len(i.Sightings) != 1 || !i.Sightings[0].Resolved || i.Request == nil || i.Request.ServerID != 2 || !i.Published {
		t.Errorf("incident %+v", i)
	}
	written, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	if string(written) != stored {
		t.Errorf("got  %s\nwant %s", written, stored)
	}
}
