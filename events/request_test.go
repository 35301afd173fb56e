package events

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	stopSubject = "ob.server.stop.request"
	fallback    = "OB_REQUESTS/7"
)

// body is a request to server 2 of cluster 1 with more fields.
func body(more ...string) string {
	return "{" + strings.Join(append([]string{`"cluster_id":1`, `"server_id":2`}, more...), ",") + "}"
}

// labels is a field of n labels.
func labels(n int) string {
	pairs := make([]string, n)
	for i := range pairs {
		pairs[i] = fmt.Sprintf(`"l%d":"v"`, i)
	}
	return `"labels":{` + strings.Join(pairs, ",") + "}"
}

// padded is a request of exactly n bytes.
func padded(n int) string { return body() + strings.Repeat(" ", n-len(body())) }

func ptr[T any](v T) *T { return &v }

func TestARequestIsRefusedFor(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		subject string // stopSubject where empty
		body    string
		want    []string
	}{
		// The body as a whole.
		{"an empty body", "", "", []string{"body: empty"}},
		{"a body of spaces", "", " \t\r\n", []string{"body: empty"}},
		{"an array", "", "[" + body() + "]", []string{"body: a JSON object is expected"}},
		{"a string", "", `"stop"`, []string{"body: a JSON object is expected"}},
		{"a number", "", "1", []string{"body: a JSON object is expected"}},
		{"null", "", "null", []string{"body: a JSON object is expected"}},
		{"an object that does not end", "", `{"cluster_id":1,"server_id":2`, []string{"body: at byte", "unexpected EOF"}},
		{"an object that ends within a value", "", `{"cluster_id":1,"labels":{"a":`, []string{"body: at byte", "unexpected EOF"}},
		{"a name without a value", "", `{"cluster_id"}`, []string{"body: at byte"}},
		{"a comma too many", "", `{"cluster_id":1,"server_id":2,}`, []string{"body: at byte"}},
		{"single quotes", "", `{'cluster_id':1}`, []string{"body: at byte 1"}},
		{"a byte order mark", "", "\ufeff" + body(), []string{"body: at byte"}},
		{"a second object", "", body() + body(), []string{"data behind the end"}},
		{"a bracket too many", "", body() + "}", []string{"data behind the end"}},
		{"text behind the object", "", body() + " x", []string{"data behind the end"}},
		{"invalid UTF-8 in a value", "", body(`"reason":"` + "\xff" + `"`), []string{"body: not valid UTF-8"}},
		{"invalid UTF-8 in a name", "", body("\"\xc3\x28\":1"), []string{"body: not valid UTF-8"}},
		{"64 KiB and a byte", "", padded(MaxRequestBytes + 1), []string{"body: 65537 bytes, at most 65536"}},
		{"far too many bytes", "", strings.Repeat("[", 8*MaxRequestBytes), []string{"body: 524288 bytes, at most 65536"}},
		{"a body that nests deep", "", body(`"labels":` + strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000)), []string{"nested more than 16 deep"}},
		{"arrays that nest deep", "", strings.Repeat("[", MaxRequestBytes), []string{"nested more than 16 deep"}},

		// Names.
		{"an unknown field", "", body(`"dryrun":true`), []string{`"dryrun": unknown field`}},
		{"another letter case", "", body(`"Dry_Run":true`), []string{`"Dry_Run": unknown field`}},
		{"a letter that only folds to ASCII", "", body(`"ſtop_type":"x"`), []string{`"ſtop_type": unknown field`}},
		{"the name of the Go field", "", body(`"DryRun":true`), []string{`"DryRun": unknown field`}},
		{"an empty name", "", body(`"":1`), []string{`"": unknown field`}},
		{"a very long unknown name", "", body(`"` + strings.Repeat("x", 5000) + `":1`), []string{`"` + strings.Repeat("x", 64) + `": unknown field`}},
		{"a name given twice", "", body(`"server_id":2`), []string{`"server_id" is given twice`}},
		{"a name given twice, once escaped", "", body(`"force":true`, `"\u0066orce":false`), []string{`"force" is given twice`}},
		{"a label given twice", "", body(`"labels":{"a":"1","a":"1"}`), []string{`"labels.a" is given twice`}},
		{"a name given twice deep inside", "", body(`"x":[0,{"y":[{"z":1,"z":2}]}]`), []string{`"x.y.z" is given twice`}},

		// Target.
		{"no target", "", "{}", []string{"cluster_id: missing", "server_id: missing"}},
		{"no server", "", `{"cluster_id":1}`, []string{"server_id: missing"}},
		{"another cluster than the subject", "ob.server.stop.request.2.2", body(), []string{"cluster_id: the body says 1, the subject 2"}},
		{"another server than the subject", "ob.server.stop.request.1.3", body(), []string{"server_id: the body says 2, the subject 3"}},
		{"an unknown kind", "ob.server.explode.request", body(), []string{`subject "ob.server.explode.request"`, "stop, start or restart"}},
		{"half a target in the subject", "ob.server.stop.request.1", body(), []string{"<cluster>.<server>"}},
		{"an id in the subject that is none", "ob.server.stop.request.1.x", body(), []string{"integers of at least 1"}},

		// Key.
		{"an empty key", "", body(`"idempotency_key":""`), []string{"idempotency_key: must be 1 to 256 bytes long, is 0"}},
		{"a key of 257 bytes", "", body(`"idempotency_key":"` + strings.Repeat("k", 257) + `"`), []string{"idempotency_key: must be 1 to 256 bytes long, is 257"}},
		{"a key with a line feed", "", body(`"idempotency_key":"a\nb"`), []string{"idempotency_key: must be printable ASCII, byte 2 is 0x0a"}},
		{"a key with a NUL", "", body(`"idempotency_key":"\u0000"`), []string{"idempotency_key: must be printable ASCII, byte 1 is 0x00"}},
		{"a key with DEL", "", body(`"idempotency_key":"a\u007f"`), []string{"byte 2 is 0x7f"}},
		{"a key with an umlaut", "", body(`"idempotency_key":"ü"`), []string{"byte 1 is 0xc3"}},
		{"a key that is a number", "", body(`"idempotency_key":7`), []string{"idempotency_key: must be a string"}},

		// The other fields.
		{"a reason of 1 KiB and a byte", "", body(`"reason":"` + strings.Repeat("r", 1025) + `"`), []string{"reason: 1025 bytes, at most 1024"}},
		{"a reason of 1 KiB and a byte, in letters of two", "", body(`"reason":"r` + strings.Repeat("ü", 512) + `"`), []string{"reason: 1025 bytes, at most 1024"}},
		{"a reason that is no string", "", body(`"reason":["a"]`), []string{"reason: must be a string"}},
		{"33 labels", "", body(labels(33)), []string{"labels: 33 labels, at most 32"}},
		{"labels that are no object", "", body(`"labels":["a"]`), []string{"labels: must be an object of strings"}},
		{"a label that is no string", "", body(`"labels":{"a":1}`), []string{`labels: "a": must be a string`}},
		{"a label that is null", "", body(`"labels":{"a":null}`), []string{`labels: "a": must be a string`}},
		{"force in quotes", "", body(`"force":"false"`), []string{"force: must be true or false"}},
		{"force as a number", "", body(`"force":0`), []string{"force: must be true or false"}},
		{"dry_run in quotes", "", body(`"dry_run":"true"`), []string{"dry_run: must be true or false"}},
		{"freeze_server as an object", "", body(`"freeze_server":{}`), []string{"freeze_server: must be true or false"}},
		{"stop_type that is no string", "", body(`"stop_type":1`), []string{"stop_type: must be a string"}},
		{"requested_by that is no string", "", body(`"requested_by":true`), []string{"requested_by: must be a string"}},
		{"expires_at as Unix time", "", body(`"expires_at":1795500000`), []string{"expires_at: must be a string"}},
		{"expires_at without an offset", "", body(`"expires_at":"2026-11-24T21:30:00"`), []string{"expires_at:", "is not RFC 3339"}},
		{"expires_at with a space", "", body(`"expires_at":"2026-11-24 21:30:00Z"`), []string{"is not RFC 3339"}},
		{"expires_at with an offset of 25 hours", "", body(`"expires_at":"2026-11-24T21:30:00+25:00"`), []string{"is not RFC 3339"}},
		{"expires_at on 30 February", "", body(`"expires_at":"2026-02-30T00:00:00Z"`), []string{"is not RFC 3339"}},
		{"the zero time, which would read as never", "", body(`"expires_at":"0001-01-01T00:00:00Z"`), []string{"is not in the years 1970 to 9999"}},
		{"a year before 0 in UTC", "", body(`"expires_at":"0000-01-01T00:00:00+01:00"`), []string{"is not in the years 1970 to 9999"}},
		{"a year past 9999 in UTC", "", body(`"expires_at":"9999-12-31T23:59:59-01:00"`), []string{"is not in the years 1970 to 9999"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.subject == "" {
				tt.subject = stopSubject
			}
			got, err := DecodeRequest(tt.subject, nil, []byte(tt.body), fallback)
			wantError(t, err, tt.want...)
			if err != nil && faults(err) > len(tt.want) {
				t.Errorf("got %d faults, want at most %d:\n%v", faults(err), len(tt.want), err)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("got an error of %d bytes, want one that a person reads:\n%.400s…", len(err.Error()), err)
			}
			if got.Request.IdempotencyKey != fallback {
				t.Errorf("got key %q, want the fallback %q: a refusal needs an address", got.Request.IdempotencyKey, fallback)
			}
		})
	}
}

