package ocp

import (
	"bufio"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const accepted = `{"data":{"id":111102,"status":"RUNNING"},"successful":true,"traceId":"139d82c5f88f42f4"}`

func stop(ctx context.Context, c *Client) (Task, error) {
	return c.Operate(ctx, Stop, 1, 2, Params{}, RequestID{IdempotencyKey: "op-1", XRequestID: "op-1.1"})
}

// TestTheClassOfAnAnswerSaysWhatTheCallCanHaveDone has OCP give every kind of answer to a POST: what it can have done
// decides whether a server may be stopped a second time.
func TestTheClassOfAnAnswerSaysWhatTheCallCanHaveDone(t *testing.T) {
	t.Parallel()
	refusal := `{"error":{"code":50002,"message":"Operation not allowed"},"successful":false,"status":409,"traceId":"1f3a"}`
	tests := map[string]struct {
		status int
		body   string
		want   *Error // nil: accepted
	}{
		"accepted":               {200, accepted, nil},
		"accepted, 201":          {201, accepted, nil},
		"no verdict but a task":  {200, `{"data":{"id":5}}`, nil},
		"refused":                {409, refusal, &Error{Class: Refused, Status: 409, Code: 50002, Message: "Operation not allowed", TraceID: "1f3a"}},
		"refused inside 200":     {200, refusal, &Error{Class: Refused, Status: 409, Code: 50002, Message: "Operation not allowed", TraceID: "1f3a"}},
		"refused, code only":     {200, `{"successful":"false","error":{"code":"20000","message":null,"debugMessage":"no task"}}`, &Error{Class: Refused, Status: 404, Code: 20000, Message: "no task"}},
		"refused, nothing said":  {200, `{"successful":false}`, &Error{Class: Refused, Status: 200}},
		"verdict null, no data":  {200, `{"successful":null,"error":{"code":7}}`, &Error{Class: Ambiguous, Status: 200, Code: 7, Err: errNoVerdict}},
		"successful, no data":    {200, `{"successful":true}`, &Error{Class: Ambiguous, Status: 200, Err: errNoTask}},
		"successful, no task id": {200, `{"successful":true,"data":{"name":"x"},"traceId":"9"}`, &Error{Class: Ambiguous, Status: 200, TraceID: "9", Excerpt: `{"name":"x"}`, Err: errNoTask}},
		"empty":                  {200, ``, &Error{Class: Ambiguous, Status: 200, Err: errUnreadable}},
		"no content":             {204, ``, &Error{Class: Ambiguous, Status: 204, Err: errUnreadable}},
		"HTML":                   {200, "<html>\n\t<b>log in</b>\x1b[2J", &Error{Class: Ambiguous, Status: 200, Excerpt: "<html> <b>log in</b> [2J", Err: errUnreadable}},
		"cut off":                {200, accepted[:30], &Error{Class: Ambiguous, Status: 200, Excerpt: accepted[:30], Err: errUnreadable}},
		"a list":                 {200, `[{"id":1}]`, &Error{Class: Ambiguous, Status: 200, Excerpt: `[{"id":1}]`, Err: errUnreadable}},
		"redirect":               {307, ``, &Error{Class: Ambiguous, Status: 307, Err: errRedirect}},
		"bad request, HTML":      {400, `<html>`, &Error{Class: Refused, Status: 400, Excerpt: `<html>`, Err: errUnreadable}},
		"unauthenticated":        {401, `{"error":{"code":30000},"successful":false}`, &Error{Class: Refused, Status: 401, Code: 30000}},
		"forbidden":              {403, `{}`, &Error{Class: Refused, Status: 403}},
		"not found, Spring":      {404, `{"status":404,"error":"Not Found","path":"/"}`, &Error{Class: Refused, Status: 404, Message: "Not Found"}},
		"request timeout":        {408, refusal, &Error{Class: Ambiguous, Status: 408, Code: 50002, Message: "Operation not allowed", TraceID: "1f3a"}},
		"too early":              {425, `{}`, &Error{Class: Ambiguous, Status: 425}},
		"too many":               {429, `{}`, &Error{Class: Ambiguous, Status: 429}},
		"client closed":          {499, `{}`, &Error{Class: Ambiguous, Status: 499}},
		"server error":           {500, refusal, &Error{Class: Ambiguous, Status: 500, Code: 50002, Message: "Operation not allowed", TraceID: "1f3a"}},
		"bad gateway":            {502, `bad gateway`, &Error{Class: Ambiguous, Status: 502, Excerpt: "bad gateway", Err: errUnreadable}},
		"accepted inside 503":    {503, accepted, &Error{Class: Ambiguous, Status: 503, TraceID: "139d82c5f88f42f4"}},
		"sub-error":              {409, `{"error":{"message":"","subErrors":[{"message":"zone is busy"}]}}`, &Error{Class: Refused, Status: 409, Message: "zone is busy"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := serve(t, always(tt.status, tt.body))
			task, err := stop(t.Context(), newClient(t, rec.URL))
			if n := len(rec.got()); n != 1 {
				t.Errorf("requests: got %d, want 1", n)
			}
			if tt.want == nil {
				if err != nil || task.ID == 0 {
					t.Errorf("got %+v, %v, want a task", task, err)
				}
				return
			}
			tt.want.Endpoint, tt.want.Method, tt.want.Path = "server_stop", "POST", "/api/v2/ob/clusters/1/servers/2/stop"
			got, _ := errors.AsType[*Error](err)
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("\n got %#v\nwant %#v", got, tt.want)
			}
		})
	}
}

