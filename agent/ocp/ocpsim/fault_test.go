package ocpsim_test

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// TestAnswerFaults: what a client sees, whether the stop happened all the same, and what the log says of it.
func TestAnswerFaults(t *testing.T) {
	t.Parallel()
	status := func(status int, contains string) func(*testing.T, reply, error) {
		return func(t *testing.T, r reply, err error) {
			if err != nil || r.status != status || !strings.Contains(r.body, contains) {
				t.Errorf("got status %d, error %v, body %q, want %d with %q", r.status, err, r.body, status, contains)
			}
		}
	}
	breaks := func(cause error) func(*testing.T, reply, error) {
		return func(t *testing.T, r reply, err error) {
			if !errors.Is(err, cause) {
				t.Errorf("got status %d, error %v, want %v", r.status, err, cause)
			}
		}
	}
	tests := []struct {
		fault  string
		effect bool
		logged int
		seen   func(t *testing.T, r reply, err error)
	}{
		{"lose_before", false, 0, breaks(io.EOF)},
		{"lose_after", true, 0, breaks(io.EOF)},
		{"reset", false, 0, breaks(syscall.ECONNRESET)},
		{"reset_after", true, 0, breaks(syscall.ECONNRESET)},
		{"delay,delay=1ms", true, 200, status(200, `"successful":true`)},
		{"delay_after,delay=1ms", true, 200, status(200, `"successful":true`)},
		{"status,status=401", false, 401, status(401, `"code":30000`)},
		{"status,status=503", false, 503, status(503, `"successful":false`)},
		{"status_after,status=502", true, 502, status(502, `"code":10010`)},
		{"html", false, 502, status(502, "<h1>502 Bad Gateway</h1>")},
		{"html,status=504", false, 504, status(504, "<h1>504 Gateway Timeout</h1>")},
		{"html_after,status=504", true, 504, status(504, "<h1>504 Gateway Timeout</h1>")},
		{"empty", false, 200, func(t *testing.T, r reply, err error) {
			if err != nil || r.status != 200 || r.body != "" {
				t.Errorf("got %d %q, %v, want 200 without a body", r.status, r.body, err)
			}
		}},
		{"empty_after", true, 200, func(t *testing.T, r reply, err error) {
			if err != nil || r.status != 200 || r.body != "" {
				t.Errorf("got %d %q, %v, want 200 without a body", r.status, r.body, err)
			}
		}},
		{"truncate", true, 200, func(t *testing.T, r reply, err error) {
			if err != nil || r.status != 200 || len(r.body) < 100 || json.Valid([]byte(r.body)) {
				t.Errorf("got %d %q, %v, want 200 with half of the JSON", r.status, r.body, err)
			}
		}},
		{"not_successful", false, 200, status(200, `"successful":false`)},
		{"status,status=429,retryAfter=7", false, 429, func(t *testing.T, r reply, err error) {
			if err != nil || r.status != 429 || r.header.Get("Retry-After") != "7" {
				t.Errorf("got %d, Retry-After %q, %v, want 429, 7", r.status, r.header.Get("Retry-After"), err)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.fault, func(t *testing.T) {
			t.Parallel()
			c := start(t, ocpsim.Config{})
			c.fault("server_stop:" + test.fault)
			r, err := c.try("POST", serverPath(2, "stop"), "")
			test.seen(t, r, err)
			if got := len(c.sim.Tasks()) == 1; got != test.effect {
				t.Errorf("task started: got %t, want %t", got, test.effect)
			}
			entry := c.sim.Log()[0]
			if entry.Status != test.logged || (entry.TaskID != 0) != test.effect || entry.Fault != "server_stop:"+test.fault {
				t.Errorf("log: got status %d, task %d, fault %q", entry.Status, entry.TaskID, entry.Fault)
			}
			if got := c.get("/api/v2/ob/clusters"); got.status != 200 {
				t.Errorf("another endpoint: got %d, want 200", got.status)
			}
		})
	}
}

// TestDelayBeforeTheEffect: nothing happens for an hour, and then it happens.
func TestDelayBeforeTheEffect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim, answered := delayed(t, "server_stop:delay,delay=1h")
		if n := len(sim.Tasks()); n != 0 {
			t.Errorf("tasks during the delay: got %d, want 0", n)
		}
		began := time.Now()
		if got := <-answered; got != 200 {
			t.Errorf("answer: got %d, want 200", got)
		}
		if took := time.Since(began); took != time.Hour {
			t.Errorf("answer took %s, want an hour", took)
		}
		if n := len(sim.Tasks()); n != 1 {
			t.Errorf("tasks after the delay: got %d, want 1", n)
		}
	})
}

