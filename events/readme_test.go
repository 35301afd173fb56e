package events

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/events/readmetest"
)

// Not parallel: it may write README.md.
func TestTheTableOfREADMEIsGenerated(t *testing.T) {
	var b strings.Builder
	b.WriteString("| code | state | meaning |\n|---|---|---|\n")
	for _, c := range Codes() {
		var states []string
		for _, s := range c.States {
			states = append(states, "`"+string(s)+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", c.Name, strings.Join(states, ", "), c.Meaning)
	}
	readmetest.Section(t, "README.md", "codes", b.String(), *update)
}

func TestREADMENamesThePublicLanguage(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{RequestStream, OperationStream, ClusterBucket, ControlBucket, Consumer, OperationSchema, IdempotencyKeyHeader}
	for _, s := range append(States(), Progress, Stalled, Duplicate, Approved) {
		names = append(names, string(s))
	}
	for _, k := range Kinds() {
		names = append(names, string(k))
	}
	for _, v := range Verbs() {
		names = append(names, string(v))
	}
	names = append(names, jsonFields(reflect.TypeFor[Request]())...)
	names = append(names, jsonFields(reflect.TypeFor[Operation]())...)
	for _, name := range names {
		if !strings.Contains(string(content), "`"+name+"`") {
			t.Errorf("README.md does not name `%s`", name)
		}
	}
}

// jsonFields are the names in a document, and in those that it contains.
func jsonFields(t reflect.Type) (names []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
		return nil
	}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(append(names, name), jsonFields(f.Type)...)
	}
	return names
}
