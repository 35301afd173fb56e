//go:build linux

package chaos

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
)

// process is an agent or NATS: a program that is started again whenever it ends, as
// systemd would, until close.
type process struct {
	name   string
	t      *testing.T
	start  func() *exec.Cmd
	line   func(line []byte) // of stderr
	log    *os.File
	reaped chan struct{} // closed when the supervisor has ended

	mu      sync.Mutex
	cmd     *exec.Cmd
	exited  chan struct{}  // closed when cmd has ended
	started chan struct{}  // closed at the next start
	notNow  time.Time      // down until then
	closed  chan struct{}  // closed when the process is not to be started again
	closing bool           // the same
	exits   map[string]int // that no fault explains, by exit status
	felled  bool           // by a fault, since the last start
	tail    []string       // last lines of stderr of the present run
	panics  []string
}

func startProcess(t *testing.T, name, dir string, start func() *exec.Cmd, line func([]byte)) *process {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	p := &process{name: name, t: t, start: start, line: line, log: log, exits: map[string]int{},
		started: make(chan struct{}), closed: make(chan struct{}), reaped: make(chan struct{})}
	go p.supervise()
	t.Cleanup(func() { p.close(0) })
	return p
}

// restartAfter is the pause before a program that ended by itself is started again.
const restartAfter = 300 * time.Millisecond

func (p *process) supervise() {
	defer close(p.reaped)
	for {
		p.mu.Lock()
		wait, closing := time.Until(p.notNow), p.closing
		p.mu.Unlock()
		if closing {
			return
		}
		if wait <= 0 {
			p.runOnce()
			continue
		}
		select {
		case <-p.closed:
		case <-time.After(wait):
		}
	}
}

func (p *process) runOnce() {
	cmd := p.start()
	agenttest.DieWithTest(cmd)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		_, err = cmd.StdinPipe() // NATS sees its end when this test is gone
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		panic(fmt.Sprintf("start %s: %v", p.name, err))
	}
	exited := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.exited, p.felled, p.tail = cmd, exited, false, nil
	close(p.started)
	p.started = make(chan struct{})
	if p.closing { // meanwhile
		_ = cmd.Process.Kill() // its own child, not waited for yet
	}
	p.mu.Unlock()
	lines := bufio.NewScanner(stderr)
	lines.Buffer(make([]byte, 64<<10), 8<<20)
	for lines.Scan() {
		_, _ = p.log.Write(append(lines.Bytes(), '\n')) // for people only
		p.saw(lines.Text())
		if p.line != nil {
			p.line(lines.Bytes())
		}
	}
	err = cmd.Wait()
	close(exited)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.felled && !p.closing {
		last := ""
		if len(p.tail) > 0 {
			last = p.tail[len(p.tail)-1]
		}
		p.exits[fmt.Sprintf("%v: %s", err, reasonOf(last))]++
		p.notNow = time.Now().Add(restartAfter)
	}
}

// reasonOf shortens a log line to the part that is the same in all lines of its kind.
func reasonOf(line string) string {
	var fields struct {
		Msg   string `json:"msg"`
		Error string `json:"error"`
	}
	if json.Unmarshal([]byte(line), &fields) == nil {
		line = fields.Msg + " " + fields.Error
	}
	return line[:min(len(line), 160)]
}

func (p *process) saw(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tail = append(p.tail, line)
	p.tail = p.tail[max(0, len(p.tail)-40):]
	if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
		p.panics = append(p.panics, p.name+": "+line)
	}
}

// signal sends a signal. After SIGKILL and SIGTERM the process stays down for a while, and signal returns how long it
// took to end.
func (p *process) signal(s syscall.Signal, down time.Duration) time.Duration {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	fells := s == syscall.SIGKILL || s == syscall.SIGTERM
	if fells {
		p.felled = true
		p.notNow = time.Now().Add(down)
	}
	p.mu.Unlock()
	if cmd == nil {
		return 0
	}
	began := time.Now()
	if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(fmt.Sprintf("signal %s: %v", p.name, err))
	}
	if !fells {
		return 0
	}
	select {
	case <-exited:
	case <-time.After(shutdownPatience):
		_ = cmd.Process.Kill() // it took too long, which the report shows
		<-exited
	}
	return time.Since(began)
}

// shutdownPatience is how long a process may take to end after SIGTERM.
const shutdownPatience = 15 * time.Second

// running reports whether it is up.
func (p *process) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// awaitRunning waits until the process is up, for a time at most.
func (p *process) awaitRunning(atMost time.Duration) {
	deadline := time.After(atMost)
	for {
		p.mu.Lock()
		started := p.started
		p.mu.Unlock()
		if p.running() {
			return
		}
		select {
		case <-started:
		case <-deadline:
			return
		}
	}
}

// close ends the process for good: with s, or by SIGKILL where s is 0.
func (p *process) close(s syscall.Signal) time.Duration {
	p.mu.Lock()
	if !p.closing {
		p.closing = true
		close(p.closed)
	}
	p.mu.Unlock()
	if s == 0 {
		s = syscall.SIGKILL
	}
	took := p.signal(s, 0)
	<-p.reaped
	_ = p.log.Close() // closed twice where the test ended it before its cleanup
	return took
}
