package alerts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

const (
	// callTimeout is how long one call to Alertmanager may take: an operation waits for it.
	callTimeout = 3 * time.Second
	// maxAnswerBytes is more than the list of silences of a large installation takes.
	maxAnswerBytes = 32 << 20
)

// silence is a silence in the shape of Alertmanager's API v2.
type silence struct {
	ID        string    `json:"id,omitempty"`
	Matchers  []matcher `json:"matchers"`
	StartsAt  time.Time `json:"startsAt"`
	EndsAt    time.Time `json:"endsAt"`
	UpdatedAt time.Time `json:"updatedAt,omitzero"`
	CreatedBy string    `json:"createdBy"`
	Comment   string    `json:"comment"`
	Status    *struct {
		State string `json:"state"`
	} `json:"status,omitempty"`
}

type matcher struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	IsRegex bool   `json:"isRegex"`
	IsEqual bool   `json:"isEqual"`
}

// alertmanager calls API v2 of an Alertmanager. Its methods may be called concurrently.
type alertmanager struct {
	base               *url.URL
	username, password string
	client             *http.Client
}

func newAlertmanager(base, username, password string) (*alertmanager, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("URL of Alertmanager: must be http:// or https:// with a host and without user and password")
	}
	return &alertmanager{base: u, username: username, password: password, client: &http.Client{
		Timeout: callTimeout,
		// A redirect would turn a POST into a GET, and send the credentials to whichever host it names.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// list returns the silences that have not expired.
func (a *alertmanager) list(ctx context.Context) ([]silence, error) {
	var all, open []silence
	if err := a.call(ctx, http.MethodGet, "silences?expired=false", nil, &all); err != nil {
		return nil, err
	}
	for _, s := range all { // older versions ignore expired=false
		if s.Status == nil || s.Status.State != "expired" {
			open = append(open, s)
		}
	}
	return open, nil
}

// put creates a silence, or changes the silence that has its id.
func (a *alertmanager) put(ctx context.Context, s silence) error {
	s.Status, s.UpdatedAt = nil, time.Time{}
	return a.call(ctx, http.MethodPost, "silences", s, nil)
}

// end ends a silence now.
func (a *alertmanager) end(ctx context.Context, id string) error {
	return a.call(ctx, http.MethodDelete, "silence/"+url.PathEscape(id), nil, nil)
}

func (a *alertmanager) call(ctx context.Context, method, path string, body, into any) error {
	fail := func(err error) error {
		return fmt.Errorf("call Alertmanager, %s /api/v2/%s: %w", method, path, err)
	}
	payload, err := json.Marshal(body)
	if err != nil {
		return fail(err)
	}
	address := a.base.JoinPath("api/v2").String() + "/" + path
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(payload))
	if err != nil {
		return fail(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if a.username != "" {
		request.SetBasicAuth(a.username, a.password)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return fail(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	switch {
	case err != nil:
		return fail(err)
	case response.StatusCode != http.StatusOK:
		return fail(fmt.Errorf("HTTP status %d: %.200q", response.StatusCode, answer))
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fail(fmt.Errorf("%w in %.100q", err, answer))
	}
	return nil
}
