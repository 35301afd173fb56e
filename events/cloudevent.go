package events

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// headers looks up names in any letter case: NATS keeps the case that the publisher wrote,
// and publishers differ. If a message has several spellings of a name, get chooses the same
// one each time, because a key must not change between two deliveries.
type headers nats.Header

func (h headers) get(name string) string {
	if values := nats.Header(h).Values(name); len(values) > 0 {
		return values[0]
	}
	for _, key := range slices.Sorted(maps.Keys(h)) {
		if strings.EqualFold(key, name) && len(h[key]) > 0 {
			return h[key][0]
		}
	}
	return ""
}

// envelope has the attributes of a CloudEvent that the agent uses. If the message is no
// CloudEvent, id is empty.
type envelope struct {
	id, traceparent string
}

// openCloudEvent returns the JSON of the request in a message. The message is plain, or a
// CloudEvent 1.0 in binary mode (attributes as ce- headers) or in structured mode. A body
// with a specversion is a structured CloudEvent even without the content type, because no
// request has such a field.
func openCloudEvent(h headers, body []byte) (envelope, []byte, error) {
	contentType, _, _ := mime.ParseMediaType(h.get("Content-Type"))
	switch {
	case contentType == "application/cloudevents-batch+json":
		return envelope{}, nil, errors.New("content type: a batch of CloudEvents, send one event a message")
	case contentType == "application/cloudevents+json":
		return openStructured(body)
	case h.get("ce-specversion") != "" || h.get("ce-id") != "":
		return openBinary(h, contentType, body)
	case !slices.Contains([]string{"", "application/json", "text/plain", "application/octet-stream"}, contentType):
		return envelope{}, nil, fmt.Errorf("content type: %.64q is not application/json", contentType)
	}
	if fields, err := decodeObject(limited(body)); err == nil && fields["specversion"] != nil {
		return openStructured(body)
	}
	return envelope{}, body, nil
}

// limited is the body, or nothing if the body exceeds the limit: a body that is refused for
// its size must not be parsed first.
func limited(body []byte) []byte {
	if len(body) > MaxRequestBytes {
		return nil
	}
	return body
}

func openBinary(h headers, contentType string, body []byte) (envelope, []byte, error) {
	attribute := func(name string) string {
		value, err := url.PathUnescape(h.get("ce-" + name)) // the NATS binding percent-encodes
		if err != nil {
			return h.get("ce-" + name)
		}
		return value
	}
	e := envelope{id: attribute("id"), traceparent: attribute("traceparent")}
	if contentType != "" && !isJSON(contentType) {
		return e, nil, fmt.Errorf("content type: %.64q is not application/json", contentType)
	}
	return e, body, checkAttributes(attribute)
}

func openStructured(body []byte) (envelope, []byte, error) {
	if len(body) > MaxRequestBytes {
		return envelope{}, nil, fmt.Errorf("body: %d bytes, at most %d are allowed", len(body), MaxRequestBytes)
	}
	fields, err := decodeObject(body)
	if err != nil {
		return envelope{}, nil, fmt.Errorf("CloudEvent: %w", err)
	}
	attribute := func(name string) string {
		var s string
		if json.Unmarshal(fields[name], &s) != nil {
			return ""
		}
		return s
	}
	e := envelope{id: attribute("id"), traceparent: attribute("traceparent")}
	if err := checkAttributes(attribute); err != nil {
		return e, nil, err
	}
	if t := attribute("datacontenttype"); t != "" && !isJSON(t) {
		return e, nil, fmt.Errorf("CloudEvent datacontenttype: %.64q is not application/json", t)
	}
	switch {
	case fields["data"] != nil && fields["data_base64"] != nil:
		return e, nil, errors.New("CloudEvent: both data and data_base64 are given")
	case fields["data_base64"] != nil:
		data, err := base64.StdEncoding.DecodeString(attribute("data_base64"))
		if err != nil {
			return e, nil, errors.New("CloudEvent data_base64: not base64")
		}
		return e, data, nil
	}
	return e, fields["data"], nil
}

func checkAttributes(attribute func(string) string) error {
	var faults []error
	if v := attribute("specversion"); v != "1.0" {
		faults = append(faults, fmt.Errorf("CloudEvent specversion: %.64q, only 1.0 is understood", v))
	}
	for _, name := range []string{"id", "source", "type"} {
		if attribute(name) == "" {
			faults = append(faults, fmt.Errorf("CloudEvent %s: missing", name))
		}
	}
	return errors.Join(faults...)
}

func isJSON(contentType string) bool {
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && (mediaType == "application/json" || strings.HasSuffix(mediaType, "+json"))
}

// cloudEventHeader is the binary-mode header of an event.
func cloudEventHeader(o Operation, token State) nats.Header {
	h := nats.Header{
		"Content-Type":   {"application/json"},
		"ce-specversion": {"1.0"},
		"ce-id":          {o.EventID()},
		"ce-type":        {fmt.Sprintf("obwarden.server.%s.%s", o.Kind, token)},
		"ce-source":      {"obwarden/" + url.PathEscape(o.Agent)},
		"ce-subject":     {fmt.Sprintf("cluster/%d/server/%d", o.ClusterID, o.ServerID)},
		"ce-time":        {o.UpdatedAt.UTC().Format(time.RFC3339Nano)},
	}
	if o.Traceparent != "" {
		h["traceparent"] = []string{o.Traceparent}
	}
	return h
}
