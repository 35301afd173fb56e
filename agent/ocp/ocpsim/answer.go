package ocpsim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// Error codes of ocp-express, OCP's open sibling. OCP's own may differ; codeForbidden is published nowhere.
const (
	codeIllegalArgument  = 10001
	codeNotFound         = 10002
	codeUnexpected       = 10010
	codeNoSuchTask       = 20000
	codeTaskState        = 20003
	codeNotAuthenticated = 30000
	codeForbidden        = 30001
	codeNotAllowed       = 50002
)

// answer is the answer to a request, before a fault changes it.
type answer struct {
	status     int
	data       any      // inside the envelope
	problem    *problem // instead of data
	retryAfter string

	bare  any    // JSON without an envelope
	plain bool   // text, not JSON
	html  bool   // of a gateway
	text  string // if plain or html
}

// problem is the error of OCP's envelope.
type problem struct {
	status       int
	Code         int    `json:"code"`
	Message      string `json:"message"`
	DebugMessage string `json:"debugMessage,omitempty"`
	Target       string `json:"target,omitempty"`
}

// envelope is around every JSON answer. Data is absent where there is none, as in subtasks-skip.json.
type envelope struct {
	Data       any      `json:"data,omitempty"`
	Error      *problem `json:"error,omitempty"`
	Duration   int64    `json:"duration"` // in milliseconds
	Server     string   `json:"server"`
	Status     int      `json:"status"`
	Successful bool     `json:"successful"`
	Timestamp  string   `json:"timestamp"`
	TraceID    string   `json:"traceId"`
}

// page is a list's data; servers and zones come without page information.
type page struct {
	Contents any       `json:"contents"`
	Page     *pageInfo `json:"page,omitempty"`
}

type pageInfo struct {
	Number        int `json:"number"`
	Size          int `json:"size"`
	TotalElements int `json:"totalElements"`
	TotalPages    int `json:"totalPages"`
}

func succeed(data any) answer { return answer{status: http.StatusOK, data: data} }

func refuse(p *problem) answer { return answer{status: p.status, problem: p} }

func illegalArgument(err error) *problem {
	return &problem{status: http.StatusBadRequest, Code: codeIllegalArgument, Message: "illegal argument: " + err.Error()}
}

func notFound(what, id string) *problem {
	return &problem{status: http.StatusNotFound, Code: codeNotFound, Message: fmt.Sprintf("%s %s not found", what, id), Target: what}
}

func noSuchTask(what, id string) *problem {
	return &problem{status: http.StatusNotFound, Code: codeNoSuchTask, Message: fmt.Sprintf("no such %s: %s", what, id), Target: what}
}

func notAllowed(format string, args ...any) *problem {
	return &problem{status: http.StatusConflict, Code: codeNotAllowed, Message: "operation not allowed: " + fmt.Sprintf(format, args...)}
}

// codeOfStatus is the code that goes with a status that a fault asks for.
func codeOfStatus(status int) int {
	switch status {
	case http.StatusBadRequest:
		return codeIllegalArgument
	case http.StatusUnauthorized:
		return codeNotAuthenticated
	case http.StatusForbidden:
		return codeForbidden
	case http.StatusNotFound:
		return codeNotFound
	case http.StatusConflict:
		return codeNotAllowed
	}
	return codeUnexpected
}

// gatewayPage is the page with which nginx answers in the place of OCP.
func gatewayPage(status int) answer {
	status = cmp.Or(status, http.StatusBadGateway)
	title := fmt.Sprintf("%d %s", status, http.StatusText(status))
	return answer{status: status, html: true, text: "<html>\r\n<head><title>" + title + "</title></head>\r\n<body>\r\n<center><h1>" +
		title + "</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"}
}

// newEnvelope is an answer's envelope but for what the answer puts in.
func (s *Sim) newEnvelope(took time.Duration) envelope {
	s.mu.Lock()
	defer s.mu.Unlock()
	return envelope{
		Duration:  took.Milliseconds(),
		Server:    ocpServer,
		Timestamp: stamp(s.now()),
		TraceID:   fmt.Sprintf("%016x", s.rand.Uint64()),
	}
}

func (a answer) body(e envelope) []byte {
	if a.plain || a.html {
		return []byte(a.text)
	}
	e.Data, e.Error, e.Status, e.Successful = a.data, a.problem, a.status, a.problem == nil
	var what any = e
	if a.bare != nil {
		what = a.bare
	}
	body, err := json.Marshal(what)
	if err != nil {
		panic(fmt.Sprintf("ocpsim: own answer does not marshal: %v", err)) // our own structs: cannot happen
	}
	return body
}

func (a answer) contentType() string {
	switch {
	case a.html:
		return "text/html"
	case a.plain:
		return "text/plain;charset=UTF-8"
	}
	return "application/json"
}

// stamp writes a time as OCP does: milliseconds without trailing zeros, the offset in hours and minutes.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.In(ocpZone()).Format("2006-01-02T15:04:05.999-07:00")
}

// stampSecond is stamp for the fields that OCP keeps in whole seconds.
func stampSecond(t time.Time) string { return stamp(t.Truncate(time.Second)) }
