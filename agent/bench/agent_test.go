//go:build linux

package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// laxPolicy holds nothing back but a second operation in a cluster: what is measured
// is the agent, and not the patience that people want of it.
const laxPolicy = `defaults:
  max_concurrent: 1
  keep_zones: 0
  one_zone_at_a_time: false
  keep_root_server: false
  cooldown: {server: 0s, zone: 0s, failure: 0s}
  budget: {operations: 0, window: 1h}
  pause_after_failures: 0
  max_wait: 0s
fleet_budget: {operations: 0, window: 1h}
`

// build makes the binary as it is released.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "obwarden-bench-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "obwarden")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "../../cmd/obwarden")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return binary, nil
})

func program(t *testing.T) string {
	t.Helper()
	if *flagBinary != "" {
		return *flagBinary
	}
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// agentProcess is the real binary, running.
type agentProcess struct {
	t       *testing.T
	cmd     *exec.Cmd
	http    string
	pprof   string
	log     string        // file
	readyIn time.Duration // from its start until it said that it takes requests
	stop    func()
}

// startAgent starts the binary and waits until it is ready.
func startAgent(t *testing.T, environ map[string]string) *agentProcess {
	t.Helper()
	p := &agentProcess{t: t, http: "http://" + freeAddress(t), pprof: freeAddress(t), log: filepath.Join(t.TempDir(), "agent.log")}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(program(t), "run")
	p.cmd.Env = append(os.Environ(), "OBWARDEN_HTTP_LISTEN="+strings.TrimPrefix(p.http, "http://"), "OBWARDEN_LOG_FORMAT=json",
		"OBWARDEN_OCP_USERNAME=admin", "OBWARDEN_OCP_PASSWORD=secret", "OBWARDEN_OCP_MAX_RPS=1000000")
	if *flagProfile != "" {
		p.cmd.Env = append(p.cmd.Env, "OBWARDEN_PPROF_LISTEN="+p.pprof)
	}
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(laxPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	p.cmd.Env = append(p.cmd.Env, "OBWARDEN_POLICY_FILE="+policy)
	for name, value := range environ {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stderr = log // a file: nobody has to read it meanwhile
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
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
				t.Errorf("agent ended: %v\n%s", err, p.tail())
			}
		case <-time.After(patience):
			_ = p.cmd.Process.Kill()
			t.Errorf("agent did not end within %s", patience)
		}
	})
	t.Cleanup(p.stop)
	for !p.answers() {
		if time.Since(began) > patience {
			t.Fatalf("agent is not ready:\n%s", p.tail())
		}
		time.Sleep(time.Millisecond)
	}
	p.readyIn = time.Since(began)
	return p
}

func (p *agentProcess) answers() bool {
	response, err := http.Get(p.http + "/-/ready")
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func (p *agentProcess) tail() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-4000):])
}

// residentMiB is what the process holds in memory.
func (p *agentProcess) residentMiB() float64 {
	p.t.Helper()
	for line := range strings.Lines(p.read("status")) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return float64(number(strings.Fields(kib)[0])) / 1024
		}
	}
	p.t.Fatal("no VmRSS")
	return 0
}

// processorSeconds that it has used so far.
func (p *agentProcess) processorSeconds() float64 {
	p.t.Helper()
	content := p.read("stat")
	fields := strings.Fields(content[strings.LastIndexByte(content, ')')+1:]) // from the third on
	const ticksASecond = 100                                                  // of the kernel's interface, on every Linux
	return float64(number(fields[11])+number(fields[12])) / ticksASecond
}

func (p *agentProcess) read(file string) string {
	p.t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
	if err != nil {
		p.t.Fatalf("agent is gone: %v\n%s", err, p.tail())
	}
	return string(content)
}

// scrape reads /metrics and returns how long it took.
func (p *agentProcess) scrape() (time.Duration, map[string]float64) {
	p.t.Helper()
	began := time.Now()
	response, err := http.Get(p.http + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	took := time.Since(began)
	if err != nil {
		p.t.Fatal(err)
	}
	values := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	return took, values
}

// profile writes a profile of what goes on until the returned function is called,
// where one is asked for.
func (p *agentProcess) profile(name string) (done func()) {
	p.t.Helper()
	if *flagProfile == "" {
		return func() {}
	}
	fetch := func(ctx context.Context, path string) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.pprof+"/debug/pprof/"+path, nil)
		if err != nil {
			p.t.Error(err)
			return
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			p.t.Error(err)
			return
		}
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		if err == nil {
			err = os.WriteFile(filepath.Join(*flagDir, name+"."+*flagProfile+".pprof"), content, 0o600)
		}
		if err != nil {
			p.t.Error(err)
		}
	}
	if *flagProfile != "cpu" {
		return func() { fetch(context.Background(), *flagProfile) }
	}
	ended := make(chan struct{})
	go func() { defer close(ended); fetch(context.Background(), "profile?seconds=3") }()
	return func() { <-ended }
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
