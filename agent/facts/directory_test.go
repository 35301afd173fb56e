package facts

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/events/eventstest"
)

// site is a simulated OCP that counts the requests for lists of clusters and of servers.
type site struct {
	client            *ocp.Client
	sim               *ocpsim.Sim
	clusters, servers atomic.Int64
	away              atomic.Bool
}

func newSite(t *testing.T) *site {
	t.Helper()
	sim, err := ocpsim.New(ocpsim.Config{Users: ocpsim.DefaultUsers("admin", "secret")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	s := &site{sim: sim}
	mux := http.NewServeMux()
	counting := func(n *atomic.Int64) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			n.Add(1)
			if s.away.Load() {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			sim.Handler().ServeHTTP(w, r)
		}
	}
	mux.Handle("/api/v2/ob/clusters", counting(&s.clusters))
	mux.Handle("/api/v2/ob/clusters/", counting(&s.servers))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.client, err = ocp.New(ocp.Config{URL: server.URL, Username: "admin", Password: "secret", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	return s
}

func (s *site) wantReadings(t *testing.T, clusters, servers int64) {
	t.Helper()
	if c, n := s.clusters.Load(), s.servers.Load(); c != clusters || n != servers {
		t.Errorf("%d readings of clusters and %d of servers, want %d and %d", c, n, clusters, servers)
	}
}

func TestAllCallersThatLookUpClustersShareOneReading(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := NewDirectory(s.client)
	all, err := d.Clusters(t.Context(), time.Minute)
	if err != nil || len(all) != 1 || all[0].ID != 1 {
		t.Fatalf("clusters %+v, %v", all, err)
	}
	if name, err := d.Name(t.Context(), 1); err != nil || name != all[0].Name {
		t.Errorf("name %q, %v, want %q", name, err, all[0].Name)
	}
	for range 2 {
		server, name, err := d.Server(t.Context(), 1, 2)
		if err != nil || server.ID != 2 || server.ClusterID != 1 || name != all[0].Name {
			t.Errorf("server %+v of %q, %v", server, name, err)
		}
	}
	s.wantReadings(t, 1, 1)
	if _, err := d.Clusters(t.Context(), 0); err != nil {
		t.Error(err)
	}
	s.wantReadings(t, 2, 1)
}

func TestANameThatIsNotKnownIsLookedUpAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := NewDirectory(s.client)
	if _, err := d.Clusters(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if name, err := d.Name(t.Context(), 99); err != nil || name != "" {
		t.Errorf("name %q, %v, want none", name, err)
	}
	s.wantReadings(t, 2, 0)
}

func TestAServerThatOCPDoesNotShowDiffersFromAnOCPThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := NewDirectory(s.client)
	const missing = "OCP shows no server 99 in cluster 1"
	if _, _, err := d.Server(t.Context(), 1, 99); !errors.Is(err, ErrNotShown) || err.Error() != missing {
		t.Errorf("no such server: %v", err)
	}
	if _, _, err := d.Server(t.Context(), 99, 1); !errors.Is(err, ErrNotShown) || ocp.ClassOf(err) != ocp.Refused {
		t.Errorf("no such cluster: %v", err)
	}
	s.away.Store(true)
	away := NewDirectory(s.client)
	if _, err := away.Clusters(t.Context(), 0); err == nil || errors.Is(err, ErrNotShown) {
		t.Errorf("OCP refuses to list clusters: %v", err)
	}
	if _, _, err := away.Server(t.Context(), 1, 2); err == nil || errors.Is(err, ErrNotShown) {
		t.Errorf("OCP refuses to list clusters: %v", err)
	}
}

func controlBucket(t *testing.T) jetstream.KeyValue {
	t.Helper()
	return eventstest.Start(t).Streams(eventstest.Options()).Control
}

func TestTheInventoryIsWrittenWhenItChanges(t *testing.T) {
	t.Parallel()
	s, bucket := newSite(t), controlBucket(t)
	i := inventory{directory: NewDirectory(s.client), bucket: bucket}
	written := func() events.Inventory {
		t.Helper()
		if err := i.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := events.ReadInventory(t.Context(), bucket)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := written()
	if len(first.Clusters) != 1 || first.Clusters[0].ID != 1 || first.At.IsZero() {
		t.Fatalf("inventory %+v", first)
	}
	if again := written(); !again.At.Equal(first.At) {
		t.Error("an unchanged list is written again")
	}
	i.directory.clusters.value = append(i.directory.clusters.value, ocp.Cluster{ID: 2, Name: "new"})
	if changed := written(); len(changed.Clusters) != 2 || changed.Clusters[1].Name != "new" {
		t.Errorf("inventory %+v, want the new cluster in it", changed)
	}
	s.away.Store(true)
	i.directory = NewDirectory(s.client)
	if left := written(); len(left.Clusters) != 2 {
		t.Errorf("inventory %+v, want the old list while OCP shows none", left)
	}
}

func TestKeepingTheInventoryEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, bucket := newSite(t), controlBucket(t)
	ctx, cancel := context.WithCancel(t.Context())
	watcher, err := bucket.WatchAll(t.Context(), jetstream.UpdatesOnly())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		KeepInventory(ctx, NewDirectory(s.client), bucket, slog.New(slog.DiscardHandler))
	}()
	<-watcher.Updates()
	cancel()
	<-done
	if err := watcher.Stop(); err != nil {
		t.Error(err)
	}
}