// listen accepts connections one after the other and counts the requests that arrive
// whole; serve gets each connection, and the request where read is set.
func listen(t *testing.T, read bool, serve func(net.Conn)) (url string, connections, requests *atomic.Int32) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connections, requests = new(atomic.Int32), new(atomic.Int32)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			if read {
				if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.Copy(io.Discard, req.Body)
					requests.Add(1)
				}
			}
			serve(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return "http://" + listener.Addr().String(), connections, requests
}

// TestAPostIsSentOnceWhateverBreaks breaks the connection at every point of a POST with an Idempotency-Key:
// one connection, one request, and nobody knows.
func TestAPostIsSentOnceWhateverBreaks(t *testing.T) {
	t.Parallel()
	write := func(s string) func(net.Conn) {
		return func(conn net.Conn) { _, _ = io.WriteString(conn, s) }
	}
	tests := map[string]struct {
		read  bool
		serve func(net.Conn)
	}{
		"closed right after accept": {false, func(net.Conn) {}},
		"closed after the request":  {true, func(net.Conn) {}},
		"reset after the request":   {true, func(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) }},
		"not HTTP":                  {true, write("SSH-2.0-OpenSSH_9.6\r\n")},
		"closed within the header":  {true, write("HTTP/1.1 200 OK\r\nContent-Le")},
		"closed within the body":    {true, write("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + accepted)},
		"refusal without its end":   {true, write("HTTP/1.1 409 Conflict\r\nContent-Length: 500\r\n\r\n{")},
		"broken chunk":              {true, write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")},
		"switching protocols":       {true, write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")},
	}
	for _, style := range []ParamStyle{Query, JSON} {
		for name, tt := range tests {
			t.Run(name+", "+string(style), func(t *testing.T) {
				t.Parallel()
				url, connections, requests := listen(t, tt.read, tt.serve)
				client := newClient(t, url, func(c *Config) { c.Params = style })
				_, err := client.Operate(t.Context(), Stop, 1, 2, Params{Force: true}, RequestID{IdempotencyKey: "op-1"})
				if err == nil || ClassOf(err) != Ambiguous {
					t.Errorf("got %v, %v, want an ambiguous error", ClassOf(err), err)
				}
				if n := connections.Load(); n != 1 {
					t.Errorf("connections: got %d, want 1", n)
				}
				if n := requests.Load(); tt.read && n != 1 {
					t.Errorf("requests: got %d, want 1", n)
				}
			})
		}
	}
}

// TestPostsDoNotShareConnections: only on a reused one would the transport repeat a POST.
func TestPostsDoNotShareConnections(t *testing.T) {
	t.Parallel()
	rec := serve(t, always(http.StatusOK, accepted))
	client := newClient(t, rec.URL)
	var from []string
	for range 3 {
		if _, err := stop(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	for _, req := range rec.got() {
		from = append(from, req.RemoteAddr)
	}
	slices.Sort(from)
	if got := len(slices.Compact(from)); got != 3 {
		t.Errorf("connections of 3 POSTs: got %d, want 3", got)
	}
}

func TestACancelledPostMayHaveHadAnEffect(t *testing.T) {
	t.Parallel()
	hanging, done := make(chan struct{}), make(chan struct{})
	url, _, requests := listen(t, true, func(net.Conn) { close(hanging); <-done })
	t.Cleanup(func() { close(done) })

	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-hanging; cancel() }()
	_, err := stop(ctx, newClient(t, url))
	if ClassOf(err) != Ambiguous || !errors.Is(err, context.Canceled) || requests.Load() != 1 {
		t.Errorf("cancelled after the request: got %v, %v, %d requests", ClassOf(err), err, requests.Load())
	}
}

func TestAPostThatTimesOutMayHaveHadAnEffect(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	url, _, _ := listen(t, true, func(net.Conn) { <-done })
	t.Cleanup(func() { close(done) })
	_, err := stop(t.Context(), newClient(t, url, func(c *Config) { c.Timeout = 50 * time.Millisecond }))
	if ClassOf(err) != Ambiguous || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, %v", ClassOf(err), err)
	}
}

func TestACallThatReachesNobodyIsNotSent(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	rec := serve(t, always(http.StatusOK, accepted))
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that fails
	secure.StartTLS()
	t.Cleanup(secure.Close)
	expired, cancel := context.WithCancel(t.Context())
	cancel()

	tests := map[string]struct {
		ctx context.Context
		url string
	}{
		"connection refused":    {t.Context(), "http://" + closed.Addr().String()},
		"context expired":       {expired, rec.URL},
		"certificate not known": {t.Context(), secure.URL},
		"TLS to a plain server": {t.Context(), strings.Replace(rec.URL, "http", "https", 1)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := stop(tt.ctx, newClient(t, tt.url))
			if err == nil || ClassOf(err) != NotSent {
				t.Errorf("got %v, %v", ClassOf(err), err)
			}
		})
	}
	if n := len(rec.got()); n != 0 {
		t.Errorf("requests: got %d, want none", n)
	}
}

func TestCallsKeepToTheirBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := newClient(t, "http://ocp.test", func(c *Config) { c.MaxRPS = 0.5; c.Timeout = time.Second })
		sent := 0
		transport := roundTrip(func(*http.Request) (*http.Response, error) {
			sent++
			return response(http.StatusOK, accepted), nil
		})
		client.reads.Transport, client.posts.Transport = transport, transport
		if _, err := client.Task(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if _, err := stop(t.Context(), client); ClassOf(err) != NotSent || err == nil {
			t.Errorf("over the budget: got %v, want not sent", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := stop(t.Context(), client); err != nil {
			t.Errorf("within the budget: got %v", err)
		}
		if sent != 2 {
			t.Errorf("sent: got %d, want 2", sent)
		}
	})
}

func TestACallWhoseTimeIsOverIsNotSentAndBlamesNoBudget(t *testing.T) {
	t.Parallel()
	client := newClient(t, "http://ocp.test", func(c *Config) { c.MaxRPS = 1 })
	client.posts.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
		t.Error("it was sent")
		return response(http.StatusOK, accepted), nil
	})
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, err := client.Operate(ctx, Stop, 1, 1, Params{}, RequestID{})
	if ClassOf(err) != NotSent || errors.Is(err, ErrBudget) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v (%s)", err, ClassOf(err))
	}
}

