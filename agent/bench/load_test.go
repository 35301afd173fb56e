//go:build linux

package bench

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/events"
)

var (
	flagSize    = flag.String("load.size", "", "short: does it work; full: how fast is it; empty: nothing is run")
	flagOnly    = flag.String("load.only", "", "names of measurements, comma-separated; empty: all")
	flagRounds  = flag.Int("load.rounds", 0, "rounds of each; 0: 1 where short, else 5")
	flagDir     = flag.String("load.dir", "", "directory for raw data and profiles, absolute; empty: none are kept")
	flagProfile = flag.String("load.profile", "", "profile of the agent to keep beside each load: cpu, heap, allocs, …")
	flagBinary  = flag.String("load.binary", "", "the program to measure, absolute, to compare two; empty: this tree's")
)

// patience is how long a measurement waits for something that must happen. None waits it out.
const patience = 5 * time.Minute

func TestMain(m *testing.M) {
	agenttest.RunRole(map[string]func(string) error{"nats": serveNATS})
	flag.Parse()
	code := m.Run()
	if binary, err := build(); *flagSize != "" && err == nil {
		_ = os.RemoveAll(filepath.Dir(binary)) // a temporary directory; the run is over
	}
	os.Exit(code)
}

// size of the run.
type size struct {
	rounds                 int
	latencies              int // requests a round
	operations             int // a round
	storm                  int // requests a round, of 100 keys
	followed               []int
	fair                   int // clusters followed within a budget of fairRate
	moved                  int // changes in OCP whose time to the event is measured
	open, waiting, journal int
	scaled                 int // operations for each agent of a cluster
	idle                   time.Duration
}

func sizeOf(t *testing.T) size {
	switch *flagSize {
	case "":
		t.Skip("run it with make bench")
	case "short":
		return size{rounds: max(1, *flagRounds), latencies: 20, operations: 256, storm: 5_000, followed: []int{1, 20}, fair: 50, moved: 4,
			open: 200, waiting: 200, journal: 2_000, scaled: 12, idle: time.Second}
	case "full":
		return fullSize(*flagRounds)
	}
	t.Fatalf("-load.size %s: must be short or full", *flagSize)
	return size{}
}

func fullSize(rounds int) size {
	if rounds == 0 {
		rounds = 5
	}
	return size{rounds: rounds, latencies: 200, operations: 3_000, storm: 200_000, followed: []int{1, 10, 100, 1000}, fair: 1000, moved: 10,
		open: 10_000, waiting: 10_000, journal: 1_000_000, scaled: 200, idle: 10 * time.Second}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func quantile(values []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return float64(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]) / float64(time.Millisecond)
}

// TestLoad measures one thing after the other. Nothing else may run meanwhile.
func TestLoad(t *testing.T) {
	s := sizeOf(t)
	all := &table{rows: rowsOf(s)}
	for _, m := range []struct {
		name string
		run  func(*testing.T, size, *table)
	}{
		{"latency", latency}, {"operations", operations}, {"storm", storm}, {"follow", follow}, {"fair", fair}, {"change", change},
		{"idle", idle}, {"open", open}, {"journal", oldJournal}, {"scaleout", scaleout}, {"binary", binarySize}, {"demo", demo},
	} {
		if *flagOnly != "" && !slices.Contains(strings.Split(*flagOnly, ","), m.name) {
			continue
		}
		t.Run(m.name, func(t *testing.T) { m.run(t, s, all) })
	}
	t.Logf("\n%s", all)
	if *flagDir == "" {
		return
	}
	for file, content := range map[string]string{"bench.txt": all.raw(), "bench-table.txt": all.String()} {
		if err := os.WriteFile(filepath.Join(*flagDir, file), []byte(content), 0o600); err != nil {
			t.Error(err)
		}
	}
}