func TestAnIDThatIsNotAPlainIntegerFrom1IsRefused(t *testing.T) {
	t.Parallel()
	ids := []string{
		"0", "-0", "-1", "+1", "01", "1.0", "1.5", "1e3", "1E0", "0x1", "1_000", "9223372036854775808", "1" + strings.Repeat("0", 400),
		`"1"`, `""`, "null", "true", "[1]", "{}",
	}
	for _, field := range []string{"cluster_id", "server_id"} {
		for _, id := range ids {
			t.Run(field+"="+fmt.Sprintf("%.24s", id), func(t *testing.T) {
				t.Parallel()
				other := map[string]string{"cluster_id": `"server_id":2`, "server_id": `"cluster_id":1`}[field]
				got, err := DecodeRequest(stopSubject, nil, fmt.Appendf(nil, `{%q:%s,%s}`, field, id, other), fallback)
				want := field + ": must be an integer of at least 1"
				if id == "+1" || id == "01" || id == "0x1" || id == "1_000" {
					want = "body: at byte" // not even JSON
				}
				wantError(t, err, want)
				if c, s := got.Request.ClusterID, got.Request.ServerID; c < 0 || s < 0 || field == "cluster_id" && c != 0 || field == "server_id" && s != 0 {
					t.Errorf("got cluster %d, server %d, want 0 for %s", c, s, field)
				}
			})
		}
	}
}

