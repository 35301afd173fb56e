package ocp_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"time"

	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// A stop is one call, which OCP answers with the task that does it. The answer to the second
// call gets lost: the error says that the call may have had an effect.
func ExampleClient_Operate() {
	sim, err := ocpsim.New(ocpsim.Config{})
	if err != nil {
		panic(err)
	}
	defer sim.Close()
	server := httptest.NewServer(sim.Handler())
	defer server.Close()
	client, err := ocp.New(ocp.Config{URL: server.URL, Username: "admin", Password: "admin"})
	if err != nil {
		panic(err)
	}
	defer client.Close()
	ctx := context.Background()

	task, err := client.Operate(ctx, ocp.Stop, 1, 2, ocp.Params{}, ocp.RequestID{IdempotencyKey: "disk-4711"})
	if err != nil {
		panic(err)
	}
	fmt.Println(task.Name, task.Status, task.Subject().Does(ocp.Stop) == ocp.Yes)

	sim.Advance(2 * time.Minute)
	task, err = client.Task(ctx, task.ID)
	fmt.Println(task.Status, err)
	zones, err := client.Zones(ctx, 1)
	if err != nil {
		panic(err)
	}
	stopped, zone, _ := zones.Server(2)
	fmt.Println(zone.Name, stopped.Status, stopped.Stopped(), zones.InBetween())

	if err := sim.AddFault(ocpsim.Fault{Match: ocpsim.Match{Endpoint: ocpsim.ServerStart}, Action: ocpsim.LoseAfter}); err != nil {
		panic(err)
	}
	_, err = client.Operate(ctx, ocp.Start, 1, 2, ocp.Params{}, ocp.RequestID{})
	fmt.Println(ocp.ClassOf(err))
	// Output:
	// Stop OB server RUNNING true
	// SUCCESSFUL <nil>
	// zone1 STOPPED true false
	// ambiguous
}
