package ocp

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

var errProxy = errors.New("the proxy that the environment names is not a valid URL")

// DefaultTimeout is the deadline of a call if Config.Timeout is zero.
const DefaultTimeout = 10 * time.Second

// API is the version of OCP's API. It decides which parameters a stop needs.
type API string

// The versions of the API.
const (
	V3  API = "v3"
	V43 API = "v4.3"
)

// ParamStyle is where parameters travel. The documentation does not say (unknown).
type ParamStyle string

// The styles of parameters.
const (
	Query ParamStyle = "query"
	JSON  ParamStyle = "json"
)

// Config says where OCP is and how to speak to it.
type Config struct {
	URL                  string        // absolute, http or https; may have a path prefix
	Username, Password   string        // HTTP Basic
	AccessKey, SecretKey string        // AK/SK signature instead of HTTP Basic
	API                  API           // empty: V3
	Params               ParamStyle    // empty: Query
	CAFile               string        // PEM roots; empty: the system's
	Timeout              time.Duration // deadline of one call, a read's retries included; zero: DefaultTimeout
	MaxRPS               float64       // requests a second over all calls of the client; zero: unlimited
	UserAgent            string

	// Observe, if not nil, is called after each HTTP exchange. code is the HTTP status, or
	// "error" if no complete answer came. It must be safe for concurrent use, as must Retried.
	Observe func(endpoint, code string, took time.Duration)
	// Retried, if not nil, is called at each retry of a read.
	Retried func(endpoint string)
	// OnBreaker, if not nil, is called with the new value at each change of BreakerOpen.
	// It must not call the client.
	OnBreaker func(bool)
	// Now is the clock of signatures and of ClockOffset; nil: time.Now.
	Now func() time.Time
}

// Client calls OCP. It is safe for concurrent use.
type Client struct {
	base        *url.URL
	credentials credentials
	api         API
	params      ParamStyle
	timeout     time.Duration
	userAgent   string
	budget      *rate.Limiter
	line        chan struct{} // holds the read that is next
	breaker     *breaker
	reads       *http.Client
	posts       *http.Client
	observe     func(endpoint, code string, took time.Duration)
	retried     func(endpoint string)
	now         func() time.Time
	offset      atomic.Int64 // OCP's clock minus ours, in nanoseconds
	stamped     atomic.Bool  // offset comes from OCP itself
}

// New checks the configuration and returns a client. It does not call OCP. Its error lists
// everything that is wrong.
func New(config Config) (*Client, error) {
	base, urlErr := parseBase(config.URL)
	roots, rootsErr := readRoots(config.CAFile)
	c := &Client{
		base: base,
		credentials: credentials{
			username: config.Username, password: config.Password,
			accessKey: config.AccessKey, secretKey: config.SecretKey,
		},
		api:       cmp.Or(config.API, V3),
		params:    cmp.Or(config.Params, Query),
		timeout:   cmp.Or(config.Timeout, DefaultTimeout),
		userAgent: config.UserAgent,
		budget:    newBudget(config.MaxRPS),
		line:      make(chan struct{}, 1),
		breaker:   newBreaker(config.OnBreaker),
		reads:     newHTTPClient(readTransport(roots)),
		posts:     newHTTPClient(postTransport(roots)),
		observe:   config.Observe,
		retried:   config.Retried,
		now:       config.Now,
	}
	if c.observe == nil {
		c.observe = func(string, string, time.Duration) {}
	}
	if c.retried == nil {
		c.retried = func(string) {}
	}
	if c.now == nil {
		c.now = time.Now
	}
	if err := errors.Join(urlErr, rootsErr, c.credentials.validate(), c.validate(config.MaxRPS)); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Client) validate(maxRPS float64) error {
	var faults []error
	if c.api != V3 && c.api != V43 {
		faults = append(faults, fmt.Errorf("API: %q is neither %q nor %q", c.api, V3, V43))
	}
	if c.params != Query && c.params != JSON {
		faults = append(faults, fmt.Errorf("parameter style: %q is neither %q nor %q", c.params, Query, JSON))
	}
	if c.timeout < 0 {
		faults = append(faults, fmt.Errorf("timeout: %s is negative", c.timeout))
	}
	if maxRPS < 0 || math.IsNaN(maxRPS) {
		faults = append(faults, fmt.Errorf("request budget: %g a second, set a positive number or 0 for no limit", maxRPS))
	}
	return errors.Join(faults...)
}

// parseBase never quotes the URL in an error: a password may be in it.
func parseBase(s string) (*url.URL, error) {
	base, err := url.Parse(s)
	switch {
	case err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https":
		return nil, errors.New("URL: set an absolute one, such as https://ocp.example.com:8080")
	case base.User != nil:
		return nil, errors.New("URL: take user and password out of it and set them on their own")
	case base.RawQuery != "" || base.ForceQuery || base.Fragment != "":
		return nil, errors.New("URL: take the query or fragment out of it")
	}
	return base, nil
}

func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file: %s holds no certificate in PEM", file)
	}
	return roots, nil
}

// newBudget lets one second's worth of requests through at once.
func newBudget(maxRPS float64) *rate.Limiter {
	if maxRPS == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(maxRPS), int(max(1, min(maxRPS, math.MaxInt32))))
}

// newHTTPClient returns a client that follows no redirect: that would turn a POST into
// another request, or send it twice, and hand the credentials to whoever is named.
func newHTTPClient(transport *http.Transport) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func readTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  proxy,
		TLSClientConfig:        &tls.Config{RootCAs: roots},
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 1 << 20,
	}
}

// postTransport sends each POST once. http.Transport repeats a request by itself if a
// reused connection breaks and the request counts as replayable, as a POST with an
// Idempotency-Key does. So each POST gets a fresh connection, on which the transport never
// repeats anything, and HTTP/2, which has retries of its own, is off.
func postTransport(roots *x509.CertPool) *http.Transport {
	transport := readTransport(roots)
	transport.DisableKeepAlives = true
	transport.ForceAttemptHTTP2 = false
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true)
	return transport
}

// proxy returns the environment's proxy. The error of net/http would quote its password.
func proxy(req *http.Request) (*url.URL, error) {
	via, err := http.ProxyFromEnvironment(req)
	if err != nil {
		return nil, errProxy
	}
	return via, nil
}

// Close closes idle connections. Calls under way go on.
func (c *Client) Close() {
	c.reads.CloseIdleConnections()
	c.posts.CloseIdleConnections()
}

// ClockOffset returns OCP's clock minus ours, as of the last answer that had a time:
// positive if OCP is ahead, and 0 until it is known. It includes the time the answer took.
func (c *Client) ClockOffset() time.Duration { return time.Duration(c.offset.Load()) }
