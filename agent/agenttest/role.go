package agenttest

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"

	"github.com/obwarden/obwarden/events"
)

// The environment of a test binary that does not run tests.
const (
	roleVariable     = "OBWARDEN_TEST_ROLE"
	argumentVariable = "OBWARDEN_TEST_ARGUMENT"
)

// RunRole is the first call of TestMain in a package that uses Self. In a process that Self has started, it runs the
// role that Self named and ends the process; else it returns at once.
func RunRole(roles map[string]func(argument string) error) {
	name := os.Getenv(roleVariable)
	if name == "" {
		return
	}
	role, ok := roles[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "the test binary has no role %q\n", name)
		os.Exit(2)
	}
	if err := role(os.Getenv(argumentVariable)); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Self is the command that runs this test binary in one of the roles of its TestMain.
func Self(role, argument string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, argumentVariable+"="+argument)
	return cmd
}

// NATS is the command that runs this test binary as obwarden's NATS server, in a process of its own. Its TestMain must
// give RunRole the role "nats" with ServeNATS. The server prints its URL on stdout once it takes connections.
func NATS(listen, dir string) *exec.Cmd { return Self("nats", listen+" "+dir) }

// ServeNATS is the role of a process that NATS starts. It runs until stdin is closed, which also happens when the
// process that started it is gone.
func ServeNATS(argument string) error {
	listen, dir, _ := strings.Cut(argument, " ")
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := events.StartServer(listen, dir, log)
	if err != nil {
		return err
	}
	fmt.Println(s.URL())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return s.Close()
}