func TestDelayAfterTheEffect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim, answered := delayed(t, "server_stop:delay_after,delay=1h")
		if n := len(sim.Tasks()); n != 1 {
			t.Errorf("tasks during the delay: got %d, want 1", n)
		}
		if got := <-answered; got != 200 {
			t.Errorf("answer: got %d, want 200", got)
		}
	})
}

func TestFaultMatching(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		faults []string
		want   []int // statuses of stop 2, stop 3, list of zones, stop 5
	}{
		{"none", nil, []int{200, 200, 200, 200}},
		{"any endpoint", []string{"*:status,status=500"}, []int{500, 500, 500, 500}},
		{"method", []string{"*:status,status=500,method=GET"}, []int{200, 200, 500, 200}},
		{"server", []string{"*:status,status=500,server=3"}, []int{200, 500, 200, 200}},
		{"cluster", []string{"*:status,status=500,cluster=2"}, []int{200, 200, 200, 200}},
		{"count", []string{"server_stop:status,status=500,count=2"}, []int{500, 500, 200, 200}},
		{"skip", []string{"server_stop:status,status=500,skip=1,count=1"}, []int{200, 500, 200, 200}},
		{"first rule decides", []string{"*:status,status=501,count=1", "server_stop:status,status=502"}, []int{501, 502, 200, 502}},
		{"subtask rules beside it", []string{"server_stop:fail_subtask,subtask=Stop server", "server_stop:status_after,status=502"}, []int{502, 502, 200, 502}},
		{"hardly ever", []string{"*:status,status=500,probability=1e-12"}, []int{200, 200, 200, 200}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := start(t, ocpsim.Config{})
			for _, f := range test.faults {
				c.fault(f)
			}
			got := []int{
				c.post(serverPath(2, "stop")).status, c.post(serverPath(3, "stop")).status,
				c.get("/api/v2/ob/clusters/1/zones").status, c.post(serverPath(5, "stop")).status,
			}
			for i := range got {
				if got[i] != test.want[i] {
					t.Fatalf("statuses: got %v, want %v", got, test.want)
				}
			}
		})
	}
}

// TestFaultsOnTasksFindTheirServer: requests about a task are about its server.
func TestFaultsOnTasksFindTheirServer(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	c.fault("task_get:status,status=500,cluster=1,server=2")
	c.post(serverPath(2, "stop"))
	c.want(c.get(c.taskPath("")), 500, 0)
	c.post(serverPath(3, "stop"))
	c.want(c.get(c.taskPath("")), 200, 0)
}

func TestSubtaskFaultsCount(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{})
	c.fault("*:fail_subtask,subtask=Wait observer active,count=1")
	c.post(serverPath(2, "stop")) // has no such subtask: does not count
	c.post(serverPath(3, "restart"))
	c.post(serverPath(5, "restart"))
	c.sim.Advance(toTheEnd)
	for i, want := range []string{"SUCCESSFUL", "FAILED", "SUCCESSFUL"} {
		if got := c.sim.Tasks()[i].Status; got != want {
			t.Errorf("task %d: got %s, want %s", i, got, want)
		}
	}
	if got := c.sim.Faults()[0]; got.Struck != 1 || got.Seen != 2 {
		t.Errorf("rule: got seen %d, struck %d, want 2, 1", got.Seen, got.Struck)
	}
	c.sim.ClearFaults()
	if got := c.sim.Faults(); len(got) != 0 {
		t.Errorf("rules after ClearFaults: got %v, want none", got)
	}
}

