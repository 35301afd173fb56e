//go:build linux

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/agenttest"
)

// natsConfig is the configuration of deploy/nats as far as it costs anything: every message is flushed, in all its
// copies if there is a cluster.
type natsConfig struct {
	Name, Listen, Dir string
	Cluster           string // where the others connect; empty: there are none
	Routes            []string
}

// serveNATS is the role of the test binary as a NATS server, by a natsConfig. It runs until it is asked to end.
func serveNATS(config string) error {
	var c natsConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	options := &server.Options{ServerName: c.Name, JetStream: true, StoreDir: c.Dir, SyncAlways: true, NoSigs: true}
	var err error
	if options.Host, options.Port, err = hostPort(c.Listen); err != nil {
		return err
	}
	if c.Cluster != "" {
		options.Cluster.Name = "bench"
		if options.Cluster.Host, options.Cluster.Port, err = hostPort(c.Cluster); err != nil {
			return err
		}
	}
	for _, r := range c.Routes {
		options.Routes = append(options.Routes, &url.URL{Scheme: "nats", Host: r})
	}
	s, err := server.NewServer(options)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s.Start()
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

func hostPort(address string) (string, int, error) {
	host, port, _ := strings.Cut(address, ":")
	n, err := strconv.Atoi(port)
	return host, n, err
}

// natsProcesses is one NATS server or a cluster of them.
type natsProcesses []*process

// startNATS starts n of them, each a process of its own, and returns once JetStream
// takes messages in n copies.
func startNATS(t *testing.T, n int) (all natsProcesses, urls string, js jetstream.JetStream) {
	t.Helper()
	configs := make([]natsConfig, n)
	var routes, clients []string
	for i := range configs {
		configs[i] = natsConfig{Name: fmt.Sprint("nats-", i+1), Listen: agenttest.FreeAddress(t), Dir: t.TempDir()}
		if n > 1 {
			configs[i].Cluster = agenttest.FreeAddress(t)
			routes = append(routes, configs[i].Cluster)
		}
		clients = append(clients, "nats://"+configs[i].Listen)
	}
	for _, c := range configs {
		c.Routes = routes
		encoded, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, start(t, agenttest.Self("nats", string(encoded)), c.Name))
	}
	urls = strings.Join(clients, ",")
	nc, err := nats.Connect(urls, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if js, err = jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(1024)); err != nil {
		t.Fatal(err)
	}
	probe := jetstream.StreamConfig{Name: "PROBE", Replicas: n}
	eventually(t, "NATS is ready", 100*time.Millisecond, func() error {
		_, err := js.CreateStream(t.Context(), probe)
		if err == nil {
			err = js.DeleteStream(t.Context(), probe.Name)
		}
		return err
	})
	return all, urls, js
}

// processorSeconds is the processor time that all of them have used so far.
func (all natsProcesses) processorSeconds() (total float64) {
	for _, p := range all {
		total += p.processorSeconds()
	}
	return total
}
