package policy

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/alertmanager/timeinterval"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/obwarden/obwarden/agent/policy/internal/strict"
	"github.com/obwarden/obwarden/events"
)

var update = flag.Bool("update", false, "write the JSON Schema anew")

// The schema is made from the types that files are decoded into, so that neither has
// a field that the other has not.
func TestTheSchemaIsWhatTheCodeSays(t *testing.T) {
	t.Parallel()
	schema := schemaOf(t, reflect.TypeFor[policyFile](), "")
	schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	schema["title"] = "obwarden policy"
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(schema); err != nil {
		t.Fatal(err)
	}
	if want.String() == SchemaFile() {
		return
	}
	if !*update {
		t.Fatal("policy.schema.json is not what the code says, run: go test ./agent/policy -run Schema -update")
	}
	if err := os.WriteFile("policy.schema.json", want.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

type object = map[string]any

const (
	durationPattern = `^([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$`
	rangePattern    = `^-?[0-9]+(:-?[0-9]+)?$`
)

// schemaOf is a type's schema. What a scalar looks like is said here.
func schemaOf(t *testing.T, of reflect.Type, tag reflect.StructTag) object {
	t.Helper()
	var s object
	switch of {
	case reflect.TypeFor[keepZones]():
		s = object{"oneOf": []any{object{"const": "majority"}, object{"type": "integer", "minimum": 0, "maximum": maxZones}}}
	case reflect.TypeFor[strict.Duration]():
		s = object{"oneOf": []any{object{"type": "string", "minLength": 2, "pattern": durationPattern}, object{"const": 0}, object{"const": "0"}}}
	case reflect.TypeFor[strict.Period]():
		s = object{"type": "string", "minLength": 2, "pattern": durationPattern}
	case reflect.TypeFor[strict.Text](), reflect.TypeFor[strict.Word](), reflect.TypeFor[matcherLine](),
		reflect.TypeFor[labelName](), reflect.TypeFor[reasonText](), reflect.TypeFor[alertMatcherLine](), reflect.TypeFor[silenceMatcherLine]():
		s = object{"type": "string", "minLength": 1}
	case reflect.TypeFor[strict.Kind]():
		s = object{"enum": events.Kinds()}
	case reflect.TypeFor[ifUnreachable]():
		s = object{"enum": []string{"go_on", "wait"}}
	case reflect.TypeFor[timeinterval.TimeRange]():
		clock := object{"type": "string", "pattern": `^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$`}
		s = object{"type": "object", "additionalProperties": false, "required": []string{"start_time", "end_time"}, "properties": object{"start_time": clock, "end_time": clock}}
	case reflect.TypeFor[timeinterval.WeekdayRange]():
		s = object{"type": "string", "pattern": `^[A-Za-z]+day(:[A-Za-z]+day)?$`}
	case reflect.TypeFor[timeinterval.MonthRange]():
		s = object{"type": []string{"string", "integer"}, "pattern": `^([A-Za-z]+|[0-9]+)(:([A-Za-z]+|[0-9]+))?$`}
	case reflect.TypeFor[timeinterval.DayOfMonthRange](), reflect.TypeFor[timeinterval.YearRange]():
		s = object{"type": []string{"string", "integer"}, "pattern": rangePattern}
	case reflect.TypeFor[timeinterval.Location]():
		s = object{"type": "string"}
	default:
		s = schemaOfKind(t, of, tag)
	}
	if doc := tag.Get("doc"); doc != "" {
		s["description"] = doc
	}
	return s
}

func schemaOfKind(t *testing.T, of reflect.Type, tag reflect.StructTag) object {
	t.Helper()
	switch of.Kind() {
	case reflect.Pointer:
		return schemaOf(t, of.Elem(), tag)
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int:
		least, err := strconv.Atoi(tag.Get("min"))
		most, err2 := strconv.Atoi(tag.Get("max"))
		if err != nil || err2 != nil {
			t.Fatalf("%s: a number needs min and max", tag)
		}
		return object{"type": "integer", "minimum": least, "maximum": most}
	case reflect.Slice:
		s := object{"type": "array", "items": schemaOf(t, of.Elem(), "")}
		if c, ok := reflect.Zero(of).Interface().(strict.Checked); ok && c.Fault() != "" { // objects to no entries
			s["minItems"] = 1
		}
		return s
	case reflect.Struct:
		properties := object{}
		var required []string
		for _, f := range reflect.VisibleFields(of) {
			name := strict.FieldName(f)
			if name == "" {
				continue
			}
			if f.Tag.Get("doc") == "" && !strings.HasPrefix(of.PkgPath(), "github.com/") {
				t.Errorf("%s.%s has no doc", of, f.Name)
			}
			properties[name] = schemaOf(t, f.Type, f.Tag)
			if f.Tag.Get("required") == "true" {
				required = append(required, name)
			}
		}
		s := object{"type": "object", "additionalProperties": false, "properties": properties}
		if required != nil {
			s["required"] = required
		}
		return s
	}
	t.Fatalf("%s: say in schemaOf how it is written", of)
	return nil
}

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(SchemaFile()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("policy.schema.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func validate(t *testing.T, schema *jsonschema.Schema, content []byte) error {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON(content)
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	return schema.Validate(value)
}

// What Load takes an editor must not underline.
func TestTheSchemaTakesWhatLoadTakes(t *testing.T) {
	t.Parallel()
	schema := compiledSchema(t)
	files, err := filepath.Glob("../../deploy/policy/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, ".test.yaml") })
	if len(files) == 0 {
		t.Error("no example of a policy")
	}
	for _, file := range append(files, "policy.yaml") {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(file, content); err != nil {
			t.Error(err)
		}
		if err := validate(t, schema, content); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	for _, content := range []string{"{}", "defaults: {cooldown: {server: 0, zone: 1h30m}, keep_zones: 0}", saysMuch} {
		if _, err := Parse("policy.yaml", []byte(content)); err != nil {
			t.Error(err)
		}
		if err := validate(t, schema, []byte(content)); err != nil {
			t.Errorf("%s: %v", content, err)
		}
	}
}

// What is wrong in form an editor must underline.
func TestTheSchemaRefusesWhatIsWrongInForm(t *testing.T) {
	t.Parallel()
	schema := compiledSchema(t)
	for _, content := range []string{
		"max_concurrent: 1",
		"defaults: {max_concurent: 1}",
		"defaults: {max_concurrent: 0}",
		"defaults: {max_concurrent: '1'}",
		"defaults: {keep_zones: most}",
		"defaults: {keep_zones: -1}",
		"defaults: {supersede: 'no'}",
		"defaults: {max_wait: 10}",
		"defaults: {max_wait: 1.5h}",
		"defaults: {budget: {operations: 501}}",
		"defaults: {cooldown: {servers: 1m}}",
		"defaults: {windows: {allow: night}}",
		"fleet_budget: {window: 0}",
		"deny: [{reason: x}]",
		"deny: [{matchers: [], reason: x}]",
		"deny: [{matchers: ['kind=\"stop\"']}]",
		"approvals: [{matchers: ['kind=\"stop\"'], approvers: [1]}]",
		"overrides: [{max_concurrent: 2}]",
		"overrides: [{matchers: ['a=b'], max_concurrent: 2, reason: x}]",
		"time_intervals: [{name: night, time_intervals: []}]",
		"time_intervals: [{name: night, time_intervals: [{times: [{start_time: '25:00', end_time: '26:00'}]}]}]",
		"time_intervals: [{name: night, time_intervals: [{hours: []}]}]",
	} {
		if _, err := Parse("policy.yaml", []byte(content)); err == nil {
			t.Errorf("Parse takes %s", content)
		}
		if err := validate(t, schema, []byte(content)); err == nil {
			t.Errorf("the schema takes %s", content)
		}
	}
}
