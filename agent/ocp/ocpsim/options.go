package ocpsim

import (
	"cmp"
	"errors"
	"fmt"
	"net"
)

// Options are a simulator as a command line describes it. Zero values are the defaults of Config.
type Options struct {
	Listen         string // host:port, checked here, used by the command
	Topology       string // a file for LoadTopology, instead of the three numbers
	Clusters       int    // the numbers of Grid; 0: as in DefaultTopology
	Zones          int
	ServersPerZone int
	Speed          float64
	Shape          int
	API            string
	Faults         []string // in ParseFault's syntax
	Username       string   // of the administrator
	Password       string
	Seed           uint64
}

// Config checks the options and reports everything that is wrong with them at once.
func (o Options) Config() (Config, error) {
	cfg := Config{Users: DefaultUsers(o.Username, o.Password), Speed: o.Speed, Shape: Shape(o.Shape), API: API(o.API), Seed: o.Seed}
	var errs []error
	if o.Listen != "" {
		if _, _, err := net.SplitHostPort(o.Listen); err != nil {
			errs = append(errs, fmt.Errorf("listen: %w", err))
		}
	}
	var err error
	if cfg.Clusters, err = o.topology(); err != nil {
		errs = append(errs, err)
	}
	for _, flag := range o.Faults {
		f, err := ParseFault(flag)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		cfg.Faults = append(cfg.Faults, f)
	}
	if err := cfg.withDefaults().validate(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

func (o Options) topology() ([]ClusterConfig, error) {
	numbers := o.Clusters != 0 || o.Zones != 0 || o.ServersPerZone != 0
	switch {
	case o.Topology != "" && numbers:
		return nil, errors.New("topology: want a file or numbers of clusters, zones and servers, not both")
	case o.Topology != "":
		return LoadTopology(o.Topology)
	}
	return Grid(cmp.Or(o.Clusters, 1), cmp.Or(o.Zones, 3), cmp.Or(o.ServersPerZone, 2))
}
