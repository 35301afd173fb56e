package ocpsim_test

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

// atNoon is noon as a Date header.
const atNoon = "Fri, 02 Jan 2026 04:00:00 GMT"

// TestSignature sends requests whose signatures were made by openssl dgst -sha1 -hmac sim-admin-sk, or of a string
// that is written out here.
func TestSignature(t *testing.T) {
	t.Parallel()
	const (
		stop     = "/api/v2/ob/clusters/1/servers/2/stop"
		list     = "/api/v2/tasks/instances?name=Stop%20OB&sort=id%2Cdesc"
		listSign = "OCP-ACCESS-KEY-HMACSHA1 sim-admin-ak:gHjzp8aj1rtkMawyyp+8/jGM6AQ="
		stopSign = "OCP-ACCESS-KEY-HMACSHA1 sim-admin-ak:Ov4CoasVxQ5p2ouVOwv3xVX8Z6g="
		scheme   = "OCP-ACCESS-KEY-HMACSHA1 "
	)
	signed := func(accessKey, secretKey, toSign string) string {
		mac := hmac.New(sha1.New, []byte(secretKey))
		mac.Write([]byte(toSign))
		return scheme + accessKey + ":" + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	stopAt := func(date string) string {
		digest := fmt.Sprintf("%X", md5.Sum([]byte(`{"force":false}`)))
		return "POST\n" + digest + "\napplication/json\n" + date + "\nocp.example:8080\n\n" + stop
	}
	tests := []struct {
		name, method, target, body string
		header                     map[string]string
		status                     int
		debug                      string // what the refusal says
	}{
		{"with query and x-ocp header", "GET", list, "", map[string]string{"Authorization": listSign, "x-ocp-origin": "obwarden"}, 200, ""},
		{"with body", "POST", stop, `{"force":false}`, map[string]string{"Authorization": stopSign}, 200, ""},
		{"body changed", "POST", stop, `{"force":true}`, map[string]string{"Authorization": stopSign}, 401, "signature does not match"},
		{"header changed", "GET", list, "", map[string]string{"Authorization": listSign, "x-ocp-origin": "other"}, 401, "signature does not match"},
		{"content type changed", "POST", stop, `{"force":false}`, map[string]string{"Authorization": stopSign, "Content-Type": "text/plain"}, 401, "signature does not match"},
		{"query not in order", "GET", "/api/v2/tasks/instances?sort=id%2Cdesc&name=Stop%20OB", "", map[string]string{"Authorization": listSign, "x-ocp-origin": "obwarden"}, 401, "but signs as"},
		{"query not encoded", "GET", "/api/v2/tasks/instances?name=Stop%20OB&sort=id,desc", "", map[string]string{"Authorization": listSign, "x-ocp-origin": "obwarden"}, 401, "but signs as"},
		{"wrong secret", "POST", stop, `{"force":false}`, map[string]string{"Authorization": signed("sim-admin-ak", "other", stopAt(atNoon))}, 401, "signature does not match"},
		{"other user's key", "POST", stop, `{"force":false}`, map[string]string{"Authorization": signed("sim-readonly-ak", "sim-readonly-sk", stopAt(atNoon))}, 403, ""},
		{"unknown key", "POST", stop, `{"force":false}`, map[string]string{"Authorization": signed("nobody", "x", stopAt(atNoon))}, 401, "unknown access key"},
		{"no colon", "POST", stop, "", map[string]string{"Authorization": scheme + "sim-admin-ak"}, 401, "want OCP-ACCESS-KEY-HMACSHA1 {AK}:{Signature}"},
		{"two spaces", "POST", stop, `{"force":false}`, map[string]string{"Authorization": strings.Replace(stopSign, " ", "  ", 1)}, 401, "unknown access key"},
		{"no date", "POST", stop, "", map[string]string{"Authorization": stopSign, "Date": ""}, 401, "want RFC 1123"},
		{"stale", "POST", stop, `{"force":false}`, dated(signed, stopAt, noon.Add(-16*time.Minute)), 401, "off, more than 15m"},
		{"from the future", "POST", stop, `{"force":false}`, dated(signed, stopAt, noon.Add(16*time.Minute)), 401, "off, more than 15m"},
		{"14 minutes off", "POST", stop, `{"force":false}`, dated(signed, stopAt, noon.Add(-14*time.Minute)), 200, ""},
		{"other scheme", "POST", stop, "", map[string]string{"Authorization": "Bearer x"}, 401, "want Basic"},
		{"nothing", "POST", stop, "", nil, 401, "no Authorization"},
		{"wrong password", "POST", stop, "", map[string]string{"Authorization": "Basic YWRtaW46d3Jvbmc="}, 401, "wrong user name or password"},
		{"Basic cannot be read", "POST", stop, "", map[string]string{"Authorization": "Basic ?"}, 401, "cannot be read"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			sim, err := ocpsim.New(ocpsim.Config{Now: func() time.Time { return noon }})
			if err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest(test.method, test.target, strings.NewReader(test.body))
			req.Host = "ocp.example:8080"
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Date", atNoon)
			for name, value := range test.header {
				req.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			sim.Handler().ServeHTTP(w, req)
			if w.Code != test.status || !strings.Contains(w.Body.String(), test.debug) {
				t.Errorf("got %d, want %d with %q: %s", w.Code, test.status, test.debug, w.Body)
			}
			if test.status == 401 && !strings.Contains(w.Body.String(), `"code":30000`) {
				t.Errorf("refusal lacks code 30000: %s", w.Body)
			}
			if test.status != 200 && len(sim.Tasks()) > 0 {
				t.Error("a refused request started a task")
			}
		})
	}
}

func dated(signed func(ak, sk, toSign string) string, stopAt func(string) string, at time.Time) map[string]string {
	date := at.Format("Mon, 02 Jan 2006 15:04:05 GMT")
	return map[string]string{"Date": date, "Authorization": signed("sim-admin-ak", "sim-admin-sk", stopAt(date))}
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	const zones, tasks = "/api/v2/ob/clusters/1/zones", "/api/v2/tasks/instances"
	tests := []struct {
		user, method, path string
		status             int
	}{
		{"admin", "GET", zones, 200},
		{"admin", "GET", tasks, 200},
		{"admin", "POST", serverPath(2, "stop"), 200},
		{"admin", "POST", tasks + "/1/retry", 404},
		{"readonly", "GET", zones, 200},
		{"readonly", "GET", tasks, 200},
		{"readonly", "GET", "/api/v2/info", 200},
		{"readonly", "POST", serverPath(2, "stop"), 403},
		{"readonly", "POST", tasks + "/1/retry", 403},
		{"readonly", "POST", tasks + "/1/subtasks/1/skip", 403},
		{"notaskviewer", "GET", zones, 200},
		{"notaskviewer", "POST", serverPath(2, "stop"), 200},
		{"notaskviewer", "GET", tasks, 403},
		{"notaskviewer", "GET", tasks + "/1", 403},
		{"notaskviewer", "GET", tasks + "/1/subtasks/1/log", 403},
		{"notaskviewer", "POST", tasks + "/1/rollback", 403},
		{"nobody", "GET", "/api/v2/info", 401},
		{"nobody", "GET", "/api/status", 200},
	}
	for _, test := range tests {
		t.Run(test.user+" "+test.path, func(t *testing.T) {
			t.Parallel()
			c := start(t, ocpsim.Config{}).as(test.user)
			c.want(c.do(test.method, test.path, ""), test.status, 0)
		})
	}
}
