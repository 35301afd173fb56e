package ocp

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// roundTrip is an http.RoundTripper without a network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func response(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func signing(c *Config) {
	c.Username, c.Password = "", ""
	c.AccessKey, c.SecretKey = "ak-1", "sk-0123456789"
	c.Params = JSON
	c.Now = func() time.Time { return time.Date(2021, 3, 2, 16, 11, 11, 5, time.FixedZone("", 8*3600)) }
}

// TestASignatureIsTheOneThatOpensslMakes compares with signatures made from the documented rules by hand:
//
//	printf '%s' "$toSign" | openssl dgst -sha1 -hmac 'sk-0123456789' -binary | base64
//
// the body's digest being md5sum's in upper case.
func TestASignatureIsTheOneThatOpensslMakes(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		base          string
		call          func(*Client) error
		toSign        string
		authorization string
	}{
		"POST with body and path prefix": {
			base: "http://ocp.example.com:8080/prefix/",
			call: func(c *Client) error {
				_, err := c.Operate(t.Context(), Stop, 1, 2, Params{Force: true}, RequestID{})
				return err
			},
			toSign: "POST\nC3AC801330FABAD1083A4891696356C2\napplication/json\nTue, 02 Mar 2021 08:11:11 GMT\nocp.example.com:8080\n" +
				"x-ocp-origin:obwarden\n/prefix/api/v2/ob/clusters/1/servers/2/stop",
			authorization: "OCP-ACCESS-KEY-HMACSHA1 ak-1:trjiPxZTyyP08v+ZdpWCUjaWKhc=",
		},
		"GET with query": {
			base: "http://ocp.example.com:8080",
			call: func(c *Client) error {
				_, err := c.Tasks(t.Context(), TaskQuery{ClusterID: 1, Name: "Stop OB server+~", Status: []string{"RUNNING", "FAILED"}})
				return err
			},
			toSign: "GET\n\napplication/json\nTue, 02 Mar 2021 08:11:11 GMT\nocp.example.com:8080\nx-ocp-origin:obwarden\n" +
				"/api/v2/tasks/instances?clusterId=1&name=Stop%20OB%20server%2B~&page=1&size=100&sort=id%2Cdesc&status=RUNNING%2CFAILED",
			authorization: "OCP-ACCESS-KEY-HMACSHA1 ak-1:vMjoIp13pt89zhW4f3yYiw331nM=",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, tt.base, signing)
			var got *http.Request
			var body []byte
			transport := roundTrip(func(req *http.Request) (*http.Response, error) {
				got = req
				body, _ = io.ReadAll(req.Body)
				return response(http.StatusOK, `{"successful":true,"data":{"id":1}}`), nil
			})
			client.reads.Transport, client.posts.Transport = transport, transport
			if err := tt.call(client); err != nil {
				t.Fatal(err)
			}
			if toSign := toSign(got, body); toSign != tt.toSign {
				t.Errorf("to sign:\n got %q\nwant %q", toSign, tt.toSign)
			}
			if authorization := got.Header.Get("Authorization"); authorization != tt.authorization {
				t.Errorf("Authorization:\n got %s\nwant %s", authorization, tt.authorization)
			}
		})
	}
}

// TestWhatIsSignedIsWhatIsSent compares what arrives with what was signed.
func TestWhatIsSignedIsWhatIsSent(t *testing.T) {
	t.Parallel()
	rec := serve(t, always(http.StatusOK, `{"successful":true,"data":[]}`))
	client := newClient(t, rec.URL, signing)
	if _, err := client.Tasks(t.Context(), TaskQuery{Name: "a b/ü*"}); err != nil {
		t.Fatal(err)
	}
	got := rec.got()[0]
	if want := "/api/v2/tasks/instances?name=a%20b%2F%C3%BC%2A&page=1&size=100&sort=id%2Cdesc"; got.RequestURI != want {
		t.Errorf("request URI: got %s, want %s", got.RequestURI, want)
	}
	for name, want := range map[string]string{
		"Date":         "Tue, 02 Mar 2021 08:11:11 GMT",
		"Content-Type": "application/json",
		"X-Ocp-Origin": "obwarden",
	} {
		if value := got.Header.Get(name); value != want {
			t.Errorf("%s: got %q, want %q", name, value, want)
		}
	}
	if host := strings.TrimPrefix(rec.URL, "http://"); got.Host != host {
		t.Errorf("Host: got %s, want %s", got.Host, host)
	}
}

func TestAQueryIsEncodedAsASignatureNeedsIt(t *testing.T) {
	t.Parallel()
	got := encodeQuery(url.Values{"b": {"a b+c,~-_.*/"}, "a": {"1"}})
	if want := "a=1&b=a%20b%2Bc%2C~-_.%2A%2F"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestUserAndPasswordTravelAsHTTPBasic(t *testing.T) {
	t.Parallel()
	rec := serve(t, always(http.StatusOK, `{"successful":true,"data":{"id":1}}`))
	if _, err := newClient(t, rec.URL).Task(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	user, pass, ok := rec.got()[0].BasicAuth()
	if !ok || user != "root" || pass != password {
		t.Errorf("got %q %q %t", user, pass, ok)
	}
}

// TestSecretsStayOutOfErrors has a gateway echo the request.
func TestSecretsStayOutOfErrors(t *testing.T) {
	t.Parallel()
	for name, option := range map[string]func(*Config){"basic": func(*Config) {}, "signature": signing} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var authorization string
			rec := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
				authorization = r.Header.Get("Authorization")
				reply(w, http.StatusBadRequest, "bad request: "+authorization+" "+password)
			})
			client := newClient(t, rec.URL, option)
			_, err := client.Task(context.Background(), 1)
			_, secret, _ := strings.Cut(authorization, " ")
			if err == nil || strings.Contains(err.Error(), secret) || name == "basic" && strings.Contains(err.Error(), password) {
				t.Errorf("got %v", err)
			}
		})
	}
}