// latency measures the time from JetStream's acknowledgement of a request to the call's arrival, for an agent that has
// nothing else to do. Agent and floors take turns. One floor does as little as possible, the other reads and writes
// everything that the guarantees demand before a call.
func latency(t *testing.T, s size, all *table) {
	r := newRig(t)
	r.learn()
	arrived := make(chan time.Time, 1)
	r.ocp.posted = func(int64, int64) { arrived <- time.Now() }
	r.agent()
	kept, fresh := &http.Client{Transport: &http.Transport{}}, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	least := func(msg jetstream.Msg) error { return r.oneByOne(kept, msg, r.before[:1], nil) }
	same := func(msg jetstream.Msg) error { return r.asTheGuaranteesAsk(kept, fresh, msg) }
	floors := make(chan func(jetstream.Msg) error, 1)
	defer r.consume(func(msg jetstream.Msg) {
		if err := (<-floors)(msg); err != nil {
			t.Error("floor:", err)
		}
	}, kept.CloseIdleConnections)()
	once := func(msg *nats.Msg, queue string) time.Duration {
		if _, err := r.js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		acknowledged := time.Now()
		took := (<-arrived).Sub(acknowledged)
		r.awaitEmpty(queue, 0)
		return took
	}
	floor := func(loop func(jetstream.Msg) error) time.Duration {
		floors <- loop
		return once(r.floorRequest(), "FLOOR_IN")
	}
	for range s.rounds {
		var took, tookLeast, tookSame []time.Duration
		for range s.latencies {
			took, tookLeast, tookSame = append(took, once(r.request(), events.RequestStream)), append(tookLeast, floor(least)), append(tookSame, floor(same))
		}
		all.add("request to call, p50", quantile(took, 0.5), quantile(tookLeast, 0.5))
		all.add("request to call, p99", quantile(took, 0.99), quantile(tookLeast, 0.99))
		all.add("the same, beside a loop with all reads and flushes, p50", quantile(took, 0.5), quantile(tookSame, 0.5))
		all.add("the same, p99", quantile(took, 0.99), quantile(tookSame, 0.99))
	}
}

// operations measures how many operations, in 64 clusters, get from request to end in a second.
func operations(t *testing.T, s size, all *table) {
	r := newRig(t)
	r.learn()
	rate := func(queue string, next func() *nats.Msg, start func() (stop func())) float64 {
		var msgs []*nats.Msg
		for range s.operations {
			msgs = append(msgs, next())
		}
		r.publish(msgs)
		stop := start()
		began := time.Now()
		r.awaitEmpty(queue, 0)
		took := time.Since(began)
		stop()
		return float64(s.operations) / took.Seconds()
	}
	for round := range s.rounds {
		calls, writes := r.ocp.posts.Load(), r.last("KV_"+events.ClusterBucket)
		requests, appended, seconds := calls+r.ocp.reads.Load(), r.last(events.OperationStream), 0.0
		ours := rate(events.RequestStream, r.request, func() func() {
			before := r.last(events.OperationStream)
			a := r.agent()
			seconds = a.processorSeconds()
			done := a.profile(fmt.Sprint("operations-", round))
			r.awaitState(events.OperationStream, "a first event", func(s jetstream.StreamState) bool { return s.LastSeq > before })
			return func() { seconds = a.processorSeconds() - seconds; done(); a.Stop() }
		})
		if calls = r.ocp.posts.Load() - calls; calls != int64(s.operations) {
			t.Errorf("%d calls for %d operations", calls, s.operations)
		}
		each := func(n float64) float64 { return n / float64(s.operations) }
		all.add("events of an operation", each(float64(r.last(events.OperationStream)-appended)), float64(len(r.before)+len(r.after)))
		all.add("writes of records for an operation", each(float64(r.last("KV_"+events.ClusterBucket)-writes)), 0)
		all.add("requests to OCP for an operation", each(float64(r.ocp.posts.Load()+r.ocp.reads.Load()-requests)), 1)
		all.add("processor for an operation", each(1000*seconds), 0)

		batches := rate("FLOOR_IN", r.floorRequest, r.floorBatches)
		oneByOne := rate("FLOOR_IN", r.floorRequest, func() func() { return r.floorOneByOne(clusters, r.before, r.after) })
		all.add("operations", ours, batches)
		all.add("operations, beside one append at a time", ours, oneByOne)
	}
}

const stormKeys = 100

