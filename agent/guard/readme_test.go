package guard

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The table of README.md has the rules that there are, in their order, with the decisions
// that the table of cases shows and the flags that the code has.
func TestTheREADMEDescribesEveryRuleAndNoOther(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(content), "\n## Rules\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| [^|]+ \\| ([^|]+) \\| (\\w+) \\| (\\w+) \\|$").FindAllStringSubmatch(section, -1)
	decisions := map[string]map[string]bool{}
	for _, c := range decisionCases() {
		if decisions[c.rule] == nil {
			decisions[c.rule] = map[string]bool{}
		}
		decisions[c.rule]["`"+string(c.verdict)+" "+c.code+"`"] = true
	}
	yes := map[bool]string{true: "yes", false: "no"}
	all := rules()
	if len(rows) != len(all) {
		t.Errorf("README has %d rules, want %d", len(rows), len(all))
	}
	for i, row := range rows[:min(len(rows), len(all))] {
		r := all[i]
		got := slices.Sorted(slices.Values(strings.Split(row[2], ", ")))
		want := slices.Sorted(maps.Keys(decisions[r.name]))
		if row[1] != r.name || !slices.Equal(got, want) || row[3] != yes[r.queued] || row[4] != yes[r.retry] {
			t.Errorf("row %d is %s, decides %v, queue %s, retry %s; want %s, %v, %s, %s",
				i+1, row[1], got, row[3], row[4], r.name, want, yes[r.queued], yes[r.retry])
		}
	}
}
