//go:build linux

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/obwarden/obwarden/agent/agenttest"
)

// process is a program that runs beside this one, measured by what Linux says of it.
type process struct {
	*agenttest.Process
	t   *testing.T
	log string // file of its output, so that nobody has to read it meanwhile
}

// start starts a program, which is asked to end when the test does.
func start(t *testing.T, cmd *exec.Cmd, name string) *process {
	t.Helper()
	p := &process{t: t, log: filepath.Join(t.TempDir(), name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	p.Process = agenttest.Start(t, cmd)
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("%s, the end of its log:\n%s", name, p.tail())
		}
	})
	return p
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

// processorSeconds is the processor time that it has used so far.
func (p *process) processorSeconds() float64 {
	p.t.Helper()
	content := p.read("stat")
	fields := strings.Fields(content[strings.LastIndexByte(content, ')')+1:]) // from the third on
	const ticksASecond = 100                                                  // of the kernel's interface, on every Linux
	return float64(number(fields[11])+number(fields[12])) / ticksASecond
}

func (p *process) read(file string) string {
	p.t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Cmd.Process.Pid, file))
	if err != nil {
		p.t.Fatalf("it is gone: %v", err)
	}
	return string(content)
}
