//go:build linux

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program that runs beside this one.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  string // file of its stderr
	stop func() // once start has returned
}

// start starts it; it ends with the test.
func (p *process) start() {
	t := p.t
	t.Helper()
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stderr = log // a file: nobody has to read it meanwhile
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- p.cmd.Wait() }()
	p.stop = sync.OnceFunc(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // or it has ended, which Wait tells
		select {
		case err := <-exited:
			if err != nil {
				t.Errorf("%s ended: %v\n%s", p.cmd.Path, err, p.tail())
			}
		case <-time.After(patience):
			_ = p.cmd.Process.Kill()
			t.Errorf("%s did not end within %s", p.cmd.Path, patience)
		}
	})
	t.Cleanup(p.stop)
}

func (p *process) tail() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-4000):])
}

// residentMiB is what the process holds in memory, mostResidentMiB the most it ever did.
func (p *process) residentMiB() float64     { return p.statusMiB("VmRSS:") }
func (p *process) mostResidentMiB() float64 { return p.statusMiB("VmHWM:") }

func (p *process) statusMiB(name string) float64 {
	p.t.Helper()
	for line := range strings.Lines(p.read("status")) {
		if kib, ok := strings.CutPrefix(line, name); ok {
			return float64(number(strings.Fields(kib)[0])) / 1024
		}
	}
	p.t.Fatal("no memory in /proc")
	return 0
}

// processorSeconds that it has used so far.
func (p *process) processorSeconds() float64 {
	p.t.Helper()
	content := p.read("stat")
	fields := strings.Fields(content[strings.LastIndexByte(content, ')')+1:]) // from the third on
	const ticksASecond = 100                                                  // of the kernel's interface, on every Linux
	return float64(number(fields[11])+number(fields[12])) / ticksASecond
}

func (p *process) read(file string) string {
	p.t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
	if err != nil {
		p.t.Fatalf("it is gone: %v\n%s", err, p.tail())
	}
	return string(content)
}
