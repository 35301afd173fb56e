package alerts

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"mime"
	"net"
	"net/http"
	"strings"
)

// Credentials are what Alertmanager must send: user and password, or the token. Where both are set, either will do.
type Credentials struct {
	Username, Password string
	Token              string // Authorization: Bearer
}

// match reports whether a request carries the credentials.
func (c Credentials) match(r *http.Request) bool {
	if username, password, ok := r.BasicAuth(); ok && c.Password != "" {
		return same(username, c.Username) && same(password, c.Password)
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return c.Token != "" && strings.EqualFold(scheme, "Bearer") && same(token, c.Token)
}

// same takes equally long whatever differs, also for texts of different lengths.
func same(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// authorize refuses requests without the credentials. Where no credentials are set it refuses requests of browsers: a
// web page from elsewhere can make a browser post to this machine, but it cannot post JSON, nor can it use a host name
// that stands for this machine only.
func (w *Webhook) authorize(r *http.Request) (status int, err error) {
	open := w.Credentials == (Credentials{})
	switch {
	case open && !w.Loopback:
		return http.StatusForbidden, errors.New("anybody could stop servers here: set OBWARDEN_WEBHOOK_TOKEN, or " +
			"OBWARDEN_WEBHOOK_USERNAME and OBWARDEN_WEBHOOK_PASSWORD, or have OBWARDEN_HTTP_LISTEN listen on a loopback address")
	case open && !isLoopback(r.Host):
		return http.StatusForbidden, errors.New(
			"without credentials the URL must name localhost or a loopback address: set OBWARDEN_WEBHOOK_TOKEN for another")
	case !open && !w.Credentials.match(r):
		return http.StatusUnauthorized, errors.New("wrong credentials, or none")
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" {
		return http.StatusUnsupportedMediaType, errors.New("the content type must be application/json")
	}
	return 0, nil
}

func isLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		host = strings.Trim(hostPort, "[]")
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
