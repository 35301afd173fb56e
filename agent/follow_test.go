package agent

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

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
	eventually(t, fmt.Sprint(want, " looks"), func() bool { return n.Load() >= want })
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

func TestEveryKindEndsInEveryShapeOfTask(t *testing.T) {
	t.Parallel()
	for _, shape := range []ocpsim.Shape{ocpsim.ShapeTasks, ocpsim.ShapeSubtasks, ocpsim.ShapeV43} {
		t.Run(fmt.Sprint("shape ", shape), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{Shape: shape})
			r.agent()
			r.stop("stop", 1, 2)
			stopped := r.awaitEnd("stop", events.Succeeded)
			r.operate(events.Start, "start", 1, 2)
			r.awaitEnd("start", events.Succeeded)
			r.operate(events.Restart, "restart", 1, 2)
			r.awaitEnd("restart", events.Succeeded)
			r.wantPosts(3)
			r.awaitNoOpenRequests()

			var names []string
			for _, s := range stopped.Task.Subtasks {
				names = append(names, s.Name)
				if s.Status != ocp.StatusSuccessful || s.Timing != events.TimingOCP {
					t.Errorf("subtask %s is %s, timed by %s", s.Name, s.Status, s.Timing)
				}
			}
			want := []string{"Prepare stop observer", "Stop server", "Stop observer process", "Wait observer stop",
				"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}
			if !slices.Equal(names, want) {
				t.Errorf("subtasks of a stop:\n got %v\nwant %v", names, want)
			}
			if got := testutil.ToFloat64(r.metrics.Operations.WithLabelValues("stop", "succeeded")); got != 1 {
				t.Errorf("operations_total{stop,succeeded} = %v, want 1", got)
			}
			if got := testutil.CollectAndCount(r.metrics.SubtasksRunning); got != 0 {
				for _, name := range want {
					if v := testutil.ToFloat64(r.metrics.SubtasksRunning.WithLabelValues("stop", r.metrics.Subtask(name))); v != 0 {
						t.Errorf("subtasks_running{stop,%s} = %v after the end", name, v)
					}
				}
			}
		})
	}
}

func TestAFailedSubtaskIsNamedWithTheEndOfItsLog(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.fault("server_stop:fail_subtask,subtask=Stop observer process")
	r.agent()
	r.stop("k", 1, 2)
	op := r.awaitEnd("k", events.Failed)
	if op.Error.Code != events.CodeSubtaskFailed || op.Error.Subtask != "Stop observer process" || !strings.Contains(op.Error.Log, "ERROR") {
		t.Errorf("error %+v", op.Error)
	}
	r.awaitNoOpenRequests() // an event is counted right after it is in the journal
	if got := testutil.ToFloat64(r.metrics.SubtaskFailures.WithLabelValues("stop", "stop_observer_process")); got != 1 {
		t.Errorf("subtask_failures_total = %v, want 1", got)
	}
}
