package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// patience is how long a test waits for something that must happen. No test waits it out.
const patience = agenttest.Patience

// startProcess runs the real binary.
func startProcess(t *testing.T, environ map[string]string, args ...string) *agenttest.Process {
	t.Helper()
	cmd := exec.Command(agenttest.Binary(t), args...)
	cmd.Env = []string{"HOME=" + os.Getenv("HOME"), "TMPDIR=" + t.TempDir()}
	for name, value := range environ {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return agenttest.Start(t, cmd)
}

// site is a simulated OCP and the settings of an agent that works with it.
type site struct {
	sim     *ocpsim.Sim
	environ map[string]string
}

func newSite(t *testing.T, config ocpsim.Config) site {
	t.Helper()
	config.Users = ocpsim.DefaultUsers("admin", "secret")
	sim := ocpsim.Start(t, config)
	return site{sim: sim, environ: map[string]string{
		"OBWARDEN_OCP_URL": sim.URL(), "OBWARDEN_OCP_USERNAME": "admin", "OBWARDEN_OCP_PASSWORD": "secret",
		"OBWARDEN_NATS_LISTEN": agenttest.FreeAddress(t), "OBWARDEN_HTTP_LISTEN": "127.0.0.1:0", "OBWARDEN_DATA_DIR": t.TempDir(),
		"OBWARDEN_POLL_MIN": "20ms", "OBWARDEN_POLL_MAX": "100ms", "OBWARDEN_SETTLE": "2s", "OBWARDEN_ACK_WAIT": "1s", "OBWARDEN_OCP_MAX_RPS": "200",
	}}
}

func (s site) connect(t *testing.T) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect("nats://"+s.environ["OBWARDEN_NATS_LISTEN"], nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// publish sends the request again and again until it is in the stream, with the
// same key, as a publisher does that wants to be sure.
func publish(t *testing.T, js jetstream.JetStream, r events.Request) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, time.Second)
		_, err := r.Publish(try, js, events.Stop, "cli")
		stop()
		if err == nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("publish: %v", err)
		}
	}
}

// ready waits until an agent has created its streams and buckets.
func (s site) ready(t *testing.T) {
	t.Helper()
	js := s.connect(t)
	agenttest.Eventually(t, "the agent is ready", patience, 20*time.Millisecond, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.KeyValue(ctx, events.ControlBucket)
		return err
	})
}

// natsServer is a NATS server of its own, beside the agents.
func (s site) natsServer(t *testing.T) {
	t.Helper()
	server, err := events.StartServer(s.environ["OBWARDEN_NATS_LISTEN"], t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	s.environ["OBWARDEN_NATS_URL"] = server.URL()
}

// natsProcess is a NATS server in a process of its own, beside the agents, which can be stopped.
func (s site) natsProcess(t *testing.T) *agenttest.Process {
	t.Helper()
	p := agenttest.Start(t, agenttest.NATS(s.environ["OBWARDEN_NATS_LISTEN"], t.TempDir()))
	p.Await("nats://")
	s.environ["OBWARDEN_NATS_URL"] = "nats://" + s.environ["OBWARDEN_NATS_LISTEN"]
	return p
}

// lax gives the agents a policy that holds nothing back except a second operation in the same cluster.
func (s site) lax(t *testing.T) site {
	t.Helper()
	s.environ["OBWARDEN_POLICY_FILE"] = writeFile(t, "policy.yaml", agenttest.LaxPolicy)
	return s
}

// awaitEnd reads an operation's events up to its end; their numbers must have no gap.
func awaitEnd(t *testing.T, js jetstream.JetStream, key string) events.Operation {
	t.Helper()
	var all []events.Event
	id := events.OperationID(key)
	agenttest.Eventually(t, "the end of "+key, patience, 20*time.Millisecond, func() error { // NATS may be down meanwhile
		all = nil
		err := read(t.Context(), js, jetstream.OrderedConsumerConfig{FilterSubjects: []string{events.OperationSubjects(id)}}, func(msg jetstream.Msg) error {
			e, err := events.DecodeEvent(msg.Subject(), msg.Data())
			all = append(all, e)
			return err
		})
		if err != nil {
			return err
		}
		if n := len(all); n == 0 || !all[n-1].State.Final() {
			return fmt.Errorf("%d events and no end", n)
		}
		return nil
	})
	for i, e := range all {
		if e.N != i+1 {
			t.Fatalf("%s: event %d has number %d", key, i+1, e.N)
		}
	}
	return all[len(all)-1].Operation
}

// awaitState waits for an event that leaves an operation in a state.
func awaitState(t *testing.T, js jetstream.JetStream, id string, want events.State) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	config := jetstream.OrderedConsumerConfig{FilterSubjects: []string{events.OperationSubjects(id)}}
	all, err := subscribe(ctx, js, config, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	for m := range all {
		if m.State == want {
			return
		}
	}
	t.Fatalf("%s has not become %s", id, want)
}

// wantOneStopEach waits for the end of the operations, each with one call and one task.
func (s site) wantOneStopEach(t *testing.T, keys []string) {
	t.Helper()
	js := s.connect(t)
	tasks := map[int64]int{}
	operations := map[string]events.Operation{}
	for _, key := range keys {
		operations[key] = awaitEnd(t, js, key)
	}
	for _, task := range s.sim.Tasks() {
		tasks[task.Servers[0]]++
	}
	for _, key := range keys {
		if o := operations[key]; o.State != events.Succeeded || tasks[o.ServerID] != 1 {
			t.Errorf("%s ended %s with %d stops, want one: %+v", key, o.State, tasks[o.ServerID], o.Reason)
		}
	}
}

// inventory waits until an agent has written down which clusters there are.
func (s site) inventory(t *testing.T) {
	t.Helper()
	bucket, err := s.connect(t).KeyValue(t.Context(), events.ControlBucket)
	if err != nil {
		t.Fatal(err)
	}
	watcher, err := bucket.Watch(t.Context(), "clusters")
	if err != nil {
		t.Fatal(err)
	}
	for entry := range watcher.Updates() {
		if entry != nil {
			return
		}
	}
	t.Fatal("no inventory")
}
