//go:build linux

package bench

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
)

var flagUpdate = flag.Bool("load.update", false, "put the table of the latest full run, in -load.dir, into README.md")

// table is what was measured: the same rows in the same order as in README.md.
type table struct{ rows []row }

// row is one figure over all rounds, ours beside its floor: what a bare loop does, or a
// limit that is the same in every round, or nothing.
type row struct {
	name, unit  string
	aim         string // of the ratio: ≤ or ≥ and a number; empty: it is there to be known
	ours, floor []float64
}

// rowsOf are the rows of a run of this size.
func rowsOf(s size) []row {
	rows := []row{
		{name: "request to call, p50", unit: "ms", aim: "≤ 1.5"},
		{name: "request to call, p99", unit: "ms", aim: "≤ 3"},
		{name: "the same, beside a loop with all reads and flushes, p50", unit: "ms"},
		{name: "the same, p99", unit: "ms"},
		{name: "operations", unit: "/s", aim: "≥ 0.8"},
		{name: "operations, beside one append at a time", unit: "/s", aim: "≥ 5"},
		{name: "events of an operation"},
		{name: "writes of records for an operation"},
		{name: "requests to OCP for an operation"},
		{name: "processor for an operation", unit: "ms"},
		{name: "storm, duplicates settled", unit: "/s", aim: "≥ 0.6"},
		{name: "storm, memory", unit: "MiB", aim: "≤ 1"},
		{name: "storm, another request to its call", unit: "ms", aim: "≤ 1"},
		{name: "the same, beside its delivery to a bare loop", unit: "ms"},
	}
	for _, n := range s.followed {
		rows = append(rows, row{name: looksRow(n), aim: "≤ 1.5"})
	}
	return append(rows,
		row{name: fairRow(s), unit: "/s", aim: "≤ 1"},
		row{name: "looks at the cluster seen least, of the mean", aim: "≥ 0.5"},
		row{name: "looks at the cluster seen most, of the mean", aim: "≤ 2"},
		row{name: "all these move at once, the last is told", unit: "s", aim: "≤ 2"},
		row{name: "change in OCP to event, p50", unit: "ms", aim: "≤ 1"},
		row{name: "change in OCP to event, worst", unit: "ms", aim: "≤ 1"},
		row{name: "start to ready", unit: "ms", aim: "≤ 1"},
		row{name: "processor, idle", unit: "% of a core", aim: "≤ 1"},
		row{name: "memory, idle, embedded NATS", unit: "MiB", aim: "≤ 1"},
		row{name: followedRow(s), unit: "% of a core", aim: "≤ 1"},
		row{name: heldRow("memory", s), unit: "MiB", aim: "≤ 1"},
		row{name: "memory at its most, while these are taken up", unit: "MiB"},
		row{name: heldRow("processor", s), unit: "% of a core"},
		row{name: "scrape, with these", unit: "ms", aim: "≤ 1"},
		row{name: journalRow(s), unit: "ms", aim: "≤ 1"},
		row{name: "memory, with these", unit: "MiB"},
		row{name: "3 agents on 3 NATS servers, beside 1", unit: "/s", aim: "≥ 2"},
		row{name: "processor for an operation there, agents", unit: "ms"},
		row{name: "processor for an operation there, NATS", unit: "ms"},
		row{name: "binary, stripped", unit: "MiB", aim: "≤ 1"},
		row{name: "demo to its first event", unit: "s", aim: "≤ 1"},
	)
}

func looksRow(n int) string { return fmt.Sprintf("requests a look at %d tasks, beside pages", n) }
func fairRow(s size) string {
	return fmt.Sprintf("requests for %d clusters, beside the budget", s.fair)
}
func followedRow(s size) string { return fmt.Sprintf("processor, %d followed tasks", s.open/10) }
func heldRow(what string, s size) string {
	return fmt.Sprintf("%s, %d open and %d waiting", what, s.open, s.waiting)
}

func journalRow(s size) string {
	return fmt.Sprintf("start to ready, %d events and %d open", s.journal, s.open)
}

// add notes a figure of one round; floor 0: there is none.
func (t *table) add(name string, ours, floor float64) {
	i := slices.IndexFunc(t.rows, func(r row) bool { return r.name == name })
	if i < 0 {
		panic("no row " + name)
	}
	t.rows[i].ours = append(t.rows[i].ours, ours)
	t.rows[i].floor = append(t.rows[i].floor, floor)
}