func TestNullIsNoValueForAnyField(t *testing.T) {
	t.Parallel()
	for field := range reflect.TypeFor[Request]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := DecodeRequest("ob.server.stop.request.1.2", nil, fmt.Appendf(nil, "{%q:null}", name), fallback)
			wantError(t, err, name+": must be")
		})
	}
}

func TestARequestAtItsLimitsIsTaken(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, subject, body string
		want                Request
	}{
		{"64 KiB", stopSubject, padded(MaxRequestBytes), Request{}},
		{"a key of one byte", stopSubject, body(`"idempotency_key":"~"`), Request{IdempotencyKey: "~"}},
		{"a key of 256 bytes", stopSubject, body(`"idempotency_key":"` + strings.Repeat("k", 256) + `"`), Request{IdempotencyKey: strings.Repeat("k", 256)}},
		{"a key with a space", stopSubject, body(`"idempotency_key":"a b"`), Request{IdempotencyKey: "a b"}},
		{"a reason of 1 KiB", stopSubject, body(`"reason":"` + strings.Repeat("ü", 512) + `"`), Request{Reason: strings.Repeat("ü", 512)}},
		{"no labels", stopSubject, body(`"labels":{}`), Request{}},
		{"a false freeze_server", stopSubject, body(`"freeze_server":false`), Request{FreezeServer: ptr(false)}},
		{"the greatest id", stopSubject, `{"cluster_id":9223372036854775807,"server_id":1}`, Request{ClusterID: 1<<63 - 1, ServerID: 1}},
		{"white space", stopSubject, "\n{ \"cluster_id\" :\t1 ,\r\n\"server_id\" : 2 } \n", Request{}},
		{"a target in the subject only", "ob.server.stop.request.1.2", "{}", Request{}},
		{"the same target in subject and body", "ob.server.stop.request.1.2", body(), Request{}},
		{"one half of the target in the body", "ob.server.stop.request.1.2", `{"server_id":2}`, Request{}},
		{"a time with offset and fraction", stopSubject, body(`"expires_at":"2026-11-24T22:30:00.25+01:00"`),
			Request{ExpiresAt: time.Date(2026, 11, 24, 21, 30, 0, 250e6, time.UTC)}},
		{"every field", stopSubject, body(`"idempotency_key":"k"`, `"force":true`, `"freeze_server":true`, `"stop_type":"STOP_SERVER"`, `"reason":"disk"`,
			`"requested_by":"ann"`, `"labels":{"a":"1","b":""}`, `"dry_run":true`, `"expires_at":"2026-11-24T21:30:00Z"`), fullRequest()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeRequest(tt.subject, nil, []byte(tt.body), fallback)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.ClusterID == 0 {
				tt.want.ClusterID, tt.want.ServerID = 1, 2
			}
			if tt.want.IdempotencyKey == "" {
				tt.want.IdempotencyKey = fallback
			}
			if got.Kind != Stop || !got.Request.Same(tt.want) || got.Request.IdempotencyKey != tt.want.IdempotencyKey {
				t.Errorf("got  %s %+v\nwant %s %+v", got.Kind, got.Request, Stop, tt.want)
			}
		})
	}
	t.Run("32 labels", func(t *testing.T) {
		t.Parallel()
		got, err := DecodeRequest(stopSubject, nil, []byte(body(labels(32))), fallback)
		if err != nil || len(got.Request.Labels) != 32 {
			t.Errorf("got %d labels and error %v, want 32 and none", len(got.Request.Labels), err)
		}
	})
}

