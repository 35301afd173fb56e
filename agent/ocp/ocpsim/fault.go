package ocpsim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Action is what a fault does. Actions on subtasks concern the task that the request starts, all others the answer.
type Action string

// The actions.
const (
	FailSubtask   Action = "fail_subtask"   // the named subtask fails, Times executions long
	HangSubtask   Action = "hang_subtask"   // the named subtask never ends until it is cancelled
	LoseBefore    Action = "lose_before"    // connection closed, nothing happened
	LoseAfter     Action = "lose_after"     // it happened, connection closed without an answer
	DelayBefore   Action = "delay"          // the effect, and the answer, come late: also if the client is gone by then
	DelayAfter    Action = "delay_after"    // the effect comes at once, the answer late
	Status        Action = "status"         // OCP refuses with a status
	StatusAfter   Action = "status_after"   // it happened, but the answer is an error
	HTML          Action = "html"           // a gateway answers with its page
	HTMLAfter     Action = "html_after"     // it happened, but a gateway answers with its page
	Truncate      Action = "truncate"       // it happened, half of the JSON arrives
	Reset         Action = "reset"          // connection reset (RST), nothing happened
	ResetAfter    Action = "reset_after"    // it happened, connection reset
	Empty         Action = "empty"          // HTTP 200 without a body, nothing happened
	EmptyAfter    Action = "empty_after"    // it happened, HTTP 200 without a body
	NotSuccessful Action = "not_successful" // HTTP 200 with successful: false, nothing happened
)

// traits say how an action affects a request and which options it takes.
type traits struct {
	effect  bool // the request is performed
	subtask bool // concerns the task, not the answer
	delay   bool // needs a delay
	status  bool // takes a status
}

func actions() map[Action]traits {
	return map[Action]traits{
		FailSubtask:   {effect: true, subtask: true},
		HangSubtask:   {effect: true, subtask: true},
		LoseBefore:    {},
		LoseAfter:     {effect: true},
		DelayBefore:   {effect: true, delay: true},
		DelayAfter:    {effect: true, delay: true},
		Status:        {status: true},
		StatusAfter:   {effect: true, status: true},
		HTML:          {status: true},
		HTMLAfter:     {effect: true, status: true},
		Truncate:      {effect: true},
		Reset:         {},
		ResetAfter:    {effect: true},
		Empty:         {},
		EmptyAfter:    {effect: true},
		NotSuccessful: {},
	}
}

// Duration is a time.Duration that JSON writes as "1.5s".
type Duration time.Duration

// MarshalText writes d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads "1.5s".
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// Match says which requests a fault concerns. Zero values match everything.
type Match struct {
	Endpoint Endpoint `json:"endpoint"` // AnyEndpoint or "": all
	Method   string   `json:"method,omitempty"`
	Cluster  int64    `json:"cluster,omitempty"`
	Server   int64    `json:"server,omitempty"`
}

// Fault is one rule. Of the rules that match a request, all that concern subtasks apply, and the first of the others.
type Fault struct {
	Match       Match    `json:"match"`
	Action      Action   `json:"action"`
	Subtask     string   `json:"subtask,omitempty"`     // of FailSubtask and HangSubtask, by name
	Times       int      `json:"times,omitempty"`       // executions that FailSubtask and HangSubtask spoil; 0: one
	Delay       Duration `json:"delay,omitempty"`       // real time
	Status      int      `json:"status,omitempty"`      // 400 to 599; HTML and HTMLAfter default to 502
	RetryAfter  string   `json:"retryAfter,omitempty"`  // header of Status and StatusAfter
	Count       int      `json:"count,omitempty"`       // how often it strikes; 0: for ever
	Skip        int      `json:"skip,omitempty"`        // how many matching requests pass first
	Probability float64  `json:"probability,omitempty"` // of striking at each match; 0: always
}

