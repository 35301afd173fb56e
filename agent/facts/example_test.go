package facts_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"time"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

func ExampleDirectory() {
	sim, err := ocpsim.New(ocpsim.Config{
		Users: ocpsim.DefaultUsers("admin", "secret"),
		Clusters: []ocpsim.ClusterConfig{{ID: 1, Name: "pay", Zones: []ocpsim.ZoneConfig{{
			Name: "zone1", Servers: []ocpsim.ServerConfig{{ID: 11, IP: "10.0.0.1"}},
		}}}},
	})
	if err != nil {
		panic(err)
	}
	defer sim.Close()
	server := httptest.NewServer(sim.Handler())
	defer server.Close()
	client, err := ocp.New(ocp.Config{URL: server.URL, Username: "admin", Password: "secret", Timeout: 5 * time.Second})
	if err != nil {
		panic(err)
	}
	defer client.Close()

	ctx := context.Background()
	directory := facts.NewDirectory(client)
	name, err := directory.Name(ctx, 1)
	fmt.Println(name, err)
	found, cluster, err := directory.Server(ctx, 1, 11)
	fmt.Println(found.IP, found.Zone, cluster, err)
	_, _, err = directory.Server(ctx, 1, 99)
	fmt.Println(errors.Is(err, facts.ErrNotShown), err)
	// Output:
	// pay <nil>
	// 10.0.0.1 zone1 pay <nil>
	// true OCP shows no server 99 in cluster 1
}
