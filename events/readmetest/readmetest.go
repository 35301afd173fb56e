// Package readmetest compares generated sections of Markdown files with what the code
// says. A section stands between two comments:
//
//	<!-- codes: go test ./events -run README -update -->
//	…
//	<!-- /codes -->
package readmetest

import (
	"os"
	"strings"
	"testing"
)

// Section fails the test where the section of a file is not content. With update it writes
// the section anew instead. The first comment says how; it starts with the section's name.
func Section(t testing.TB, file, name, content string, update bool) {
	t.Helper()
	read, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(read), "<!-- "+name+":")
	command, rest, ok2 := strings.Cut(rest, "-->\n")
	got, after, ok3 := strings.Cut(rest, "<!-- /"+name+" -->")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("%s has no section %s, want <!-- %s: … --> and <!-- /%s -->", file, name, name, name)
	}
	content = "\n" + strings.TrimSpace(content) + "\n\n"
	switch {
	case got == content:
	case !update:
		t.Errorf("section %s of %s is not what the code says, run:%s\ngot\n%s\nwant\n%s", name, file, command, got, content)
	default:
		written := before + "<!-- " + name + ":" + command + "-->\n" + content + "<!-- /" + name + " -->" + after
		if err := os.WriteFile(file, []byte(written), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
