package events

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

func TestEveryCodeHasARowInTheTable(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]string{} // value → name of the constant
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		literal, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			t.Fatalf("%s is no string literal", spec.Names[0])
		}
		value, err := strconv.Unquote(literal.Value)
		if err != nil {
			t.Fatal(err)
		}
		declared[value] = spec.Names[0].Name
		return true
	})
	for value, name := range declared {
		if _, ok := LookupCode(value); !ok {
			t.Errorf("got no row for %s (%s), want one in the table", name, value)
		}
	}
	if got, want := len(Codes()), len(declared); got != want {
		t.Errorf("got %d rows, want one for each of the %d constants", got, want)
	}
}

func TestRowsOfCodesAreComplete(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range Codes() {
		if seen[c.Name] {
			t.Errorf("%s: got two rows, want one", c.Name)
		}
		seen[c.Name] = true
		if len(c.States) == 0 || !strings.HasSuffix(c.Meaning, ".") {
			t.Errorf("%s: got states %v and meaning %q, want at least one state and a sentence", c.Name, c.States, c.Meaning)
		}
		for _, s := range c.States {
			if s != Waiting && !s.Final() {
				t.Errorf("%s: got state %s, want one in which an operation waits or has ended", c.Name, s)
			}
		}
	}
	if _, ok := LookupCode("OF_A_LATER_VERSION"); ok {
		t.Error("got a row for a code that this version does not know")
	}
}
