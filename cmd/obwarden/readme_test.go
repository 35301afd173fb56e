package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/web"
	"github.com/obwarden/obwarden/events"
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
	for name, table := range map[string]string{"configuration": configurationTable()} {
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
	for _, code := range events.Codes() {
		names = append(names, code.Name)
	}
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
