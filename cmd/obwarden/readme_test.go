package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/web"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// Documents are named from the root of the repository.
const (
	repository = "../.."

	frontPage        = "README.md"
	commandsDocument = "cmd/obwarden/README.md"
	agentDocument    = "agent/README.md"
	eventsDocument   = "events/README.md"
)

func readDocument(t *testing.T, document string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository, document))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// shellCommands are the lines of a document's shell blocks that start with prefix,
// without comments.
func shellCommands(t *testing.T, document, prefix string) []string {
	t.Helper()
	var commands []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(readDocument(t, document), -1) {
		for line := range strings.Lines(block[1]) {
			command, _, _ := strings.Cut(line, " # ")
			if strings.HasPrefix(command, prefix) {
				commands = append(commands, strings.TrimSpace(command))
			}
		}
	}
	return commands
}

func readmeCommands(t *testing.T, prefix string) []string {
	t.Helper()
	return shellCommands(t, frontPage, prefix)
}

// A faulty example is worse than none: the command line must understand each.
func TestShellCommandsOfTheDocumentsAreUnderstood(t *testing.T) {
	t.Parallel()
	for _, document := range markdownFiles(t) {
		for _, line := range shellCommands(t, document, "obwarden ") {
			var args []string
			for _, m := range regexp.MustCompile(`"([^"]*)"|(\S+)`).FindAllStringSubmatch(line, -1) {
				if m[2] == "&" || m[2] == ">" || m[2] == "|" { // what follows is the shell's
					break
				}
				args = append(args, m[1]+m[2])
			}
			command, rest, err := newRoot(os.Stdout, os.Stderr, nil).Find(args[1:])
			if err == nil && !command.HasParent() {
				err = fmt.Errorf("no such command")
			}
			if err == nil {
				err = command.ParseFlags(rest)
			}
			if err == nil && command.Args != nil {
				err = command.Args(command, command.Flags().Args())
			}
			if err != nil {
				t.Errorf("%s: %s: %v", document, line, err)
			}
		}
	}
}

// TestTheSessionOfTheDocument runs what a reader is told to type into the second terminal.
func TestTheSessionOfTheDocument(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{Speed: 100})
	startProcess(t, s.environ, "run")
	s.ready(t)
	s.inventory(t)
	binary, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, line := range shellCommands(t, commandsDocument, "obwarden ") {
		if strings.HasPrefix(line, "obwarden sim ") || line == "obwarden run" { // the first terminal
			continue
		}
		n++
		c := exec.CommandContext(t.Context(), "sh", "-c", line)
		c.Env = []string{"PATH=" + filepath.Dir(binary) + ":/usr/bin:/bin"}
		for name, value := range s.environ {
			c.Env = append(c.Env, name+"="+value)
		}
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	if n < 5 {
		t.Errorf("%s shows %d commands of a session, want 5 or more", commandsDocument, n)
	}
}

func TestREADMETablesAreGenerated(t *testing.T) {
	const name, table = "configuration", commandsDocument
	text, want := readDocument(t, table), configurationTable()
	section := regexp.MustCompile(`(?s)(<!-- ` + name + `:[^\n]*-->\n)(.*?)(<!-- /` + name + ` -->)`)
	m := section.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("%s has no section %s", table, name)
	}
	if m[2] == want {
		return
	}
	if flag.Lookup("update").Value.String() != "true" {
		t.Fatalf("the table %s in %s differs from the code, run: go test ./cmd/obwarden -run README -update", name, table)
	}
	updated := strings.Replace(text, m[0], m[1]+want+m[3], 1)
	if err := os.WriteFile(filepath.Join(repository, table), []byte(updated), 0o600); err != nil {
		t.Fatal(err)
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

// Every public name stands in the document of its room.
func TestREADMEsNameThePublicSurface(t *testing.T) {
	t.Parallel()
	var states, language []string
	for _, s := range events.States() {
		states = append(states, string(s))
	}
	for _, s := range []events.State{events.Progress, events.Stalled, events.Duplicate, events.Approved} {
		language = append(language, string(s))
	}
	language = append(language, states...)
	language = append(language, jsonFields(reflect.TypeFor[events.Request]())...)
	language = append(language, jsonFields(reflect.TypeFor[events.Operation]())...)
	for _, verb := range events.Verbs() {
		language = append(language, string(verb))
	}
	language = append(language, codes(t)...)
	language = append(language, alerts.Bucket, events.RequestStream, events.OperationStream, events.ClusterBucket,
		events.ControlBucket, events.OperationSchema, events.IdempotencyKeyHeader)
	for document, names := range map[string][]string{
		frontPage:        states,
		eventsDocument:   language,
		commandsDocument: {web.MetricsPath, web.HealthyPath, web.ReadyPath, web.AlertmanagerPath},
	} {
		t.Run(document, func(t *testing.T) {
			t.Parallel()
			text := readDocument(t, document)
			for _, name := range names {
				if !strings.Contains(text, "`"+name+"`") {
					t.Errorf("%s does not name `%s`", document, name)
				}
			}
		})
	}
	commands := readDocument(t, commandsDocument)
	for code := range 6 {
		if !strings.Contains(commands, fmt.Sprintf("\n| %d | ", code)) {
			t.Errorf("%s does not explain exit code %d", commandsDocument, code)
		}
	}
	for _, document := range []string{frontPage, commandsDocument} {
		text := readDocument(t, document)
		for _, command := range newRoot(os.Stdout, os.Stderr, nil).Commands() {
			if name := command.Name(); !command.Hidden && name != "help" && name != "completion" && !strings.Contains(text, "`"+name) {
				t.Errorf("%s does not name the command %s", document, name)
			}
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

// codes are the values of all constants of package events that are called Code….
func codes(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(repository, "events", "*.go"))
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
	if len(values) < 30 {
		t.Fatalf("found %d codes", len(values))
	}
	return values
}

func TestEveryCodeIsAKnownLabel(t *testing.T) {
	t.Parallel()
	for _, code := range codes(t) {
		if got := metrics.Code(code); got != code {
			t.Errorf("code %s is measured as %q: package metrics does not know it", code, got)
		}
	}
}

// Every guarantee names the tests that show it: they must be there.
func TestREADMENamesTestsThatExist(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, file := range repositoryFiles(t, "_test.go") {
		all.WriteString(readDocument(t, file))
	}
	named := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(readDocument(t, agentDocument), -1)
	if len(named) < 10 {
		t.Errorf("%s names %d tests", agentDocument, len(named))
	}
	for _, name := range named {
		if !strings.Contains(all.String(), "func "+name[1]+"(") {
			t.Errorf("%s names %s, which does not exist", agentDocument, name[1])
		}
	}
}

// repositoryFiles are the paths of all files whose names end so, below the root of
// the repository.
func repositoryFiles(t *testing.T, suffix string) []string {
	t.Helper()
	var files []string
	err := fs.WalkDir(os.DirFS(repository), ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && slices.Contains([]string{".git", "dist"}, path) {
			return fs.SkipDir
		}
		if err == nil && !entry.IsDir() && strings.HasSuffix(path, suffix) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