func TestTheFirstKeyThatIsThereCounts(t *testing.T) {
	t.Parallel()
	const inBody = `"idempotency_key":"from-body"`
	ce := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"from-ce"}, "ce-source": {"s"}, "ce-type": {"t"}}
	with := func(h nats.Header, pairs ...string) nats.Header {
		all := nats.Header{}
		for name, values := range h {
			all[name] = values
		}
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i]] = append(all[pairs[i]], pairs[i+1])
		}
		return all
	}
	tests := []struct {
		name   string
		header nats.Header
		body   string
		want   string
	}{
		{"body before all", with(ce, "Idempotency-Key", "from-header", "Nats-Msg-Id", "from-msg-id"), body(inBody), "from-body"},
		{"then Idempotency-Key", with(ce, "Idempotency-Key", "from-header", "Nats-Msg-Id", "from-msg-id"), body(), "from-header"},
		{"then Nats-Msg-Id", with(ce, "Nats-Msg-Id", "from-msg-id"), body(), "from-msg-id"},
		{"then the CloudEvent's id", ce, body(), "from-ce"},
		{"then the fallback", nil, body(), fallback},
		{"headers in lower case", nats.Header{"idempotency-key": {"from-header"}}, body(), "from-header"},
		{"headers in upper case", nats.Header{"IDEMPOTENCY-KEY": {"from-header"}}, body(), "from-header"},
		{"Nats-Msg-Id in lower case", nats.Header{"nats-msg-id": {"from-msg-id"}}, body(), "from-msg-id"},
		{"an empty header is none", nats.Header{"Idempotency-Key": {""}, "Nats-Msg-Id": {"from-msg-id"}}, body(), "from-msg-id"},
		{"a header without values is none", nats.Header{"Idempotency-Key": {}}, body(), fallback},
		{"the first of two values", with(nil, "Idempotency-Key", "first", "Idempotency-Key", "second"), body(), "first"},
		{"the usual spelling of several", nats.Header{"IDEMPOTENCY-KEY": {"b"}, "idempotency-key": {"c"}, "Idempotency-Key": {"a"}}, body(), "a"},
		{"the same of several spellings each time", nats.Header{"idempotency-key": {"b"}, "IDEMPOTENCY-KEY": {"a"}, "Idempotency-key": {"c"}}, body(), "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for range 50 { // maps have no order
				got, err := DecodeRequest(stopSubject, tt.header, []byte(tt.body), fallback)
				if err != nil {
					t.Fatal(err)
				}
				if got.Request.IdempotencyKey != tt.want {
					t.Fatalf("got key %q, want %q", got.Request.IdempotencyKey, tt.want)
				}
			}
		})
	}
}

