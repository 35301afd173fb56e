package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/policy"
)

// watched is a policy file under a watch, in a bubble of its own time.
type watched struct {
	t       *testing.T
	file    string
	hangups chan os.Signal
	log     *agenttest.Output

	mu      sync.Mutex
	applied []int // max_concurrent of each policy that was put in force
	errs    []error
}

func (w *watched) apply(p *policy.Policy) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applied = append(w.applied, p.Limits.MaxConcurrent)
}

func (w *watched) reloaded(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

func watchFile(t *testing.T, content string, test func(*watched)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, file: filepath.Join(dir, "policy.yaml"), hangups: make(chan os.Signal, 1), log: agenttest.NewOutput()}
		w.write(content)
		p, err := policy.Load(w.file)
		if err != nil {
			t.Fatal(err)
		}
		watch := policyWatch{
			file: w.file, taken: p.Hash, log: slog.New(slog.NewTextHandler(w.log, nil)),
			apply: w.apply, reloaded: w.reloaded,
		}
		go watch.run(t.Context(), w.hangups)
		test(w)
	})
}

func (w *watched) write(content string) {
	w.t.Helper()
	if err := os.WriteFile(w.file, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// looks lets the watch look n times.
func (w *watched) looks(n int) {
	time.Sleep(time.Duration(n) * policyInterval) // of the bubble
	synctest.Wait()
}

func (w *watched) hangup() {
	w.hangups <- syscall.SIGHUP
	synctest.Wait()
}

func (w *watched) want(applied []int, refused ...bool) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.applied, applied) {
		w.t.Errorf("in force came %v, want %v", w.applied, applied)
	}
	var got []bool
	for _, err := range w.errs {
		got = append(got, err != nil)
	}
	if !slices.Equal(got, refused) {
		w.t.Errorf("refused: got %v, want %v", w.errs, refused)
	}
}

const (
	one    = "defaults: {max_concurrent: 1}\n"
	two    = "defaults: {max_concurrent: 2}\n"
	three  = "defaults: {max_concurrent: 3}\n"
	faulty = "defaults: {max_concurrent: none, keep_zone: 1}\n"
)

func TestAChangedPolicyComesInForceByItselfOnce(t *testing.T) {
	t.Parallel()
	watchFile(t, one, func(w *watched) {
		w.looks(3)
		w.want(nil)
		w.write(two)
		w.looks(5)
		w.want([]int{2}, false)
		w.write(one)
		w.looks(2)
		w.want([]int{2, 1}, false, false)
	})
}

// A file that is being written may be valid and half of what is meant.
func TestAPolicyThatIsStillBeingWrittenIsNotRead(t *testing.T) {
	t.Parallel()
	watchFile(t, one, func(w *watched) {
		w.write("")
		w.looks(1)
		w.write(two)
		w.looks(1)
		w.write(three)
		w.looks(1)
		w.want(nil)
		w.looks(1)
		w.want([]int{3}, false)
	})
}

func TestAFaultyPolicyIsRefusedAsAWholeAndSaidOnce(t *testing.T) {
	t.Parallel()
	watchFile(t, one, func(w *watched) {
		w.write(faulty)
		w.looks(10)
		w.want(nil, true)
		if got := strings.Count(w.log.String(), "is refused"); got != 1 {
			t.Errorf("said %d times:\n%s", got, w.log)
		}
		for _, place := range []string{"policy.yaml:1:28", "policy.yaml:1:34"} {
			if !strings.Contains(w.log.String(), place) {
				t.Errorf("the log lacks %s:\n%s", place, w.log)
			}
		}
		w.write(one) // as it was
		w.looks(2)
		w.want(nil, true, false)
		w.write(faulty)
		w.looks(2)
		w.write(two)
		w.looks(2)
		w.want([]int{2}, true, false, true, false)
	})
}

func TestAPolicyFileThatIsGoneLeavesThePolicyInForce(t *testing.T) {
	t.Parallel()
	watchFile(t, one, func(w *watched) {
		if err := os.Remove(w.file); err != nil {
			t.Fatal(err)
		}
		w.looks(5)
		w.want(nil, true)
		if !errors.Is(w.errs[0], fs.ErrNotExist) {
			t.Errorf("got %v", w.errs[0])
		}
		w.write(one)
		w.looks(2)
		w.want(nil, true, false)
	})
}

func TestSIGHUPReadsThePolicyAtOnce(t *testing.T) {
	t.Parallel()
	watchFile(t, one, func(w *watched) {
		w.write(two)
		w.hangup()
		w.want([]int{2}, false)
		w.hangup() // nothing new
		w.want([]int{2}, false, false)
		w.write(faulty)
		w.hangup()
		w.want([]int{2}, false, false, true)
		w.looks(3) // said already
		w.want([]int{2}, false, false, true)
	})
}

func TestTheBuiltInPolicyIsNotReloaded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := agenttest.NewOutput()
		fail := func() { t.Error("reloaded") }
		w := policyWatch{
			taken: "default", log: slog.New(slog.NewTextHandler(log, nil)),
			apply: func(*policy.Policy) { fail() }, reloaded: func(error) { fail() },
		}
		hangups := make(chan os.Signal, 1)
		go w.run(t.Context(), hangups)
		hangups <- syscall.SIGHUP
		time.Sleep(3 * policyInterval) // of the bubble
		synctest.Wait()
		if !strings.Contains(log.String(), "OBWARDEN_POLICY_FILE is not set") {
			t.Errorf("the log does not say why nothing happens:\n%s", log)
		}
	})
}
