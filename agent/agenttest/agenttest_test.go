package agenttest

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	RunRole(map[string]func(string) error{
		"nats": ServeNATS,
		"fail": errors.New,
	})
	os.Exit(m.Run())
}

func TestNATSIsAProcessThatServesUntilItIsKilled(t *testing.T) {
	t.Parallel()
	address := FreeAddress(t)
	p := Start(t, NATS(address, t.TempDir()))
	if printed := p.Await("nats://"); !strings.Contains(printed, address) {
		t.Errorf("printed %q, want the URL with %s", printed, address)
	}
	p.Kill()
	if code := p.Wait(); code != -1 {
		t.Errorf("exit code %d of a process that was killed, want -1", code)
	}
}

func TestARoleThatFailsSaysWhy(t *testing.T) {
	t.Parallel()
	p := Start(t, Self("fail", "because"))
	if code := p.Wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	p.Stderr.Await(t, "fail: because")
	if code := Start(t, Self("no such", "")).Wait(); code != 2 {
		t.Errorf("exit code %d of a role that is not there, want 2", code)
	}
}

func TestFreeAddressesDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 200 {
		seen[FreeAddress(t)] = true
	}
	if len(seen) != 200 {
		t.Errorf("%d addresses, want 200", len(seen))
	}
}

func TestEventuallyPolls(t *testing.T) {
	t.Parallel()
	calls := 0
	Eventually(t, "the third call", Patience, time.Millisecond, func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if calls != 3 {
		t.Errorf("%d calls, want 3", calls)
	}
}
