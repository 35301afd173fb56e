package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/web"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

const readmePath = "../../README.md"

func readREADME(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(readmePath)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// readmeCommands are the lines of its shell blocks that start with prefix.
func readmeCommands(t *testing.T, prefix string) []string {
	t.Helper()
	var commands []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(readREADME(t), -1) {
		for line := range strings.Lines(block[1]) {
			if strings.HasPrefix(line, prefix) {
				commands = append(commands, strings.TrimSpace(line))
			}
		}
	}
	return commands
}

func TestREADMETablesAreGenerated(t *testing.T) {
	for name, table := range map[string]string{"configuration": configurationTable(), "metrics": metricsTable(t)} {
		readme := readREADME(t)
		section := regexp.MustCompile(`(?s)(<!-- ` + name + `:[^\n]*-->\n)(.*?)(<!-- /` + name + ` -->)`)
		m := section.FindStringSubmatch(readme)
		if m == nil {
			t.Fatalf("README has no section %s", name)
		}
		if m[2] == table {
			continue
		}
		if flag.Lookup("update").Value.String() != "true" {
			t.Errorf("the README's table %s is not what the code says, run: go test ./cmd/obwarden -run README -update", name)
			continue
		}
		updated := strings.Replace(readme, m[0], m[1]+table+m[3], 1)
		if err := os.WriteFile(readmePath, []byte(updated), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func configurationTable() string {
	var b strings.Builder
	b.WriteString("\n| variable | default | meaning |\n|---|---|---|\n")
	for _, v := range variables() {
		byDefault, help := "none", v.Help
		if v.Default != "" {
			byDefault = "`" + v.Default + "`"
		}
		if len(v.oneOf) > 0 {
			help += ": `" + strings.Join(v.oneOf, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.Name, byDefault, help)
	}
	b.WriteString("\n")
	return b.String()
}

// recorder keeps what is registered.
type recorder struct{ collectors []prometheus.Collector }

func (r *recorder) Register(c prometheus.Collector) error {
	r.collectors = append(r.collectors, c)
	return nil
}
func (r *recorder) MustRegister(cs ...prometheus.Collector) {
	r.collectors = append(r.collectors, cs...)
}
func (r *recorder) Unregister(prometheus.Collector) bool { return false }

func metricsTable(t *testing.T) string {
	t.Helper()
	var r recorder
	metrics.New(&r, "v", "go", metrics.Scraped{})
	description := regexp.MustCompile(`fqName: "(obwarden_[^"]*)", help: ("(?:[^"\\]|\\.)*"), unit: "[^"]*", constLabels: \{[^}]*\}, variableLabels: \{([^}]*)\}`)
	var b strings.Builder
	b.WriteString("\n| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, c := range r.collectors {
		kind := map[string]string{"CounterVec": "counter", "counter": "counter", "GaugeVec": "gauge", "gauge": "gauge", "valueFunc": "gauge", "HistogramVec": "histogram", "histogram": "histogram"}[reflect.TypeOf(c).Elem().Name()]
		descs := make(chan *prometheus.Desc, 1000)
		c.Describe(descs)
		close(descs)
		for d := range descs {
			m := description.FindStringSubmatch(d.String())
			if m == nil {
				continue // the runtime's own
			}
			help, err := strconv.Unquote(m[2])
			if err != nil {
				t.Fatal(err)
			}
			labels := ""
			if m[3] != "" {
				labels = "`" + strings.ReplaceAll(m[3], ",", "`, `") + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m[1], kind, labels, help)
		}
	}
	b.WriteString("\n")
	return b.String()
}

func TestREADMENamesThePublicSurface(t *testing.T) {
	t.Parallel()
	readme := readREADME(t)
	var names []string
	for _, s := range append(events.States(), events.Progress, events.Stalled, events.Duplicate, events.Approved) {
		names = append(names, string(s))
	}
	names = append(names, jsonFields(reflect.TypeFor[events.Request]())...)
	names = append(names, jsonFields(reflect.TypeFor[events.Operation]())...)
	for _, verb := range events.Verbs() {
		names = append(names, string(verb))
	}
	names = append(names, append(codes(t, "../../agent/*.go"), codes(t, "../../agent/guard/*.go")...)...)
	names = append(names, web.MetricsPath, web.HealthyPath, web.ReadyPath, web.AlertmanagerPath, alerts.Bucket,
		events.RequestStream, events.OperationStream, events.ClusterBucket, events.ControlBucket, events.OperationSchema, events.IdempotencyKeyHeader)
	for _, name := range names {
		if !strings.Contains(readme, "`"+name+"`") {
			t.Errorf("the README does not name `%s`", name)
		}
	}
	for code := range 6 {
		if !strings.Contains(readme, fmt.Sprintf("\n| %d | ", code)) {
			t.Errorf("the README does not explain exit code %d", code)
		}
	}
	for _, command := range newRoot(os.Stdout, os.Stderr, nil).Commands() {
		if name := command.Name(); !command.Hidden && name != "help" && name != "completion" && !strings.Contains(readme, "`"+name) {
			t.Errorf("the README does not name the command %s", name)
		}
	}
}

// jsonFields are the names in a document, those of nested ones included.
func jsonFields(t reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
		return nil
	}
	var names []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
		names = append(names, jsonFields(f.Type)...)
	}
	return names
}

// codes are the values of all constants in a package that are called Code….
func codes(t *testing.T, files string) []string {
	t.Helper()
	found, err := filepath.Glob(files)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, file := range found {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if ok && strings.HasPrefix(spec.Names[0].Name, "Code") && len(spec.Values) == 1 {
				if literal, ok := spec.Values[0].(*ast.BasicLit); ok {
					value, _ := strconv.Unquote(literal.Value) // a string literal, as parsed
					values = append(values, value)
				}
			}
			return true
		})
	}
	if len(values) < 10 {
		t.Fatalf("found %d codes in %s", len(values), files)
	}
	return values
}

func TestEveryCodeIsAKnownLabel(t *testing.T) {
	t.Parallel()
	for _, code := range append(codes(t, "../../agent/*.go"), codes(t, "../../agent/guard/*.go")...) {
		if got := metrics.Code(code); got != code {
			t.Errorf("code %s is measured as %q: package metrics does not know it", code, got)
		}
	}
}

// Every promise names the tests that hold it: they must be there.
func TestREADMENamesTestsThatExist(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, pattern := range []string{"*_test.go", "../../agent/*_test.go", "../../agent/*/*_test.go", "../../events/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(content)
		}
	}
	named := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(readREADME(t), -1)
	if len(named) < 10 {
		t.Errorf("the README names %d tests", len(named))
	}
	for _, name := range named {
		if !strings.Contains(all.String(), "func "+name[1]+"(") {
			t.Errorf("the README names %s, which does not exist", name[1])
		}
	}
}
