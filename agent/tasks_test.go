package agent

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// counted is a simulated OCP of so many clusters that counts the looks at tasks.
type counted struct {
	*rig
	lists, fulls atomic.Int64
}

func newCounted(t *testing.T, clusters int, faults ...string) *counted {
	t.Helper()
	topology, err := ocpsim.Grid(clusters, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	config := ocpsim.Config{Clusters: topology, Speed: testSpeed, Users: ocpsim.DefaultUsers("admin", "secret")}
	for _, text := range faults {
		f, err := ocpsim.ParseFault(text)
		if err != nil {
			t.Fatal(err)
		}
		config.Faults = append(config.Faults, f)
	}
	sim, err := ocpsim.New(config)
	if err != nil {
		t.Fatal(err)
	}
	c := &counted{rig: newRigOn(t, sim, config.Users[0])}
	c.timeout, c.machine.Settle = 5*time.Second, 10*time.Second // a slow machine is not what is tested
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path, listed := strings.CutPrefix(r.URL.Path, "/api/v2/tasks/instances"); {
		case listed && path == "" && r.URL.Query().Get("clusterId") == "":
			c.lists.Add(1)
		case listed && path != "":
			c.fulls.Add(1)
		}
		sim.Handler().ServeHTTP(w, r)
	}))
	t.Cleanup(func() { sim.Close(); server.Close() })
	c.url = server.URL
	return c
}

// stopEach asks for a stop in every cluster, of its first server.
func (c *counted) stopEach(clusters int) {
	for i := range clusters {
		c.stop(fmt.Sprint("k", i), int64(1+i), int64(1+3*i))
	}
}

// awaitCount waits until as many lists or full looks were made.
func awaitCount(t *testing.T, n *atomic.Int64, want int64) {
	t.Helper()
	deadline := time.Now().Add(testPatience)
	for n.Load() < want {
		if time.Now().After(deadline) {
			t.Fatalf("%d looks, want %d", n.Load(), want)
		}
		time.Sleep(time.Millisecond) // OCP tells nobody
	}
}

func TestWhileNothingMovesOneListServesAllTasks(t *testing.T) {
	t.Parallel()
	const clusters = 12
	c := newCounted(t, clusters, "*:hang_subtask,subtask=Stop server")
	c.machine.PollMin, c.machine.PollMax = 50*time.Millisecond, 50*time.Millisecond
	c.agent()
	c.stopEach(clusters)
	for i := range clusters {
		c.awaitToken(fmt.Sprint("k", i), events.Running)
	}
	// They come to the subtask that hangs; from then on nothing moves.
	for i := range clusters {
		id := events.OperationID(fmt.Sprint("k", i))
		c.await("the subtask that hangs", func(e events.Event) bool {
			return e.OperationID == id && len(e.Changes) > 0 && e.Changes[0].Name == "Stop server" && e.Changes[0].To == ocp.StatusRunning
		})
	}
	awaitCount(t, &c.lists, c.lists.Load()+2) // every look that was due when it moved is over
	fulls, lists := c.fulls.Load(), c.lists.Load()
	awaitCount(t, &c.lists, lists+10)
	if more := c.fulls.Load() - fulls; more > 0 {
		t.Errorf("%d looks at single tasks while %d lists showed that none of %d had moved", more, c.lists.Load()-lists, clusters)
	}
}

func TestTasksFoundByListsEndLikeOthers(t *testing.T) {
	t.Parallel()
	const clusters = 8
	for _, faults := range [][]string{
		{},
		{"tasks_list:status,status=403"},         // this user sees no list
		{"tasks_list:status,status=502,count=5"}, // OCP is in trouble for a while
		{"tasks_list:truncate,probability=0.5"},  // now and then
		{"server_stop:fail_subtask,subtask=Stop server"}, // each fails
	} {
		t.Run(strings.Join(faults, " "), func(t *testing.T) {
			t.Parallel()
			c := newCounted(t, clusters, faults...)
			c.agent()
			c.stopEach(clusters)
			want := events.Succeeded
			if len(faults) > 0 && strings.Contains(faults[0], "fail_subtask") {
				want = events.Failed
			}
			for i := range clusters {
				op := c.awaitEnd(fmt.Sprint("k", i), want)
				for _, s := range op.Task.Subtasks {
					if s.Status == ocp.StatusSuccessful && s.Timing != events.TimingOCP {
						t.Errorf("subtask %s timed by %s", s.Name, s.Timing)
					}
				}
			}
			c.wantPosts(clusters)
		})
	}
}
