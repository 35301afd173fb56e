package metrics

import (
	"flag"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/events/readmetest"
)

var update = flag.Bool("update", false, "write the generated table of README.md anew")

// Not parallel: it may write README.md.
func TestTheTableOfREADMEIsGenerated(t *testing.T) {
	readmetest.Section(t, "README.md", "metrics", table(t), *update)
}

// recorder keeps the collectors that are registered with it.
type recorder struct{ collectors []prometheus.Collector }

func (r *recorder) Register(c prometheus.Collector) error {
	r.collectors = append(r.collectors, c)
	return nil
}

func (r *recorder) MustRegister(cs ...prometheus.Collector) {
	r.collectors = append(r.collectors, cs...)
}

func (r *recorder) Unregister(prometheus.Collector) bool { return false }

// table has one row for each metric of ours, in the order of their names. Their types are
// those that TestEveryCollectorIsRegisteredAsTheDesignSays checks.
func table(t *testing.T) string {
	t.Helper()
	var r recorder
	r.MustRegister(New(&r, "v", "go", Scraped{}).Holding(func() Held { return Held{} }))
	description := regexp.MustCompile(`fqName: "(obwarden_[^"]*)", help: ("(?:[^"\\]|\\.)*"), .*variableLabels: \{([^}]*)\}`)
	rows := map[string]string{}
	for _, c := range r.collectors {
		descs := make(chan *prometheus.Desc, 1000)
		c.Describe(descs)
		close(descs)
		for d := range descs {
			m := description.FindStringSubmatch(d.String())
			if m == nil {
				continue // of the runtime and the process
			}
			help, err := strconv.Unquote(m[2])
			if err != nil {
				t.Fatal(err)
			}
			labels := ""
			if m[3] != "" {
				labels = "`" + strings.ReplaceAll(m[3], ",", "`, `") + "`"
			}
			rows[m[1]] = fmt.Sprintf("| `%s` | %s | %s | %s |\n", m[1], strings.ToLower(want[strings.TrimPrefix(m[1], namespace+"_")].kind.String()), labels, help)
		}
	}
	if len(rows) != len(want) {
		t.Errorf("got %d rows, want one for each of the %d metrics", len(rows), len(want))
	}
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		b.WriteString(rows[name])
	}
	return b.String()
}
