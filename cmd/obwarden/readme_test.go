package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/web"
	"github.com/obwarden/obwarden/events"
)

// Documents are named from the root of the repository.
const (
	repository = "../.."

	frontPage        = "README.md"
	commandsDocument = "cmd/obwarden/README.md"
	agentDocument    = "agent/README.md"
	deployDocument   = "deploy/README.md"
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

// arguments are those that the shell gives to obwarden for a line of a document, the
// command's own name apart.
func arguments(line string) []string {
	var args []string
	for _, m := range regexp.MustCompile(`"([^"]*)"|(\S+)`).FindAllStringSubmatch(line, -1) {
		if m[2] == "&" || m[2] == ">" || m[2] == "|" { // what follows is the shell's
			break
		}
		args = append(args, m[1]+m[2])
	}
	return args[1:]
}

// A faulty example is worse than none: the command line must understand each.
func TestShellCommandsOfTheDocumentsAreUnderstood(t *testing.T) {
	t.Parallel()
	for _, document := range repositoryFiles(t, ".md") {
		for _, line := range shellCommands(t, document, "obwarden ") {
			command, rest, err := newRoot(os.Stdout, os.Stderr, nil).Find(arguments(line))
			if err == nil && !command.HasParent() {
				err = errors.New("no such command")
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

// TestTheSessionOfTheDocument runs the lines that a reader types into the second terminal.
func TestTheSessionOfTheDocument(t *testing.T) {
	t.Parallel()
	s := newSite(t, ocpsim.Config{Speed: 100})
	startProcess(t, s.environ, "run")
	s.ready(t)
	s.inventory(t)
	n := 0
	for _, line := range shellCommands(t, commandsDocument, "obwarden ") {
		args := arguments(line)
		if args[0] == "sim" || args[0] == "run" { // in the first terminal
			continue
		}
		n++
		if code, stdout, stderr := s.command(t, args...); code != 0 {
			t.Errorf("%s: exit code %d\n%s%s", line, code, stdout, stderr)
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

// Requests, events and codes are for the README of package events, and its tests.
func TestREADMEsNameThePublicSurface(t *testing.T) {
	t.Parallel()
	var states []string
	for _, s := range events.States() {
		states = append(states, string(s))
	}
	for document, names := range map[string][]string{
		frontPage:        states,
		commandsDocument: {web.MetricsPath, web.HealthyPath, web.ReadyPath, web.AlertmanagerPath},
		deployDocument:   {events.RequestStream, events.OperationStream, events.ClusterBucket, events.ControlBucket, alerts.Bucket},
	} {
		text := readDocument(t, document)
		for _, name := range names {
			if !strings.Contains(text, "`"+name+"`") {
				t.Errorf("%s does not name `%s`", document, name)
			}
		}
	}
	for code := range exitUnreachable + 1 {
		if !strings.Contains(readDocument(t, commandsDocument), fmt.Sprintf("\n| %d | ", code)) {
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
