//go:build linux

package chaos

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

const (
	maxOpen        = 200                    // operations under way, so that the run is steady
	duplicatesEach = 3                      // on average
	hotShare       = 0.25                   // share of operations that go to one cluster, where they queue
	hotFor         = 8 * time.Second        // then another cluster is hot
	duplicateSpan  = 40 * time.Second       // time in which duplicates of a request are sent
	publishTimeout = 700 * time.Millisecond // of one try
	// idleBefore is how long a server rests between operations. Real tasks take a minute, these a tenth of a second. An
	// agent that looks for the task of a lost call also considers tasks that began up to 2 s before it, or 3 s if it knows
	// OCP's clock from a header only, and must not find the task of the operation before.
	idleBefore = 6 * time.Second
)

// server is a server of OCP in the state that the load expects.
type server struct {
	cluster, id int64
	stopped     bool
	users       int // operations that concern it
	free        time.Time
}

// load publishes requests and remembers what JetStream has acknowledged.
type load struct {
	js     jetstream.JetStream
	sim    *ocpsim.Sim
	random *rand.Rand // used by the publishing loop only
	ops    int
	rate   float64 // operations a second

	abort context.Context // cancels messages that are still to be published

	mu        sync.Mutex
	servers   []*server
	open      map[string]*wish
	openCount int // how many of these have not ended yet
	pending   int // messages to be published, servers to be mended
	published int
	requests  []request
	retries   map[string]int // orders sent, by operation
	cancels   map[string]int
	ordered   map[string]bool // operations with an acknowledged order to retry
	mended    []mending
	kinds     map[string]int // operations by their special feature
}

// wish is an operation as the load wants it.
type wish struct {
	server   *server // nil: none is concerned
	kind     events.Kind
	ended    bool // for the first time
	ordered  bool // to be retried
	reopened bool // by that order
	mending  bool
}

func newLoad(js jetstream.JetStream, sim *ocpsim.Sim, clusters []ocpsim.ClusterConfig, seed uint64, ops int, rate float64, abort context.Context) *load {
	l := &load{js: js, sim: sim, random: rand.New(rand.NewPCG(seed, 1)), ops: ops, rate: rate, abort: abort,
		open: map[string]*wish{}, retries: map[string]int{}, cancels: map[string]int{}, ordered: map[string]bool{}, kinds: map[string]int{}}
	for _, c := range clusters {
		for _, z := range c.Zones {
			for _, s := range z.Servers {
				l.servers = append(l.servers, &server{cluster: c.ID, id: s.ID})
			}
		}
	}
	return l
}

// run publishes all operations, evenly, and returns early when ctx ends.
func (l *load) run(ctx context.Context) {
	began := time.Now()
	for n := 0; n < l.ops; {
		due := began.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
		if !pause(ctx, time.Until(due)) {
			return
		}
		did := l.next(n)
		if did == 0 && !pause(ctx, 20*time.Millisecond) {
			return
		}
		n += did
	}
}

// pause waits, and reports false if ctx ended before d was over.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(max(d, 0)):
		return true
	}
}

// next publishes the nth operation, or a pair, and returns how many.
func (l *load) next(n int) int {
	l.mu.Lock()
	if l.openCount >= maxOpen {
		l.mu.Unlock()
		return 0
	}
	s := l.pick(time.Now())
	if s == nil {
		l.mu.Unlock()
		return 0
	}
	kind := events.Stop
	if s.stopped {
		kind = events.Start
	} else if l.random.IntN(10) == 0 {
		kind = events.Restart
	}
	l.mu.Unlock()

	r := events.Request{IdempotencyKey: keyOf(n), ClusterID: s.cluster, ServerID: s.id, RequestedBy: "chaos", Reason: fmt.Sprint("operation ", n)}
	switch dice := l.random.IntN(1000); {
	case dice < 40:
		r.DryRun = true
		l.ask("dry run", kind, r, nil, nil)
	case dice < 80:
		r.ExpiresAt = time.Now().Add(time.Duration(l.random.IntN(6000)-1000) * time.Millisecond).UTC().Truncate(time.Millisecond)
		l.ask("expiring", kind, r, s, nil)
	case dice < 120:
		l.ask("cancelled", kind, r, s, nil)
		l.cancel(kind, r)
	case dice < 140:
		l.askInvalid(kind, r)
	case dice < 150:
		r.ServerID = noSuchServer
		l.ask("no such server", kind, r, nil, nil)
	case dice < 160:
		l.ask("key reused", kind, r, s, func() { l.reuse(kind, r) })
	case dice < 200 && kind == events.Stop:
		l.ask("pair", events.Stop, r, s, nil)
		r.IdempotencyKey = keyOf(n + 1)
		l.ask("pair", events.Start, r, s, nil)
		return 2
	default:
		l.ask("plain", kind, r, s, nil)
	}
	return 1
}

