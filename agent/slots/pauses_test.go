package slots

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

func TestPausesOfAllClustersAndOfOneAreMerged(t *testing.T) {
	t.Parallel()
	bucket := eventstest.Start(t).Streams(eventstest.Options()).Control
	pause := func(cluster int64, p events.Pause) time.Time {
		t.Helper()
		if err := events.SetPause(t.Context(), bucket, cluster, p); err != nil {
			t.Fatal(err)
		}
		entry, err := bucket.Get(t.Context(), events.PauseKey(cluster))
		if err != nil {
			t.Fatal(err)
		}
		return entry.Created()
	}
	// At is what somebody's clock says; the server's counts.
	at := pause(1, events.Pause{Paused: true, By: "ann", At: time.Unix(0, 0)})

	p := NewPauses(bucket, slog.New(slog.DiscardHandler))
	changed := make(chan int64, 100)
	runWatch(t, func(ctx context.Context, ready func()) error {
		return p.Watch(ctx, ready, func(cluster int64) { changed <- cluster })
	})
	next := func() int64 {
		t.Helper()
		select {
		case cluster := <-changed:
			return cluster
		case <-time.After(eventstest.Patience):
			t.Fatal("no change is told")
			return 0
		}
	}
	paused := func(want ...int64) {
		t.Helper()
		got := p.Paused()
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("got %v paused, want %v", got, want)
		}
	}
	if got := next(); got != 1 {
		t.Errorf("told of cluster %d, want 1, which was paused before", got)
	}
	first := p.Of(1)
	if !first.Cluster.Paused || first.Cluster.By != "ann" || first.All.Paused || first.Revision == 0 || !first.ChangedAt.Equal(at) {
		t.Errorf("got %+v, want cluster 1 alone paused by ann at %s", first, at)
	}
	if got := p.Of(2); got.Cluster.Paused || got.Revision != 0 || !got.ChangedAt.IsZero() {
		t.Errorf("got %+v of a cluster of which nobody has said anything", got)
	}
	paused(1)

	at = pause(events.AllClusters, events.Pause{Paused: true, By: "bob"})
	if got := next(); got != events.AllClusters {
		t.Errorf("told of cluster %d, want all", got)
	}
	for _, cluster := range []int64{1, 2} {
		got := p.Of(cluster)
		if !got.All.Paused || got.All.By != "bob" || got.Cluster.Paused != (cluster == 1) || got.Revision <= first.Revision || !got.ChangedAt.Equal(at) {
			t.Errorf("got %+v of cluster %d, want all paused by bob at %s", got, cluster, at)
		}
	}
	paused(events.AllClusters, 1)

	// The later of both counts.
	all := p.Of(2)
	at = pause(1, events.Pause{By: "ann"})
	next()
	if got := p.Of(1); got.Cluster.Paused || !got.All.Paused || got.Revision <= all.Revision || !got.ChangedAt.Equal(at) {
		t.Errorf("got %+v, want cluster 1 resumed at %s, and all paused", got, at)
	}
	if got := p.Of(2); got != all {
		t.Errorf("got %+v of a cluster that nothing was said of, want %+v as before", got, all)
	}
	paused(events.AllClusters)
}

func TestAPauseThatCannotBeParsedCounts(t *testing.T) {
	t.Parallel()
	bucket := eventstest.Start(t).Streams(eventstest.Options()).Control
	p := NewPauses(bucket, slog.New(slog.DiscardHandler))
	changed := make(chan int64, 100)
	runWatch(t, func(ctx context.Context, ready func()) error {
		return p.Watch(ctx, ready, func(cluster int64) { changed <- cluster })
	})
	put := func(key, value string) {
		t.Helper()
		if _, err := bucket.PutString(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	await := func(want int64) {
		t.Helper()
		select {
		case got := <-changed:
			if got != want {
				t.Fatalf("told of cluster %d, want %d", got, want)
			}
		case <-time.After(eventstest.Patience):
			t.Fatal("no change is told")
		}
	}
	for _, value := range []string{"", "off", "{}", `{"paused":"no"}`, `{"paused":false,"until":1}`} {
		put("pause.1", value)
		await(1)
		if got := p.Of(1).Cluster; !got.Paused || got.Reason == "" {
			t.Errorf("%q: got %+v, want a pause with a reason", value, got)
		}
		put("pause.1", `{"paused":false}`)
		await(1)
		if p.Of(1).Cluster.Paused {
			t.Errorf("still paused after %q", value)
		}
	}
	put("pause.here", `{"paused":true}`) // names no cluster
	put("pause.all", "?")
	await(events.AllClusters)
	if !p.Of(9).All.Paused {
		t.Error("a pause of all that cannot be parsed does not count")
	}
	if err := bucket.Delete(t.Context(), "pause.all"); err != nil {
		t.Fatal(err)
	}
	await(events.AllClusters)
	if got := p.Of(9); got.All.Paused || got.Revision == 0 {
		t.Errorf("got %+v, want a pause that was deleted by hand to hold nothing back", got)
	}
}
