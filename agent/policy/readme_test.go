package policy

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/obwarden/obwarden/agent/policy/internal/strict"
)

// The table of README.md has the settings that there are, in the order of the code, and the
// values that are built in.
func TestTheREADMEDescribesEverySettingAndNoOther(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(content), "\n## Settings\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var builtIn map[string]any
	if err := yaml.Unmarshal([]byte(DefaultFile()), &builtIn); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([\\w.]+)` \\| (?:`([^`]+)`)? ?\\|").FindAllStringSubmatch(section, -1) {
		names = append(names, row[1])
		if value, found := lookUp(builtIn, strings.Split(row[1], ".")); found && fmt.Sprint(value) != row[2] {
			t.Errorf("%s: README says %q, built in is %v", row[1], row[2], value)
		}
	}
	want := slices.Sorted(slices.Values(settings(reflect.TypeFor[policyFile](), "")))
	if got := slices.Sorted(slices.Values(names)); !slices.Equal(got, want) {
		t.Errorf("README has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// settings returns the paths of all settings. The limits of an override are those of the
// defaults, and are left out.
func settings(of reflect.Type, prefix string) []string {
	for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct || of.PkgPath() != reflect.TypeFor[policyFile]().PkgPath() {
		return nil
	}
	var names []string
	for _, f := range reflect.VisibleFields(of) {
		if name := strict.FieldName(f); name != "" && (of != reflect.TypeFor[overrideFile]() || len(f.Index) == 1) {
			names = append(append(names, prefix+name), settings(f.Type, prefix+name+".")...)
		}
	}
	return names
}

// lookUp finds a value that is no section of its own.
func lookUp(in any, path []string) (value any, found bool) {
	if section, ok := in.(map[string]any); ok {
		if len(path) == 0 {
			return nil, false
		}
		value, found := section[path[0]]
		if !found {
			return nil, false
		}
		return lookUp(value, path[1:])
	}
	return in, len(path) == 0
}