func TestACallWaitsForOneReadOfManyAtMost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const perSecond = 10
		client := newClient(t, "http://ocp.test", func(c *Config) { c.MaxRPS = perSecond; c.Timeout = 5 * time.Second })
		transport := roundTrip(func(*http.Request) (*http.Response, error) { return response(http.StatusOK, accepted), nil })
		client.reads.Transport, client.posts.Transport = transport, transport
		var reads sync.WaitGroup
		for range 20 * perSecond {
			reads.Go(func() { _, _ = client.Task(t.Context(), 1) }) // most give up
		}
		time.Sleep(time.Second)
		began := time.Now()
		if _, err := stop(t.Context(), client); err != nil {
			t.Error(err)
		}
		if waited := time.Since(began); waited > 2*time.Second/perSecond {
			t.Errorf("it waited for %s", waited)
		}
		reads.Wait()
	})
}

func TestAnAnswerThatIsTooLongIsAmbiguous(t *testing.T) {
	t.Parallel()
	padding := func(n int) string { return strings.Repeat(" ", n-len(accepted)) }
	for size, want := range map[int]bool{maxBodyBytes: true, maxBodyBytes + 1: false} {
		rec := serve(t, always(http.StatusOK, accepted+padding(size)))
		_, err := stop(t.Context(), newClient(t, rec.URL))
		if (err == nil) != want || err != nil && (ClassOf(err) != Ambiguous || !errors.Is(err, errTooLong)) {
			t.Errorf("%d bytes: got %v", size, err)
		}
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	target := serve(t, always(http.StatusOK, accepted))
	for _, status := range []int{301, 302, 303, 307, 308} {
		rec := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			http.Redirect(w, r, target.URL, status)
		})
		client := newClient(t, rec.URL)
		if _, err := stop(t.Context(), client); ClassOf(err) != Ambiguous || !errors.Is(err, errRedirect) {
			t.Errorf("%d: got %v, %v", status, ClassOf(err), err)
		}
		if len(rec.got()) != 1 || len(target.got()) != 0 {
			t.Errorf("%d: got %d requests and %d followed", status, len(rec.got()), len(target.got()))
		}
	}
}

