package events

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

// checkDecoded holds what must be true of every message, whoever made it.
func checkDecoded(t *testing.T, got Received, err error) {
	t.Helper()
	r := got.Request
	if keyErr := validKey(r.IdempotencyKey); keyErr != nil {
		t.Errorf("got key %q (%v) beside error %v, want 1 to 256 printable bytes", r.IdempotencyKey, keyErr, err)
	}
	if r.ClusterID < 0 || r.ServerID < 0 {
		t.Errorf("got cluster %d, server %d, want none below 0", r.ClusterID, r.ServerID)
	}
	if err != nil {
		if strings.TrimSpace(err.Error()) == "" {
			t.Error("got an error without words")
		}
		return
	}
	if !got.Kind.Known() || r.ClusterID < 1 || r.ServerID < 1 || len(r.Reason) > MaxReasonBytes || len(r.Labels) > MaxLabels {
		t.Errorf("got %+v without an error, want one", got)
	}
	msg, err := r.Message(got.Kind, got.Source)
	if err != nil {
		t.Fatalf("got %v, want that what was decoded can be encoded", err)
	}
	again, err := DecodeRequest(msg.Subject, msg.Header, msg.Data, "")
	if len(msg.Data) > MaxRequestBytes {
		return // letters became escapes
	}
	if err != nil || again.Kind != got.Kind || !again.Request.Same(r) || again.Request.IdempotencyKey != r.IdempotencyKey {
		t.Errorf("got  %+v and error %v\nwant %+v\nfrom %s", again, err, got, msg.Data)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	full, err := fullRequest().Message(Stop, "cli")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []struct{ subject, body, key string }{
		{stopSubject, body(), ""},
		{stopSubject, body(), "k"},
		{full.Subject, string(full.Data), "other"},
		{"ob.server.restart.request.1.2", "{}", strings.Repeat("k", 257)},
		{"ob.server.start.request", body(`"idempotency_key":"ü"`, `"dry_run":null`, `"expires_at":"0000-01-01T00:00:00+01:00"`), "\n"},
		{"ob.server.halt.request.01.x", `{"cluster_id":1e3,"server_id":-0,"cluster_id":1}`, "a b"},
		{"ob.server.stop.request.1", "[" + body() + "]", ""},
		{"", `{"a":{"b":[{"c":1,"c":2}]}} x`, ""},
		{stopSubject, structured(`"data":` + body()), ""},
		{stopSubject, structured(`"data_base64":"e30="`), "k"},
		{stopSubject, body(`"labels":{"\ud800":"\udc00"}`, `"reason":"<&>\u2028\u0000"`), ""},
		{stopSubject, body(`"expires_at":"9999-12-31T23:59:59.999999999-23:59"`), ""},
	} {
		f.Add(seed.subject, []byte(seed.body), seed.key)
	}
	f.Fuzz(func(t *testing.T, subject string, body []byte, key string) {
		got, err := DecodeRequest(subject, nats.Header{"Idempotency-Key": {key}}, body, fallback)
		checkDecoded(t, got, err)
		if again, err2 := DecodeRequest(subject, nats.Header{"Idempotency-Key": {key}}, body, fallback); !reflect.DeepEqual(got, again) || (err == nil) != (err2 == nil) {
			t.Errorf("got  %+v, %v\nthen %+v, %v\nwant the same at each delivery", got, err, again, err2)
		}
	})
}

func FuzzCloudEvent(f *testing.F) {
	for _, seed := range []string{
		structured(`"data":` + body()),
		structured(`"data":`+body(`"idempotency_key":"k"`), `"datacontenttype":"application/json"`, `"time":"2026-11-24T21:30:00Z"`, `"traceparent":"00"`),
		structured(`"data_base64":"eyJjbHVzdGVyX2lkIjoxLCJzZXJ2ZXJfaWQiOjJ9"`),
		structured(`"data":{}`, `"data_base64":null`),
		structured(`"data":` + structured(`"data":`+body())),
		structured(),
		`{"specversion":null,"id":"\u0000","source":1}`,
		"[" + structured() + "]",
		body(),
		"",
	} {
		f.Add("application/cloudevents+json", []byte(seed))
		f.Add("", []byte(seed))
	}
	f.Add("application/cloudevents-batch+json", []byte("[]"))
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		got, err := DecodeRequest(stopSubject, contentType(mediaType), body, fallback)
		checkDecoded(t, got, err)
		if err == nil && got.Source == "cloudevent" && !bytes.Contains(body, []byte("1.0")) && !bytes.Contains(body, []byte(`\u`)) {
			t.Errorf("got a CloudEvent without specversion 1.0 taken: %s", body)
		}
	})
}

func FuzzDecodeEvent(f *testing.F) {
	for _, op := range []Operation{fullOperation(), leastOperation()} {
		msg, err := Event{op, Progress}.Message()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg.Subject, msg.Data)
	}
	f.Add("ob.server.stop.event.op.0.0.rejected", []byte(`{"schema":"obwarden.operation.v1","task":{"subtasks":[]},"reason":null,"changes":[{}]}`))
	f.Add("", []byte(`{"SCHEMA":"obwarden.operation.v1","requested_at":"9999-12-31T23:59:59+00:00"}`))
	f.Add(".", []byte(`{"schema":"obwarden.operation.v2"}`))
	f.Fuzz(func(t *testing.T, subject string, body []byte) {
		e, err := DecodeEvent(subject, body)
		if err != nil {
			return
		}
		if e.Schema != OperationSchema {
			t.Errorf("got schema %q, want %s", e.Schema, OperationSchema)
		}
		first, err := e.Message()
		if err != nil {
			t.Fatalf("got %v, want that what was decoded can be encoded", err)
		}
		again, err := DecodeEvent(first.Subject, first.Data)
		if err != nil {
			t.Fatalf("got %v from our own\n%s", err, first.Data)
		}
		again.Token = e.Token // of a subject that is none
		second, err := again.Message()
		if err != nil || !bytes.Equal(first.Data, second.Data) {
			t.Errorf("got error %v and\n%s\nwant\n%s", err, second.Data, first.Data)
		}
	})
}

func FuzzEventOperation(f *testing.F) {
	f.Add(EventSubject(Stop, OperationID("k"), 1, 2, Succeeded))
	f.Add(EventSubject(Restart, OperationID("k"), 0, 0, Rejected))
	f.Add("ob.server.stop.event.a.-1.2.failed")
	f.Add("ob.server.stop.request")
	f.Fuzz(func(t *testing.T, subject string) {
		id, cluster, err := EventOperation(subject)
		if err != nil {
			return
		}
		if cluster < 0 || id == "" && !strings.Contains(subject, "..") {
			t.Errorf("%q: operation %q, cluster %d", subject, id, cluster)
		}
	})
}