// ParseFault reads the flag syntax ENDPOINT:ACTION[,KEY=VALUE]…, the keys being those of the JSON:
//
//	server_stop:lose_after,count=1
//	server_stop:fail_subtask,subtask=Stop server,times=2,cluster=1,server=2
//	*:status,status=429,retryAfter=5,probability=0.1,method=GET
func ParseFault(s string) (Fault, error) {
	endpoint, rest, ok := strings.Cut(s, ":")
	if !ok {
		return Fault{}, fmt.Errorf("fault %q: want ENDPOINT:ACTION[,KEY=VALUE]…", s)
	}
	action, options, more := strings.Cut(rest, ",")
	f := Fault{Match: Match{Endpoint: Endpoint(endpoint)}, Action: Action(action)}
	var errs []error
	if more {
		for option := range strings.SplitSeq(options, ",") {
			errs = append(errs, f.set(option))
		}
	}
	if err := errors.Join(append(errs, f.validate())...); err != nil {
		return Fault{}, fmt.Errorf("fault %q: %w", s, err)
	}
	return f, nil
}

// set takes one KEY=VALUE.
func (f *Fault) set(option string) error {
	key, value, ok := strings.Cut(option, "=")
	if !ok {
		return fmt.Errorf("%q: want KEY=VALUE", option)
	}
	var err error
	switch key {
	case "method":
		f.Match.Method = value
	case "cluster":
		f.Match.Cluster, err = strconv.ParseInt(value, 10, 64)
	case "server":
		f.Match.Server, err = strconv.ParseInt(value, 10, 64)
	case "subtask":
		f.Subtask = value
	case "times":
		f.Times, err = strconv.Atoi(value)
	case "delay":
		err = f.Delay.UnmarshalText([]byte(value))
	case "status":
		f.Status, err = strconv.Atoi(value)
	case "retryAfter":
		f.RetryAfter = value
	case "count":
		f.Count, err = strconv.Atoi(value)
	case "skip":
		f.Skip, err = strconv.Atoi(value)
	case "probability":
		f.Probability, err = strconv.ParseFloat(value, 64)
	default:
		return fmt.Errorf("unknown key %q: want method, cluster, server, subtask, times, delay, status, retryAfter, count, skip or probability", key)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// String is the flag syntax again.
func (f Fault) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%s", f.Match.Endpoint, f.Action)
	option := func(key string, value any, there bool) {
		if there {
			fmt.Fprintf(&b, ",%s=%v", key, value)
		}
	}
	option("method", f.Match.Method, f.Match.Method != "")
	option("cluster", f.Match.Cluster, f.Match.Cluster != 0)
	option("server", f.Match.Server, f.Match.Server != 0)
	option("subtask", f.Subtask, f.Subtask != "")
	option("times", f.Times, f.Times != 0)
	option("delay", time.Duration(f.Delay), f.Delay != 0)
	option("status", f.Status, f.Status != 0)
	option("retryAfter", f.RetryAfter, f.RetryAfter != "")
	option("count", f.Count, f.Count != 0)
	option("skip", f.Skip, f.Skip != 0)
	option("probability", f.Probability, f.Probability != 0)
	return b.String()
}

// validate also refuses options that would be ignored: a fault that does less than it says misleads a test.
func (f Fault) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(f.Match.Endpoint == "" || f.Match.Endpoint == AnyEndpoint || slices.Contains(Endpoints(), f.Match.Endpoint),
		"endpoint %q: want %s or one of %q", f.Match.Endpoint, AnyEndpoint, Endpoints())
	check(slices.Contains([]string{"", "GET", "POST", "PUT", "DELETE"}, f.Match.Method), "method %q: want GET, POST, PUT or DELETE", f.Match.Method)
	check(f.Match.Cluster >= 0, "cluster %d: want 1 or more", f.Match.Cluster)
	check(f.Match.Server >= 0, "server %d: want 1 or more", f.Match.Server)

	known := actions()
	is, ok := known[f.Action]
	if !ok {
		return errors.Join(append(errs, fmt.Errorf("action %q: want one of %q", f.Action, slices.Sorted(maps.Keys(known))))...)
	}
	if is.subtask {
		names := slices.Sorted(maps.Keys(stepsByName()))
		check(slices.Contains(names, f.Subtask), "subtask %q: want one of %q", f.Subtask, names)
		check(f.Times >= 0, "times %d: want 1 or more", f.Times)
	} else {
		check(f.Subtask == "" && f.Times == 0, "subtask and times go with %s and %s only", FailSubtask, HangSubtask)
	}
	if is.delay {
		check(f.Delay > 0, "%s: want a delay", f.Action)
	} else {
		check(f.Delay == 0, "delay goes with %s and %s only", DelayBefore, DelayAfter)
	}
	switch {
	case !is.status:
		check(f.Status == 0, "%s takes no status", f.Action)
	case f.Status == 0:
		check(f.Action == HTML || f.Action == HTMLAfter, "%s: want a status", f.Action)
	default:
		check(f.Status >= 400 && f.Status <= 599, "status %d: want 400 to 599", f.Status)
	}
	check(f.RetryAfter == "" || f.Action == Status || f.Action == StatusAfter, "retryAfter goes with %s and %s only", Status, StatusAfter)
	check(!strings.ContainsAny(f.RetryAfter, "\r\n"), "retryAfter: want one line")
	check(f.Count >= 0, "count %d: want 0 or more", f.Count)
	check(f.Skip >= 0, "skip %d: want 0 or more", f.Skip)
	check(f.Probability >= 0 && f.Probability <= 1, "probability %v: want 0 to 1", f.Probability)
	return errors.Join(errs...)
}

