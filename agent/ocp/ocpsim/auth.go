package ocpsim

import (
	"cmp"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Permission is what a user may do.
type Permission string

// The permissions that the contract names, on all clusters alike. None: whatever needs no more than a known user.
const (
	PermissionNone        Permission = ""
	PermissionManage      Permission = "manage"       // stop, start, restart
	PermissionRead        Permission = "read"         // topology
	PermissionTaskViewer  Permission = "task_viewer"  // tasks and logs
	PermissionTaskManager Permission = "task_manager" // retry, rollback, skip, cancel
)

// User may identify by name and password (HTTP Basic) or by a signature with access key and secret key.
type User struct {
	Name        string       `json:"name"`
	Password    string       `json:"password"`
	AccessKey   string       `json:"accessKey"`
	SecretKey   string       `json:"secretKey"`
	Permissions []Permission `json:"permissions"`
}

// DefaultUsers are an administrator, "admin" with password "admin" unless told otherwise, a user "readonly" who sees
// but may touch nothing, and a user "notaskviewer" who may stop servers but not see what becomes of it. The latter
// two have their name as password; keys are sim-<admin|readonly|notaskviewer>-ak and -sk.
func DefaultUsers(username, password string) []User {
	return []User{
		{
			Name: cmp.Or(username, "admin"), Password: cmp.Or(password, "admin"),
			AccessKey: "sim-admin-ak", SecretKey: "sim-admin-sk",
			Permissions: []Permission{PermissionManage, PermissionRead, PermissionTaskViewer, PermissionTaskManager},
		},
		{
			Name: "readonly", Password: "readonly",
			AccessKey: "sim-readonly-ak", SecretKey: "sim-readonly-sk",
			Permissions: []Permission{PermissionRead, PermissionTaskViewer},
		},
		{
			Name: "notaskviewer", Password: "notaskviewer",
			AccessKey: "sim-notaskviewer-ak", SecretKey: "sim-notaskviewer-sk",
			Permissions: []Permission{PermissionManage, PermissionRead},
		},
	}
}

func validateUsers(users []User) error {
	var errs []error
	names, keys := map[string]bool{}, map[string]bool{}
	known := []Permission{PermissionManage, PermissionRead, PermissionTaskViewer, PermissionTaskManager}
	for _, u := range users {
		if u.Name == "" || strings.Contains(u.Name, ":") {
			errs = append(errs, fmt.Errorf("user %q: want a name without colon", u.Name))
		}
		if names[u.Name] {
			errs = append(errs, fmt.Errorf("user %q is there twice", u.Name))
		}
		if u.AccessKey != "" && keys[u.AccessKey] {
			errs = append(errs, fmt.Errorf("user %q: access key %q is there twice", u.Name, u.AccessKey))
		}
		if strings.ContainsAny(u.AccessKey, ": ") {
			errs = append(errs, fmt.Errorf("user %q: access key %q: want no colon, no space", u.Name, u.AccessKey))
		}
		names[u.Name], keys[u.AccessKey] = true, true
		for _, p := range u.Permissions {
			if !slices.Contains(known, p) {
				errs = append(errs, fmt.Errorf("user %q: permission %q: want one of %q", u.Name, p, known))
			}
		}
	}
	return errors.Join(errs...)
}

func (u *User) may(p Permission) bool {
	return p == PermissionNone || slices.Contains(u.Permissions, p)
}

// userID: the samples' admin has 100.
func (s *Sim) userID(u *User) int64 {
	return 100 + int64(slices.IndexFunc(s.cfg.Users, func(o User) bool { return o.Name == u.Name }))
}

const (
	signatureScheme = "OCP-ACCESS-KEY-HMACSHA1"
	maxDateSkew     = 15 * time.Minute
)

// authenticate says who sent the request, or why nobody knows. It reads the request as it came over the wire.
func (s *Sim) authenticate(r *http.Request, body []byte) (*User, error) {
	scheme, credentials, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case scheme == "":
		return nil, errors.New("no Authorization header")
	case strings.EqualFold(scheme, "Basic"):
		return s.authenticateBasic(r)
	case scheme == signatureScheme:
		return s.authenticateSignature(r, body, credentials)
	}
	return nil, fmt.Errorf("authorization scheme %q: want Basic or %s", scheme, signatureScheme)
}

