package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/obwarden/obwarden/events"
)

// cleanText makes text from elsewhere safe to print: characters that a terminal would take for a command (escape
// sequences, other controls, marks that reverse the direction of writing) become U+FFFD. Newlines stay.
func cleanText(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case r == '\t':
			return ' '
		case r == utf8.RuneError, unicode.IsControl(r), unicode.Is(unicode.Cf, r), r == '\u2028', r == '\u2029':
			return utf8.RuneError
		}
		return r
	}, s)
}

// cleanLine is cleanText in one line.
func cleanLine(s string) string {
	return strings.Join(strings.FieldsFunc(cleanText(strings.ReplaceAll(s, "\r\n", "\n")), func(r rune) bool { return r == '\n' }), " ")
}

// cleaned is op with all its texts made safe to print. Names and messages become single lines; a log keeps its lines.
func cleaned(op events.Operation) events.Operation {
	return cleanValue(reflect.ValueOf(op), cleanLine).Interface().(events.Operation)
}

func cleanValue(v reflect.Value, clean func(string) string) reflect.Value {
	switch v.Kind() {
	case reflect.String:
		return reflect.ValueOf(clean(v.String())).Convert(v.Type())
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		p := reflect.New(v.Type().Elem())
		p.Elem().Set(cleanValue(v.Elem(), clean))
		return p
	case reflect.Slice:
		if v.IsNil() {
			return v
		}
		s := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			s.Index(i).Set(cleanValue(v.Index(i), clean))
		}
		return s
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		m := reflect.MakeMapWithSize(v.Type(), v.Len())
		for _, key := range v.MapKeys() {
			m.SetMapIndex(cleanValue(key, clean), cleanValue(v.MapIndex(key), clean))
		}
		return m
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return v
		}
		s := reflect.New(v.Type()).Elem()
		for i := range v.NumField() {
			clean := clean
			if v.Type().Field(i).Name == "Log" {
				clean = func(s string) string { return cleanText(strings.NewReplacer("\r\n", "\n", "\t", "    ").Replace(s)) }
			}
			s.Field(i).Set(cleanValue(v.Field(i), clean))
		}
		return s
	}
	return v
}

// runeWidth is the number of columns that a terminal gives r.
func runeWidth(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana),
		r >= 0x3000 && r <= 0x303f, r >= 0xff01 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6,
		r >= 0x1f300 && r <= 0x1faff:
		return 2
	}
	return 1
}

func textWidth(s string) int {
	w := 0
	for _, r := range s {
		w += runeWidth(r)
	}
	return w
}

// cut shortens s to at most width columns, with … at its end if something is missing.
func cut(s string, width int) string {
	if textWidth(s) <= width {
		return s
	}
	var b strings.Builder
	w := 0
	for _, r := range s {
		if w+runeWidth(r) > width-1 {
			break
		}
		w += runeWidth(r)
		b.WriteRune(r)
	}
	if width < 1 {
		return ""
	}
	return strings.TrimRight(b.String(), " ") + "…"
}

// cutMiddle shortens a line of a log in its middle: its beginning says when, its end says what happened.
func cutMiddle(s string, width int) string {
	const when = 30 // columns: time and level
	if textWidth(s) <= width {
		return s
	}
	head := cut(s, min(when, 2*width/5))
	runes := []rune(s)
	from, left := len(runes), width-textWidth(head)
	for from > 0 && left >= runeWidth(runes[from-1]) {
		from--
		left -= runeWidth(runes[from])
	}
	return head + string(runes[from:])
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-textWidth(s)))
}

func padLeft(s string, width int) string {
	return strings.Repeat(" ", max(0, width-textWidth(s))) + s
}

// wrap breaks s into lines of at most width columns, between words if possible.
func wrap(s string, width int) []string {
	var lines []string
	line, used := "", 0
	flush := func() { lines, line, used = append(lines, line), "", 0 }
	for word := range strings.FieldsSeq(s) {
		if used > 0 && used+1+textWidth(word) > width {
			flush()
		}
		if used > 0 {
			line, used = line+" ", used+1
		}
		for _, r := range word {
			if used+runeWidth(r) > width {
				flush()
			}
			line, used = line+string(r), used+runeWidth(r)
		}
	}
	if used > 0 || len(lines) == 0 {
		flush()
	}
	return lines
}

// shortDuration is a duration in the resolution that a person can use: 0.4s, 12.3s, 1m05s, 2h07m, 3d04h.
func shortDuration(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// wholeDuration is shortDuration without tenths of seconds, for ages and running clocks.
func wholeDuration(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%ds", int(max(d, 0).Seconds()))
	}
	return shortDuration(d)
}

// clockTime is the time of an event in the reader's time zone, with the date unless it is today.
func clockTime(t, now time.Time) string {
	t = t.In(now.Location())
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("Jan 02 15:04:05")
}