// ratios of the rounds, in order of size; none where there is no floor.
func (r row) ratios() (ratios []float64) {
	for i, floor := range r.floor {
		if floor > 0 {
			ratios = append(ratios, r.ours[i]/floor)
		}
	}
	slices.Sort(ratios)
	return ratios
}

// met reports whether the median of the ratios is as it should be.
func (r row) met() bool {
	relation, text, _ := strings.Cut(r.aim, " ")
	aim, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return true
	}
	if relation == "≥" {
		return median(r.ratios()) >= aim
	}
	return median(r.ratios()) <= aim
}

// String is what README.md shows: medians, and of the ratios also the extremes.
func (t *table) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "    what\tobwarden\tfloor or limit\tratio\tmin–max\taim")
	for _, r := range t.rows {
		if len(r.ours) == 0 {
			continue
		}
		floor, ratio, extremes, aim := "", "", "", r.aim
		if ratios := r.ratios(); len(ratios) > 0 {
			floor, ratio = figure(median(r.floor), r.unit), fmt.Sprintf("%.2f", median(ratios))
			extremes = fmt.Sprintf("%.2f–%.2f", ratios[0], ratios[len(ratios)-1])
			if !r.met() {
				aim += " missed"
			}
		}
		fmt.Fprintf(w, "    %s\t%s\t%s\t%s\t%s\t%s\n", r.name, figure(median(r.ours), r.unit), floor, ratio, extremes, aim)
	}
	_ = w.Flush() // into memory
	return regexp.MustCompile(` +\n`).ReplaceAllString(b.String(), "\n")
}

// figure shows three digits, and all of those before the point.
func figure(value float64, unit string) string {
	text := strconv.FormatFloat(value, 'g', 3, 64)
	if value >= 100 {
		text = strconv.FormatFloat(value, 'f', 0, 64)
	}
	return strings.TrimSpace(text + " " + unit)
}

// raw is the same for benchstat: one line a round.
func (t *table) raw() string {
	var b strings.Builder
	for _, r := range t.rows {
		name := strings.Map(func(c rune) rune {
			if c == ' ' || c == ',' {
				return '_'
			}
			return c
		}, r.name)
		unit := strings.ReplaceAll(r.unit, " ", "-")
		if unit == "" {
			unit = "n"
		}
		for i := range r.ours {
			fmt.Fprintf(&b, "Benchmark%s/obwarden 1 %g %s\n", name, r.ours[i], unit)
			if r.floor[i] > 0 {
				fmt.Fprintf(&b, "Benchmark%s/floor 1 %g %s\n", name, r.floor[i], unit)
			}
		}
	}
	return b.String()
}

func TestREADMEShowsTheRowsOfMakeBench(t *testing.T) {
	const path = "README.md"
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile(`(?s)(<!-- performance:[^\n]*-->\n\n)(.*?)(\n<!-- /performance -->)`)
	m := section.FindSubmatch(content)
	if m == nil {
		t.Fatal("README.md has no section performance")
	}
	shown := string(m[2])
	if *flagUpdate {
		latest, err := os.ReadFile(filepath.Join(*flagDir, "bench-table.txt"))
		if err != nil {
			t.Fatal(err)
		}
		shown = string(latest)
	}
	var want []string
	for _, r := range rowsOf(fullSize(0)) {
		want = append(want, r.name)
	}
	var got []string
	for line := range strings.Lines(shown) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "    "), "  ")
		got = append(got, strings.TrimSpace(name))
	}
	if len(got) == 0 || got[0] != "what" || !slices.Equal(got[1:], want) {
		t.Fatalf("rows are\n%s\nwant what a full `make bench` prints:\nwhat\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if *flagUpdate {
		content = section.ReplaceAll(content, []byte("${1}"+shown+"${3}"))
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestATableShowsMediansAndWhatIsMissed(t *testing.T) {
	t.Parallel()
	all := &table{rows: []row{
		{name: "latency", unit: "ms", aim: "≤ 1.5"}, {name: "rate", unit: "/s", aim: "≥ 5"}, {name: "never measured"}, {name: "writes"},
	}}
	for round := range 3 {
		all.add("latency", float64(2+round), 1)
		all.add("rate", 12345, 1234.5)
		all.add("writes", 2, 0)
	}
	const want = `    what     obwarden  floor or limit  ratio  min–max      aim
    latency  3 ms      1 ms            3.00   2.00–4.00    ≤ 1.5 missed
    rate     12345 /s  1234 /s         10.00  10.00–10.00  ≥ 5
    writes   2
`
	if got := all.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
