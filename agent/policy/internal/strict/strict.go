// Package strict decodes YAML files that people write by hand and machines act on, and
// lists everything that is wrong with one, each fault with its place and what to do.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// MaxFileBytes is the largest size of a policy or of a file of policy tests.
const MaxFileBytes = 1 << 20

// Limits of what the parser is given: its time grows with the square of both.
const (
	maxNesting = 32   // in one line
	maxNames   = 1000 // in a row, without an entry of a list between them
)

// Document is a YAML file that is being decoded, with the faults found so far.
//
// The decoder is stricter than YAML: unknown and repeated names, nulls, anchors, aliases
// and tags are faults. People who read a policy at night must not have to know more YAML
// than lists and names, and a typing error must not switch a rule off.
type Document struct {
	file    string
	faults  Faults
	advise  func(of any, err error) string // says what a type objects to; nil: as the type does
	anyText bool                           // a number is taken as text, as Alertmanager's types do
}

// Checked is a value that can check itself as a whole, beyond the type of each field. Fault
// says what is wrong and what to do; it is empty if nothing is wrong.
type Checked interface{ Fault() string }

// Shorthand is a struct that people may also write as one word. The word is decoded into
// the value that Short points to.
type Shorthand interface{ Short() any }

// unmarshaler is implemented by Alertmanager's types and by our own scalar types: they ask
// for a plain value and convert it.
type unmarshaler interface {
	UnmarshalYAML(unmarshal func(any) error) error
}

// errFaulty means that the faults are on the list already.
var errFaulty = errors.New("faulty")

// ReadFile reads a file, but no more of it than shows that it is too large.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// One byte more than allowed shows that there are too many.
	return io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
}

// Decode reads content into the struct that into points to. Fields that content does not
// name keep their values. Faults call the content file. advise, if not nil, words the errors
// of types that decode themselves.
func Decode(file string, content []byte, into any, advise func(of any, err error) string) *Document {
	d := &Document{file: file, advise: advise}
	if node := d.parse(content); node != nil {
		d.value(node, reflect.ValueOf(into).Elem())
	}
	return d
}

// Faultf adds a fault.
func (d *Document) Faultf(at Position, format string, args ...any) {
	d.faults = append(d.faults, Fault{d.file, at.Line, at.Column, fmt.Sprintf(format, args...)})
}

// Err returns all faults found so far, as Faults; nil if there are none.
func (d *Document) Err() error {
	if len(d.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b Fault) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return d.faults
}

// parse returns the document's body; nil if there is none.
func (d *Document) parse(content []byte) ast.Node {
	start := Position{1, 1}
	content = bytes.TrimPrefix(content, []byte("\ufeff")) // some editors write it
	switch {
	case len(content) > MaxFileBytes:
		d.Faultf(start, "the file is larger than %d bytes; shorten it", MaxFileBytes)
		return nil
	case !utf8.Valid(content):
		line := 1 + strings.Count(string(content[:invalid(content)]), "\n")
		d.Faultf(Position{line, 1}, "not UTF-8; save the file in that encoding")
		return nil
	}
	tokens := lexer.Tokenize(string(content))
	if d.unusual(tokens); len(d.faults) > 0 {
		return nil
	}
	// The parser would stop at the first name that is there twice.
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		at, message := start, err.Error()
		if syntax, ok := errors.AsType[yaml.Error](err); ok {
			at, message = positionOf(syntax.GetToken()), syntax.GetMessage()
		}
		d.Faultf(at, "not YAML: %s; mend it", strings.ReplaceAll(message, "\n", " "))
		return nil
	}
	var bodies []ast.Node
	for _, doc := range f.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.CommentType {
			bodies = append(bodies, doc.Body)
		}
	}
	switch {
	case len(bodies) == 0:
		// A file that is being written is empty for a moment.
		d.Faultf(start, "the file says nothing; write {} if that is meant")
		return nil
	case len(bodies) > 1:
		d.Faultf(positionOf(bodies[1].GetToken()), "a second document; a file holds one")
	}
	return bodies[0]
}

