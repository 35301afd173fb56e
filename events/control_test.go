package events_test

import (
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

func TestAPauseThatCannotBeUnderstoodIsAPause(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		key, value string
		cluster    int64
		paused     bool
		fault      bool
	}{
		{"pause.all", `{"paused":true,"by":"ann","at":"2026-11-24T22:00:00Z"}`, events.AllClusters, true, false},
		{"pause.7", `{"paused":false}`, 7, false, false},
		{"pause.7", `{}`, 7, true, false},
		{"pause.7", `null`, 7, true, false},
		{"pause.7", `{"pause":true}`, 7, true, false},
		{"pause.7", `{"paused":null}`, 7, true, false},
		{"pause.7", `{"by":"ann","reason":"x"}`, 7, true, false},
		{"pause.7", `{"paused":true,"paused":false}`, 7, true, false},
		{"pause.7", `{"paused":false,"paused_by":"ann"}`, 7, true, false},
		{"pause.7", `{"paused":"yes"}`, 7, true, false},
		{"pause.7", `on`, 7, true, false},
		{"pause.all", ``, events.AllClusters, true, false},
		{"pause.0", `{}`, 0, false, true},
		{"pause.-1", `{}`, 0, false, true},
		{"pause.payments", `{}`, 0, false, true},
	} {
		cluster, p, err := events.DecodePause(test.key, []byte(test.value))
		if (err != nil) != test.fault {
			t.Errorf("%s %q: got error %v, want one: %v", test.key, test.value, err, test.fault)
		}
		if err == nil && (cluster != test.cluster || p.Paused != test.paused) {
			t.Errorf("%s %q: got cluster %d, %+v", test.key, test.value, cluster, p)
		}
	}
}

func FuzzDecodePause(f *testing.F) {
	f.Add("pause.all", []byte(`{"paused":true,"by":"ann","reason":"why","at":"2026-11-24T22:00:00Z"}`))
	f.Add("pause.7", []byte(`{`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		cluster, _, err := events.DecodePause(key, value)
		if err == nil && cluster < 0 {
			t.Errorf("%q: cluster %d", key, cluster)
		}
	})
}

func TestWhoPausedAndResumedIsKept(t *testing.T) {
	t.Parallel()
	streams := eventstest.Start(t).Streams(eventstest.Options())
	at := time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)
	for i, paused := range []bool{true, false, true} {
		if err := events.SetPause(t.Context(), streams.Control, 7, events.Pause{Paused: paused, By: strings.Repeat("x", i+1), Reason: "why", At: at}); err != nil {
			t.Fatal(err)
		}
	}
	history, err := streams.Control.History(t.Context(), events.PauseKey(7))
	if err != nil || len(history) != 3 {
		t.Fatalf("got %d values, %v, want 3", len(history), err)
	}
	if _, p, err := events.DecodePause(history[1].Key(), history[1].Value()); err != nil || p.Paused || p.By != "xx" {
		t.Errorf("got %+v, %v, want who resumed", p, err)
	}
}

func TestTheInventoryIsReadAsWritten(t *testing.T) {
	t.Parallel()
	streams := eventstest.Start(t).Streams(eventstest.Options())
	if i, err := events.ReadInventory(t.Context(), streams.Control); err != nil || len(i.Clusters) > 0 {
		t.Errorf("got %+v, %v, want none", i, err)
	}
	want := events.Inventory{Clusters: []events.KnownCluster{{ID: 1, Name: "obtest"}}, At: time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)}
	if err := want.Write(t.Context(), streams.Control); err != nil {
		t.Fatal(err)
	}
	got, err := events.ReadInventory(t.Context(), streams.Control)
	if err != nil || len(got.Clusters) != 1 || got.Clusters[0] != want.Clusters[0] || !got.At.Equal(want.At) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