func TestAKeyOutsideTheBodyIsCheckedToo(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", 257)
	tests := []struct {
		name   string
		header nats.Header
		want   string
	}{
		{"Idempotency-Key", nats.Header{"Idempotency-Key": {long}}, "header Idempotency-Key: must be 1 to 256 bytes long, is 257"},
		{"Nats-Msg-Id", nats.Header{"Nats-Msg-Id": {"ü"}}, "header Nats-Msg-Id: must be printable ASCII"},
		{"CloudEvent id", nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"a%0Ab"}, "ce-source": {"s"}, "ce-type": {"t"}}, "CloudEvent id: must be printable ASCII, byte 2 is 0x0a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeRequest(stopSubject, tt.header, []byte(body()), fallback)
			wantError(t, err, tt.want)
			if got.Request.IdempotencyKey != fallback {
				t.Errorf("got key %q, want the fallback %q", got.Request.IdempotencyKey, fallback)
			}
		})
	}
}

func TestEveryFaultIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, subject, body string
		header              nats.Header
		want                []string
	}{
		{"in the body", stopSubject, `{"cluster_id":0,"server_id":"2","force":1,"dryrun":true,"reason":null,"idempotency_key":""}`, nil,
			[]string{"cluster_id: must be", "server_id: must be", "force: must be", `"dryrun": unknown`, "reason: must be", "idempotency_key: must be 1 to 256"}},
		{"in the target", "ob.server.stop.request.3.4", body(), nil, []string{"cluster_id: the body says 1", "server_id: the body says 2"}},
		{"in subject, body and header", "ob.server.halt.request", `{"x":1}`, nats.Header{"Idempotency-Key": {"\x01"}},
			[]string{"kind must be stop, start or restart", `"x": unknown field`, "header Idempotency-Key: must be printable"}},
		{"in a CloudEvent", stopSubject, body(), nats.Header{"ce-specversion": {"0.3"}, "ce-type": {"t"}},
			[]string{`CloudEvent specversion: "0.3"`, "CloudEvent id: missing", "CloudEvent source: missing"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := DecodeRequest(tt.subject, tt.header, []byte(tt.body), fallback)
			wantError(t, err, tt.want...)
			if err != nil && faults(err) != len(tt.want) {
				t.Errorf("got %d faults, want %d:\n%v", faults(err), len(tt.want), err)
			}
		})
	}
}

func TestARefusalCarriesWhatCouldBeRead(t *testing.T) {
	t.Parallel()
	key := nats.Header{"Idempotency-Key": {"h"}}
	tests := []struct {
		name, subject, body string
		header              nats.Header
		kind                Kind
		key                 string
		cluster, server     int64
	}{
		{"all but the fault", "ob.server.start.request", body(`"idempotency_key":"k"`, `"x":1`), nil, Start, "k", 1, 2},
		{"the sound half of the target", stopSubject, `{"cluster_id":1,"server_id":"2"}`, nil, Stop, fallback, 1, 0},
		{"the target in the subject where the body is no JSON", "ob.server.restart.request.3.4", "stop it", key, Restart, "h", 3, 4},
		{"the target in the subject where the body's is faulty", "ob.server.stop.request.3.4", `{"cluster_id":-1}`, nil, Stop, fallback, 3, 4},
		{"the sound half of the subject's target", "ob.server.stop.request.3.x", "{}", nil, Stop, fallback, 3, 0},
		{"the body's target where the subject says another", "ob.server.stop.request.3.4", body(), nil, Stop, fallback, 1, 2},
		{"an unknown kind as it is", "ob.server.halt.request", body(), nil, "halt", fallback, 1, 2},
		{"the header's key where the body's is faulty", stopSubject, body(`"idempotency_key":"\n"`), key, Stop, "h", 1, 2},
		{"the header's key where the body is too long", stopSubject, padded(MaxRequestBytes + 1), key, Stop, "h", 0, 0},
		{"the CloudEvent's id where an attribute is missing", "ob.server.stop.request.3.4", body(), nats.Header{"ce-id": {"c"}}, Stop, "c", 3, 4},
		{"no kind where the subject is none of ours", "ob.zone.stop.request", body(), nil, "", fallback, 1, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeRequest(tt.subject, tt.header, []byte(tt.body), fallback)
			if err == nil {
				t.Error("got no error, want one")
			}
			if r := got.Request; got.Kind != tt.kind || r.IdempotencyKey != tt.key || r.ClusterID != tt.cluster || r.ServerID != tt.server {
				t.Errorf("got kind %q, key %q, cluster %d, server %d\nwant kind %q, key %q, cluster %d, server %d",
					got.Kind, r.IdempotencyKey, r.ClusterID, r.ServerID, tt.kind, tt.key, tt.cluster, tt.server)
			}
		})
	}
}

