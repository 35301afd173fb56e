package ocp

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sample is a published sample response, by the name of its file.
func sample(tb testing.TB, name string) []byte {
	tb.Helper()
	body, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

// samples are all of them.
func samples(tb testing.TB) [][]byte {
	tb.Helper()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		tb.Fatalf("samples: got %d files, %v", len(files), err)
	}
	var bodies [][]byte
	for _, file := range files {
		bodies = append(bodies, sample(tb, strings.TrimSuffix(filepath.Base(file), ".json")))
	}
	return bodies
}

// data is the data of a sample.
func data(tb testing.TB, name string) []byte {
	tb.Helper()
	envelope, err := DecodeEnvelope(http.StatusOK, sample(tb, name))
	if err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return envelope.Data
}

const password = "s3cret-pw"

// newClient speaks to url with HTTP Basic, changed by the options.
func newClient(tb testing.TB, url string, options ...func(*Config)) *Client {
	tb.Helper()
	config := Config{URL: url, Username: "root", Password: password, Timeout: 5 * time.Second}
	for _, option := range options {
		option(&config)
	}
	client, err := New(config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return client
}

// recorder is an OCP that keeps what it was asked.
type recorder struct {
	*httptest.Server
	mu       sync.Mutex
	requests []recorded
}

type recorded struct {
	*http.Request
	body string
}

// serve starts a recorder; answer writes the nth answer, from 0.
func serve(tb testing.TB, answer func(w http.ResponseWriter, r *http.Request, n int)) *recorder {
	tb.Helper()
	rec := &recorder{}
	rec.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			tb.Errorf("read request: %v", err)
		}
		rec.mu.Lock()
		n := len(rec.requests)
		rec.requests = append(rec.requests, recorded{r, string(body)})
		rec.mu.Unlock()
		answer(w, r, n)
	}))
	tb.Cleanup(rec.Close)
	return rec
}

func (r *recorder) got() []recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

// always answers with a status and a body.
func always(status int, body string) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, _ *http.Request, _ int) { reply(w, status, body) }
}

func reply(w http.ResponseWriter, status int, body string) {
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}