// performs reports whether the request takes effect. With the zero Fault it does.
func (f Fault) performs() bool { return f.Action == "" || actions()[f.Action].effect }

// rule is a fault in force.
type rule struct {
	Fault
	seen, struck int
}

// FaultState is a fault and how often it has struck.
type FaultState struct {
	Fault
	Seen   int `json:"seen"`   // requests that matched
	Struck int `json:"struck"` // requests that it spoiled
}

// strike reports whether the rule spoils this request, and counts.
func (s *Sim) strike(r *rule, c *call) bool {
	m := r.Match
	switch {
	case m.Endpoint != "" && m.Endpoint != AnyEndpoint && m.Endpoint != c.route.endpoint,
		m.Method != "" && m.Method != c.request.Method,
		m.Cluster != 0 && m.Cluster != c.cluster,
		m.Server != 0 && m.Server != c.server:
		return false
	}
	r.seen++
	if r.seen <= r.Skip || r.Count > 0 && r.struck >= r.Count || r.Probability > 0 && s.rand.Float64() >= r.Probability {
		return false
	}
	r.struck++
	c.entry.addFault(r.Fault)
	return true
}

// pickFault is the fault that decides how a request is answered, or the zero Fault.
func (s *Sim) pickFault(c *call) Fault {
	known := actions()
	for _, r := range s.rules {
		if !known[r.Action].subtask && s.strike(r, c) {
			return r.Fault
		}
	}
	return Fault{}
}

// spoil applies the faults on subtasks to a new task.
func (s *Sim) spoil(c *call, t *task) {
	for _, r := range s.rules {
		if r.Action != FailSubtask && r.Action != HangSubtask {
			continue
		}
		i := slices.IndexFunc(t.subtasks, func(sub *subtask) bool { return sub.name == r.Subtask })
		if i < 0 || !s.strike(r, c) {
			continue
		}
		if r.Action == FailSubtask {
			t.subtasks[i].failures += max(r.Times, 1)
		} else {
			t.subtasks[i].hangs += max(r.Times, 1)
		}
	}
}

// AddFault adds a rule after the others.
func (s *Sim) AddFault(f Fault) error {
	if err := f.validate(); err != nil {
		return fmt.Errorf("fault %s: %w", f, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = append(s.rules, &rule{Fault: f})
	return nil
}

// ClearFaults removes all rules. Tasks that they have spoiled stay spoiled.
func (s *Sim) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = nil
}

// Faults are the rules in the order in which they are tried.
func (s *Sim) Faults() []FaultState {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]FaultState, 0, len(s.rules))
	for _, r := range s.rules {
		all = append(all, FaultState{Fault: r.Fault, Seen: r.seen, Struck: r.struck})
	}
	return all
}