func invalid(content []byte) int {
	for i := 0; i < len(content); {
		r, size := utf8.DecodeRune(content[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(content)
}

// unusual finds YAML that is not allowed here, before the parser spends time on it.
func (d *Document) unusual(tokens token.Tokens) {
	depth, entries, names, line := 0, 0, 0, 0
	for _, t := range tokens {
		at := positionOf(t)
		if at.Line != line {
			entries, line = 0, at.Line
		}
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			d.Faultf(at, "anchors, aliases and merges have no place here; write the value out")
		case token.TagType:
			d.Faultf(at, "tags have no place here; leave %.20q out", t.Value)
		case token.MappingKeyType:
			d.Faultf(at, "a name that begins with ? has no place here; write name: value")
		case token.DirectiveType:
			d.Faultf(at, "directives have no place here; leave the line out")
		case token.SequenceEntryType:
			entries++
			names = 0
		case token.MappingValueType:
			if depth == 0 {
				names++
			}
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		}
		if depth+entries > maxNesting {
			d.Faultf(at, "nested deeper than %d; nothing here needs that", maxNesting)
			return
		}
		if names > maxNames {
			d.Faultf(at, "more than %d names; nothing here has so many", maxNames)
			return
		}
	}
}

// value reads node into v and reports whether it found no fault.
func (d *Document) value(node ast.Node, v reflect.Value) bool {
	before := len(d.faults)
	at := place(node)
	if node.Type() == ast.NullType {
		d.Faultf(at, "no value; give one or leave the line out")
		return false
	}
	switch custom := v.Addr().Interface().(type) {
	case *Word:
		custom.At = at
		d.scalar(node, reflect.ValueOf(&custom.Text).Elem())
		if custom.Text == "" && len(d.faults) == before {
			d.Faultf(at, "is empty; write a name")
		}
		return len(d.faults) == before
	case unmarshaler:
		d.custom(node, custom)
		return len(d.faults) == before
	}
	if s, ok := v.Addr().Interface().(Shorthand); ok && isScalar(node) {
		d.value(node, reflect.ValueOf(s.Short()).Elem())
		mark(v, at)
		d.check(v, at, before)
		return len(d.faults) == before
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(node, v.Elem())
	case reflect.Struct:
		d.mapping(node, v)
	case reflect.Slice:
		d.sequence(node, v)
	case reflect.Map:
		d.names(node, v)
	default:
		d.scalar(node, v)
	}
	d.check(v, at, before)
	return len(d.faults) == before
}

// check lets a value without faults check itself.
func (d *Document) check(v reflect.Value, at Position, before int) {
	if c, ok := v.Addr().Interface().(Checked); ok && len(d.faults) == before {
		if fault := c.Fault(); fault != "" {
			d.Faultf(at, "%s", fault)
		}
	}
}

func isScalar(node ast.Node) bool {
	_, scalar := node.(ast.ScalarNode)
	return scalar
}

// custom lets a type convert itself from a plain value, and reports its error as a fault.
func (d *Document) custom(node ast.Node, u unmarshaler) {
	outer := d.anyText
	defer func() { d.anyText = outer }()
	d.anyText = true
	err := u.UnmarshalYAML(func(into any) error {
		if !d.value(node, reflect.ValueOf(into).Elem()) {
			return errFaulty
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFaulty) {
		fault := err.Error()
		if d.advise != nil {
			fault = d.advise(u, err)
		}
		d.Faultf(place(node), "%s", fault)
	}
}

func (d *Document) mapping(node ast.Node, v reflect.Value) {
	m, ok := pairs(node)
	if !ok {
		d.Faultf(place(node), "must be names with values (%s), is %s", strings.Join(fieldNames(v.Type()), ", "), kindOf(node))
		return
	}
	fields := map[string]reflect.StructField{}
	mark(v, place(node))
	for _, f := range reflect.VisibleFields(v.Type()) {
		if name := FieldName(f); name != "" {
			fields[name] = f
		}
	}
	said := map[string]bool{}
	for key, value := range d.each(m) {
		field, ok := fields[key.Text]
		if !ok {
			d.Faultf(key.At, "unknown name %.60q; here may be: %s", key.Text, strings.Join(fieldNames(v.Type()), ", "))
			continue
		}
		said[key.Text] = true
		if into := v.FieldByIndex(field.Index); d.value(value, into) {
			d.inRange(value, into, field)
		}
	}
	for _, name := range fieldNames(v.Type()) { // in their order
		if !said[name] && fields[name].Tag.Get("required") == "true" {
			d.Faultf(place(node), "%s is missing; add it", name)
		}
	}
}

func mark(v reflect.Value, at Position) {
	if field := v.FieldByName("At"); field.IsValid() {
		*field.Addr().Interface().(*Position) = at
	}
}

// inRange checks a number against the tags of its field.
func (d *Document) inRange(node ast.Node, v reflect.Value, f reflect.StructField) {
	least, most := f.Tag.Get("min"), f.Tag.Get("max")
	if least == "" {
		return
	}
	n := reflect.Indirect(v).Int()
	atLeast, _ := strconv.ParseInt(least, 10, 64) // of this program's tags, as are all below
	if n < atLeast {
		d.Faultf(place(node), "must be at least %s, is %d", least, n)
	}
	if atMost, err := strconv.ParseInt(most, 10, 64); err == nil && n > atMost {
		d.Faultf(place(node), "must be at most %s, is %d", most, n)
	}
}

// each iterates over the names of a mapping. A name that is there twice is a fault, and is
// yielded once.
func (d *Document) each(m []*ast.MappingValueNode) func(func(Word, ast.Node) bool) {
	return func(yield func(Word, ast.Node) bool) {
		seen := map[string]Position{}
		for _, pair := range m {
			key := Word{pair.Key.GetToken().Value, positionOf(pair.Key.GetToken())}
			if first, twice := seen[key.Text]; twice {
				d.Faultf(key.At, "%.60q is there twice, first in line %d; leave one out", key.Text, first.Line)
				continue
			}
			seen[key.Text] = key.At
			if !yield(key, pair.Value) {
				return
			}
		}
	}
}

// place returns where a node begins. The token of names with values is their first colon,
// which is no place that people look at.
func place(node ast.Node) Position {
	if m, ok := pairs(node); ok && len(m) > 0 {
		if flow, ok := node.(*ast.MappingNode); !ok || !flow.IsFlowStyle {
			return positionOf(m[0].Key.GetToken())
		}
	}
	return positionOf(node.GetToken())
}

func pairs(node ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

func (d *Document) sequence(node ast.Node, v reflect.Value) {
	n, ok := node.(*ast.SequenceNode)
	if !ok {
		d.Faultf(place(node), "must be a list ([a, b], or lines that begin with -), is %s", kindOf(node))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Values), len(n.Values)))
	for i, entry := range n.Values {
		d.value(entry, v.Index(i))
	}
}

// names reads a mapping that may have any names.
func (d *Document) names(node ast.Node, v reflect.Value) {
	m, ok := pairs(node)
	if !ok {
		d.Faultf(place(node), "must be names with values, is %s", kindOf(node))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for key, value := range d.each(m) {
		element := reflect.New(v.Type().Elem()).Elem()
		if d.value(value, element) {
			v.SetMapIndex(reflect.ValueOf(key.Text), element)
		}
	}
}

func (d *Document) scalar(node ast.Node, v reflect.Value) {
	at := place(node)
	text, isText := node.GetToken().Value, false
	switch n := node.(type) {
	case *ast.StringNode:
		text, isText = n.Value, true
	case *ast.LiteralNode:
		text, isText = n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		isText = d.anyText
	}
	switch v.Kind() {
	case reflect.String:
		switch {
		case isText:
			v.SetString(text)
		case isScalar(node):
			d.Faultf(at, "must be text, is %s; put it in quotes", kindOf(node))
		default:
			d.Faultf(at, "must be text, is %s", kindOf(node))
		}
	case reflect.Bool:
		if node.Type() != ast.BoolType {
			d.Faultf(at, "must be true or false, is %s", kindOf(node))
			return
		}
		v.SetBool(strings.EqualFold(text, "true"))
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if node.Type() != ast.IntegerType || err != nil {
			d.Faultf(at, "must be a whole number, is %s", kindOf(node))
			return
		}
		v.SetInt(n)
	default:
		panic(fmt.Sprintf("decode into %s", v.Type())) // a fault of this program, which every test of the decoder shows
	}
}

// kindOf says what a node is, in words for the person who wrote it.
func kindOf(node ast.Node) string {
	text := node.GetToken().Value
	switch node.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "names with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.StringNode:
		return fmt.Sprintf("the text %.60q", text)
	}
	return fmt.Sprintf("%.60s", text)
}

// FieldName returns the name that a field has in a file; empty if it has none.
func FieldName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return name
}

// fieldNames returns the names that the fields of a struct have in a file.
func fieldNames(t reflect.Type) []string {
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		if name := FieldName(f); name != "" {
			names = append(names, name)
		}
	}
	return names
}
