package agenttest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Patience is how long the functions of this package wait for something that must happen. No test waits it out.
const Patience = time.Minute

// LaxPolicy is a policy file that holds nothing back except a second operation in the same cluster: for tests that stop
// more servers than a real policy would allow.
const LaxPolicy = `defaults:
  max_concurrent: 1
  keep_zones: 0
  one_zone_at_a_time: false
  keep_root_server: false
  cooldown: {server: 0s, zone: 0s, failure: 0s}
  budget: {operations: 0, window: 1h}
  pause_after_failures: 0
  max_wait: 0s
  supersede: false
fleet_budget: {operations: 0, window: 1h}
`

// Process is a running program.
type Process struct {
	// Stdout and Stderr collect what the program writes, unless its command had writers of its own.
	Stdout, Stderr *Output
	Cmd            *exec.Cmd

	t    testing.TB
	done chan struct{} // closed when the program has ended
	err  error         // how it ended, once done is closed
	stop sync.Once
}

// Start starts a program that is killed when the test ends. Its stdin stays open for as long as it runs. If the test
// fails, the end of its stderr is logged.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Stdout: NewOutput(), Stderr: NewOutput(), Cmd: cmd, t: t, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.Stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.Stderr
	}
	DieWithTest(cmd)
	_, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("start %s: %v", cmd, err)
	}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		p.Kill()
		if text := p.Stderr.String(); t.Failed() && text != "" {
			t.Logf("%s, the end of its stderr:\n%s", cmd, text[max(0, len(text)-4000):])
		}
	})
	return p
}

// Signal sends a signal to a program that runs.
func (p *Process) Signal(s os.Signal) {
	p.t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %s: %v", p.Cmd, err)
	}
}

// Kill ends the program with SIGKILL, if it still runs, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// Ended is closed when the program has ended.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Wait waits for the program's end and returns its exit code.
func (p *Process) Wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.t.Fatalf("%s goes on running", p.Cmd)
	}
	return p.Cmd.ProcessState.ExitCode()
}

// Stop tells the program to end (SIGTERM), waits until it has, and fails the test if it ends with an error or not in
// time. A second call does nothing.
func (p *Process) Stop() {
	p.t.Helper()
	p.stop.Do(func() {
		_ = p.Cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself, which is seen below
		select {
		case <-p.done:
			if p.err != nil {
				p.t.Errorf("%s ended: %v", p.Cmd, p.err)
			}
		case <-time.After(Patience):
			p.t.Errorf("%s did not end within %s", p.Cmd, Patience)
			p.Kill()
		}
	})
}

// Await waits until the program has written text on stdout, and returns everything up to the end of what it has written
// by then. A program that ends without it fails the test.
func (p *Process) Await(text string) string {
	p.t.Helper()
	if found, all := p.Stdout.await(text, p.done); !found {
		p.t.Fatalf("%s did not print %q; stdout:\n%s", p.Cmd, text, all)
	}
	return p.Stdout.String()
}

// The ports of FreeAddress are below those that the system gives to clients, so that a server finds its port free when
// it is started again.
const (
	firstPort = 18000
	ports     = 14000
)

var nextPort atomic.Int64

// FreeAddress is an address of 127.0.0.1 that nobody listens on. No two calls in one process return the same.
func FreeAddress(t testing.TB) string {
	t.Helper()
	nextPort.CompareAndSwap(0, 1+rand.Int64N(ports)) // test processes that run side by side begin at different ports
	for range ports {
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+nextPort.Add(1)%ports)
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close() // only tried
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}
