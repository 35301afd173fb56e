package ocpsim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// noon stands still: time passes in these tests by Advance alone.
var noon = time.Date(2026, 1, 2, 4, 0, 0, 678e6, time.UTC)

// toTheEnd is longer than any task.
const toTheEnd = 3 * time.Minute

func start(t *testing.T, cfg ocpsim.Config) *client {
	t.Helper()
	cfg.Now = func() time.Time { return noon }
	sim := ocpsim.Start(t, cfg)
	return &client{t: t, sim: sim, user: "admin", password: "admin",
		// No connection is used twice: net/http would repeat some requests by itself when a used one breaks.
		http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
}

// client is a raw one: it knows HTTP and JSON, and nothing of OCP.
type client struct {
	t              *testing.T
	sim            *ocpsim.Sim
	user, password string
	http           *http.Client
}

func (c client) as(user string) client {
	c.user, c.password = user, user
	return c
}

// reply is an answer as it came.
type reply struct {
	status int
	header http.Header
	body   string
	json   map[string]any // nil if the body is no object
}

// try is a request that may well break.
func (c client) try(method, path, body string, header ...string) (reply, error) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.sim.URL()+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.SetBasicAuth(c.user, c.password)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{}, err
	}
	r := reply{status: resp.StatusCode, header: resp.Header, body: string(raw)}
	_ = json.Unmarshal(raw, &r.json)
	return r, nil
}

func (c client) do(method, path, body string, header ...string) reply {
	c.t.Helper()
	r, err := c.try(method, path, body, header...)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (c client) get(path string) reply  { c.t.Helper(); return c.do("GET", path, "") }
func (c client) post(path string) reply { c.t.Helper(); return c.do("POST", path, "") }

// want fails the test unless the answer has the status and, for refusals, OCP's code.
func (c client) want(r reply, status, code int) reply {
	c.t.Helper()
	if r.status != status {
		c.t.Fatalf("status: got %d, want %d: %s", r.status, status, r.body)
	}
	if code != 0 {
		if got, _ := r.at("error", "code").(float64); int(got) != code || r.at("successful") != false {
			c.t.Fatalf("code: got %v, want %d: %s", got, code, r.body)
		}
	}
	return r
}

// at walks into the JSON; nil if there is nothing.
func (r reply) at(path ...string) any {
	var v any = r.json
	for _, name := range path {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	return v
}

func serverPath(id int, verb string) string {
	return fmt.Sprintf("/api/v2/ob/clusters/1/servers/%d/%s", id, verb)
}

func (c client) taskPath(suffix string) string {
	c.t.Helper()
	tasks := c.sim.Tasks()
	if len(tasks) == 0 {
		c.t.Fatal("no task was started")
	}
	return fmt.Sprintf("/api/v2/tasks/instances/%d%s", tasks[len(tasks)-1].ID, suffix)
}

// subtaskPath is below the last task, for its subtask of that name.
func (c client) subtaskPath(name, suffix string) string {
	c.t.Helper()
	return c.taskPath(fmt.Sprintf("/subtasks/%d%s", c.subtask(name).ID, suffix))
}

// task is the last one.
func (c client) task() ocpsim.Task {
	c.t.Helper()
	tasks := c.sim.Tasks()
	return tasks[len(tasks)-1]
}

func (c client) subtask(name string) ocpsim.Subtask {
	c.t.Helper()
	for _, sub := range c.task().Subtasks {
		if sub.Name == name {
			return sub
		}
	}
	c.t.Fatalf("task has no subtask %q", name)
	return ocpsim.Subtask{}
}

// server is "STATUS innerStatus" of a server of cluster 1.
func (c client) server(id int64) string {
	c.t.Helper()
	for _, z := range c.sim.State().Clusters[0].Zones {
		for _, srv := range z.Servers {
			if srv.ID == id {
				return srv.Status + " " + srv.InnerStatus
			}
		}
	}
	c.t.Fatalf("no server %d", id)
	return ""
}

func (c client) fault(flag string) {
	c.t.Helper()
	f, err := ocpsim.ParseFault(flag)
	if err == nil {
		err = c.sim.AddFault(f)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func TestNewReportsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	_, err := ocpsim.New(ocpsim.Config{
		Speed: -1, Shape: 4, API: "v5",
		Clusters: []ocpsim.ClusterConfig{{ID: 0}},
		Users:    []ocpsim.User{{Name: "a:b", Permissions: []ocpsim.Permission{"all"}}},
		Faults:   []ocpsim.Fault{{Action: "explode"}},
	})
	if err == nil {
		t.Fatal("New took a configuration that is wrong all over")
	}
	for _, want := range []string{"speed -1", "shape 4", `API "v5"`, "id 0", "no zones", `user "a:b"`, `permission "all"`, `action "explode"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %q: %v", want, err)
		}
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	sim, err := ocpsim.New(ocpsim.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got := sim.URL(); got != "" {
		t.Errorf("URL before Serve: got %q, want none", got)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- sim.Serve(ctx, ln) }()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: got %v, want nil", err)
	}
	sim.Close() // twice does no harm
}

func TestCloseCutsDelaysShort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim, answered := delayed(t, "server_stop:delay,delay=1h")
		sim.Close()
		if code := <-answered; code != broken {
			t.Errorf("answer: got status %d, want a broken connection", code)
		}
		if n := len(sim.Tasks()); n != 0 {
			t.Errorf("tasks: got %d, want 0", n)
		}
	})
}

// broken stands for no answer at all.
const broken = 0

// delayed sends a stop of server 2, past any network so that synctest can see that it waits, and returns while it
// does. The channel then gives the status of its answer.
func delayed(t *testing.T, flag string) (*ocpsim.Sim, <-chan int) {
	t.Helper()
	f, err := ocpsim.ParseFault(flag)
	if err != nil {
		t.Fatal(err)
	}
	sim, err := ocpsim.New(ocpsim.Config{Faults: []ocpsim.Fault{f}})
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest("POST", serverPath(2, "stop"), nil)
	req.SetBasicAuth("admin", "admin")
	answered := make(chan int, 1)
	go func() {
		status := broken
		defer func() {
			_ = recover() // a recorder has no connection to break: http.ErrAbortHandler
			answered <- status
		}()
		w := httptest.NewRecorder()
		sim.Handler().ServeHTTP(w, req)
		status = w.Code
	}()
	synctest.Wait()
	return sim, answered
}

func TestEqualSeedsEqualRuns(t *testing.T) {
	t.Parallel()
	run := func() string {
		c := start(t, ocpsim.Config{Seed: 7})
		c.post(serverPath(2, "stop"))
		c.sim.Advance(20 * time.Second)
		return c.get(c.taskPath("")).body
	}
	if one, other := run(), run(); one != other {
		t.Errorf("runs differ:\n%s\n%s", one, other)
	}
}