// noSuchServer is refused by the guard.
const noSuchServer = 99999

func keyOf(n int) string { return fmt.Sprintf("chaos-%06d", n) }

// pick finds a server that no operation concerns. The caller holds l.mu.
func (l *load) pick(now time.Time) *server {
	hot := int64(0)
	if l.random.Float64() < hotShare {
		clusters := l.servers[len(l.servers)-1].cluster
		hot = 1 + (now.UnixNano()/int64(hotFor))%clusters
	}
	for range 200 {
		s := l.servers[l.random.IntN(len(l.servers))]
		if s.users == 0 && now.After(s.free) && (hot == 0 || s.cluster == hot) {
			return s
		}
	}
	return nil
}

// ask publishes a request. Its key is in the body or, now and then, in a header.
func (l *load) ask(what string, kind events.Kind, r events.Request, s *server, then func()) {
	key, inHeader := r.IdempotencyKey, l.random.IntN(10) == 0
	if inHeader {
		r.IdempotencyKey = ""
	}
	msg := must(r.Message(kind, "cli"))
	if inHeader {
		msg.Header.Set(events.IdempotencyKeyHeader, key)
	}
	l.publish(what, msg, request{key: key, words: r.Reason}, &wish{server: s, kind: kind}, then)
}

// must returns a message that was built here and is therefore valid.
func must(msg *nats.Msg, err error) *nats.Msg {
	if err != nil {
		panic(err)
	}
	return msg
}

// publish sends msg and its duplicates; then is called when it is in the stream.
func (l *load) publish(what string, msg *nats.Msg, r request, w *wish, then func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.published++
	l.kinds[what]++
	l.openCount++
	l.open[events.OperationID(r.key)] = w
	if w.server != nil {
		w.server.users++
	}
	l.send(msg, 0, nil, func(sequence uint64) {
		l.promised(r, sequence)
		if then != nil {
			then()
		}
	})
	for range l.random.IntN(2*duplicatesEach + 1) {
		spans := []time.Duration{300 * time.Millisecond, 300 * time.Millisecond, duplicateSpan / 8, duplicateSpan / 8, duplicateSpan}
		after := time.Duration(l.random.Int64N(int64(spans[l.random.IntN(len(spans))])))
		l.send(msg, after, nil, func(sequence uint64) { l.promised(r, sequence) })
	}
}

func (l *load) promised(r request, sequence uint64) {
	r.sequence = sequence
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, r)
}

// send publishes msg after a while, again and again until JetStream acknowledges it.
// If orders is not nil, it counts the tries there by operation, because each try may arrive.
// The caller holds l.mu.
func (l *load) send(msg *nats.Msg, after time.Duration, orders map[string]int, acknowledged func(sequence uint64)) {
	l.later(after, func() {
		for {
			if orders != nil {
				l.mu.Lock()
				orders[strings.Split(msg.Subject, ".")[4]]++
				l.mu.Unlock()
			}
			ctx, cancel := context.WithTimeout(l.abort, publishTimeout)
			ack, err := l.js.PublishMsg(ctx, &nats.Msg{Subject: msg.Subject, Header: maps.Clone(msg.Header), Data: msg.Data})
			cancel()
			if err == nil {
				acknowledged(ack.Sequence)
				return
			}
			if !pause(l.abort, 50*time.Millisecond) {
				return
			}
		}
	})
}

