package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// smallDisk is a file system of its own.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("obwarden-test", dir, "tmpfs", 0, "size=16m")
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skipf("a small disk must be mounted, which this user may not: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// notReady waits until the agent says that it is not, and returns why.
func notReady(t *testing.T, address string) string {
	t.Helper()
	var why []byte
	agenttest.Eventually(t, "the agent is not ready", patience, 50*time.Millisecond, func() error {
		resp, err := http.Get("http://" + address + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if why, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode != http.StatusServiceUnavailable {
			err = fmt.Errorf("it answers %s", resp.Status)
		}
		return err
	})
	return string(why)
}

// TestAFullDiskRefusesRequestsAndLosesNone fills the disk of the embedded server
// while requests come in. What was acknowledged ends once there is room again and
// the agent is started anew.
func TestAFullDiskRefusesRequestsAndLosesNone(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	s, clusters := newSiteOn(t, disk)
	agent := startProcess(t, s.environ, "run")
	s.ready(t)
	filler := filepath.Join(disk, "filler")
	acknowledged, refused := publishUntilRefused(t, s.connect(t), clusters, 20, func() { fill(t, filler) })
	t.Logf("%d acknowledged, then: %v", len(acknowledged), refused)
	if len(acknowledged) < 20 {
		t.Fatalf("%d requests acknowledged before the disk was full, want 20", len(acknowledged))
	}
	if why := notReady(t, s.environ["OBWARDEN_HTTP_LISTEN"]); !strings.Contains(why, disk) || !strings.Contains(why, "no space left on device") {
		t.Errorf("not ready, but not why: %s", why)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	agent.Kill()
	startProcess(t, s.environ, "run")
	s.wantOneStopEach(t, acknowledged)
}

// TestAReadOnlyDiskRefusesToStartAndLosesNothing makes the disk read-only, as a
// kernel does after an error, between two lives of the agent.
func TestAReadOnlyDiskRefusesToStartAndLosesNothing(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	s, clusters := newSiteOn(t, disk)
	agent := startProcess(t, s.environ, "run")
	s.ready(t)
	acknowledged, _ := publishUntilRefused(t, s.connect(t), clusters, 20, agent.Kill)
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	refused := startProcess(t, s.environ, "run")
	if code := refused.Wait(); code != exitFailed {
		t.Errorf("exit code %d on a read-only disk, want %d", code, exitFailed)
	}
	if said := refused.Stderr.String(); !strings.Contains(said, "read-only file system") || !strings.Contains(said, disk) {
		t.Errorf("on a read-only disk it said:\n%s", said)
	}
	remount(0)
	startProcess(t, s.environ, "run")
	s.wantOneStopEach(t, acknowledged)
}

// newSiteOn has the data on disk, and more clusters than requests at a time.
func newSiteOn(t *testing.T, disk string) (site, []ocpsim.ClusterConfig) {
	t.Helper()
	clusters, err := ocpsim.Grid(20, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, ocpsim.Config{Clusters: clusters, Speed: 200}).lax(t)
	s.environ["OBWARDEN_DATA_DIR"] = filepath.Join(disk, "data")
	s.environ["OBWARDEN_HTTP_LISTEN"] = agenttest.FreeAddress(t)
	return s, clusters
}

// fill writes to a file until there is no room left.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// publishUntilRefused publishes stops of servers of which none is asked for twice,
// and between the first n and all others calls damage. It returns the keys that
// were acknowledged and why the first other was not.
func publishUntilRefused(t *testing.T, js jetstream.JetStream, clusters []ocpsim.ClusterConfig, n int, damage func()) (acknowledged []string, refused error) {
	t.Helper()
	for i := range 6 * len(clusters) {
		if i == n {
			damage()
		}
		c := clusters[i%len(clusters)]
		server := i / len(clusters)
		r := events.Request{IdempotencyKey: fmt.Sprint("k", i), ClusterID: c.ID, ServerID: c.Zones[server/2].Servers[server%2].ID, Reason: strings.Repeat("x", 1000)}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := r.Publish(ctx, js, events.Stop, "cli")
		cancel()
		if err != nil {
			return acknowledged, err
		}
		acknowledged = append(acknowledged, r.IdempotencyKey)
	}
	t.Fatalf("all %d requests were acknowledged", len(acknowledged))
	return nil, nil
}