func TestAnOCPWithACertificateOfTheCAFileIsTrusted(t *testing.T) {
	t.Parallel()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.ProtoMajor != 1 {
			t.Errorf("POST: got %s", r.Proto)
		}
		reply(w, http.StatusOK, accepted)
	}))
	t.Cleanup(secure.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	client := newClient(t, secure.URL, func(c *Config) { c.CAFile = file })
	if _, err := stop(t.Context(), client); err != nil {
		t.Errorf("POST: %v", err)
	}
	if _, err := client.Task(t.Context(), 1); err != nil {
		t.Errorf("GET: %v", err)
	}
}

// TestReadsAreRetriedUntilADefiniteNoOrTheDeadline retries over an OCP without a network, in time that passes at once.
func TestReadsAreRetriedUntilADefiniteNoOrTheDeadline(t *testing.T) {
	t.Parallel()
	later := func(status int, after string) *http.Response {
		r := response(status, "")
		r.Header.Set("Retry-After", after)
		return r
	}
	tests := map[string]struct {
		answers  []*http.Response // nil: the network fails
		attempts int
		class    Class
		ok       bool
		atLeast  time.Duration
		atMost   time.Duration
	}{
		"good":                     {[]*http.Response{response(200, accepted)}, 1, 0, true, 0, 0},
		"refused":                  {[]*http.Response{response(404, `{}`)}, 1, Refused, false, 0, 0},
		"refused inside 200":       {[]*http.Response{response(200, `{"successful":false}`)}, 1, Refused, false, 0, 0},
		"after 500 and 502":        {[]*http.Response{response(500, ``), response(502, `x`), response(200, accepted)}, 3, 0, true, 450 * time.Millisecond, 750 * time.Millisecond},
		"after a cut-off answer":   {[]*http.Response{response(200, accepted[:20]), response(200, accepted)}, 2, 0, true, 150 * time.Millisecond, 250 * time.Millisecond},
		"after a network failure":  {[]*http.Response{nil, response(200, accepted)}, 2, 0, true, 150 * time.Millisecond, 250 * time.Millisecond},
		"never":                    {[]*http.Response{nil}, 4, NotSent, false, 1050 * time.Millisecond, 1750 * time.Millisecond},
		"never, 503":               {[]*http.Response{response(503, `{}`)}, 4, Ambiguous, false, 1050 * time.Millisecond, 1750 * time.Millisecond},
		"as long as OCP says":      {[]*http.Response{later(429, "3"), response(200, accepted)}, 2, 0, true, 3 * time.Second, 3 * time.Second},
		"longer than the deadline": {[]*http.Response{later(429, "5")}, 1, Ambiguous, false, 0, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				retries := 0
				var codes []string
				client := newClient(t, "http://ocp.test", func(c *Config) {
					c.Retried = func(string) { retries++ }
					c.Observe = func(endpoint, code string, _ time.Duration) { codes = append(codes, endpoint+" "+code) }
				})
				attempts := 0
				client.reads.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
					answer := tt.answers[min(attempts, len(tt.answers)-1)]
					attempts++
					if answer == nil {
						return nil, errors.New("no route to host")
					}
					return answer, nil
				})
				began := time.Now()
				_, err := client.Task(t.Context(), 7)
				took := time.Since(began)
				if (err == nil) != tt.ok || err != nil && ClassOf(err) != tt.class {
					t.Errorf("got %v, %v, want ok %t, %v", ClassOf(err), err, tt.ok, tt.class)
				}
				if attempts != tt.attempts || retries != tt.attempts-1 || len(codes) != tt.attempts {
					t.Errorf("got %d attempts, %d retries, observed %q, want %d attempts", attempts, retries, codes, tt.attempts)
				}
				if took < tt.atLeast || took > tt.atMost {
					t.Errorf("took %s, want %s to %s", took, tt.atLeast, tt.atMost)
				}
			})
		})
	}
}

func TestReadsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := newClient(t, "http://ocp.test")
		ctx, cancel := context.WithCancel(t.Context())
		client.reads.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
			cancel()
			return response(http.StatusServiceUnavailable, ""), nil
		})
		_, err := client.Task(ctx, 7)
		if failure, ok := errors.AsType[*Error](err); !ok || failure.Endpoint != "task_get" || !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAnExchangeWithoutAnAnswerIsObservedAsAnError(t *testing.T) {
	t.Parallel()
	url, _, _ := listen(t, true, func(net.Conn) {})
	var got []string
	client := newClient(t, url, func(c *Config) {
		c.Observe = func(endpoint, code string, took time.Duration) {
			got = append(got, endpoint+" "+code)
			if took <= 0 {
				t.Errorf("took %s", took)
			}
		}
	})
	_, _ = stop(t.Context(), client)
	if want := []string{"server_stop error"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTheClockComesFromTheEnvelopeBeforeTheHeader(t *testing.T) {
	t.Parallel()
	now := time.Date(2021, 3, 2, 8, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		date, body string
		want       time.Duration
	}{
		"envelope before header": {"Tue, 02 Mar 2021 08:00:09 GMT", `{"timestamp":"2021-03-02T16:00:01.5+08:00","data":{"id":1}}`, 1500 * time.Millisecond},
		"header":                 {"Tue, 02 Mar 2021 07:59:51 GMT", `{"data":{"id":1}}`, -9 * time.Second},
		"envelope has no offset": {"Tue, 02 Mar 2021 08:00:09 GMT", `{"timestamp":"2021-03-02T16:00:01","data":{"id":1}}`, 9 * time.Second},
		"nobody says":            {"today", `{"data":{"id":1}}`, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, "http://ocp.test", func(c *Config) { c.Now = func() time.Time { return now } })
			client.reads.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
				answer := response(http.StatusOK, tt.body)
				answer.Header.Set("Date", tt.date)
				return answer, nil
			})
			if _, err := client.Task(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			if got := client.ClockOffset(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// A gateway's clock is not OCP's, by which its own tasks are known.
func TestTheClockIsNotAGatewaysOnceOCPHasToldIt(t *testing.T) {
	t.Parallel()
	now := time.Date(2021, 3, 2, 8, 0, 0, 0, time.UTC)
	client := newClient(t, "http://ocp.test", func(c *Config) { c.Now = func() time.Time { return now } })
	var answer *http.Response
	client.posts.Transport = roundTrip(func(*http.Request) (*http.Response, error) { return answer, nil })
	for _, a := range []struct {
		status int
		body   string
		want   time.Duration
	}{
		{http.StatusBadGateway, "<html>", 9 * time.Second}, // nobody else has said anything
		{http.StatusOK, `{"timestamp":"2021-03-02T16:00:01+08:00","data":{"id":1}}`, time.Second},
		{http.StatusBadGateway, "<html>", time.Second},
		{http.StatusBadGateway, `{"timestamp":"2021-03-02T08:00:07Z","status":502}`, time.Second},
		{http.StatusOK, `{"timestamp":"2021-03-02T16:00:02+08:00","data":{"id":1}}`, 2 * time.Second},
	} {
		answer = response(a.status, a.body)
		answer.Header.Set("Date", "Tue, 02 Mar 2021 08:00:09 GMT")
		_, _ = client.Operate(t.Context(), Stop, 1, 2, Params{}, RequestID{})
		if got := client.ClockOffset(); got != a.want {
			t.Errorf("%d %s: got %s, want %s", a.status, a.body, got, a.want)
		}
	}
}

func TestRetryAfterIsSecondsOrADateAndBounded(t *testing.T) {
	t.Parallel()
	now := time.Date(2021, 3, 2, 8, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"9223372036854775807":           maxRetryAfter,
		"99999999999999999999":          0,
		"soon":                          0,
		"Tue, 02 Mar 2021 08:01:00 GMT": time.Minute,
		"Tue, 02 Mar 2021 07:01:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: got %s, want %s", value, got, want)
		}
	}
}

func TestAnErrorNamesCallStatusAndTrace(t *testing.T) {
	t.Parallel()
	tests := map[string]*Error{
		"POST /x/stop: 409: Operation not allowed (OCP code 50002, trace 139d82c5f88f42f4)": {Method: "POST", Path: "/x/stop", Status: 409, Code: 50002, Message: "Operation not allowed", TraceID: "139d82c5f88f42f4"},
		"GET /x: 404: Not Found":                              {Method: "GET", Path: "/x", Status: 404},
		`GET /x: 502: the answer is not OCP's JSON: "<html>"`: {Method: "GET", Path: "/x", Status: 502, Err: errUnreadable, Excerpt: "<html>"},
		"GET /x: context deadline exceeded":                   {Method: "GET", Path: "/x", Err: context.DeadlineExceeded},
	}
	for want, failure := range tests {
		if got := failure.Error(); got != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	}
	if got := ClassOf(errors.New("foreign")); got != Ambiguous {
		t.Errorf("class of a foreign error: got %v", got)
	}
}

func TestTextFromTheNetworkIsOneShortPrintableLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                       "",
		"\ta \n\t b ":            "a b", //nolint:gocritic // white space is what is tested
		"停止\u202e\x00\xff失败":     "停止 失败",
		strings.Repeat("é", 200): strings.Repeat("é", 99),
	} {
		if got := printable(text, maxExcerptBytes); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func FuzzDecodeEnvelope(f *testing.F) {
	for _, body := range samples(f) {
		f.Add(200, body)
	}
	f.Add(502, []byte("<html>"))
	f.Add(200, []byte(`{"successful":false,"error":{"code":1,"subErrors":[{}]}}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		envelope, err := DecodeEnvelope(status, body)
		if err == nil {
			if status/100 != 2 {
				t.Errorf("status %d: got no error", status)
			}
			if _, err := DecodeTask(envelope.Data); err == nil && isNull(envelope.Data) {
				t.Error("got a task out of nothing")
			}
			return
		}
		failure, ok := errors.AsType[*Error](err)
		if !ok {
			t.Fatalf("got %T", err)
		}
		if failure.Class == Refused && status/100 != 4 && status/100 != 2 || failure.Class == NotSent {
			t.Errorf("status %d: got %v", status, failure.Class)
		}
		if len(failure.Excerpt) > maxExcerptBytes {
			t.Errorf("excerpt: got %d bytes", len(failure.Excerpt))
		}
	})
}

// TestAFailureInsideHTTP200HasItsOwnStatus: the envelope's status first, then OCP's code.
func TestAFailureInsideHTTP200HasItsOwnStatus(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]int{
		`{"successful":false,"status":403,"error":{"code":20000}}`: 403,
		`{"successful":false,"status":200,"error":{"code":10002}}`: 404,
		`{"successful":false,"status":999,"error":{"code":50002}}`: 409,
		`{"successful":false,"error":{"code":30000}}`:              401,
		`{"successful":false,"error":{"code":"10001"}}`:            400,
		`{"successful":false,"error":{"code":77}}`:                 200,
	} {
		_, err := DecodeEnvelope(http.StatusOK, []byte(body))
		if failure, ok := errors.AsType[*Error](err); !ok || failure.Status != want || failure.Class != Refused {
			t.Errorf("%s: got %v, want status %d", body, err, want)
		}
	}
}

func TestTheBreakerSparesAnOCPThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var healthy atomic.Bool
		var told []bool
		c, err := New(Config{URL: "http://ocp.invalid", Username: "u", Password: "p", OnBreaker: func(open bool) { told = append(told, open) }})
		if err != nil {
			t.Fatal(err)
		}
		c.reads.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			if healthy.Load() {
				return response(200, `{"successful":true,"data":{"contents":[]}}`), nil
			}
			return response(503, "<html>"), nil
		})
		look := func(lasts time.Duration) (spared int) {
			for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if _, err := c.Zones(t.Context(), 1); ClassOf(err) == NotSent {
					spared++
				}
			}
			return spared
		}
		recovers := func(atMost time.Duration) {
			t.Helper()
			healthy.Store(true)
			began := time.Now()
			for err := errBreakerOpen; err != nil; _, err = c.Zones(t.Context(), 1) {
				time.Sleep(50 * time.Millisecond)
			}
			if took := time.Since(began); took > atMost {
				t.Errorf("OCP answered again %s ago before it was asked, want %s at most", took, atMost)
			}
			healthy.Store(false)
		}
		changed := func(open bool) {
			t.Helper()
			select {
			case <-c.BreakerChanged():
			default:
				t.Error("no signal that the breaker has changed")
			}
			if c.BreakerOpen() != open {
				t.Errorf("breaker open: got %t, want %t", !open, open)
			}
		}
		if c.BreakerOpen() {
			t.Error("the breaker is open before anything was asked")
		}
		// A call that fails takes up to two seconds, with its tries again.
		look(4 * time.Second)
		changed(true)
		recovers(2*breakerMinPause + 2*time.Second)
		changed(false)

		asked.Store(0)
		const hour = time.Hour
		if spared := look(hour); spared < 1000 {
			t.Errorf("%d calls in an hour failed without being sent, want most of them", spared)
		}
		if got, want := asked.Load(), int64(breakerTrips+8+hour/breakerMaxPause); got > want {
			t.Errorf("%d requests reached an OCP that does not answer in an hour, want %d at most", got, want)
		}
		recovers(breakerMaxPause*5/4 + 2*time.Second)
		if !slices.Equal(told, []bool{true, false, true, false}) {
			t.Errorf("told %v, want that it opens, then that it closes, twice", told)
		}
	})
}
