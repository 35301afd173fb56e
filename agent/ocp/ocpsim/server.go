package ocpsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

const maxBody = 1 << 20

// call is one request on its way through.
type call struct {
	route   route
	request *http.Request
	body    []byte
	user    *User // nil: nobody known
	authErr error

	cluster, server int64 // that it is about, 0 where there is none
	entry           *LogEntry
	fault           Fault // that decides the answer; its Action is empty if there is none
}

func (s *Sim) newMux() *http.ServeMux {
	mux := http.NewServeMux()
	for _, r := range routes() {
		mux.HandleFunc(r.method+" "+r.pattern, s.serve(r))
	}
	mux.HandleFunc("/", s.serve(route{endpoint: Unknown, handle: (*Sim).unknown}))
	s.addAdmin(mux)
	return mux
}

// serve is the path of every request: receive, perform, deliver. A fault may strike in between.
func (s *Sim) serve(r route) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		began := s.cfg.Now()
		c, err := s.receive(r, req)
		if err != nil {
			panic(http.ErrAbortHandler) // the client broke off: nobody is there to answer, and OCP saw no request
		}
		// The delay does not end when the client goes away: a slow OCP still performs the request.
		if c.fault.Action == DelayBefore && !s.wait(c.fault.Delay) {
			hangUp(w, false)
			return
		}
		var a answer
		if c.fault.performs() {
			a = s.perform(c)
		}
		a = spoilAnswer(c.fault, a)
		if c.fault.Action == DelayAfter && !s.wait(c.fault.Delay) {
			hangUp(w, false)
			return
		}
		s.deliver(w, c, a, s.cfg.Now().Sub(began))
	}
}

// receive logs the request and picks its fault.
func (s *Sim) receive(r route, req *http.Request) (*call, error) {
	body, err := io.ReadAll(io.LimitReader(req.Body, maxBody))
	if err != nil {
		return nil, err
	}
	c := &call{route: r, request: req, body: body}
	c.user, c.authErr = s.authenticate(req, body)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	s.locate(c)
	c.entry = s.logRequest(c)
	c.fault = s.pickFault(c)
	return c, nil
}

// locate finds out which cluster and server the request is about, from its path, its query or its task.
func (s *Sim) locate(c *call) {
	c.cluster, c.server = c.pathID("cluster"), c.pathID("server")
	if t := s.task(c.pathID("task")); t != nil {
		c.cluster = t.cluster.ID
		if len(t.servers) == 1 {
			c.server = t.servers[0].ID
		}
	}
	if c.route.endpoint == TasksList {
		c.cluster, _ = strconv.ParseInt(c.request.URL.Query().Get("clusterId"), 10, 64)
	}
}

// pathID is a number in the path, 0 if there is none: no object has that id.
func (c *call) pathID(name string) int64 {
	id, err := strconv.ParseInt(c.request.PathValue(name), 10, 64)
	if err != nil {
		return 0
	}
	return id
}

// perform carries the request out.
func (s *Sim) perform(c *call) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	switch {
	case c.route.open:
	case c.user == nil:
		return refuse(&problem{status: http.StatusUnauthorized, Code: codeNotAuthenticated,
			Message: "not authenticated", DebugMessage: c.authErr.Error()})
	case !c.user.may(c.route.permission):
		return refuse(&problem{status: http.StatusForbidden, Code: codeForbidden,
			Message: fmt.Sprintf("user %s lacks permission %s", c.user.Name, c.route.permission)})
	}
	return c.route.handle(s, c)
}

// wait reports false when the simulator closed before d was over.
func (s *Sim) wait(d Duration) bool {
	timer := time.NewTimer(time.Duration(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.closed:
		return false
	}
}

// spoilAnswer is the answer after the fault has changed or replaced it.
func spoilAnswer(f Fault, a answer) answer {
	switch f.Action {
	case Status, StatusAfter:
		a = refuse(&problem{status: f.Status, Code: codeOfStatus(f.Status), Message: "fault: " + http.StatusText(f.Status)})
		a.retryAfter = f.RetryAfter
	case HTML, HTMLAfter:
		a = gatewayPage(f.Status)
	case Empty, EmptyAfter:
		a = answer{status: http.StatusOK, plain: true}
	case NotSuccessful:
		a = refuse(&problem{status: http.StatusOK, Code: codeUnexpected, Message: "fault: not successful"})
	}
	return a
}

// deliver logs the answer and sends it, or breaks the connection. It logs first, so that a client that has seen the
// answer, or a broken connection, finds it in the log.
func (s *Sim) deliver(w http.ResponseWriter, c *call, a answer, took time.Duration) {
	body := a.body(s.newEnvelope(took))
	sent := a.status
	switch c.fault.Action {
	case LoseBefore, LoseAfter, Reset, ResetAfter:
		sent = 0
	}
	s.mu.Lock()
	c.entry.Status = sent
	s.mu.Unlock()
	s.logger.Debug("request", "method", c.request.Method, "path", c.request.URL.Path, "status", sent, "fault", c.fault.Action)

	switch c.fault.Action {
	case LoseBefore, LoseAfter:
		hangUp(w, false)
		return
	case Reset, ResetAfter:
		hangUp(w, true)
		return
	case Truncate:
		body = body[:len(body)/2]
	}
	h := w.Header()
	h.Set("Content-Type", a.contentType())
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if a.retryAfter != "" {
		h.Set("Retry-After", a.retryAfter)
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(body) // the client may be gone
}

// hangUp closes the connection without an answer, with a RST if reset is set.
func hangUp(w http.ResponseWriter, reset bool) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2 or a recorder: the nearest thing to a broken connection
	}
	if reset {
		tcp := conn
		if tls, ok := conn.(interface{ NetConn() net.Conn }); ok {
			tcp = tls.NetConn()
		}
		if tcp, ok := tcp.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
			conn = tcp // past TLS, whose close would say goodbye first
		}
	}
	_ = conn.Close()
}

