package grafana

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/obwarden/obwarden/metrics"
)

var update = flag.Bool("update", false, "write dashboards/*.json")

// Not parallel: the other tests read what it may write.
func TestDashboardsAreGenerated(t *testing.T) {
	built, err := Dashboards()
	if err != nil {
		t.Fatal(err)
	}
	for uid, want := range built {
		file := filepath.Join("dashboards", uid+".json")
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); !bytes.Equal(got, want) {
			t.Errorf("%s is not what the code says (%v), run: go test ./grafana -update", file, err)
		}
	}
	files, err := filepath.Glob("dashboards/*.json")
	if err != nil || len(files) != len(built) {
		t.Errorf("%d files, %d dashboards, error %v", len(files), len(built), err)
	}
}

// Grafana's published schema, as its own library reads it: no field that is not
// there, none missing, none of another type.
func TestDashboardsFollowGrafanasSchema(t *testing.T) {
	t.Parallel()
	plugins.RegisterDefaultPlugins()
	for uid := range load(t) {
		content, err := os.ReadFile(filepath.Join("dashboards", uid+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if faults := againstSchema(content); len(faults) > 0 {
			t.Errorf("%s: %v", uid, faults)
		}
		for _, wrong := range []string{"reduceOptions", "legendFormat", "gridPos", "schemaVersion", "iconColor"} {
			if misspelt := bytes.Replace(content, []byte(`"`+wrong+`"`), []byte(`"`+wrong+`s"`), 1); len(againstSchema(misspelt)) == 0 {
				t.Errorf("%s: %ss passes for %s: the schema is not looked at", uid, wrong, wrong)
			}
		}
	}
}

// againstSchema lists what does not follow it. The library's error is never nil, and
// says nothing where there is nothing to say.
func againstSchema(content []byte) cog.BuildErrors {
	//nolint:staticcheck // The form that every Grafana in use reads.
	var strict dashboard.Dashboard
	var faults, values cog.BuildErrors
	_ = errors.As(strict.UnmarshalJSONStrict(content), &faults)
	_ = errors.As(strict.Validate(), &values)
	return append(faults, values...)
}

// file is a dashboard as it is written.
type file struct {
	UID, Title, Description string
	Tags                    []string
	SchemaVersion           int
	Panels                  []drawn
	Links                   []struct{ Type string }
	Annotations             struct{ List []struct{ Name, Expr string } }
	Templating              struct {
		List []struct{ Name, Type, Definition string }
	}
}

type drawn struct {
	ID          int
	Type        string
	Title       string
	Description string
	Datasource  struct{ Type, UID string }
	GridPos     struct{ H, W, X, Y int }
	Links       []struct{ URL string }
	FieldConfig struct {
		Defaults struct{ Unit, NoValue string }
	}
	Targets []struct {
		RefID, Expr, LegendFormat string
		Datasource                struct{ Type, UID string }
	}
}

func load(t *testing.T) map[string]file {
	t.Helper()
	files, err := filepath.Glob("dashboards/*.json")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]file{}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var f file
		if err := json.Unmarshal(content, &f); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[f.UID] = f
	}
	if len(all) < 4 {
		t.Fatalf("%d dashboards", len(all))
	}
	return all
}

