package ocpsim_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// serve starts a simulated OCP on a free port. A test uses ocpsim.Start instead.
func serve(config ocpsim.Config) (sim *ocpsim.Sim, url string, stop func()) {
	sim, err := ocpsim.New(config)
	if err != nil {
		panic(err)
	}
	server := httptest.NewServer(sim.Handler())
	return sim, server.URL, func() { server.Close(); sim.Close() }
}

// task is a part of what OCP shows of a task.
type task struct {
	ID       int64
	Name     string
	Status   string
	Subtasks []struct{ Name, Status string }
}

// call makes a call as an administrator of OCP.
func call(method, url string) (task, error) {
	request, err := http.NewRequest(method, url, nil)
	if err != nil {
		return task{}, err
	}
	request.SetBasicAuth("admin", "admin")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return task{}, err
	}
	defer response.Body.Close()
	var answer struct{ Data task }
	err = json.NewDecoder(response.Body).Decode(&answer)
	return answer.Data, err
}

// A server is stopped. The answer names a task, which is read while it runs and again when it has ended.
func Example() {
	sim, url, stop := serve(ocpsim.Config{Shape: ocpsim.ShapeSubtasks})
	defer stop()

	started, err := call(http.MethodPost, url+"/api/v2/ob/clusters/1/servers/2/stop")
	if err != nil {
		panic(err)
	}
	fmt.Println(started.Name)

	for range 2 {
		now, err := call(http.MethodGet, fmt.Sprintf("%s/api/v2/tasks/instances/%d", url, started.ID))
		if err != nil {
			panic(err)
		}
		done := 0
		for _, s := range now.Subtasks {
			if s.Status == "SUCCESSFUL" {
				done++
			}
		}
		fmt.Printf("%s: %d of %d\n", now.Status, done, len(now.Subtasks))
		sim.Advance(2 * time.Minute)
	}
	fmt.Println("calls:", sim.Posts(ocpsim.ServerStop))
	// Output:
	// Stop OB server
	// RUNNING: 0 of 8
	// SUCCESSFUL: 8 of 8
	// calls: 1
}

// The answer to a stop gets lost: the client sees a broken connection, and yet the server stops.
func ExampleParseFault() {
	lost, err := ocpsim.ParseFault("server_stop:lose_after,count=1")
	if err != nil {
		panic(err)
	}
	sim, url, stop := serve(ocpsim.Config{Faults: []ocpsim.Fault{lost}})
	defer stop()

	_, err = call(http.MethodPost, url+"/api/v2/ob/clusters/1/servers/2/stop")
	fmt.Println("answered:", err == nil)

	sim.Advance(2 * time.Minute)
	task := sim.Tasks()[0]
	fmt.Println(task.Name, task.Servers, task.Status)
	fmt.Println("calls:", sim.Posts(ocpsim.ServerStop))
	// Output:
	// answered: false
	// Stop OB server [2] SUCCESSFUL
	// calls: 1
}

// harness is what Start needs of a *testing.T.
type harness struct{ cleanups []func() }

func (h *harness) Helper()                           {}
func (h *harness) Cleanup(f func())                  { h.cleanups = append(h.cleanups, f) }
func (h *harness) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// A test starts a simulator with its own *testing.T in the place of t, and need not stop it.
func ExampleStart() {
	var t harness
	sim := ocpsim.Start(&t, ocpsim.Config{})
	resp, err := http.Get(sim.URL() + "/api/status")
	if err != nil {
		panic(err)
	}
	resp.Body.Close()
	fmt.Println(resp.StatusCode, len(sim.State().Clusters[0].Zones))
	for _, stop := range t.cleanups {
		stop()
	}
	// Output:
	// 200 3
}
