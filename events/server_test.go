package events

import (
	"bufio"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func TestADataDirectoryBelongsToOneServer(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, dataDir string) {
		t.Helper()
		_, err := StartServer("127.0.0.1:0", dataDir, quiet())
		if !errors.Is(err, ErrLocked) {
			t.Fatalf("got error %v, want ErrLocked", err)
		}
		wantError(t, err, dataDir, "stop that one", "OBWARDEN_DATA_DIR")
	}
	t.Run("in this process", func(t *testing.T) {
		t.Parallel()
		dataDir := t.TempDir()
		first := startServer(t, dataDir)
		refused(t, dataDir)
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		if err := startServer(t, dataDir).Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("in another process", func(t *testing.T) {
		t.Parallel()
		dataDir := t.TempDir()
		other := exec.CommandContext(t.Context(), os.Args[0])
		other.Env = append(os.Environ(), holdDirectory+"="+dataDir)
		other.Stderr = os.Stderr
		stdin, err := other.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := other.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil { // its URL: it is up
			t.Fatal(err)
		}
		refused(t, dataDir)
		if err := errors.Join(stdin.Close(), other.Wait()); err != nil {
			t.Fatal(err)
		}
		if err := startServer(t, dataDir).Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAPortThatIsTakenIsNamed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dataDir := t.TempDir()
	_, err = StartServer(l.Addr().String(), dataDir, quiet())
	wantError(t, err, l.Addr().String(), "address already in use", "OBWARDEN_NATS_LISTEN", "OBWARDEN_NATS_URL")

	if err := startServer(t, dataDir).Close(); err != nil { // the directory is free again
		t.Error(err)
	}
}

func TestAListenAddressThatIsNoneIsNamed(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"", "4222", "127.0.0.1", "127.0.0.1:", "127.0.0.1:nats", "127.0.0.1:-1", "127.0.0.1:65536", "[::1", "a:b:c"} {
		t.Run(listen, func(t *testing.T) {
			t.Parallel()
			dataDir := filepath.Join(t.TempDir(), "data")
			_, err := StartServer(listen, dataDir, quiet())
			wantError(t, err, `NATS listen address "`+listen+`"`)
			if _, err := os.Stat(dataDir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("got %v for the data directory, want that it was not made", err)
			}
		})
	}
}

func TestPort0IsAnyFreePort(t *testing.T) {
	t.Parallel()
	urls := map[string]bool{}
	for range 2 {
		s := startServer(t, filepath.Join(t.TempDir(), "made", "on", "demand"))
		defer s.Close()
		url := s.URL()
		if !strings.HasPrefix(url, "nats://127.0.0.1:") || strings.HasSuffix(url, ":0") || strings.HasSuffix(url, ":4222") || urls[url] {
			t.Errorf("got %s, want a free port of 127.0.0.1", url)
		}
		urls[url] = true
		js := connect(t, s)
		if _, err := js.AccountInfo(t.Context()); err != nil {
			t.Errorf("got %v from %s, want JetStream", err, url)
		}
	}
}

func TestMessagesOutliveARestart(t *testing.T) {
	t.Parallel()
	dataDir := t.TempDir()
	s := startServer(t, dataDir)
	js := connect(t, s)
	open(t, js)
	sequence, err := fullRequest().Publish(t.Context(), js, Stop, "cli")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = startServer(t, dataDir)
	defer s.Close()
	streams := open(t, connect(t, s))
	msg, err := streams.Requests.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	meta, err := msg.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRequest(msg.Subject(), msg.Headers(), msg.Data(), fallback)
	if err != nil || !got.Request.Same(fullRequest()) || meta.Sequence.Stream != sequence {
		t.Errorf("got %+v at %d and error %v, want %+v at %d and none", got.Request, meta.Sequence.Stream, err, fullRequest(), sequence)
	}
}

func TestADataDirectoryThatCannotBeUsedIsNamed(t *testing.T) {
	t.Parallel()
	file := func(t *testing.T, path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name    string
		prepare func(t *testing.T, dataDir string)
		want    string
	}{
		{"it is a file", file, "data directory:"},
		{"its parent is a file", func(t *testing.T, dataDir string) { file(t, filepath.Dir(dataDir)) }, "data directory:"},
		{"its lock cannot be opened", func(t *testing.T, dataDir string) {
			if err := os.MkdirAll(filepath.Join(dataDir, "lock"), 0o750); err != nil {
				t.Fatal(err)
			}
		}, "lock data directory"},
		{"it is read-only", func(t *testing.T, dataDir string) {
			if os.Geteuid() == 0 {
				t.Skip("root may write everywhere")
			}
			if err := os.MkdirAll(dataDir, 0o550); err != nil {
				t.Fatal(err)
			}
		}, "lock data directory"},
		{"JetStream cannot use it", func(t *testing.T, dataDir string) {
			if err := os.MkdirAll(dataDir, 0o750); err != nil {
				t.Fatal(err)
			}
			file(t, filepath.Join(dataDir, "nats"))
		}, "did not start: the log says why"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dataDir := filepath.Join(t.TempDir(), "parent", "data")
			if tt.name != "its parent is a file" {
				if err := os.MkdirAll(filepath.Dir(dataDir), 0o750); err != nil {
					t.Fatal(err)
				}
			}
			tt.prepare(t, dataDir)
			start := time.Now()
			_, err := StartServer("127.0.0.1:0", dataDir, quiet())
			wantError(t, err, tt.want, strings.TrimSuffix(dataDir, "/data"))
			if took := time.Since(start); took > patience {
				t.Errorf("got the error after %s, want it at once", took)
			}
		})
	}
}

func TestEveryMessageIsFlushedBeforeItIsAcknowledged(t *testing.T) {
	t.Parallel()
	s := startServer(t, t.TempDir())
	defer s.Close()
	if !s.nats.JetStreamConfig().SyncAlways {
		t.Error("got JetStream without sync always, want it: its default flushes every two minutes")
	}
}

func TestTheServersWarningsAreLogged(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	l := serverLog{slog.New(slog.NewTextHandler(&out, nil))}
	l.Noticef("notice %d", 1)
	l.Debugf("debug")
	l.Tracef("trace")
	l.Warnf("warning %d", 2)
	l.Errorf("error %d", 3)
	l.Fatalf("fatal %d", 4)
	for _, want := range []string{`level=WARN msg="warning 2"`, `level=ERROR msg="error 3"`, `level=ERROR msg="fatal 4"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%swant %s", out.String(), want)
		}
	}
	if got := strings.Count(out.String(), "\n"); got != 3 {
		t.Errorf("got %d lines, want 3:\n%s", got, out.String())
	}
}

// A crash may leave a record half written behind the last one that was flushed, and
// the server's own index of any age, torn or gone: everything that was acknowledged
// must be there all the same.
func TestTornFilesLoseNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel()
	index := func(tear func(path string) error) func(string) (bool, error) {
		return func(path string) (bool, error) {
			if filepath.Base(path) != "index.db" {
				return false, nil
			}
			return true, tear(path)
		}
	}
	for _, tt := range []struct {
		name string
		tear func(path string) (torn bool, err error)
	}{
		{"an old index", index(func(string) error { return nil })},
		{"no index", index(os.Remove)},
		{"half an index", index(func(path string) error { return os.Truncate(path, 20) })},
		{"rubbish in the index", index(func(path string) error { return os.WriteFile(path, make([]byte, 100), 0o600) })},
		{"half a record at the end of each block", func(path string) (bool, error) {
			if filepath.Ext(path) != ".blk" {
				return false, nil
			}
			return true, appendTo(path, []byte{0xff, 0x01, 0, 0, 7, 0, 0, 0, 1, 2, 3})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const half = 100
			dataDir, crashed := t.TempDir(), t.TempDir()
			publishAndClose(t, startServer(t, dataDir), half) // leaves an index
			server := startServer(t, dataDir)
			publishRequests(t, server, half)
			// What is on disk at this moment is what kill -9 leaves: the server still runs.
			if err := os.CopyFS(crashed, os.DirFS(dataDir)); err != nil {
				t.Fatal(err)
			}
			closeServer(t, server)
			torn := 0
			err := filepath.WalkDir(filepath.Join(crashed, "nats"), func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				hit, err := tt.tear(path)
				if hit {
					torn++
				}
				return err
			})
			if err != nil || torn == 0 {
				t.Fatalf("%d files torn: %v", torn, err)
			}
			again := startServer(t, crashed)
			defer closeServer(t, again)
			stream, err := connect(t, again).Stream(t.Context(), RequestStream)
			if err != nil {
				t.Fatal(err)
			}
			if got := stream.CachedInfo().State.Msgs; got != 2*half {
				t.Fatalf("%d requests are there, want %d", got, 2*half)
			}
			for i := range uint64(2 * half) {
				if _, err := stream.GetMsg(t.Context(), i+1); err != nil {
					t.Errorf("request %d: %v", i+1, err)
				}
			}
		})
	}
}

// publishRequests returns once n requests are acknowledged.
func publishRequests(t *testing.T, s *Server, n int64) {
	t.Helper()
	js := connect(t, s)
	if _, err := OpenStreams(t.Context(), js, StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: time.Second}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := (Request{ClusterID: 1, ServerID: i + 1}).Publish(t.Context(), js, Stop, "cli"); err != nil {
			t.Fatal(err)
		}
	}
}

func publishAndClose(t *testing.T, s *Server, n int64) {
	t.Helper()
	publishRequests(t, s, n)
	closeServer(t, s)
}

func closeServer(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func appendTo(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
