package events

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// binary is the header of a CloudEvent in binary mode; an empty value takes a name out.
func binary(pairs ...string) nats.Header {
	h := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"ce-1"}, "ce-source": {"/test"}, "ce-type": {"stop.please"}}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			delete(h, pairs[i])
		} else {
			h[pairs[i]] = []string{pairs[i+1]}
		}
	}
	return h
}

func contentType(t string) nats.Header { return nats.Header{"Content-Type": {t}} }

// structured is a CloudEvent in structured mode with more members.
func structured(more ...string) string {
	return "{" + strings.Join(append([]string{`"specversion":"1.0"`, `"id":"ce-1"`, `"source":"/test"`, `"type":"stop.please"`}, more...), ",") + "}"
}

const structuredType = "application/cloudevents+json"

func TestARequestIsTakenOutOfACloudEvent(t *testing.T) {
	t.Parallel()
	data := `"data":` + body()
	base64Data := `"data_base64":"` + base64.StdEncoding.EncodeToString([]byte(body())) + `"`
	tests := []struct {
		name   string
		header nats.Header
		body   string
		key    string // ce-1 where empty
	}{
		{"binary", binary(), body(), ""},
		{"binary with content type", binary("Content-Type", "application/json"), body(), ""},
		{"binary with a charset", binary("Content-Type", "Application/JSON; charset=utf-8"), body(), ""},
		{"binary with a JSON subtype", binary("content-type", "application/vnd.acme+json"), body(), ""},
		{"binary in other letter case", nats.Header{"Ce-Specversion": {"1.0"}, "CE-ID": {"ce-1"}, "Ce-Source": {"s"}, "CE-Type": {"t"}}, body(), ""},
		{"binary with extensions", binary("ce-subject", "x", "ce-time", "2026-11-24T21:30:00Z", "ce-acmeid", "7"), body(), ""},
		{"binary, percent-encoded", binary("ce-id", "a%20b%25%22"), body(), `a b%"`},
		{"binary, with a percent sign that encodes nothing", binary("ce-id", "100%"), body(), "100%"},
		{"structured", contentType(structuredType), structured(data), ""},
		{"structured with a charset", contentType("application/CloudEvents+JSON; charset=UTF-8"), structured(data), ""},
		{"structured without content type", nil, structured(data), ""},
		{"structured as plain JSON", contentType("application/json"), structured(data), ""},
		{"structured with ce- headers of a gateway", binary("Content-Type", structuredType, "ce-id", "other"), structured(data), ""},
		{"structured with extensions", contentType(structuredType), structured(data, `"time":"2026-11-24T21:30:00Z"`, `"acmeid":7`, `"flag":true`), ""},
		{"structured with datacontenttype", contentType(structuredType), structured(data, `"datacontenttype":"application/json"`), ""},
		{"structured with a JSON subtype of data", contentType(structuredType), structured(data, `"datacontenttype":"application/vnd.acme+json; v=1"`), ""},
		{"structured in base64", contentType(structuredType), structured(base64Data), ""},
		{"structured in base64 with datacontenttype", contentType(structuredType), structured(base64Data, `"datacontenttype":"application/json"`), ""},
		{"structured, id with escapes", contentType(structuredType), strings.Replace(structured(data), `"ce-1"`, `"ce\u002d1"`, 1), ""},
		{"structured, id that looks percent-encoded", contentType(structuredType), strings.Replace(structured(data), `"ce-1"`, `"a%20b"`, 1), "a%20b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeRequest(stopSubject, tt.header, []byte(tt.body), fallback)
			if err != nil {
				t.Fatal(err)
			}
			if tt.key == "" {
				tt.key = "ce-1"
			}
			want := Request{IdempotencyKey: tt.key, ClusterID: 1, ServerID: 2}
			if !got.Request.Same(want) || got.Request.IdempotencyKey != want.IdempotencyKey || got.Source != "cloudevent" {
				t.Errorf("got  %+v from %s\nwant %+v from cloudevent", got.Request, got.Source, want)
			}
		})
	}
}

