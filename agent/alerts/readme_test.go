package alerts

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestREADMEExplainsEveryResultAndItsLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := string(content)
	for _, result := range results() {
		if !strings.Contains(readme, "\n| `"+result+"` | ") {
			t.Errorf("README.md does not explain the result %s", result)
		}
	}
	for _, link := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(readme, -1) {
		if _, err := os.Stat(filepath.FromSlash(link[1])); err != nil {
			t.Errorf("README.md links to %s: %v", link[1], err)
		}
	}
}
