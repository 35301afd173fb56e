package ocp

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// Envelope is the frame that OCP puts around its answers.
type Envelope struct {
	Data      json.RawMessage // nil: none
	Timestamp time.Time       // OCP's clock; zero if absent or without an offset
	TraceID   string

	status int // HTTP
}

// wireEnvelope is the documented envelope together with the fields that a Spring
// application answers with if OCP's own error handling did not run.
type wireEnvelope struct {
	Data       json.RawMessage `json:"data"`
	Successful word            `json:"successful"`
	Timestamp  text            `json:"timestamp"`
	Status     integer         `json:"status"`
	TraceID    text            `json:"traceId"`
	Error      wireError       `json:"error"`
	Message    text            `json:"message"`
}

type wireError struct {
	Code         integer `json:"code"`
	Message      text    `json:"message"`
	DebugMessage text    `json:"debugMessage"`
	SubErrors    []struct {
		Message      text `json:"message"`
		DebugMessage text `json:"debugMessage"`
	} `json:"subErrors"`
}

func (e *wireError) UnmarshalJSON(data []byte) error {
	type plain wireError
	if e.Message = text(scalar(data)); e.Message != "" {
		return nil
	}
	return decode(data, (*plain)(e))
}

// DecodeEnvelope takes apart the answer to a call. Its error is an *Error with the class of
// the failure and everything that the answer says about it:
//
//   - status 2xx with successful true, or without successful but with data: no error.
//   - status 2xx with successful false: Refused. Status is then the envelope's status if
//     that is an error, else the one that belongs to OCP's code, else 200. From 500 on,
//     the class is Ambiguous.
//   - any other status: by the status alone, 4xx Refused except for 408, 425, 429 and
//     499; all others Ambiguous.
//   - anything else: Ambiguous.
func DecodeEnvelope(status int, body []byte) (Envelope, error) {
	var wire wireEnvelope
	if !isObject(body) || decode(body, &wire) != nil {
		return Envelope{}, &Error{
			Class:   classOfStatus(status),
			Status:  status,
			Excerpt: printable(string(body), maxExcerptBytes),
			Err:     unreadable(status),
		}
	}
	envelope := Envelope{Data: wire.Data, status: status, TraceID: printable(string(wire.TraceID), maxTraceBytes)}
	if isNull(envelope.Data) {
		envelope.Data = nil
	}
	// A time without an offset would put the clock off by hours, so it counts as absent.
	if t, err := time.Parse(time.RFC3339, string(wire.Timestamp)); err == nil {
		envelope.Timestamp = orNever(t)
	}
	failure := &Error{
		Class:   classOfStatus(status),
		Status:  status,
		Code:    wire.Error.Code.count(),
		Message: printable(wire.message(), maxMessageBytes),
		TraceID: envelope.TraceID,
	}
	switch {
	case status/100 == 3:
		failure.Err = errRedirect
	case status/100 != 2:
	case wire.Successful == "FALSE":
		failure.Status = wire.failedStatus(status)
		failure.Class = Refused
		if failure.Status >= 500 { // OCP itself says that it broke: nobody knows how far it came
			failure.Class = Ambiguous
		}
	case wire.Successful != "TRUE" && envelope.Data == nil:
		failure.Err = errNoVerdict
	default:
		return envelope, nil
	}
	return envelope, failure
}

func unreadable(status int) error {
	if status/100 == 3 {
		return errRedirect
	}
	return errUnreadable
}

// message returns the first text that says anything; some are null (observed).
func (w wireEnvelope) message() string {
	texts := []text{w.Error.Message, w.Error.DebugMessage}
	for _, sub := range w.Error.SubErrors[:min(1, len(w.Error.SubErrors))] {
		texts = append(texts, sub.Message, sub.DebugMessage)
	}
	for _, t := range append(texts, w.Message) {
		if t != "" && !strings.EqualFold(string(t), "null") {
			return string(t)
		}
	}
	return ""
}

// failedStatus returns the status of a failure inside an HTTP success. The codes are those
// of ocp-express (observed); OCP's may differ, so they come last.
func (w wireEnvelope) failedStatus(status int) int {
	if w.Status >= 400 && w.Status <= 599 {
		return w.Status.count()
	}
	switch w.Error.Code {
	case 10001:
		return http.StatusBadRequest
	case 30000:
		return http.StatusUnauthorized
	case 10002, 20000:
		return http.StatusNotFound
	case 50002:
		return http.StatusConflict
	}
	return status
}

func isObject(data []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) }

func isNull(data []byte) bool {
	data = bytes.TrimSpace(data)
	return len(data) == 0 || bytes.Equal(data, []byte("null"))
}