// params are an operation's parameters.
type params struct {
	force, freezeServer *bool
	stopType            string
}

// operationParams reads them from the query and, where there is one, the JSON body: which of the two OCP takes is
// not published. Unknown ones are ignored, as a Spring controller ignores them.
func (c *call) operationParams() (params, error) {
	var body struct {
		Force        *bool  `json:"force"`
		FreezeServer *bool  `json:"freezeServer"`
		Type         string `json:"type"`
	}
	if len(bytes.TrimSpace(c.body)) > 0 {
		if err := json.Unmarshal(c.body, &body); err != nil {
			return params{}, fmt.Errorf("body: %w", err)
		}
	}
	p := params{force: body.Force, freezeServer: body.FreezeServer, stopType: body.Type}
	query := c.request.URL.Query()
	for name, into := range map[string]**bool{"force": &p.force, "freezeServer": &p.freezeServer} {
		if !query.Has(name) {
			continue
		}
		value := query.Get(name)
		if value != "true" && value != "false" {
			return params{}, fmt.Errorf("%s %q: want true or false", name, value)
		}
		yes := value == "true"
		*into = &yes
	}
	if query.Has("type") {
		p.stopType = query.Get("type")
	}
	return p, nil
}

// operate starts a task on a server, or on those of a zone or cluster that the operation makes sense for.
func (s *Sim) operate(c *call, k kind) answer {
	p, err := c.operationParams()
	if err != nil {
		return refuse(illegalArgument(err))
	}
	if s.cfg.API == APIV43 && k != kindStart && p.freezeServer == nil {
		return refuse(illegalArgument(errors.New("freezeServer is required")))
	}
	key := c.request.Header.Get("Idempotency-Key")
	if key != "" {
		key = c.user.Name + " " + c.request.URL.Path + " " + key
	}
	if t := s.byKey[key]; t != nil {
		c.entry.TaskID = t.id
		return succeed(s.postedTask(t))
	}
	cl, z, servers, missing := s.target(c)
	if missing != nil {
		return refuse(missing)
	}
	able, no := able(servers, k, c.server != 0)
	if no != nil {
		return refuse(no)
	}
	t := s.create(c, k, cl, z, able, p)
	c.entry.TaskID = t.id
	if s.cfg.HonourIdempotencyKey && key != "" {
		s.byKey[key] = t
	}
	s.logger.Info("task started", "task", t.id, "name", t.name, "cluster", cl.ID, "server", c.server, "user", c.user.Name)
	return succeed(s.postedTask(t))
}

// target resolves the path of an operation.
func (s *Sim) target(c *call) (*cluster, *zone, []*server, *problem) {
	cl := s.cluster(c.cluster)
	if cl == nil {
		return nil, nil, nil, notFound("cluster", c.request.PathValue("cluster"))
	}
	switch c.route.scope {
	case "server":
		srv := cl.server(c.server)
		if srv == nil {
			return nil, nil, nil, notFound("server", c.request.PathValue("server"))
		}
		return cl, srv.zone, []*server{srv}, nil
	case "zone":
		z := cl.zone(c.request.PathValue("zone"))
		if z == nil {
			return nil, nil, nil, notFound("zone", c.request.PathValue("zone"))
		}
		return cl, z, z.servers, nil
	}
	return cl, nil, cl.servers(), nil
}

// able are the servers that the operation makes sense for. A busy one refuses it for all, and so does, where the
// operation names one server, a status that does not fit.
func able(servers []*server, k kind, named bool) ([]*server, *problem) {
	var fit []*server
	for _, srv := range servers {
		switch {
		case srv.busy():
			return nil, notAllowed("server %d is %s: task %d is running", srv.ID, srv.status, srv.task.id)
		case srv.allows(k):
			fit = append(fit, srv)
		case named:
			return nil, notAllowed("server %d is %s: cannot %s it", srv.ID, srv.status, k)
		}
	}
	if len(fit) == 0 {
		return nil, notAllowed("no server to %s", k)
	}
	return fit, nil
}

func (s *Sim) unknown(c *call) answer { return refuse(notFound("resource", c.request.URL.Path)) }

func (s *Sim) status(*call) answer {
	return answer{status: http.StatusOK, plain: true, text: "okay"}
}