func TestACloudEventIsRefusedFor(t *testing.T) {
	t.Parallel()
	data := `"data":` + body()
	drop := func(s, member string) string { return strings.Replace(s, member+",", "", 1) }
	tests := []struct {
		name   string
		header nats.Header
		body   string
		want   []string
	}{
		{"being a batch", contentType("application/cloudevents-batch+json"), "[" + structured(data) + "]", []string{"a batch of CloudEvents"}},
		{"being a batch with a charset", contentType("application/cloudevents-batch+json; charset=utf-8"), "[]", []string{"a batch of CloudEvents"}},
		{"being a batch without content type", nil, "[" + structured(data) + "]", []string{"a JSON object is expected"}},
		{"a format that is not JSON", contentType("application/cloudevents+xml"), "<e/>", []string{`"application/cloudevents+xml" is not application/json`}},

		{"binary: specversion 0.3", binary("ce-specversion", "0.3"), body(), []string{`specversion: "0.3", only 1.0`}},
		{"binary: specversion 1.0.2", binary("ce-specversion", "1.0.2"), body(), []string{`specversion: "1.0.2", only 1.0`}},
		{"binary: no specversion", binary("ce-specversion", ""), body(), []string{`specversion: ""`}},
		{"binary: no id", binary("ce-id", ""), body(), []string{"CloudEvent id: missing"}},
		{"binary: no source", binary("ce-source", ""), body(), []string{"CloudEvent source: missing"}},
		{"binary: no type", binary("ce-type", ""), body(), []string{"CloudEvent type: missing"}},
		{"binary: data that is not JSON", binary("Content-Type", "text/xml"), "<stop/>", []string{`content type: "text/xml" is not application/json`}},
		{"binary: data with a fault", binary(), `{"x":1}`, []string{`"x": unknown field`}},
		{"binary: no data", binary(), "", []string{"body: empty"}},

		{"structured: not JSON", contentType(structuredType), "stop", []string{"CloudEvent: at byte"}},
		{"structured: empty", contentType(structuredType), "", []string{"CloudEvent: empty"}},
		{"structured: invalid UTF-8", contentType(structuredType), structured("\"x\":\"\xff\""), []string{"CloudEvent: not valid UTF-8"}},
		{"structured: more than 64 KiB", contentType(structuredType), structured(data) + strings.Repeat(" ", MaxRequestBytes), []string{"body: ", "at most 65536"}},
		{"structured without content type: more than 64 KiB", nil, structured(data) + strings.Repeat(" ", MaxRequestBytes), []string{"body: ", "at most 65536"}},
		{"structured: specversion 0.3", contentType(structuredType), strings.Replace(structured(data), `"1.0"`, `"0.3"`, 1), []string{`specversion: "0.3"`}},
		{"structured: specversion as a number", contentType(structuredType), strings.Replace(structured(data), `"1.0"`, "1.0", 1), []string{`specversion: ""`}},
		{"structured: no id", contentType(structuredType), drop(structured(data), `"id":"ce-1"`), []string{"CloudEvent id: missing"}},
		{"structured: an id that is a number", contentType(structuredType), strings.Replace(structured(data), `"ce-1"`, "1", 1), []string{"CloudEvent id: missing"}},
		{"structured: no source", contentType(structuredType), drop(structured(data), `"source":"/test"`), []string{"CloudEvent source: missing"}},
		{"structured: no type", contentType(structuredType), drop(structured(data), `"type":"stop.please"`), []string{"CloudEvent type: missing"}},
		{"structured: an attribute in other letter case", contentType(structuredType), strings.Replace(structured(data), `"id"`, `"ID"`, 1), []string{"CloudEvent id: missing"}},
		{"structured: an attribute given twice", contentType(structuredType), structured(data, `"id":"ce-2"`), []string{`"id" is given twice`}},
		{"structured: a field of the data given twice", contentType(structuredType), structured(`"data":{"force":true,"force":false}`), []string{`"data.force" is given twice`}},
		{"structured: data that is not JSON", contentType(structuredType), structured(`"data":"<stop/>"`, `"datacontenttype":"text/xml"`), []string{`datacontenttype: "text/xml"`}},
		{"structured: data that is a string", contentType(structuredType), structured(`"data":"{}"`), []string{"body: a JSON object is expected"}},
		{"structured: data that is null", contentType(structuredType), structured(`"data":null`), []string{"body: a JSON object is expected"}},
		{"structured: no data", contentType(structuredType), structured(), []string{"body: empty"}},
		{"structured: data twice", contentType(structuredType), structured(data, `"data_base64":"e30="`), []string{"both data and data_base64"}},
		{"structured: data that is not base64", contentType(structuredType), structured(`"data_base64":"{}"`), []string{"data_base64: not base64"}},
		{"structured: base64 without padding", contentType(structuredType), structured(`"data_base64":"e30"`), []string{"data_base64: not base64"}},
		{"structured: base64 of what is no request", contentType(structuredType), structured(`"data_base64":"AP8="`), []string{"body: not valid UTF-8"}},
		{"structured: a target beside the data", contentType(structuredType), structured(`"cluster_id":1`, `"server_id":2`, `"data":{}`), []string{"cluster_id: missing"}},

		{"plain: a content type that is not JSON", contentType("text/html"), body(), []string{`content type: "text/html" is not application/json`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := DecodeRequest(stopSubject, tt.header, []byte(tt.body), fallback)
			wantError(t, err, tt.want...)
		})
	}
}