func TestTheSourceIsOneOfFive(t *testing.T) {
	t.Parallel()
	tests := []struct {
		header nats.Header
		want   string
	}{
		{nil, "nats"},
		{nats.Header{SourceHeader: {"cli"}}, "cli"},
		{nats.Header{SourceHeader: {"http"}}, "http"},
		{nats.Header{SourceHeader: {"alertmanager"}}, "alertmanager"},
		{nats.Header{"obwarden-source": {"cli"}}, "cli"},
		{nats.Header{SourceHeader: {"made-up-4711"}}, "nats"},
		{nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"i"}, "ce-source": {"s"}, "ce-type": {"t"}}, "cloudevent"},
		{nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"i"}, "ce-source": {"s"}, "ce-type": {"t"}, SourceHeader: {"http"}}, "http"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.header), func(t *testing.T) {
			t.Parallel()
			got, err := DecodeRequest(stopSubject, tt.header, []byte(body()), fallback)
			if err != nil || got.Source != tt.want {
				t.Errorf("got source %q and error %v, want %q and none", got.Source, err, tt.want)
			}
		})
	}
}

func TestTraceContextIsPassedOn(t *testing.T) {
	t.Parallel()
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	const other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	structured := `{"specversion":"1.0","id":"i","source":"s","type":"t","traceparent":"` + trace + `","data":` + body() + `}`
	tests := []struct {
		name   string
		header nats.Header
		body   string
		want   string
	}{
		{"none", nil, body(), ""},
		{"header", nats.Header{"Traceparent": {trace}}, body(), trace},
		{"binary CloudEvent", nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"i"}, "ce-source": {"s"}, "ce-type": {"t"}, "ce-traceparent": {trace}}, body(), trace},
		{"structured CloudEvent", nil, structured, trace},
		{"what is none is left out", nats.Header{"traceparent": {"'; DROP TABLE"}}, body(), ""},
		{"the header before the CloudEvent", nats.Header{"traceparent": {other}}, structured, other},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeRequest(stopSubject, tt.header, []byte(tt.body), fallback)
			if err != nil || got.Traceparent != tt.want {
				t.Errorf("got %q and error %v, want %q and none", got.Traceparent, err, tt.want)
			}
		})
	}
}

// fullRequest has every field.
func fullRequest() Request {
	return Request{
		IdempotencyKey: "k", ClusterID: 1, ServerID: 2, Force: true, FreezeServer: ptr(true), StopType: "STOP_SERVER", Reason: "disk",
		RequestedBy: "ann", Labels: map[string]string{"a": "1", "b": ""}, DryRun: true, ExpiresAt: time.Date(2026, 11, 24, 21, 30, 0, 0, time.UTC),
	}
}

func TestSameComparesEveryFieldButTheKey(t *testing.T) {
	t.Parallel()
	changes := map[string]func(*Request){
		"IdempotencyKey": nil, // same key is why two requests are compared
		"ClusterID":      func(r *Request) { r.ClusterID++ },
		"ServerID":       func(r *Request) { r.ServerID++ },
		"Force":          func(r *Request) { r.Force = false },
		"FreezeServer":   func(r *Request) { r.FreezeServer = ptr(false) },
		"StopType":       func(r *Request) { r.StopType = "STOP_PROCESS" },
		"Reason":         func(r *Request) { r.Reason = "" },
		"RequestedBy":    func(r *Request) { r.RequestedBy = "bob" },
		"Labels":         func(r *Request) { r.Labels = map[string]string{"a": "1", "c": ""} },
		"DryRun":         func(r *Request) { r.DryRun = false },
		"ExpiresAt":      func(r *Request) { r.ExpiresAt = r.ExpiresAt.Add(time.Nanosecond) },
	}
	for field := range reflect.TypeFor[Request]().Fields() {
		change, known := changes[field.Name]
		if !known {
			t.Errorf("field %s is new: does Same compare it?", field.Name)
		}
		if change == nil {
			continue
		}
		other := fullRequest()
		change(&other)
		if fullRequest().Same(other) || other.Same(fullRequest()) {
			t.Errorf("got two requests that differ in %s as the same, want them told apart", field.Name)
		}
	}
}