// storm sends the same hundred requests again and again: first they wait in the stream when the agent starts, then they
// come as fast as NATS takes them, with other requests in between.
func storm(t *testing.T, s size, all *table) {
	r := newRig(t)
	r.learn()
	for round := range min(s.rounds, 3) { // they are long
		var ours, bare []*nats.Msg
		for i := range s.storm {
			msg := requestFor(fmt.Sprintf("storm-%d-%d", round, i%stormKeys), int64(1+i%stormKeys), int64(1+round))
			ours = append(ours, msg)
			bare = append(bare, &nats.Msg{Subject: "floor.in", Data: msg.Data})
		}
		posts, before := r.ocp.posts.Load(), r.last(events.OperationStream)
		r.publish(ours)
		a := r.agent()
		done := a.profile(fmt.Sprint("storm-", round))
		r.awaitState(events.OperationStream, "a first event", func(s jetstream.StreamState) bool { return s.LastSeq > before })
		began := time.Now()
		r.awaitEmpty(events.RequestStream, 0)
		took := time.Since(began)
		resident := a.residentMiB()
		done()
		if calls := r.ocp.posts.Load() - posts; calls != stormKeys {
			t.Errorf("%d calls for %d keys", calls, stormKeys)
		}

		r.publish(bare)
		beganBare := time.Now()
		stop := r.consume(func(msg jetstream.Msg) { _ = msg.Ack() }, func() {}) // an unacknowledged message comes again
		r.awaitEmpty("FLOOR_IN", 0)
		tookBare := time.Since(beganBare)
		stop()
		all.add("storm, duplicates settled", float64(s.storm)/took.Seconds(), float64(s.storm)/tookBare.Seconds())
		all.add("storm, memory", resident, 150)

		// Other requests come in the middle of the storm, each about a cluster of its own.
		const cluster = 200
		arrived := make(chan time.Time, len(ours))
		r.ocp.posted = func(c, _ int64) {
			if c >= cluster {
				arrived <- time.Now()
			}
		}
		calls := r.othersInAStorm(ours, arrived, func(i int) *nats.Msg {
			return requestFor(fmt.Sprintf("other-%d-%d", round, i), int64(cluster+i), int64(1+round))
		})
		r.awaitEmpty(events.RequestStream, 0)
		r.ocp.posted = func(int64, int64) {}
		a.Stop()
		stop = r.consume(func(msg jetstream.Msg) {
			if string(msg.Data()) == "other" {
				arrived <- time.Now()
			}
			_ = msg.Ack()
		}, func() {})
		deliveries := r.othersInAStorm(bare, arrived, func(int) *nats.Msg { return &nats.Msg{Subject: "floor.in", Data: []byte("other")} })
		r.awaitEmpty("FLOOR_IN", 0)
		stop()
		all.add("storm, another request to its call", calls, 1000)
		all.add("the same, beside its delivery to a bare loop", calls, deliveries)
	}
}

// othersInAStorm is how long another message takes to arrive at worst while a storm
// comes in as fast as NATS takes it, in milliseconds.
func (r *rig) othersInAStorm(storm []*nats.Msg, arrived <-chan time.Time, other func(i int) *nats.Msg) float64 {
	r.t.Helper()
	var over atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.publish(storm)
		over.Store(true)
	}()
	var worst time.Duration
	for i := 0; !over.Load(); i++ {
		if _, err := r.js.PublishMsg(r.t.Context(), other(i)); err != nil {
			r.t.Error(err)
			break
		}
		acknowledged := time.Now()
		worst = max(worst, (<-arrived).Sub(acknowledged))
		time.Sleep(50 * time.Millisecond) // a rate, not a wait
	}
	<-ended
	return float64(worst) / float64(time.Millisecond)
}

// follow counts the requests to OCP for one look at many tasks of one cluster that do not move.
func follow(t *testing.T, s size, all *table) {
	for _, n := range s.followed {
		r := newRig(t)
		r.seed(seeds{open: n, clusters: 1})
		const interval = 500 * time.Millisecond
		r.agent("OBWARDEN_POLL_MIN="+interval.String(), "OBWARDEN_POLL_MAX="+interval.String())
		r.awaitFollowed(n)
		before := r.ocp.reads.Load()
		time.Sleep(8 * interval)
		all.add(looksRow(n), float64(r.ocp.reads.Load()-before)/8, float64((n+ocp.PageSize-1)/ocp.PageSize))
	}
}

