package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// TestKilledUnderLoadWithTornFilesEveryAcknowledgedRequestEnds kills the agent with
// its embedded NATS while requests come in, and leaves its files as a crash in the
// middle of a write would: behind the records that were flushed there is something
// that is none. What was flushed stays as it is: of that JetStream cannot lose a
// part and know it.
func TestKilledUnderLoadWithTornFilesEveryAcknowledgedRequestEnds(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	clusters, err := ocpsim.Grid(24, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, ocpsim.Config{Clusters: clusters, Speed: 300}).lax(t)
	agent := startProcess(t, s.environ, "run")
	s.ready(t)
	var acknowledged []string
	for round, tear := range []func(path string) error{
		func(path string) error { // half a record: the beginning of the first one there is
			data, err := os.ReadFile(path)
			return errors.Join(err, appendFile(path, data[:min(len(data), 60)]))
		},
		func(path string) error { return appendFile(path, make([]byte, 4096)) }, // room that was never written
		func(path string) error { // rubbish
			rubbish := make([]byte, 1+random.IntN(3000))
			for i := range rubbish {
				rubbish[i] = byte(random.Uint32())
			}
			return appendFile(path, rubbish)
		},
		func(path string) error { // rubbish, and no index to say where it begins
			index := filepath.Join(filepath.Dir(path), "index.db")
			if err := os.Remove(index); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return appendFile(path, []byte("rubbish"))
		},
	} {
		acknowledged = append(acknowledged, s.loadUntilKilled(t, round, clusters, agent, 1+random.IntN(len(clusters)-5))...)
		if torn := tearBlocks(t, s.environ["OBWARDEN_DATA_DIR"], tear); torn < 2 { // requests and events at least
			t.Fatalf("round %d: %d streams torn", round, torn)
		}
		agent = startProcess(t, s.environ, "run")
	}
	t.Logf("%d requests acknowledged", len(acknowledged))
	s.wantOneStopEach(t, acknowledged)
}

// loadUntilKilled publishes from four sides, for servers of the round alone, and
// kills the agent once enough requests are acknowledged. It returns the keys of
// all that were.
func (s site) loadUntilKilled(t *testing.T, round int, clusters []ocpsim.ClusterConfig, agent *agenttest.Process, enough int) []string {
	t.Helper()
	const sides = 4
	js := s.connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	var keys []string
	kill := sync.OnceFunc(func() { agent.Kill(); cancel() })
	var publishers sync.WaitGroup
	for side := range sides {
		publishers.Go(func() {
			for i := side; i < len(clusters) && ctx.Err() == nil; i += sides {
				r := events.Request{IdempotencyKey: fmt.Sprintf("k%d-%d", round, i), ClusterID: clusters[i].ID, ServerID: clusters[i].Zones[round/2].Servers[round%2].ID}
				for ctx.Err() == nil {
					try, stop := context.WithTimeout(ctx, time.Second)
					_, err := r.Publish(try, js, events.Stop, "cli")
					stop()
					if err == nil {
						break
					}
				}
				if ctx.Err() != nil {
					return // perhaps it is there, nobody said so
				}
				mu.Lock()
				keys = append(keys, r.IdempotencyKey)
				now := len(keys) > enough
				mu.Unlock()
				if now {
					kill()
				}
			}
		})
	}
	publishers.Wait()
	kill() // fewer came than are enough
	return keys
}

// tearBlocks damages the newest block of each stream and returns of how many.
func tearBlocks(t *testing.T, dataDir string, tear func(path string) error) int {
	t.Helper()
	newest := map[string]string{}
	err := filepath.WalkDir(filepath.Join(dataDir, "nats"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".blk" && len(path) >= len(newest[filepath.Dir(path)]) { // 9.blk comes before 10.blk
			newest[filepath.Dir(path)] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range newest {
		if err := tear(path); err != nil {
			t.Fatal(err)
		}
	}
	return len(newest)
}

func appendFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
