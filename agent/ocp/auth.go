package ocp

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

var errCredentials = errors.New("credentials: set either username and password, or access key and secret key, " +
	"or neither pair, each complete")

// ocpHeaderPrefix marks the headers that a signature covers. originHeader is one of them,
// which public clients send (observed).
const (
	ocpHeaderPrefix = "x-ocp-"
	originHeader    = "x-ocp-origin"
	origin          = "obwarden"
)

// credentials are HTTP Basic or an AK/SK pair.
type credentials struct {
	username, password   string
	accessKey, secretKey string
}

func (c credentials) validate() error {
	basic := c.username != "" && c.password != "" && c.accessKey == "" && c.secretKey == ""
	signed := c.accessKey != "" && c.secretKey != "" && c.username == "" && c.password == ""
	switch {
	case c == credentials{}: // a gateway may add them
	case !basic && !signed:
		return errCredentials
	case strings.Contains(c.username, ":"):
		return errors.New("username: HTTP Basic allows no colon in it")
	}
	return nil
}

// authorize adds the credentials to a request that is complete otherwise.
func (c credentials) authorize(req *http.Request, body []byte, now time.Time) {
	switch {
	case c == credentials{}:
		return
	case c.accessKey == "":
		req.SetBasicAuth(c.username, c.password)
		return
	}
	req.Header.Set("Date", now.UTC().Format(http.TimeFormat))
	// Set past http.Header.Set, which would change the letter case that is signed.
	req.Header[originHeader] = []string{origin}
	mac := hmac.New(sha1.New, []byte(c.secretKey))
	mac.Write([]byte(toSign(req, body)))
	signature := base64.StdEncoding.EncodeToString(mac.Sum(nil))
	req.Header.Set("Authorization", "OCP-ACCESS-KEY-HMACSHA1 "+c.accessKey+":"+signature)
}

// redact takes secrets out of the text of an answer: a gateway may echo a request.
func (c credentials) redact(req *http.Request, text string) string {
	_, authorization, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	for _, secret := range []string{authorization, c.password, c.secretKey} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	return text
}

// toSign returns the text under an AK/SK signature (documented): seven parts, a line each,
// exactly as they go over the wire.
func toSign(req *http.Request, body []byte) string {
	digest := ""
	if len(body) > 0 {
		digest = fmt.Sprintf("%X", md5.Sum(body))
	}
	var ocpHeaders []string
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		if strings.HasPrefix(name, ocpHeaderPrefix) {
			ocpHeaders = append(ocpHeaders, name+":"+req.Header[name][0])
		}
	}
	return strings.Join([]string{
		req.Method,
		digest,
		req.Header.Get("Content-Type"),
		req.Header.Get("Date"),
		req.Host,
		strings.Join(ocpHeaders, "\n"),
		req.URL.RequestURI(),
	}, "\n")
}

// encodeQuery sorts by name and escapes all but unreserved characters (A-Z a-z 0-9 -_.~),
// as a signature needs it (documented).
func encodeQuery(query url.Values) string {
	// Encode sorts and keeps the same characters; it differs in the space alone,
	// and a plus sign of the value is %2B by then.
	return strings.ReplaceAll(query.Encode(), "+", "%20")
}