// awaitFollowed waits until the agent has looked at each of n tasks that it took up.
func (r *rig) awaitFollowed(n int) {
	r.t.Helper()
	eventually(r.t, "a look at each task", 100*time.Millisecond, func() error {
		if reads := r.ocp.reads.Load(); reads < int64(n) {
			return fmt.Errorf("OCP is looked at %d times for %d tasks", reads, n)
		}
		return nil
	})
	time.Sleep(2 * time.Second) // until these looks are over
}

const fairRate = 100 // requests a second

// fair follows a task in each of many clusters, within a budget of requests that is too small to look at each task when
// it is due. Then all tasks move at once.
func fair(t *testing.T, s size, all *table) {
	r := newRig(t)
	ids := r.seed(seeds{open: s.fair, clusters: s.fair})
	told := r.told()
	r.agent("OBWARDEN_POLL_MIN=500ms", "OBWARDEN_POLL_MAX=1s", fmt.Sprint("OBWARDEN_OCP_MAX_RPS=", fairRate))
	r.awaitFollowed(s.fair)
	period := time.Duration(float64(s.fair) / fairRate * float64(time.Second)) // for a look at each
	time.Sleep(period)
	r.ocp.seen()
	before := r.ocp.reads.Load()
	time.Sleep(2 * period)
	reads, seen := r.ocp.reads.Load()-before, r.ocp.seen()
	var counts []float64
	total := 0.0
	for cluster := range s.fair {
		counts = append(counts, float64(seen[int64(cluster+1)]))
		total += counts[cluster]
	}
	all.add(fairRow(s), float64(reads)/(2*period).Seconds(), fairRate)
	all.add("looks at the cluster seen least, of the mean", slices.Min(counts), total/float64(s.fair))
	all.add("looks at the cluster seen most, of the mean", slices.Max(counts), total/float64(s.fair))

	began := time.Now()
	for _, id := range ids {
		r.ocp.move(id)
	}
	for range ids {
		<-told
	}
	all.add("all these move at once, the last is told", time.Since(began).Seconds(), period.Seconds())
}

// ended is the event that tells of the end of a subtask.
type ended struct {
	task int64
	at   time.Time
}

func (r *rig) told() <-chan ended {
	r.t.Helper()
	told := make(chan ended, 10_000)
	subscription, err := r.nc.Subscribe("ob.server.*.event.*.*.*.progress", func(msg *nats.Msg) {
		at := time.Now()
		e, err := events.DecodeEvent(msg.Subject, msg.Data)
		if err == nil && len(e.Changes) == 1 && e.Changes[0].To == "SUCCESSFUL" { // that the next one runs is another event
			told <- ended{e.Task.ID, at}
		}
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = subscription.Unsubscribe() }) // the connection is closed next
	return told
}

// change measures the time from a change in OCP to the event that reports it.
func change(t *testing.T, s size, all *table) {
	r := newRig(t)
	ids := r.seed(seeds{open: 100, clusters: 10})
	const interval = time.Second
	told := r.told()
	r.agent("OBWARDEN_POLL_MIN="+interval.String(), "OBWARDEN_POLL_MAX="+interval.String())
	r.awaitFollowed(100)
	for range s.rounds {
		var took []time.Duration
		for i := range s.moved {
			id := ids[(i*37)%len(ids)]
			time.Sleep(time.Duration(rand.Int64N(int64(interval)))) // not in step with the looks
			moved := time.Now()
			r.ocp.move(id)
			event := <-told
			if event.task != id {
				t.Fatalf("event of task %d, want %d", event.task, id)
			}
			took = append(took, event.at.Sub(moved))
		}
		limit := float64((interval + 50*time.Millisecond) / time.Millisecond)
		all.add("change in OCP to event, p50", quantile(took, 0.5), limit)
		all.add("change in OCP to event, worst", quantile(took, 1), limit)
	}
}
