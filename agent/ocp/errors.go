package ocp

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

var (
	errUnreadable = errors.New("the answer is not OCP's JSON")
	errNoVerdict  = errors.New("the answer has neither data nor a verdict")
	errNoTask     = errors.New("the answer has no task")
	errNoLog      = errors.New("the answer has no log")
	errTooLong    = fmt.Errorf("the answer is longer than %d MiB", maxBodyBytes>>20)
	errRedirect   = errors.New("redirects are not followed, check OCP's base URL")
	errSwitched   = errors.New("the answer switches protocols")
)

// Limits of text that comes from the network and goes into errors.
const (
	maxExcerptBytes = 200
	maxMessageBytes = 1000
	maxTraceBytes   = 64
	maxNameBytes    = 256
)

// Class says whether a failed request can have had an effect. The zero value is the careful
// one.
type Class int

// The classes.
const (
	Ambiguous Class = iota // nobody knows whether the request had an effect
	Refused                // a definite no: the request had no effect
	NotSent                // nothing of the request reached OCP
)

func (c Class) String() string {
	switch c {
	case Refused:
		return "refused"
	case NotSent:
		return "not sent"
	default:
		return "ambiguous"
	}
}

// ClassOf returns the class of an *Error in err's chain, Ambiguous for any other error.
func ClassOf(err error) Class {
	if failure, ok := errors.AsType[*Error](err); ok {
		return failure.Class
	}
	return Ambiguous
}

// classOfStatus judges an HTTP status alone, whatever the body says. 408, 425, 429 and 499
// can come from a gateway that gave up on a request after passing it on.
func classOfStatus(status int) Class {
	switch {
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly,
		status == http.StatusTooManyRequests, status == 499:
		return Ambiguous
	case status >= 400 && status < 500:
		return Refused
	default:
		return Ambiguous
	}
}

// Error is a failed call. Every error of a Client's calls is one.
type Error struct {
	Endpoint   string // short and stable, fit for a metric's label: "server_stop"
	Method     string
	Path       string // without the base URL's prefix and the query
	Class      Class
	Status     int    // HTTP status; 0: no answer. See DecodeEnvelope for a failure inside HTTP 200
	Code       int    // OCP's error code; 0: none
	Message    string // in OCP's words
	TraceID    string // OCP's support asks for it
	Excerpt    string // printable start of an answer that lacks what it should have
	RetryAfter time.Duration
	Err        error // the cause on our side of the wire
}

// Error reads `POST /api/v2/…/stop: 409: Operation not allowed (OCP code 50002, trace 139d82c5f88f42f4)`.
func (e *Error) Error() string {
	var parts []string
	if e.Path != "" {
		parts = append(parts, e.Method+" "+e.Path)
	}
	if e.Status != 0 {
		parts = append(parts, fmt.Sprint(e.Status))
	}
	if e.Message != "" {
		parts = append(parts, e.Message)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	if e.Excerpt != "" {
		parts = append(parts, fmt.Sprintf("%q", e.Excerpt))
	}
	if e.Message == "" && e.Err == nil && e.Excerpt == "" {
		parts = append(parts, http.StatusText(e.Status))
	}
	return strings.Join(parts, ": ") + e.references()
}

func (e *Error) references() string {
	var known []string
	if e.Code != 0 {
		known = append(known, fmt.Sprintf("OCP code %d", e.Code))
	}
	if e.TraceID != "" {
		known = append(known, "trace "+e.TraceID)
	}
	if known == nil {
		return ""
	}
	return " (" + strings.Join(known, ", ") + ")"
}

func (e *Error) Unwrap() error { return e.Err }

// printable returns the start of text, at most limit bytes, on one line, without characters
// that could play tricks on a terminal.
func printable(text string, limit int) string {
	// Blanks that are dropped below must not push everything else past the limit.
	text = text[:min(len(text), 16*limit)]
	var b strings.Builder
	blank := false
	for _, r := range text {
		if !unicode.IsPrint(r) || r == ' ' || r == utf8.RuneError {
			blank = b.Len() > 0
			continue
		}
		if b.Len()+utf8.RuneLen(r)+1 > limit {
			break
		}
		if blank {
			b.WriteByte(' ')
			blank = false
		}
		b.WriteRune(r)
	}
	return b.String()
}

// short cuts names that are too long for any event, and returns all others as they are.
func short(name text) string {
	if len(name) <= maxNameBytes {
		return string(name)
	}
	return printable(string(name), maxNameBytes)
}