// series are the names under which Prometheus stores what the agent exposes, with
// the labels of each. A vector without label values exposes nothing, so its
// description is read, not a sample.
func series(t *testing.T) map[string][]string {
	t.Helper()
	described := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	names := map[string][]string{}
	r := recorder{func(c prometheus.Collector) {
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
	}}
	r.MustRegister(metrics.New(r, "test", "go", metrics.Scraped{}).Holding(nil)) // described, never collected
	if len(names) == 0 {
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
	metricName   = regexp.MustCompile(`\bobwarden_[a-z0-9_]+`)
	ofTheProcess = regexp.MustCompile(`\b(process_|go_|up\b)`)
	selector     = regexp.MustCompile(`\b(obwarden_[a-z0-9_]+)\{([^}]*)\}`)
	matcher      = regexp.MustCompile(`([a-z_]+)(?:=~|!~|!=|=)"`)
	grouping     = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// ofTheScrape are the labels that Prometheus adds.
var ofTheScrape = []string{"job", "instance"}

func TestExpressionsNameMetricsOfTheAgent(t *testing.T) {
	t.Parallel()
	known := series(t)
	shown := map[string]bool{}
	check := func(where, expr string) {
		if strings.Contains(expr, "job:obwarden_") { // a recording rule, whose names are tested with the rules
			return
		}
		names := metricName.FindAllString(expr, -1)
		if len(names) == 0 && !ofTheProcess.MatchString(expr) {
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
	for uid, d := range load(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				check(uid+": "+p.Title, target.Expr)
			}
		}
		for _, v := range d.Templating.List {
			if v.Type == "query" {
				check(uid+": variable "+v.Name, v.Definition)
			}
		}
		for _, a := range d.Annotations.List {
			if a.Expr != "" {
				check(uid+": annotation "+a.Name, a.Expr)
			}
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

// A variable that is not there stays in the query as it is written, and finds nothing.
func TestEveryVariableThatIsUsedIsThere(t *testing.T) {
	t.Parallel()
	used := regexp.MustCompile(`\$([a-z_]+)`)
	for uid, d := range load(t) {
		there := map[string]bool{"__rate_interval": true, "__range": true}
		for _, v := range d.Templating.List {
			there[v.Name] = true
		}
		seen := ""
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				seen += target.Expr
				for _, m := range used.FindAllStringSubmatch(target.Expr, -1) {
					if !there[m[1]] {
						t.Errorf("%s: %s: no variable $%s", uid, p.Title, m[1])
					}
				}
			}
		}
		for _, v := range d.Templating.List {
			if v.Name != "datasource" && !strings.Contains(seen, "$"+v.Name) {
				t.Errorf("%s: the variable %s changes nothing", uid, v.Name)
			}
		}
	}
}

func TestEveryPanelSaysWhatItShows(t *testing.T) {
	t.Parallel()
	for uid, d := range load(t) {
		ids := map[int]bool{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.ID == 0 {
				t.Errorf("%s: panel %q: id %d is missing or not its own", uid, p.Title, p.ID)
			}
			ids[p.ID] = true
			if p.Title == "" {
				t.Errorf("%s: panel %d has no title", uid, p.ID)
			}
			if p.Type == "row" {
				continue
			}
			defaults := p.FieldConfig.Defaults
			if len(p.Description) < 20 || !strings.HasSuffix(p.Description, ".") || defaults.Unit == "" || defaults.NoValue == "" || len(p.Targets) == 0 {
				t.Errorf("%s: panel %q: description %q, unit %q, empty state %q, %d targets: none may be missing", uid, p.Title, p.Description, defaults.Unit, defaults.NoValue, len(p.Targets))
			}
			if p.Datasource.UID != "${datasource}" {
				t.Errorf("%s: panel %q: data source %q, want the variable", uid, p.Title, p.Datasource.UID)
			}
			for _, target := range p.Targets {
				if target.Datasource.UID != "${datasource}" || target.LegendFormat == "" || target.RefID == "" {
					t.Errorf("%s: panel %q: target %+v: data source must be the variable, legend and id must be there", uid, p.Title, target)
				}
			}
		}
	}
}

func TestPanelsFillTheirRowsAndDoNotOverlap(t *testing.T) {
	t.Parallel()
	for uid, d := range load(t) {
		taken := map[[2]int]string{}
		width := map[int]int{} // by the line that panels begin on
		for _, p := range d.Panels {
			g := p.GridPos
			width[g.Y] += g.W
			for x := g.X; x < g.X+g.W; x++ {
				for y := g.Y; y < g.Y+g.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" {
						t.Fatalf("%s: %q lies on %q", uid, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
		}
		for y, w := range width {
			if w != 24 {
				t.Errorf("%s: the panels on line %d are %d wide, want 24", uid, y, w)
			}
		}
	}
}

func TestDashboardsLinkToEachOther(t *testing.T) {
	t.Parallel()
	all := load(t)
	for uid, d := range all {
		if d.Title == "" || d.Description == "" || d.SchemaVersion < 39 || !slices.Contains(d.Tags, "obwarden") || len(d.Links) == 0 || d.Links[0].Type != "dashboards" {
			t.Errorf("%s: title %q, schema %d, tags %v, links %v: links and provisioning rest on them", uid, d.Title, d.SchemaVersion, d.Tags, d.Links)
		}
		if len(d.Annotations.List) == 0 {
			t.Errorf("%s: no annotations", uid)
		}
		for _, p := range d.Panels {
			for _, l := range p.Links {
				to, _, _ := strings.Cut(strings.TrimPrefix(l.URL, "/d/"), "?")
				if _, ok := all[to]; !ok {
					t.Errorf("%s: %s: no dashboard behind %s", uid, p.Title, l.URL)
				}
			}
		}
	}
}

func TestProvisioningIsRead(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"dashboards/obwarden.yaml": "providers", "datasources/prometheus.yaml": "datasources"} {
		content, err := os.ReadFile(filepath.Join("provisioning", name))
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := yaml.Unmarshal(content, &got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if list, ok := got[want].([]any); !ok || len(list) != 1 || got["apiVersion"] == nil {
			t.Errorf("%s: got %v, want apiVersion and one of %s", name, got, want)
		}
	}
}