func TestAPlainRequestMayComeWithTheContentTypesOfCommonClients(t *testing.T) {
	t.Parallel()
	for _, mediaType := range []string{"", "application/json", "application/json; charset=utf-8", "text/plain", "application/octet-stream"} {
		got, err := DecodeRequest(stopSubject, contentType(mediaType), []byte(body()), fallback)
		if err != nil || got.Source != "nats" {
			t.Errorf("%q: got source %q and error %v, want nats and none", mediaType, got.Source, err)
		}
	}
}

func TestOurEventsAreCloudEvents(t *testing.T) {
	t.Parallel()
	full := fullOperation()
	traced := full
	traced.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	strange := full
	strange.Agent = "ops_1:eu@example.org"
	elsewhere := full
	elsewhere.UpdatedAt = full.UpdatedAt.In(time.FixedZone("", 3600))
	tests := []struct {
		name  string
		event Event
	}{
		{"full", Event{full, Running}},
		{"progress", Event{full, Progress}},
		{"least", Event{leastOperation(), Rejected}},
		{"traced", Event{traced, Progress}},
		{"of an agent whose name is more than a word", Event{strange, Progress}},
		{"in another time zone", Event{elsewhere, Progress}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			msg, err := tt.event.Message()
			if err != nil {
				t.Fatal(err)
			}
			checkCloudEvent(t, msg)
			for name, want := range map[string]string{
				"ce-id":        tt.event.EventID(),
				"ce-type":      fmt.Sprintf("obwarden.server.stop.%s", tt.event.Token),
				"ce-time":      tt.event.UpdatedAt.UTC().Format(time.RFC3339Nano),
				"ce-source":    "obwarden/" + url.PathEscape(tt.event.Agent),
				"ce-subject":   fmt.Sprintf("cluster/%d/server/%d", tt.event.ClusterID, tt.event.ServerID),
				"Nats-Msg-Id":  tt.event.EventID(),
				"Content-Type": "application/json",
				"traceparent":  tt.event.Traceparent,
			} {
				if got := headers(msg.Header).get(name); got != want {
					t.Errorf("header %s: got %q, want %q", name, got, want)
				}
			}
		})
	}
}

var (
	attributeName  = regexp.MustCompile(`^[a-z0-9]{1,20}$`)
	attributeValue = regexp.MustCompile(`^([!#$&-~]|%[0-9A-Fa-f]{2})+$`) // no space, no quote, a percent sign only to encode
)

// checkCloudEvent applies the rules of CloudEvents 1.0 and of its binary mode.
func checkCloudEvent(t *testing.T, msg *nats.Msg) {
	t.Helper()
	attributes := map[string]string{}
	for name, values := range msg.Header {
		name, is := strings.CutPrefix(name, "ce-")
		if !is {
			continue
		}
		if len(values) != 1 || !attributeValue.MatchString(values[0]) {
			t.Errorf("ce-%s: got %q, want one value in printable ASCII, percent-encoded", name, values)
		}
		if !attributeName.MatchString(name) {
			t.Errorf("got attribute %q, want 1 to 20 lower-case letters and digits", name)
		}
		attributes[name], _ = url.PathUnescape(values[0])
	}
	if v := attributes["specversion"]; v != "1.0" {
		t.Errorf("specversion: got %q, want 1.0", v)
	}
	for _, name := range []string{"id", "source", "type", "subject"} {
		if attributes[name] == "" {
			t.Errorf("%s: got none, want one", name)
		}
	}
	if _, err := url.Parse(attributes["source"]); err != nil {
		t.Errorf("source: got %v, want a URI reference", err)
	}
	if _, err := time.Parse(time.RFC3339, attributes["time"]); err != nil {
		t.Errorf("time: got %v, want RFC 3339", err)
	}
	if _, ok := attributes["datacontenttype"]; ok {
		t.Error("got ce-datacontenttype beside Content-Type, want one")
	}
	if _, data, err := openCloudEvent(headers(msg.Header), msg.Data); err != nil || string(data) != string(msg.Data) {
		t.Errorf("got error %v and data\n%s\nwant our own decoder to take\n%s", err, data, msg.Data)
	}
}
