// Package grafana holds the dashboard, and tests that it shows what the agent measures.
package grafana

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"obwarden/metrics"
)

type dashboard struct {
	UID           string
	Title         string
	SchemaVersion int
	Panels        []panel
	Templating    struct {
		List []struct{ Name, Type, Definition string }
	}
}

type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Datasource  struct{ Type, UID string }
	FieldConfig struct {
		Defaults struct{ Unit string }
	}
	Targets []struct {
		RefID, Expr, LegendFormat string
		Datasource                struct{ Type, UID string }
	}
}

func load(t *testing.T) dashboard {
	t.Helper()
	content, err := os.ReadFile("obwarden.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(content, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Panels) == 0 {
		t.Fatal("no panels")
	}
	return d
}

// series are the names under which Prometheus stores what the agent exposes, with
// the labels of each. A vector without label values exposes nothing, so its
// description is read, not a sample.
func series(t *testing.T) map[string][]string {
	t.Helper()
	described := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	names := map[string][]string{}
	m := metrics.New(recorder{func(c prometheus.Collector) {
		descs := make(chan *prometheus.Desc, 1000)
		c.Describe(descs)
		close(descs)
		for desc := range descs {
			found := described.FindStringSubmatch(desc.String())
			if found == nil {
				t.Fatalf("cannot read the description %s", desc)
			}
			labels := strings.FieldsFunc(found[2], func(r rune) bool { return r == ',' })
			if !strings.HasPrefix(found[1], "obwarden_") {
				continue
			}
			if isHistogram(c) {
				names[found[1]+"_bucket"] = append(slices.Clone(labels), "le")
				names[found[1]+"_sum"], names[found[1]+"_count"] = labels, labels
				continue
			}
			names[found[1]] = labels
		}
	}}, "test", "go", metrics.Scraped{})
	if m == nil || len(names) == 0 {
		t.Fatal("no metrics of the agent")
	}
	return names
}

// recorder is a Registerer that hands each collector over.
type recorder struct{ collect func(prometheus.Collector) }

func (r recorder) Register(c prometheus.Collector) error { r.collect(c); return nil }
func (r recorder) Unregister(prometheus.Collector) bool  { return false }
func (r recorder) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		r.collect(c)
	}
}

func isHistogram(c prometheus.Collector) bool {
	switch c := c.(type) {
	case *prometheus.HistogramVec:
		return true
	case prometheus.Metric:
		var sample dto.Metric
		return c.Write(&sample) == nil && sample.Histogram != nil
	}
	return false
}

var (
	metricName = regexp.MustCompile(`\bobwarden_[a-z0-9_]+`)
	selector   = regexp.MustCompile(`\b(obwarden_[a-z0-9_]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`([a-z_]+)(?:=~|!~|!=|=)"`)
	grouping   = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// ofTheScrape are the labels that Prometheus adds.
var ofTheScrape = []string{"job", "instance"}

func TestExpressionsNameMetricsOfTheAgent(t *testing.T) {
	t.Parallel()
	known := series(t)
	shown := map[string]bool{}
	check := func(where, expr string) {
		names := metricName.FindAllString(expr, -1)
		if len(names) == 0 {
			t.Errorf("%s: %s: no metric of the agent", where, expr)
		}
		var labels []string
		for _, name := range names {
			if _, ok := known[name]; !ok {
				t.Errorf("%s: %s: no such metric; there are %v", where, name, slices.Sorted(maps.Keys(known)))
			}
			shown[name] = true
			labels = append(labels, known[name]...)
		}
		for _, s := range selector.FindAllStringSubmatch(expr, -1) {
			for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
				if !slices.Contains(known[s[1]], m[1]) && !slices.Contains(ofTheScrape, m[1]) {
					t.Errorf("%s: %s has no label %s, only %v", where, s[1], m[1], known[s[1]])
				}
			}
		}
		for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
			for _, label := range strings.FieldsFunc(g[1], func(r rune) bool { return r == ',' || r == ' ' }) {
				if !slices.Contains(labels, label) && !slices.Contains(ofTheScrape, label) {
					t.Errorf("%s: by (%s): no label of %v", where, label, names)
				}
			}
		}
	}
	d := load(t)
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
		}
	}
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			check("variable "+v.Name, v.Definition)
		}
	}
	for name := range known {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		if !shown[name] && !shown[base+"_bucket"] && !shown[base+"_count"] {
			t.Errorf("%s: measured and shown nowhere", base)
		}
	}
}

func TestEveryPanelSaysWhatItShows(t *testing.T) {
	t.Parallel()
	ids, titles := map[int]bool{}, map[string]bool{}
	for _, p := range load(t).Panels {
		if ids[p.ID] || p.ID == 0 {
			t.Errorf("panel %q: id %d is missing or not its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Title == "" || titles[p.Title] {
			t.Errorf("panel %d: title %q is empty or another's too", p.ID, p.Title)
		}
		titles[p.Title] = true
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q: description %q, unit %q, %d targets: none may be missing", p.Title, p.Description, p.FieldConfig.Defaults.Unit, len(p.Targets))
		}
		if p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %q: data source %q, want the variable", p.Title, p.Datasource.UID)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" || target.LegendFormat == "" || target.RefID == "" {
				t.Errorf("panel %q: target %+v: data source must be the variable, legend and id must be there", p.Title, target)
			}
		}
	}
}

func TestDashboardCanBeLinkedTo(t *testing.T) {
	t.Parallel()
	if d := load(t); d.UID != "obwarden-overview" || d.Title == "" || d.SchemaVersion < 39 {
		t.Errorf("uid %q, title %q, schema %d: links and provisioning rest on them", d.UID, d.Title, d.SchemaVersion)
	}
}
