package agent

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

var stormAlerts = flag.Int("storm", 10, "alerts for each server in the storm; 500 takes minutes")

// The storm: alerts for every server of twenty clusters at once, three agents, an OCP
// that misbehaves. The test judges only by OCP's own account of what it did.
func TestAStormOfAlertsCostsNoMajority(t *testing.T) {
	t.Parallel()
	if testing.Short() && *stormAlerts > 10 {
		t.Skip("a long storm")
	}
	const budget, fleet = 4, 70
	clusters, err := ocpsim.Grid(20, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, ocpsim.Config{Clusters: clusters, Speed: 500})
	r.policy = &policy.Policy{Hash: "storm", Limits: defaultLimits()}
	r.policy.Limits.MaxConcurrent = 2
	r.policy.Limits.Budget = policy.Budget{Operations: budget, Window: time.Hour}
	r.policy.Limits.MaxWait = time.Duration(*stormAlerts)*time.Second/2 + time.Second
	r.policy.Fleet = policy.Budget{Operations: fleet, Window: time.Hour}
	for _, fault := range []string{
		"*:status,status=503,probability=0.03", "*:truncate,probability=0.02", "*:reset,probability=0.02",
		"server_stop:lose_after,probability=0.1", "server_restart:status_after,status=502,probability=0.1", "server_stop:fail_subtask,subtask=Stop server,probability=0.1",
	} {
		r.fault(fault)
	}
	for i := range 3 {
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	published := 0
	for n := range *stormAlerts {
		for _, c := range clusters {
			for _, z := range c.Zones {
				for _, s := range z.Servers {
					kind := []events.Kind{events.Stop, events.Stop, events.Restart, events.Start}[random.IntN(4)]
					r.operate(kind, fmt.Sprintf("%d-%d", s.ID, n), c.ID, s.ID)
					published++
				}
			}
		}
	}
	ended := map[string]events.State{}
	r.awaitFor(5*time.Minute, "the end of all", func(e events.Event) bool {
		if e.Token.Final() {
			ended[e.OperationID] = e.State
		}
		return len(ended) == published
	})
	outcomes := map[events.State]int{}
	for _, state := range ended {
		outcomes[state]++
	}
	t.Logf("%d requests: %v, %d tasks", published, outcomes, len(r.sim.Tasks()))
	if len(r.sim.Tasks()) == 0 {
		t.Error("nothing was done at all")
	}
	for _, violation := range judge(clusters, r.sim.Tasks(), budget, fleet) {
		t.Error(violation)
	}
}

// judge replays what OCP did and lists violations. It knows nothing of
// the guard: a server is down from the start of its stop or restart until the end of a
// start or restart that succeeded.
func judge(clusters []ocpsim.ClusterConfig, tasks []ocpsim.Task, budget, fleet int) (violations []string) {
	zoneOf := map[int64]string{}
	for _, c := range clusters {
		for _, z := range c.Zones {
			for _, s := range z.Servers {
				zoneOf[s.ID] = z.Name
			}
		}
	}
	type change struct {
		at      time.Time
		task    ocpsim.Task
		begins  bool
		cluster int64
	}
	var changes []change
	for _, task := range tasks {
		changes = append(changes, change{task.StartTime, task, true, task.Cluster})
		if task.Status != "RUNNING" {
			changes = append(changes, change{task.FinishTime, task, false, task.Cluster})
		}
	}
	slices.SortStableFunc(changes, func(a, b change) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.task.ID, b.task.ID))
	})
	down := map[int64]map[int64]bool{} // servers by cluster
	taken := map[int64]int{}
	all := 0
	for _, c := range changes {
		if down[c.cluster] == nil {
			down[c.cluster] = map[int64]bool{}
		}
		start := c.task.Endpoint == ocpsim.ServerStart
		for _, server := range c.task.Servers {
			switch {
			case c.begins && !start:
				down[c.cluster][server] = true
				taken[c.cluster]++
				all++
			case !c.begins && c.task.Status == "SUCCESSFUL" && c.task.Endpoint != ocpsim.ServerStop:
				delete(down[c.cluster], server)
			}
		}
		zones := map[string]bool{}
		for server := range down[c.cluster] {
			zones[zoneOf[server]] = true
		}
		if len(zones) > 1 {
			violations = append(violations, fmt.Sprintf("cluster %d: servers of %d of 3 zones down when task %d began: %v", c.cluster, len(zones), c.task.ID, down[c.cluster]))
		}
	}
	for cluster, n := range taken {
		if n > budget {
			violations = append(violations, fmt.Sprintf("cluster %d: %d operations, the budget was %d", cluster, n, budget))
		}
	}
	if all > fleet {
		violations = append(violations, fmt.Sprintf("%d operations in all, the budget was %d", all, fleet))
	}
	return violations
}

func TestTheJudgeOfTheStormSeesWhatIsWrong(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(1, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Date(2026, 11, 25, 2, 0, 0, 0, time.UTC)
	task := func(id int64, endpoint ocpsim.Endpoint, server int64, from, to int, status string) ocpsim.Task {
		return ocpsim.Task{ID: id, Endpoint: endpoint, Cluster: 1, Servers: []int64{server}, Status: status,
			StartTime: begin.Add(time.Duration(from) * time.Second), FinishTime: begin.Add(time.Duration(to) * time.Second)}
	}
	stop, start, restart := ocpsim.ServerStop, ocpsim.ServerStart, ocpsim.ServerRestart
	for name, test := range map[string]struct {
		tasks []ocpsim.Task
		want  int
	}{
		"one after the other in a zone":  {[]ocpsim.Task{task(1, stop, 1, 0, 5, "SUCCESSFUL"), task(2, stop, 2, 6, 9, "SUCCESSFUL")}, 0},
		"a stopped server in two zones":  {[]ocpsim.Task{task(1, stop, 1, 0, 5, "SUCCESSFUL"), task(2, stop, 3, 6, 9, "SUCCESSFUL")}, 2},
		"started again in between":       {[]ocpsim.Task{task(1, stop, 1, 0, 5, "SUCCESSFUL"), task(2, start, 1, 6, 9, "SUCCESSFUL"), task(3, stop, 3, 10, 12, "SUCCESSFUL")}, 0},
		"a start that failed in between": {[]ocpsim.Task{task(1, stop, 1, 0, 5, "SUCCESSFUL"), task(2, start, 1, 6, 9, "FAILED"), task(3, stop, 3, 10, 12, "SUCCESSFUL")}, 2},
		"restarts that overlap":          {[]ocpsim.Task{task(1, restart, 1, 0, 5, "SUCCESSFUL"), task(2, restart, 3, 4, 9, "SUCCESSFUL")}, 1},
		"over budget":                    {[]ocpsim.Task{task(1, restart, 1, 0, 5, "SUCCESSFUL"), task(2, restart, 1, 6, 7, "SUCCESSFUL"), task(3, restart, 1, 8, 9, "SUCCESSFUL")}, 2},
	} {
		if got := judge(clusters, test.tasks, 2, 2); len(got) != test.want && test.want < 2 || len(got) == 0 && test.want > 0 {
			t.Errorf("%s: got %q, want %d", name, got, test.want)
		}
	}
}
