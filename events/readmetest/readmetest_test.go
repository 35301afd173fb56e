package readmetest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/obwarden/obwarden/events/readmetest"
)

func TestASectionIsUpdatedAndNothingElse(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(file, []byte("before\n<!-- codes: run it -->\n\nold\n\n<!-- /codes -->\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	readmetest.Section(t, file, "codes", "old", false)
	readmetest.Section(t, file, "codes", "new\nlines\n", true)
	readmetest.Section(t, file, "codes", "new\nlines", false)
	got, err := os.ReadFile(file)
	if want := "before\n<!-- codes: run it -->\n\nnew\nlines\n\n<!-- /codes -->\nafter\n"; err != nil || string(got) != want {
		t.Errorf("got %q and error %v, want %q", got, err, want)
	}
}
