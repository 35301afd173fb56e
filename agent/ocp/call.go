package ocp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"
)

// ErrBudget means that a request was not sent because the budget is used up.
var ErrBudget = errors.New("request budget of OCP used up")

const (
	maxBodyBytes  = 8 << 20
	maxRetryAfter = 24 * time.Hour

	maxClockOffset = 24 * time.Hour

	readRetries = 3
	readPause   = 200 * time.Millisecond // before the first retry, doubling
	readJitter  = 25                     // percent
)

// call is one call of OCP's API.
type call struct {
	endpoint string
	method   string
	path     string
	query    url.Values
	body     []byte
	id       RequestID
	plain    bool // OCP answers without an envelope if all is well
}

func get(endpoint, path string, ids ...any) call {
	return call{endpoint: endpoint, method: http.MethodGet, path: fmt.Sprintf(path, ids...)}
}

func post(endpoint, path string, ids ...any) call {
	return call{endpoint: endpoint, method: http.MethodPost, path: fmt.Sprintf(path, ids...)}
}

// failure is the error of a call without an answer.
func (c call) failure(class Class, err error) *Error {
	return &Error{Endpoint: c.endpoint, Method: c.method, Path: c.path, Class: class, Err: err}
}

// unexpected is the error of a call whose answer reports success but lacks the data that
// was asked for.
func (c call) unexpected(envelope Envelope, err error) *Error {
	failure := c.failure(Ambiguous, err)
	failure.Status = envelope.status
	failure.TraceID = envelope.TraceID
	failure.Excerpt = printable(string(envelope.Data), maxExcerptBytes)
	return failure
}

// post makes a call once.
func (c *Client) post(ctx context.Context, call call) (Envelope, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return c.exchange(ctx, c.posts, call)
}

// read makes a call that changes nothing. It retries after every failure but a definite
// no, within the call's deadline.
func (c *Client) read(ctx context.Context, call call) (Envelope, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var last error
	envelope, err := retry.DoValue(ctx, pauses(ctx, &last), func(ctx context.Context) (Envelope, error) {
		if last != nil {
			c.retried(call.endpoint)
		}
		var envelope Envelope
		if envelope, last = c.exchange(ctx, c.reads, call); last != nil && ClassOf(last) != Refused {
			return envelope, retry.RetryableError(last)
		}
		return envelope, last
	})
	if _, ours := errors.AsType[*Error](err); err != nil && !ours {
		return Envelope{}, call.failure(NotSent, err) // ctx ended between two attempts
	}
	return envelope, err
}

// pauses grow, are at least as long as OCP asked for with Retry-After, and end when the
// next one would leave no time for another attempt.
func pauses(ctx context.Context, last *error) retry.Backoff {
	growing := retry.WithMaxRetries(readRetries, retry.WithJitterPercent(readJitter, retry.NewExponential(readPause)))
	return retry.BackoffFunc(func() (time.Duration, bool) {
		pause, stop := growing.Next()
		if failure, ok := errors.AsType[*Error](*last); ok {
			pause = max(pause, failure.RetryAfter)
		}
		deadline, _ := ctx.Deadline()
		return pause, stop || time.Until(deadline) <= pause
	})
}

// exchange sends one request, within the budget and if the breaker lets it, and judges the
// answer or the lack of one.
func (c *Client) exchange(ctx context.Context, via *http.Client, call call) (Envelope, error) {
	if err := ctx.Err(); err != nil { // ended before it came here, so not for lack of budget
		return Envelope{}, call.failure(NotSent, err)
	}
	if err := c.turn(ctx, call); err != nil {
		return Envelope{}, call.failure(NotSent, fmt.Errorf("%w: %w", ErrBudget, err))
	}
	envelope, err := c.breaker.do(func() (Envelope, error) { return c.attempt(ctx, via, call) })
	if errors.Is(err, errBreakerOpen) {
		return Envelope{}, call.failure(NotSent, err)
	}
	return envelope, err
}

