// Package ocpsim simulates OCP over real HTTP. It serves the API that agent/ocp calls from memory, with a topology,
// asynchronous tasks that run through their subtasks, users with permissions, and faults on demand. In the manner of
// net/http/httptest, Start runs one for a test.
//
// The simulator is built from OCP's documentation and its samples alone. It imports no other package of this module, so
// that it can disagree with the client. sim.go is the simulator and its lifecycle, server.go the path of one request,
// task.go the life of one task, shapes.go the JSON on the wire, and fault.go the faults.
package ocpsim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// API is the version of OCP that is simulated.
type API string

// APIV3 is OCP V3 and V4.2: force, optional. APIV43 is OCP V4.3: freezeServer, required for stop and restart.
const (
	APIV3  API = "v3"
	APIV43 API = "v4.3"
)

// Shape is one of the three published shapes of a task in the answer to a POST.
type Shape int

// The contract's shapes: ShapeTasks has cluster{} and tasks[], ShapeSubtasks has clusterId, a context object and
// subtasks[], ShapeV43 has clusterId, hostId and no context.
const (
	ShapeTasks    Shape = 1
	ShapeSubtasks Shape = 2
	ShapeV43      Shape = 3
)

// Config configures a simulated OCP. The zero value is DefaultTopology with DefaultUsers in real time.
type Config struct {
	Clusters []ClusterConfig // none: DefaultTopology
	Users    []User          // none: DefaultUsers("", "")
	Faults   []Fault         // active from the start

	// Speed is how many seconds of a task's work pass in one second of OCP's clock; 0 means 1. OCP's clock itself
	// stays the wall clock, so that its timestamps stay comparable with the client's however fast the tasks run.
	Speed float64
	Shape Shape // 0: ShapeTasks
	API   API   // "": APIV3

	// HonourIdempotencyKey makes a POST repeated with the same Idempotency-Key header answer the same task, as a
	// gateway in front of OCP might. OCP documents no such key, hence off by default.
	HonourIdempotencyKey bool

	Seed   uint64           // of trace ids, jitter, shuffles and probabilities: equal seeds, equal runs
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: silent
}

// Sim is one simulated OCP. Its methods may be called from any goroutine.
type Sim struct {
	cfg    Config
	logger *slog.Logger
	mux    *http.ServeMux
	closed chan struct{} // wakes the answers that a fault delays
	close  sync.Once

	mu         sync.Mutex // guards what follows; never held while waiting or writing to a client
	rand       *rand.Rand
	advanced   time.Duration // how far Advance has put OCP's clock forward
	clusters   []*cluster
	tasks      []*task // by ascending id
	running    []*task // the tasks that are still running
	byKey      map[string]*task
	rules      []*rule
	log        []*LogEntry
	requests   int64
	posts      map[Endpoint]int
	nextTask   int64
	nextSub    int64
	listenAddr string
}

// First ids of a fresh simulator: of the size that the samples show, so that nobody takes them for server ids.
const (
	firstTaskID    = 111102
	firstSubtaskID = 133815
)

// New makes a simulator, or reports everything that is wrong with cfg.
func New(cfg Config) (*Sim, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("ocpsim: %w", err)
	}
	s := &Sim{
		cfg:      cfg,
		logger:   cfg.Logger,
		closed:   make(chan struct{}),
		rand:     rand.New(rand.NewPCG(cfg.Seed, 0)),
		byKey:    make(map[string]*task),
		posts:    make(map[Endpoint]int),
		nextTask: firstTaskID,
		nextSub:  firstSubtaskID,
	}
	for _, f := range cfg.Faults {
		s.rules = append(s.rules, &rule{Fault: f})
	}
	s.clusters = newClusters(cfg.Clusters, s.now())
	s.mux = s.newMux()
	return s, nil
}

func (c Config) withDefaults() Config {
	if len(c.Clusters) == 0 {
		c.Clusters = DefaultTopology()
	}
	if len(c.Users) == 0 {
		c.Users = DefaultUsers("", "")
	}
	if c.Speed == 0 {
		c.Speed = 1
	}
	if c.Shape == 0 {
		c.Shape = ShapeTasks
	}
	if c.API == "" {
		c.API = APIV3
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// maxSpeed keeps the shortest subtask above OCP's resolution of a millisecond.
const maxSpeed = 1000

func (c Config) validate() error {
	var errs []error
	if !(c.Speed > 0 && c.Speed <= maxSpeed) { // not a comparison the other way round: NaN must fail too
		errs = append(errs, fmt.Errorf("speed %v: want a number above 0 and up to %d", c.Speed, maxSpeed))
	}
	if c.Shape < ShapeTasks || c.Shape > ShapeV43 {
		errs = append(errs, fmt.Errorf("shape %d: want 1, 2 or 3", c.Shape))
	}
	if c.API != APIV3 && c.API != APIV43 {
		errs = append(errs, fmt.Errorf("API %q: want %q or %q", c.API, APIV3, APIV43))
	}
	for i, f := range c.Faults {
		if err := f.validate(); err != nil {
			errs = append(errs, fmt.Errorf("fault %d: %w", i+1, err))
		}
	}
	errs = append(errs, validateTopology(c.Clusters), validateUsers(c.Users))
	return errors.Join(errs...)
}

// Handler serves OCP's API, and the simulator's own under /sim/.
func (s *Sim) Handler() http.Handler { return s.mux }

// Serve answers on ln until ctx ends or Close is called, and closes the simulator on its way out.
func (s *Sim) Serve(ctx context.Context, ln net.Listener) error {
	s.listens(ln)
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	s.logger.Info("simulated OCP listens", "url", s.URL(), "clusters", len(s.cfg.Clusters), "speed", s.cfg.Speed)

	select {
	case err := <-served:
		s.Close()
		return fmt.Errorf("ocpsim: serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	case <-s.closed:
	}
	s.Close()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // a client that keeps its request open has had its second
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("ocpsim: serve %s: %w", ln.Addr(), err)
	}
	return nil
}

// Close ends Serve. Requests that a fault delays are then neither performed nor answered.
func (s *Sim) Close() { s.close.Do(func() { close(s.closed) }) }

func (s *Sim) listens(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listenAddr = ln.Addr().String()
}

// URL is the base URL that Serve answers on, empty before Serve.
func (s *Sim) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listenAddr == "" {
		return ""
	}
	return "http://" + s.listenAddr
}

// Advance lets d of the tasks' work pass at once: OCP's clock goes forward by d divided by Speed. Advancing by
// two minutes finishes any task that neither fails nor hangs, whatever the speed.
func (s *Sim) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advanced += s.scale(max(d, 0))
	s.settle()
}

// now is OCP's clock.
func (s *Sim) now() time.Time { return s.cfg.Now().Add(s.advanced).In(ocpZone()) }

// ocpZone is the time zone of all samples.
func ocpZone() *time.Location { return time.FixedZone("", 8*60*60) }

// scale turns a duration of work into one of OCP's clock.
func (s *Sim) scale(d time.Duration) time.Duration { return time.Duration(float64(d) / s.cfg.Speed) }

// settle advances every running task to now. The state is a function of the clock: nothing runs in the background.
func (s *Sim) settle() {
	now := s.now()
	still := s.running[:0]
	for _, t := range s.running {
		if t.settle(now); t.status == statusRunning {
			still = append(still, t)
		}
	}
	clear(s.running[len(still):])
	s.running = still
}
