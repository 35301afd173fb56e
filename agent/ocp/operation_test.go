package ocp

import (
	"errors"
	"net/http"
	"testing"
)

func TestOperateSendsTheParametersOfItsVersionAndStyle(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	tests := []struct {
		name   string
		api    API
		action Action
		params Params
		query  string
		json   string
	}{
		{"v3 defaults", V3, Stop, Params{}, "", ""},
		{"v3 force", V3, Stop, Params{Force: true}, "force=true", `{"force":true}`},
		{"v3 passes what is given", V3, Stop, Params{FreezeServer: &no, StopType: "STOP_SERVICE"}, "freezeServer=false&type=STOP_SERVICE", `{"freezeServer":false,"type":"STOP_SERVICE"}`},
		{"v3 restart", V3, Restart, Params{Force: true, StopType: "X"}, "force=true", `{"force":true}`},
		{"v4.3 defaults", V43, Stop, Params{}, "freezeServer=false", `{"freezeServer":false}`},
		{"v4.3 all", V43, Stop, Params{Force: true, FreezeServer: &yes, StopType: "A B"}, "force=true&freezeServer=true&type=A%20B", `{"force":true,"freezeServer":true,"type":"A B"}`},
		{"v4.3 restart", V43, Restart, Params{FreezeServer: &yes}, "freezeServer=true", `{"freezeServer":true}`},
		{"v3 start", V3, Start, Params{Force: true, FreezeServer: &yes, StopType: "X"}, "", ""},
		{"v4.3 start", V43, Start, Params{Force: true, FreezeServer: &yes, StopType: "X"}, "", ""},
	}
	for _, tt := range tests {
		for _, style := range []ParamStyle{Query, JSON} {
			t.Run(tt.name+", "+string(style), func(t *testing.T) {
				t.Parallel()
				rec := serve(t, always(http.StatusOK, string(sample(t, "servers-stop"))))
				client := newClient(t, rec.URL+"/ocp", func(c *Config) { c.API, c.Params, c.UserAgent = tt.api, style, "obwarden/1" })
				task, err := client.Operate(t.Context(), tt.action, 1, 2, tt.params, RequestID{"op-1", "op-1.1"})
				if err != nil || task.ID != 111102 {
					t.Fatalf("got task %d, %v", task.ID, err)
				}
				query, body := tt.query, ""
				if style == JSON {
					query, body = "", tt.json
				}
				got := rec.got()[0]
				if got.Method != "POST" || got.URL.Path != "/ocp/api/v2/ob/clusters/1/servers/2/"+string(tt.action) {
					t.Errorf("got %s %s", got.Method, got.URL.Path)
				}
				if got.URL.RawQuery != query || got.body != body {
					t.Errorf("got query %q and body %q, want %q and %q", got.URL.RawQuery, got.body, query, body)
				}
				for name, want := range map[string]string{
					"Idempotency-Key": "op-1", "X-Request-Id": "op-1.1", "User-Agent": "obwarden/1",
					"Content-Type": "application/json", "Expect": "",
				} {
					if value := got.Header.Get(name); value != want {
						t.Errorf("%s: got %q, want %q", name, value, want)
					}
				}
			})
		}
	}
}

func TestOperateRefusesUnknownActionsAndIDsWithoutACall(t *testing.T) {
	t.Parallel()
	rec := serve(t, always(http.StatusOK, accepted))
	client := newClient(t, rec.URL)
	for want, call := range map[error]func() (Task, error){
		errAction: func() (Task, error) { return client.Operate(t.Context(), "delete", 1, 2, Params{}, RequestID{}) },
		errID:     func() (Task, error) { return client.Operate(t.Context(), Stop, 1, 0, Params{}, RequestID{}) },
	} {
		if _, err := call(); !errors.Is(err, want) || ClassOf(err) != Refused {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	if n := len(rec.got()); n != 0 {
		t.Errorf("requests: got %d", n)
	}
}

func TestRetryTaskTakesAnyYesOfOCP(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		status int
		body   string
		class  Class
		ok     bool
	}{
		"published":     {200, string(sample(t, "tasks-retry")), 0, true},
		"without data":  {200, string(sample(t, "subtasks-skip")), 0, true},
		"refused":       {409, `{}`, Refused, false},
		"nobody knows":  {503, ``, Ambiguous, false},
		"empty success": {200, ``, Ambiguous, false},
	} {
		rec := serve(t, always(tt.status, tt.body))
		err := newClient(t, rec.URL).RetryTask(t.Context(), 7)
		if (err == nil) != tt.ok || err != nil && ClassOf(err) != tt.class {
			t.Errorf("%s: got %v, %v", name, ClassOf(err), err)
		}
		if got := rec.got(); len(got) != 1 || got[0].Method != "POST" || got[0].URL.Path != "/api/v2/tasks/instances/7/retry" {
			t.Errorf("%s: got %d requests", name, len(got))
		}
	}
}