// later does something after a while, unless the load is aborted. The caller holds l.mu.
func (l *load) later(after time.Duration, do func()) {
	l.pending++
	go func() {
		if pause(l.abort, after) {
			do()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.pending--
	}()
}

// askInvalid publishes a request that cannot be parsed. Its key is in a header, so that the refusal is an event of the
// operation with this key.
func (l *load) askInvalid(kind events.Kind, r events.Request) {
	msg := must(r.Message(kind, "cli"))
	msg.Header.Set(events.IdempotencyKeyHeader, r.IdempotencyKey)
	switch l.random.IntN(3) {
	case 0:
		msg.Data = fmt.Appendf(nil, `{"cluster_id": %d, "server_id": %d, "dryrun": true}`, r.ClusterID, r.ServerID)
	case 1:
		msg.Data = msg.Data[:len(msg.Data)/2]
	case 2:
		msg.Subject = "ob.server.halt.request"
	}
	l.publish("invalid", msg, request{key: r.IdempotencyKey, refused: true}, &wish{kind: kind}, nil)
}

// reuse publishes another request with the key of an operation.
func (l *load) reuse(kind events.Kind, r events.Request) {
	r.Reason += ", but something else"
	msg := must(r.Message(kind, "cli"))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.send(msg, 2*time.Second, nil, func(sequence uint64) { l.promised(request{key: r.IdempotencyKey, words: r.Reason}, sequence) })
}

func (l *load) cancel(kind events.Kind, r events.Request) {
	o := events.Order{Verb: events.Cancel, Kind: kind, OperationID: events.OperationID(r.IdempotencyKey), ClusterID: r.ClusterID, ServerID: r.ServerID, RequestedBy: "chaos"}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.send(must(o.Message()), time.Duration(l.random.Int64N(int64(1500*time.Millisecond))), l.cancels, func(uint64) {})
}

// saw learns from the journal how operations proceed. It repairs the server of a failed task by an order to retry, or
// by hand.
func (l *load) saw(e event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.open[e.ID]
	if w == nil || w.mending {
		return
	}
	switch {
	case e.token == "running" && w.ended:
		w.reopened = true
	case !final(e.token):
		return
	case w.ended && !w.reopened:
		return
	}
	if !final(e.token) {
		return
	}
	if !w.ended {
		w.ended = true
		l.openCount--
	}
	switch code := e.Reason.Code; {
	case w.server == nil:
	case code == "SUBTASK_FAILED" && !w.ordered && rand.IntN(10) < 6:
		w.ordered = true
		l.retry(w, e)
		return
	case e.State == "succeeded":
		w.server.stopped = w.kind == events.Stop
	case taskOf(e.document) != 0, code == "OCP_REFUSED", code == "OUTCOME_UNKNOWN", code == "WRONG_STATE": // the server is in another state than the load expects
		l.mend(e.ID, w)
		return
	}
	l.release(e.ID, w)
}

// release lets the next operation have the server. The caller holds l.mu.
func (l *load) release(id string, w *wish) {
	if w.server != nil {
		w.server.users--
		w.server.free = time.Now().Add(idleBefore)
	}
	delete(l.open, id)
}

// retry orders OCP's failed task to be run again, now and then twice. The caller holds l.mu.
func (l *load) retry(w *wish, e event) {
	o := events.Order{Verb: events.Retry, Kind: w.kind, OperationID: e.ID, ClusterID: e.Cluster, ServerID: e.Server, RequestedBy: "chaos"}
	for i := range 1 + rand.IntN(5)/4 {
		l.send(must(o.Message()), time.Duration(i)*300*time.Millisecond+time.Duration(rand.Int64N(int64(time.Second))), l.retries, func(uint64) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.ordered[e.ID] = true
		})
	}
}

// mend makes the server run, as a person would by hand, unless another operation concerns it. Such an operation waits
// if a failed task has left the server between two states, so then mend does it all the same. The caller holds l.mu.
func (l *load) mend(id string, w *wish) {
	w.mending = true
	l.later(time.Second, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if w.server.users == 1 || l.halfway(w.server.id) {
			w.server.stopped = false
			l.mended = append(l.mended, mending{at: time.Now(), server: w.server.id})
			if err := l.sim.SetServer(w.server.cluster, w.server.id, "RUNNING", "ACTIVE"); err != nil {
				panic(err)
			}
		}
		l.release(id, w)
	})
}

// halfway reports whether a server is between two states and no task moves it any more.
func (l *load) halfway(id int64) bool {
	state := l.sim.State()
	for _, t := range state.Tasks {
		if t.Status == "RUNNING" && slices.Contains(t.Servers, id) {
			return false
		}
	}
	for _, c := range state.Clusters {
		for _, z := range c.Zones {
			for _, s := range z.Servers {
				if s.ID == id {
					return s.Status != "RUNNING" && s.Status != "STOPPED"
				}
			}
		}
	}
	return false
}

// rest is the number of messages still to be published, and the operations that have not ended.
func (l *load) rest() (pending int, open []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending, slices.Sorted(maps.Keys(l.open))
}
