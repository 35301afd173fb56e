//go:build linux

package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
)

// build makes the binary as it is released.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "obwarden-bench-")
	if err != nil {
		return "", err
	}
	return agenttest.Build(dir, []string{"CGO_ENABLED=0"}, "-trimpath", "-ldflags", "-s -w")
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
	*process
	http    string
	pprof   string
	readyIn time.Duration // from its start until it said that it takes requests
}

// startAgent starts the binary and waits until it is ready.
func startAgent(t *testing.T, environ map[string]string) *agentProcess {
	t.Helper()
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(agenttest.LaxPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &agentProcess{http: "http://" + agenttest.FreeAddress(t), pprof: agenttest.FreeAddress(t)}
	cmd := exec.Command(program(t), "run")
	cmd.Env = append(os.Environ(), "OBWARDEN_HTTP_LISTEN="+strings.TrimPrefix(p.http, "http://"), "OBWARDEN_LOG_FORMAT=json",
		"OBWARDEN_OCP_USERNAME=admin", "OBWARDEN_OCP_PASSWORD=secret", "OBWARDEN_OCP_MAX_RPS=1000000", "OBWARDEN_POLICY_FILE="+policy)
	if *flagProfile != "" || *flagSoak > 0 {
		cmd.Env = append(cmd.Env, "OBWARDEN_PPROF_LISTEN="+p.pprof)
	}
	for name, value := range environ {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	began := time.Now()
	p.process = start(t, cmd, "agent")
	eventually(t, "the agent is ready", time.Millisecond, func() error {
		if p.answers() {
			return nil
		}
		select {
		case <-p.Ended():
			t.Fatal("the agent has ended")
		default:
		}
		return errors.New("not yet")
	})
	p.readyIn = time.Since(began)
	return p
}

// eventually polls with the patience of this package.
func eventually(t *testing.T, what string, pause time.Duration, check func() error) {
	t.Helper()
	agenttest.Eventually(t, what, patience, pause, check)
}

func (p *agentProcess) answers() bool {
	response, err := http.Get(p.http + "/-/ready")
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
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

// collect makes the agent collect its garbage, twice because of what Go keeps in pools.
func (p *agentProcess) collect() {
	p.t.Helper()
	for range 2 {
		response, err := http.Get("http://" + p.pprof + "/debug/pprof/heap?gc=1")
		if err != nil {
			p.t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, response.Body)
		if err = errors.Join(err, response.Body.Close()); err != nil {
			p.t.Fatal(err)
		}
	}
}

// profile takes a profile until the returned function is called, if flags ask for one.
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