func TestSameIgnoresWhatMeansTheSame(t *testing.T) {
	t.Parallel()
	changes := map[string]func(*Request){
		"nothing":     func(*Request) {},
		"the key":     func(r *Request) { r.IdempotencyKey = "other" },
		"the zone":    func(r *Request) { r.ExpiresAt = r.ExpiresAt.In(time.FixedZone("", 3600)) },
		"the pointer": func(r *Request) { r.FreezeServer = ptr(true) },
	}
	for what, change := range changes {
		other := fullRequest()
		change(&other)
		if !fullRequest().Same(other) {
			t.Errorf("got requests that differ in %s as two, want the same:\n%+v\n%+v", what, fullRequest(), other)
		}
	}
	if !(Request{}).Same(Request{Labels: map[string]string{}}) {
		t.Error("got no labels and empty labels as two, want the same")
	}
	if (Request{}).Same(Request{FreezeServer: ptr(false)}) {
		t.Error("got freeze_server absent and false as the same, want two: OCP's default is its own")
	}
}

func TestARequestExpiresAtItsTime(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 21, 30, 0, 0, time.UTC)
	tests := []struct {
		name      string
		expiresAt time.Time
		now       time.Time
		want      bool
	}{
		{"never without a time", time.Time{}, at, false},
		{"not before", at, at.Add(-time.Nanosecond), false},
		{"at it", at, at, true},
		{"after it", at, at.Add(time.Hour), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := (Request{ExpiresAt: tt.expiresAt}).Expired(tt.now); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAMessageIsDecodedToTheRequestThatItWasMadeOf(t *testing.T) {
	t.Parallel()
	requests := map[string]Request{
		"the least":   {IdempotencyKey: "k", ClusterID: 1, ServerID: 2},
		"everything":  fullRequest(),
		"odd letters": {IdempotencyKey: `<&>"\' ~`, ClusterID: 1<<63 - 1, ServerID: 1, Reason: "<b>\u2028\n\x00ü😀", Labels: map[string]string{"": "", "ä.b": "\t"}},
		"not frozen":  {IdempotencyKey: "k", ClusterID: 1, ServerID: 2, FreezeServer: ptr(false)},
		"nanoseconds": {IdempotencyKey: "k", ClusterID: 1, ServerID: 2, ExpiresAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", -5*3600))},
	}
	for name, want := range requests {
		for _, kind := range Kinds() {
			t.Run(name+", "+string(kind), func(t *testing.T) {
				t.Parallel()
				msg, err := want.Message(kind, "cli")
				if err != nil {
					t.Fatal(err)
				}
				got, err := DecodeRequest(msg.Subject, msg.Header, msg.Data, "")
				if err != nil {
					t.Fatalf("%v\n%s", err, msg.Data)
				}
				if got.Kind != kind || got.Source != "cli" || !got.Request.Same(want) || got.Request.IdempotencyKey != want.IdempotencyKey {
					t.Errorf("got  %+v\nwant %s from cli %+v", got, kind, want)
				}
			})
		}
	}
}

func BenchmarkDecodeRequest(b *testing.B) {
	full, err := fullRequest().Message(Stop, "cli")
	if err != nil {
		b.Fatal(err)
	}
	structured := `{"specversion":"1.0","id":"i","source":"s","type":"t","data":` + string(full.Data) + `}`
	for name, msg := range map[string]*nats.Msg{
		"least":      {Subject: stopSubject, Data: []byte(body())},
		"full":       full,
		"structured": {Subject: stopSubject, Header: nats.Header{"Content-Type": {"application/cloudevents+json"}}, Data: []byte(structured)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(msg.Data)))
			for b.Loop() {
				if _, err := DecodeRequest(msg.Subject, msg.Header, msg.Data, fallback); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("deepest that is refused", func(b *testing.B) { // must stay cheap
		data := []byte(strings.Repeat(`{"a":`, MaxRequestBytes/5))
		for b.Loop() {
			if _, err := DecodeRequest(stopSubject, nil, data, fallback); err == nil {
				b.Fatal("got no error")
			}
		}
	})
}
