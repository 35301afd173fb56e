package ocpsim_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// A stop whose answer gets lost: the client sees a broken connection, and yet the server stops.
func Example() {
	lost, err := ocpsim.ParseFault("server_stop:lose_after,count=1")
	if err != nil {
		panic(err)
	}
	sim, err := ocpsim.New(ocpsim.Config{Faults: []ocpsim.Fault{lost}})
	if err != nil {
		panic(err)
	}
	defer sim.Close()
	ocp := httptest.NewServer(sim.Handler())
	defer ocp.Close()

	req, err := http.NewRequest("POST", ocp.URL+"/api/v2/ob/clusters/1/servers/2/stop", nil)
	if err != nil {
		panic(err)
	}
	req.SetBasicAuth("admin", "admin")
	_, err = http.DefaultClient.Do(req)
	fmt.Println("answered:", err == nil)

	sim.Advance(2 * time.Minute)
	task := sim.Tasks()[0]
	fmt.Println(task.Name, task.Servers, task.Status)
	fmt.Println("posts:", sim.Posts(ocpsim.ServerStop))
	// Output:
	// answered: false
	// Stop OB server [2] SUCCESSFUL
	// posts: 1
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