// turn waits until the budget lets the call through. Reads form a line of their own, so
// that a call that changes something waits for at most one read: its deadline is short, and
// everything read for it was in vain if it is not made.
func (c *Client) turn(ctx context.Context, call call) error {
	if call.method == http.MethodGet {
		select {
		case c.line <- struct{}{}:
			defer func() { <-c.line }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.budget.Wait(ctx)
}

// attempt is one request over the wire.
func (c *Client) attempt(ctx context.Context, via *http.Client, call call) (Envelope, error) {
	// Before there is a connection, proxy and TLS included, not a byte of the request is
	// written. Afterwards the transport does not say how much of it was.
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := c.request(ctx, call)
	if err != nil {
		return Envelope{}, call.failure(NotSent, err)
	}
	began := time.Now()
	answer, err := send(via, req)
	c.observe(call.endpoint, codeOf(answer, err), time.Since(began))
	if err == nil {
		return c.judge(call, req, answer)
	}
	failure := call.failure(Ambiguous, err)
	if !connected.Load() {
		failure.Class = NotSent
	}
	failure.Status = answer.status
	failure.Excerpt = c.excerpt(req, answer.body)
	failure.RetryAfter = retryAfter(answer.header, c.now())
	return Envelope{}, failure
}

// request returns the call as it goes over the wire.
func (c *Client) request(ctx context.Context, call call) (*http.Request, error) {
	url := c.base.JoinPath(call.path)
	url.RawQuery = encodeQuery(call.query)
	req, err := http.NewRequestWithContext(ctx, call.method, url.String(), bytes.NewReader(call.body))
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"Accept":          "application/json, */*;q=0.5",
		"Content-Type":    "application/json", // also without a body, as public clients do (observed)
		"User-Agent":      c.userAgent,
		"Idempotency-Key": call.id.IdempotencyKey,
		"X-Request-Id":    call.id.XRequestID,
	} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	c.credentials.authorize(req, call.body, c.now())
	return req, nil
}

// answer is a whole HTTP answer.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// send makes one HTTP exchange. With an error, the answer holds whatever came before it.
func send(via *http.Client, req *http.Request) (answer, error) {
	resp, err := via.Do(req)
	if err != nil {
		if outer, ok := errors.AsType[*url.Error](err); ok {
			err = outer.Err // our own error has method and path already
		}
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.status == http.StatusSwitchingProtocols {
		return a, errSwitched // its body is the connection, and may never end
	}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBodyBytes+1))
	if err == nil && len(a.body) > maxBodyBytes {
		err = errTooLong
	}
	return a, err
}

func codeOf(a answer, err error) string {
	if err != nil {
		return "error"
	}
	return strconv.Itoa(a.status)
}

// judge reads a whole answer, and adds to a failure what its body does not say.
func (c *Client) judge(call call, req *http.Request, a answer) (Envelope, error) {
	envelope, err := DecodeEnvelope(a.status, a.body)
	c.setClock(a.header, envelope.Timestamp, err == nil)
	if call.plain && a.status/100 == 2 {
		return Envelope{Data: a.body, status: a.status}, nil
	}
	failure, failed := errors.AsType[*Error](err)
	if !failed {
		return envelope, nil
	}
	failure.Endpoint, failure.Method, failure.Path = call.endpoint, call.method, call.path
	failure.RetryAfter = retryAfter(a.header, c.now())
	failure.Message = c.credentials.redact(req, failure.Message)
	if failure.Excerpt != "" {
		failure.Excerpt = c.excerpt(req, a.body) // again from the body: the cut may have left part of a secret
	}
	return envelope, failure
}

// excerpt is the beginning of a body, without secrets of the request.
func (c *Client) excerpt(req *http.Request, body []byte) string {
	start := string(body[:min(len(body), 16*maxExcerptBytes)])
	return printable(c.credentials.redact(req, start), maxExcerptBytes)
}

// setClock goes by the time in the envelopes of good answers: that clock stamps tasks too.
// Until it has seen one, it takes any time there is. The Date header has whole seconds and
// may come from a gateway, as may everything in an answer that is not good.
func (c *Client) setClock(header http.Header, stamp time.Time, good bool) {
	switch {
	case good && !stamp.IsZero():
		c.stamped.Store(true)
	case c.stamped.Load():
		return
	case stamp.IsZero():
		stamp, _ = http.ParseTime(header.Get("Date"))
	}
	// A time that is days off is no clock, but a constant of something in between.
	if offset := stamp.Sub(c.now()); !stamp.IsZero() && offset.Abs() < maxClockOffset {
		c.offset.Store(int64(offset))
	}
}

// retryAfter returns the pause that an answer asks for, as seconds or as a date.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(min(max(0, seconds), int(maxRetryAfter/time.Second))) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return min(max(0, date.Sub(now)), maxRetryAfter)
	}
	return 0
}
