package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
)

// Limits of a request. A request that exceeds them is refused, never cut.
const (
	MaxRequestBytes = 64 << 10
	MaxKeyBytes     = 256
	MaxReasonBytes  = 1 << 10
	MaxLabels       = 32
)

// maxDepth is how deep a body may nest. A request with labels in a CloudEvent needs 3 levels,
// and the check of a body with thousands of levels takes a second.
const maxDepth = 16

// IdempotencyKeyHeader carries the key of a request without a key in its body.
const IdempotencyKeyHeader = "Idempotency-Key"

// Request asks for one operation on one server. A Request that DecodeRequest
// returned without an error is valid.
type Request struct {
	IdempotencyKey string            `json:"idempotency_key,omitempty"`
	ClusterID      int64             `json:"cluster_id"`
	ServerID       int64             `json:"server_id"`
	Force          bool              `json:"force,omitempty"`         // OCP's force
	FreezeServer   *bool             `json:"freeze_server,omitempty"` // OCP's freezeServer
	StopType       string            `json:"stop_type,omitempty"`     // OCP's type
	Reason         string            `json:"reason,omitempty"`
	RequestedBy    string            `json:"requested_by,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	DryRun         bool              `json:"dry_run,omitempty"`
	ExpiresAt      time.Time         `json:"expires_at,omitzero"`
}

// Same reports whether two requests have the same content. The key is no part of it.
func (r Request) Same(other Request) bool {
	freeze := func(b *bool) string { return fmt.Sprint(b != nil, b != nil && *b) }
	return r.ClusterID == other.ClusterID && r.ServerID == other.ServerID &&
		r.Force == other.Force && freeze(r.FreezeServer) == freeze(other.FreezeServer) && r.StopType == other.StopType &&
		r.Reason == other.Reason && r.RequestedBy == other.RequestedBy && maps.Equal(r.Labels, other.Labels) &&
		r.DryRun == other.DryRun && r.ExpiresAt.Equal(other.ExpiresAt)
}

// Expired reports whether it is too late at now to submit r.
func (r Request) Expired(now time.Time) bool {
	return !r.ExpiresAt.IsZero() && !now.Before(r.ExpiresAt)
}

// SourceHeader says which part of obwarden published a request. A request without it comes
// from another client of NATS.
const SourceHeader = "Obwarden-Source"

// Message is the request as obwarden's own clients publish it: the subject names the target
// too, so that NATS permissions on subjects apply.
func (r Request) Message(kind Kind, source string) (*nats.Msg, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	msg := nats.NewMsg(TargetRequestSubject(kind, r.ClusterID, r.ServerID))
	msg.Header.Set("Content-Type", "application/json")
	msg.Header.Set(SourceHeader, source)
	msg.Data = body
	return msg, nil
}

// Received is a request as it came from NATS.
type Received struct {
	Kind        Kind
	Request     Request
	Traceparent string // W3C trace context, passed on; empty if there is none
	Source      string // cli, http, alertmanager, cloudevent or nats
}

// DecodeRequest reads one message of the request stream. A request without a key gets
// fallbackKey. An error tells the publisher what is wrong and where. Beside an error, the
// Received holds the parts that could be read, so that the refusal can be addressed: kind,
// key (at least fallbackKey), cluster and server.
func DecodeRequest(subject string, header nats.Header, body []byte, fallbackKey string) (Received, error) {
	h := headers(header)
	got := Received{Traceparent: traceparent(h.get("traceparent"))}
	target, subjectErr := parseRequestSubject(subject)
	got.Kind = target.kind

	envelope, data, envelopeErr := openCloudEvent(h, body)
	got.Source = source(h, envelope)
	if got.Traceparent == "" {
		got.Traceparent = traceparent(envelope.traceparent)
	}
	var bodyErr error
	if envelopeErr == nil {
		got.Request, bodyErr = decodeRequestBody(data)
	}
	r := &got.Request
	targetErr := mergeTarget(r, target)

	keyFrom := "idempotency_key"
	for _, candidate := range []struct{ from, key string }{
		{"header " + IdempotencyKeyHeader, h.get(IdempotencyKeyHeader)},
		{"header " + nats.MsgIdHdr, h.get(nats.MsgIdHdr)},
		{"CloudEvent id", envelope.id},
		{"stream sequence", fallbackKey},
	} {
		if r.IdempotencyKey == "" && candidate.key != "" {
			keyFrom, r.IdempotencyKey = candidate.from, candidate.key
		}
	}
	keyErr := validKey(r.IdempotencyKey)
	if keyErr != nil {
		keyErr = fmt.Errorf("%s: %w", keyFrom, keyErr)
		r.IdempotencyKey = fallbackKey
	}

	// If the body cannot be read, a missing target only follows from that: it is not reported.
	if err := errors.Join(subjectErr, envelopeErr, bodyErr); err != nil {
		return got, errors.Join(err, keyErr)
	}
	return got, errors.Join(targetErr, keyErr)
}

// traceparent returns s if it has the form of W3C's Trace Context, else the empty string.
func traceparent(s string) string {
	if len(s) != 55 || strings.Trim(s, "0123456789abcdef-") != "" || strings.Count(s, "-") != 3 {
		return ""
	}
	return s
}

// source returns one of few values, because it becomes a label of metrics.
func source(h headers, e envelope) string {
	switch s := h.get(SourceHeader); {
	case s == "cli" || s == "http" || s == "alertmanager":
		return s
	case e.id != "":
		return "cloudevent"
	}
	return "nats"
}

// mergeTarget completes r with the target in the subject, and refuses a disagreement.
func mergeTarget(r *Request, t target) error {
	merge := func(field string, body *int64, subject int64) error {
		switch {
		case *body == 0 && subject == 0:
			return fmt.Errorf("%s: missing, name it in the body or in the subject", field)
		case *body != 0 && subject != 0 && *body != subject:
			return fmt.Errorf("%s: the body says %d, the subject %d", field, *body, subject)
		case *body == 0:
			*body = subject
		}
		return nil
	}
	return errors.Join(merge("cluster_id", &r.ClusterID, t.cluster), merge("server_id", &r.ServerID, t.server))
}

func validKey(key string) error {
	if len(key) < 1 || len(key) > MaxKeyBytes {
		return fmt.Errorf("must be 1 to %d bytes long, is %d", MaxKeyBytes, len(key))
	}
	for i := range len(key) {
		if key[i] < ' ' || key[i] > '~' {
			return fmt.Errorf("must be printable ASCII, byte %d is %#02x", i+1, key[i])
		}
	}
	return nil
}

// decodeRequestBody reads the JSON object of a request. encoding/json alone would accept
// names in another letter case, names that are given twice, and nulls. It reports every
// faulty field, and returns the valid ones beside the error.
func decodeRequestBody(data []byte) (Request, error) {
	var r Request
	if len(data) > MaxRequestBytes {
		return r, fmt.Errorf("body: %d bytes, at most %d are allowed", len(data), MaxRequestBytes)
	}
	fields, err := decodeObject(data)
	if err != nil {
		return r, fmt.Errorf("body: %w", err)
	}
	into := map[string]func(json.RawMessage) error{
		"idempotency_key": func(raw json.RawMessage) error {
			var key string
			if err := decodeString(&key, raw); err != nil {
				return err
			}
			if err := validKey(key); err != nil {
				return err
			}
			r.IdempotencyKey = key
			return nil
		},
		"cluster_id": func(raw json.RawMessage) error { return decodeID(&r.ClusterID, raw) },
		"server_id":  func(raw json.RawMessage) error { return decodeID(&r.ServerID, raw) },
		"force":      func(raw json.RawMessage) error { return decodeBool(&r.Force, raw) },
		"freeze_server": func(raw json.RawMessage) error {
			r.FreezeServer = new(bool)
			return decodeBool(r.FreezeServer, raw)
		},
		"stop_type": func(raw json.RawMessage) error { return decodeString(&r.StopType, raw) },
		"reason": func(raw json.RawMessage) error {
			if err := decodeString(&r.Reason, raw); err != nil {
				return err
			}
			if len(r.Reason) > MaxReasonBytes {
				return fmt.Errorf("%d bytes, at most %d are allowed", len(r.Reason), MaxReasonBytes)
			}
			return nil
		},
		"requested_by": func(raw json.RawMessage) error { return decodeString(&r.RequestedBy, raw) },
		"labels":       func(raw json.RawMessage) error { return decodeLabels(&r.Labels, raw) },
		"dry_run":      func(raw json.RawMessage) error { return decodeBool(&r.DryRun, raw) },
		"expires_at":   func(raw json.RawMessage) error { return decodeTime(&r.ExpiresAt, raw) },
	}
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		decode, known := into[name]
		if !known {
			faults = append(faults, fmt.Errorf("%.64q: unknown field", name))
		} else if err := decode(fields[name]); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
		}
	}
	return r, errors.Join(faults...)
}

// decodeObject splits one JSON object into its fields. It refuses names that are given
// twice, at any depth, and anything after the object.
func decodeObject(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not valid UTF-8")
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("empty, a JSON object is expected")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := refuseDuplicateNames(d, "", maxDepth); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("at byte %d: %w", d.InputOffset(), err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("at byte %d: data behind the end of the JSON object", d.InputOffset())
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil || fields == nil {
		return nil, errors.New("a JSON object is expected")
	}
	return fields, nil
}

// refuseDuplicateNames reads one JSON value from d, which may nest depth levels deep.
func refuseDuplicateNames(d *json.Decoder, path string, depth int) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	if _, nests := token.(json.Delim); nests && depth == 0 {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	switch token {
	case json.Delim('{'):
		seen := map[string]bool{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return err
			}
			here := strings.TrimPrefix(path+"."+name.(string), ".")
			if seen[name.(string)] {
				return fmt.Errorf("%.64q is given twice", here)
			}
			seen[name.(string)] = true
			if err := refuseDuplicateNames(d, here, depth-1); err != nil {
				return err
			}
		}
		_, err = d.Token()
	case json.Delim('['):
		for d.More() {
			if err := refuseDuplicateNames(d, path, depth-1); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	return err
}

func decodeID(into *int64, raw json.RawMessage) (err error) {
	*into, err = parseID(string(raw))
	return err
}

func decodeBool(into *bool, raw json.RawMessage) error {
	switch string(raw) {
	case "true", "false":
		*into = string(raw) == "true"
		return nil
	}
	return errors.New("must be true or false")
}

func decodeString(into *string, raw json.RawMessage) error {
	if raw[0] != '"' {
		return errors.New("must be a string")
	}
	return json.Unmarshal(raw, into)
}

func decodeTime(into *time.Time, raw json.RawMessage) error {
	var s string
	if err := decodeString(&s, raw); err != nil {
		return err
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return fmt.Errorf("%.64q is not RFC 3339, e.g. 2026-11-24T21:30:00Z", s)
	}
	// A zero time would be read as no time at all, and a year of five digits cannot be encoded again.
	if t = t.UTC(); t.Year() < 1970 || t.Year() > 9999 {
		return fmt.Errorf("%s is not in the years 1970 to 9999", s)
	}
	*into = t
	return nil
}

func decodeLabels(into *map[string]string, raw json.RawMessage) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(raw, &values); err != nil || values == nil {
		return errors.New("must be an object of strings")
	}
	if len(values) > MaxLabels {
		return fmt.Errorf("%d labels, at most %d are allowed", len(values), MaxLabels)
	}
	labels := make(map[string]string, len(values))
	for name, value := range values {
		var s string
		if err := decodeString(&s, value); err != nil {
			return fmt.Errorf("%.64q: %w", name, err)
		}
		labels[name] = s
	}
	*into = labels
	return nil
}
