package ocp

import "strings"

// taskContext is the context that a task was started with: a string as Java prints it, or
// an object (both documented).
type taskContext struct {
	strings map[string]string
	lists   map[string][]string
}

func (c *taskContext) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		c.strings, c.lists = ParseContext(scalar(data))
		return nil
	}
	var object struct {
		Strings map[string]text   `json:"stringMap"`
		Lists   map[string][]text `json:"listMap"`
	}
	if decode(data, &object) != nil {
		return nil
	}
	c.strings, c.lists = map[string]string{}, map[string][]string{}
	for name, value := range object.Strings {
		c.strings[name] = string(value)
	}
	for name, values := range object.Lists {
		for _, value := range values {
			c.lists[name] = append(c.lists[name], string(value))
		}
	}
	return nil
}

// serverIDs returns the servers that the task works on, each once.
func (c taskContext) serverIDs() []int64 {
	var ids []int64
	seen := map[int64]bool{}
	for _, value := range append(c.lists["server_ids"], c.strings["server_id"]) {
		if id := parseInteger(value); id > 0 && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// ParseContext takes apart the context of a task that OCP wrote as a string:
//
//	Context(parallelIdx=-1, stringMap={zone_name=zone2, server_id=3}, listMap={server_ids=[3]})
//
// The text quotes nothing, so values with commas, equals signs or brackets are a guess:
// text that cannot start a new entry belongs to the value before it. ParseContext never
// fails and keeps as much as it can.
func ParseContext(s string) (stringMap map[string]string, listMap map[string][]string) {
	stringMap = entries(section(s, "stringMap={"))
	listMap = map[string][]string{}
	for name, value := range entries(section(s, "listMap={")) {
		value = strings.TrimSuffix(strings.TrimPrefix(value, "["), "]")
		for _, item := range split(value) {
			if item = strings.TrimSpace(item); item != "" {
				listMap[name] = append(listMap[name], item)
			}
		}
	}
	return stringMap, listMap
}

// section returns the text between opening and its closing brace, or the rest of a text
// that was cut off.
func section(s, opening string) string {
	_, s, _ = strings.Cut(s, opening)
	depth := 1
	for i := range len(s) {
		switch s[i] {
		case '{':
			depth++
		case '}':
			depth--
		}
		if depth == 0 {
			return s[:i]
		}
	}
	return s
}

// entries reads "name=value, name=value".
func entries(s string) map[string]string {
	values := map[string]string{}
	var name string
	var value []string // the parts of name's value so far
	for _, part := range split(s) {
		next, rest, found := strings.Cut(part, "=")
		next = strings.TrimSpace(next)
		// A map has each name once: a second one is part of a value.
		if _, taken := values[next]; !found || !isName(next) || taken {
			value = append(value, part)
			continue
		}
		values[name] = strings.Join(value, ",")
		values[next] = ""
		name, value = next, []string{rest}
	}
	values[name] = strings.Join(value, ",")
	delete(values, "") // text before the first name
	return values
}

func isName(s string) bool {
	for _, r := range s {
		if r != '_' && r != '-' && r != '.' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
			return false
		}
	}
	return s != ""
}

// split cuts at the commas outside of brackets, or at all commas if the brackets do not
// pair up.
func split(s string) []string {
	var parts []string
	depth, start := 0, 0
	for i := range len(s) {
		switch s[i] {
		case '{', '[', '(':
			depth++
		case '}', ']', ')':
			depth--
		case ',':
			if depth == 0 {
				parts = append(parts, s[start:i])
				start = i + 1
			}
		}
		if depth < 0 {
			break
		}
	}
	if depth != 0 {
		return strings.Split(s, ",")
	}
	return append(parts, s[start:])
}