func (s *Sim) authenticateBasic(r *http.Request) (*User, error) {
	name, password, ok := r.BasicAuth()
	if !ok {
		return nil, errors.New("credentials of HTTP Basic cannot be read")
	}
	for i := range s.cfg.Users {
		u := &s.cfg.Users[i]
		if u.Name == name && subtle.ConstantTimeCompare([]byte(u.Password), []byte(password)) == 1 {
			return u, nil
		}
	}
	return nil, errors.New("wrong user name or password")
}

func (s *Sim) authenticateSignature(r *http.Request, body []byte, credentials string) (*User, error) {
	accessKey, signature, ok := strings.Cut(credentials, ":")
	if !ok {
		return nil, fmt.Errorf("want %s {AK}:{Signature}, one space", signatureScheme)
	}
	i := slices.IndexFunc(s.cfg.Users, func(u User) bool { return u.AccessKey != "" && u.AccessKey == accessKey })
	if i < 0 {
		return nil, fmt.Errorf("unknown access key %q", accessKey)
	}
	u := &s.cfg.Users[i]
	date, err := time.Parse(http.TimeFormat, r.Header.Get("Date"))
	if err != nil {
		return nil, fmt.Errorf("header Date %q: want RFC 1123 in GMT", r.Header.Get("Date"))
	}
	if skew := s.cfg.Now().Sub(date).Abs(); skew > maxDateSkew { // the real clock: Advance must not lock clients out
		return nil, fmt.Errorf("header Date is %s off, more than %s", skew.Round(time.Second), maxDateSkew)
	}
	toSign, err := stringToSign(r, body)
	if err != nil {
		return nil, err
	}
	if want := sign(u.SecretKey, toSign); !hmac.Equal([]byte(want), []byte(signature)) {
		return nil, fmt.Errorf("signature does not match; this was to be signed: %q", toSign)
	}
	return u, nil
}

// stringToSign puts the contract's seven parts together. The query that was sent must be in its signed form
// already: what is sent must be byte for byte what was signed.
func stringToSign(r *http.Request, body []byte) (string, error) {
	path, rawQuery, hasQuery := strings.Cut(r.RequestURI, "?")
	if hasQuery {
		query, err := canonicalQuery(rawQuery)
		if err != nil {
			return "", err
		}
		if query != rawQuery {
			return "", fmt.Errorf("query was sent as %q but signs as %q", rawQuery, query)
		}
		path += "?" + query
	}
	digest := ""
	if len(body) > 0 {
		digest = fmt.Sprintf("%X", md5.Sum(body))
	}
	return strings.Join([]string{
		strings.ToUpper(r.Method),
		digest,
		r.Header.Get("Content-Type"),
		r.Header.Get("Date"),
		r.Host,
		ocpHeaders(r.Header),
		path,
	}, "\n"), nil
}

// ocpHeaders are the x-ocp-* headers as name:value lines, by name.
func ocpHeaders(h http.Header) string {
	var lines []string
	for name, values := range h {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-ocp-") {
			lines = append(lines, name+":"+strings.Join(values, ","))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// canonicalQuery has names sorted, names and values percent-encoded with no safe characters.
func canonicalQuery(raw string) (string, error) {
	type parameter struct{ name, value string }
	var all []parameter
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(name)
		value, errValue := url.QueryUnescape(value)
		if err := cmp.Or(errName, errValue); err != nil {
			return "", fmt.Errorf("query %q: %w", raw, err)
		}
		all = append(all, parameter{name, value})
	}
	slices.SortFunc(all, func(a, b parameter) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.value, b.value)) })
	pairs := make([]string, len(all))
	for i, p := range all {
		pairs[i] = percentEncode(p.name) + "=" + percentEncode(p.value)
	}
	return strings.Join(pairs, "&"), nil
}

// percentEncode leaves only RFC 3986's unreserved characters, as Python's quote(safe="") does in public clients.
func percentEncode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func sign(secretKey, toSign string) string {
	mac := hmac.New(sha1.New, []byte(secretKey))
	mac.Write([]byte(toSign))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
