package ocp

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The types of this file read one JSON value each and never fail: OCP's versions write
// ids, flags and times in different ways, and a task must not be lost because one of its
// fields cannot be read.

// decode fills the fields that fit and skips fields of another type than expected. It fails
// if data is not JSON.
func decode(data []byte, into any) error {
	err := json.Unmarshal(data, into)
	if _, mistyped := errors.AsType[*json.UnmarshalTypeError](err); mistyped {
		return nil
	}
	return err
}

// scalar returns the content of a string, a number or boolean as written, and an empty
// string for null, objects and lists.
func scalar(data []byte) string {
	switch {
	case len(data) == 0 || strings.IndexByte("{[n", data[0]) >= 0:
		return ""
	case data[0] != '"':
		return string(data)
	case bytes.IndexByte(data, '\\') < 0 && utf8.Valid(data): // as nearly all strings are: nothing to decode
		return strings.TrimSpace(string(data[1 : len(data)-1]))
	}
	var s string
	if json.Unmarshal(data, &s) != nil {
		return ""
	}
	return strings.TrimSpace(s)
}

// text is a string; other scalars are kept as written.
type text string

func (t *text) UnmarshalJSON(data []byte) error {
	*t = text(scalar(data))
	return nil
}

// word is one of OCP's upper-case words: a status or an operation.
type word string

func (w *word) UnmarshalJSON(data []byte) error {
	*w = word(strings.ToUpper(scalar(data)))
	return nil
}

// named is a string, or the name of an object: creators are written both ways.
type named string

func (n *named) UnmarshalJSON(data []byte) error {
	var object struct {
		Name text `json:"name"`
	}
	if decode(data, &object) == nil && object.Name != "" {
		*n = named(object.Name)
		return nil
	}
	*n = named(scalar(data))
	return nil
}

// flag is a boolean, also as a string.
type flag bool

func (f *flag) UnmarshalJSON(data []byte) error {
	*f = flag(strings.EqualFold(scalar(data), "true"))
	return nil
}

// integer is a whole number: 20, "20" or 20.0. Anything else counts as 0.
type integer int64

func (n *integer) UnmarshalJSON(data []byte) error {
	*n = integer(parseInteger(scalar(data)))
	return nil
}

// count returns n as an int, cut to 32 bits.
func (n integer) count() int { return int(min(max(n, math.MinInt32), math.MaxInt32)) }

func parseInteger(s string) int64 {
	if whole, fraction, found := strings.Cut(s, "."); found && strings.Trim(fraction, "0") == "" {
		s = whole
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n
	}
	// It may still have an exponent (2e3). From 2^53 on a float no longer tells ids apart.
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) >= 1<<53 {
		return 0
	}
	return int64(f)
}

// moment is a point in time in UTC; zero if OCP says never or writes it in an unknown way.
type moment struct{ time.Time }

func (m *moment) UnmarshalJSON(data []byte) error {
	m.Time = parseTime(scalar(data))
	return nil
}

// parseTime reads RFC 3339 with any fraction and offset (documented). Because versions may
// differ (unknown), it also reads offsets without a colon, a space for the T, times without
// an offset (as UTC), and milliseconds since 1970.
func parseTime(s string) time.Time {
	if len(s) > 10 && s[10] == ' ' {
		s = s[:10] + "T" + s[11:]
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return orNever(t)
		}
	}
	return orNever(time.UnixMilli(parseInteger(s)))
}

// orNever returns t in UTC, or zero if t means never: OCP writes the epoch, in any zone, for
// that (documented). Years that JSON cannot carry count as never too.
func orNever(t time.Time) time.Time {
	if t = t.UTC(); t.Year() < 1971 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}
