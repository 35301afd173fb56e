package events

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
)

// ErrLocked means that another process uses the data directory.
var ErrLocked = errors.New("in use by another process")

// Server is a NATS server with JetStream in this process.
type Server struct {
	nats    *server.Server
	lock    *flock.Flock
	dataDir string
}

// StartServer starts a NATS server that listens on listen (host:port; port 0 is any free
// port) and keeps JetStream's files below dataDir. The server flushes every message to disk
// before it acknowledges it. Errors wrap ErrLocked, or name the address or directory at
// fault. The caller must Close the server.
func StartServer(listen, dataDir string, log *slog.Logger) (*Server, error) {
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("NATS listen address %q: %w", listen, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 0 || port > 65535 {
		return nil, fmt.Errorf("NATS listen address %q: port must be 0 to 65535", listen)
	}
	if err := os.MkdirAll(dataDir, 0o750); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock := flock.New(filepath.Join(dataDir, "lock"))
	held, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock data directory %s: %w", dataDir, err)
	}
	if !held {
		return nil, fmt.Errorf("data directory %s: %w; stop that one, or choose another OBWARDEN_DATA_DIR",
			dataDir, ErrLocked)
	}
	s := &Server{lock: lock, dataDir: dataDir}
	if err := errors.Join(s.CheckDisk(), probePort(host, port)); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	ns, err := server.NewServer(&server.Options{
		ServerName: "obwarden",
		Host:       host,
		Port:       port,
		JetStream:  true,
		StoreDir:   filepath.Join(dataDir, "nats"),
		SyncAlways: true,
		NoSigs:     true,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded NATS server: %w", err), lock.Close())
	}
	ns.SetLoggerV2(serverLog{log.With("component", "nats-server")}, false, false, false)
	s.nats = ns
	ns.Start()
	// Start returns once the server has recovered its streams and listens, or once it has given
	// up. In that case it has no address, and waiting for connections would only take time.
	if ns.Addr() == nil || !ns.JetStreamEnabled() {
		return nil, errors.Join(fmt.Errorf("embedded NATS server on %s with data in %s did not start: the log says why",
			listen, dataDir), s.Close())
	}
	return s, nil
}

// probePort finds out whether the port is free before the server starts, because the server
// itself only logs that it is not.
func probePort(host string, port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("NATS listen address: %w; free it, choose another OBWARDEN_NATS_LISTEN, "+
			"or set OBWARDEN_NATS_URL to use the server that runs there", err)
	}
	return l.Close()
}

// URL returns the address for clients.
func (s *Server) URL() string { return s.nats.ClientURL() }

// CheckDisk returns an error if a request of the greatest size could not be written to the
// data directory now, because the disk is full or read-only. The errors of the server itself
// do not say so. CheckDisk may be called concurrently.
func (s *Server) CheckDisk() error {
	probe := filepath.Join(s.dataDir, "probe")
	errWrite := os.WriteFile(probe, make([]byte, MaxRequestBytes), 0o600)
	if err := os.Remove(probe); errWrite == nil && err != nil && !errors.Is(err, os.ErrNotExist) { // another caller's, too
		errWrite = err
	}
	if errWrite != nil {
		return fmt.Errorf("data directory %s cannot be written: %w", s.dataDir, errWrite)
	}
	return nil
}

// Close stops the server, waits until its files are closed, and unlocks the data directory.
func (s *Server) Close() error {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
	return s.lock.Close()
}

// serverLog passes on the warnings and errors of the server. Its notices are for people who
// run NATS for its own sake: here they are logged at level debug.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l serverLog) Fatalf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l serverLog) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l serverLog) Debugf(string, ...any)           {}
func (l serverLog) Tracef(string, ...any)           {}
