package main

import (
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

func newSim(a app) *cobra.Command {
	o := ocpsim.Options{}
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Serve a simulated OCP, for trials and tests",
		Long: `Serve a simulated OCP over HTTP: clusters, zones and servers, tasks that run in
simulated time, users with permissions, and faults on demand. While it runs, it is
inspected and controlled under /sim/: log, state, faults, clock.`,
		Example: `  obwarden sim --listen 127.0.0.1:8080 --speed 10
  obwarden sim --fault 'server_stop:lose_after,count=1'
  OBWARDEN_OCP_URL=http://127.0.0.1:8080 OBWARDEN_OCP_USERNAME=admin OBWARDEN_OCP_PASSWORD=obdemo obwarden run`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := o.Config()
			if err != nil {
				return usage(err)
			}
			config.Logger = newLogger(a.stderr, Config{LogLevel: "info"})
			sim, err := ocpsim.New(config)
			if err != nil {
				return usage(err)
			}
			defer sim.Close()
			listener, err := net.Listen("tcp", o.Listen)
			if err != nil {
				return fmt.Errorf("listen: %w; free it, or choose another --listen", err)
			}
			fmt.Fprintf(a.stdout, "simulated OCP on http://%s, user %s, password %s\n", listener.Addr(), o.Username, o.Password)
			return sim.Serve(cmd.Context(), listener)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", "127.0.0.1:8080", "address to listen on; port 0: any free port, which is printed")
	f.StringVar(&o.Topology, "topology", "", "JSON file with clusters, zones and servers, instead of numbers of them")
	f.IntVar(&o.Clusters, "clusters", 0, "number of clusters (default 1)")
	f.IntVar(&o.Zones, "zones", 0, "zones in each cluster (default 3)")
	f.IntVar(&o.ServersPerZone, "servers-per-zone", 0, "servers in each zone (default 2)")
	f.Float64Var(&o.Speed, "speed", 1, "seconds of a task's work that pass in one second")
	f.IntVar(&o.Shape, "shape", 1, "shape of tasks, of the three that OCP's documentation publishes: 1, 2 or 3")
	f.StringVar(&o.API, "api", "v3", "version of the API, which decides the parameters of operations: v3 or v4.3")
	f.StringArrayVar(&o.Faults, "fault", nil, "endpoint:action[,option=value…], repeatable")
	f.StringVar(&o.Username, "username", "admin", "name of the administrator")
	f.StringVar(&o.Password, "password", "obdemo", "the administrator's password")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of everything that is random")
	return cmd
}
