package agenttest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

const program = "github.com/obwarden/obwarden/cmd/obwarden"

// Build builds cmd/obwarden into a directory and returns the path of the binary. Flags are those of go build, environ
// is added to the environment.
func Build(dir string, environ []string, flags ...string) (string, error) {
	binary := filepath.Join(dir, "obwarden")
	cmd := exec.Command("go", append(append([]string{"build", "-o", binary}, flags...), program)...)
	cmd.Env = append(os.Environ(), environ...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", program, err, out)
	}
	return binary, nil
}

// binaries is where Binary builds, once for the whole test process.
var binaries struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// Binary is the path of the obwarden binary, which is built when the first test asks for it. TestMain removes it with
// RemoveBinary.
func Binary(t testing.TB) string {
	t.Helper()
	b := &binaries
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "obwarden-test-"); b.err == nil {
			b.path, b.err = Build(b.dir, nil)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// RemoveBinary removes what Binary has built. No test may run any more.
func RemoveBinary() error {
	binaries.once.Do(func() { binaries.err = errors.New("the tests are over") })
	if binaries.dir == "" {
		return nil
	}
	return os.RemoveAll(binaries.dir)
}