func TestProbability(t *testing.T) {
	t.Parallel()
	c := start(t, ocpsim.Config{Seed: 3})
	c.fault("zones_list:status,status=500,probability=0.5")
	failed := 0
	for range 40 {
		if c.get("/api/v2/ob/clusters/1/zones").status == 500 {
			failed++
		}
	}
	if failed < 8 || failed > 32 {
		t.Errorf("of 40 requests %d failed, want about half", failed)
	}
}

func TestParseFault(t *testing.T) {
	t.Parallel()
	good := []struct {
		flag string
		want ocpsim.Fault
	}{
		{"server_stop:lose_after", ocpsim.Fault{Match: ocpsim.Match{Endpoint: "server_stop"}, Action: "lose_after"}},
		{"server_stop:lose_after,cluster=1,server=2,count=1", ocpsim.Fault{Match: ocpsim.Match{Endpoint: "server_stop", Cluster: 1, Server: 2}, Action: "lose_after", Count: 1}},
		{"*:fail_subtask,subtask=Stop server,times=2", ocpsim.Fault{Match: ocpsim.Match{Endpoint: "*"}, Action: "fail_subtask", Subtask: "Stop server", Times: 2}},
		{":delay,method=GET,delay=1.5s,skip=3,probability=0.25", ocpsim.Fault{Match: ocpsim.Match{Method: "GET"}, Action: "delay", Delay: ocpsim.Duration(1500 * time.Millisecond), Skip: 3, Probability: 0.25}},
		{"task_get:status,status=429,retryAfter=5", ocpsim.Fault{Match: ocpsim.Match{Endpoint: "task_get"}, Action: "status", Status: 429, RetryAfter: "5"}},
	}
	for _, test := range good {
		got, err := ocpsim.ParseFault(test.flag)
		if err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v, want %+v", test.flag, got, err, test.want)
		}
		if got.String() != test.flag {
			t.Errorf("String: got %s, want %s", got, test.flag)
		}
	}
	bad := map[string]string{
		"server_stop":                                "want ENDPOINT:ACTION",
		"server_stpo:lose_after":                     `endpoint "server_stpo"`,
		"server_stop:lose":                           `action "lose"`,
		"server_stop:lose_after,count":               "want KEY=VALUE",
		"server_stop:lose_after,cuont=1":             `unknown key "cuont"`,
		"server_stop:lose_after,count=x":             "count: strconv",
		"server_stop:lose_after,count=-1":            "count -1",
		"server_stop:lose_after,skip=-1":             "skip -1",
		"server_stop:lose_after,probability=2":       "probability 2",
		"server_stop:lose_after,probability=NaN":     "probability NaN",
		"server_stop:lose_after,method=get":          `method "get"`,
		"server_stop:lose_after,server=-2":           "server -2",
		"server_stop:lose_after,status=500":          "takes no status",
		"server_stop:lose_after,delay=1s":            "delay goes with",
		"server_stop:lose_after,subtask=Stop server": "go with fail_subtask",
		"server_stop:fail_subtask":                   `subtask ""`,
		"server_stop:fail_subtask,subtask=stop":      `subtask "stop"`,
		"server_stop:delay":                          "want a delay",
		"server_stop:delay,delay=1":                  "missing unit",
		"server_stop:status":                         "want a status",
		"server_stop:status,status=200":              "status 200",
		"server_stop:html,retryAfter=1":              "retryAfter goes with",
	}
	for flag, want := range bad {
		if _, err := ocpsim.ParseFault(flag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want one with %q", flag, err, want)
		}
	}
}

// FuzzParseFault: whatever is taken can be written and taken again.
func FuzzParseFault(f *testing.F) {
	f.Add("server_stop:lose_after,count=1")
	f.Add("*:fail_subtask,subtask=Stop server,times=2,cluster=1,server=2")
	f.Add("task_get:status,status=429,retryAfter=5,probability=0.5,method=GET")
	f.Add(":delay,delay=1h2m3.5s,skip=1")
	f.Fuzz(func(t *testing.T, flag string) {
		fault, err := ocpsim.ParseFault(flag)
		if err != nil {
			return
		}
		again, err := ocpsim.ParseFault(fault.String())
		if err != nil || again != fault {
			t.Errorf("%q: got %+v, then %+v, %v", flag, fault, again, err)
		}
	})
}
