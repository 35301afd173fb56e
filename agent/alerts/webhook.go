// Package alerts is where obwarden and Alertmanager meet: firing alerts become
// requests, and alerts that an operation must cause are silenced while it runs.
//
// Read webhook.go for the way in: alert.go decodes, request.go and directory.go say
// what an alert asks for, matter.go whether it does so for the first time. The way
// out is silence.go. Requests made here have no right of their own: they pass the
// guard as any other. The package imports events, metrics, agent/guard and
// agent/ocp.
package alerts

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// answerTimeout is how long one body may take. What was done by then is a duplicate
// when Alertmanager tries again.
const answerTimeout = 20 * time.Second

// What becomes of an alert.
const (
	resultRequested = "requested"    // its request is on disk
	resultDuplicate = "duplicate"    // it was already
	resultNotYet    = "not_yet"      // it has not fired for long enough
	resultGrouped   = "grouped"      // an operation on the same server is open
	resultCooling   = "cooling_down" // it was acted upon, and has not been resolved since
	resultResolved  = "resolved"     // nothing to be done
	resultCancelled = "cancelled"    // it is resolved, and its operation was waiting
	resultRefused   = "refused"      // it asks for nothing that can be done
	resultFailed    = "failed"       // Alertmanager must try again
)

// Config is what a webhook works with. All fields but the credentials are required.
type Config struct {
	JetStream jetstream.JetStream
	Journal   jetstream.Stream   // events.OperationStream
	Bucket    jetstream.KeyValue // by OpenBucket
	Directory *Directory
	Policy    func() *policy.Policy // as it is now
	Metrics   *metrics.Metrics
	Log       *slog.Logger
	Retention time.Duration // of the bucket

	Credentials Credentials
	// Loopback says that only this machine can reach the webhook, so that it is open
	// where no credentials are set.
	Loopback bool
}

// Credentials are what Alertmanager must know: user and password, or the token. With
// both set either will do.
type Credentials struct {
	Username, Password string
	Token              string // Authorization: Bearer
}

// Webhook takes Alertmanager's notifications. It is an http.Handler, to be called
// concurrently.
type Webhook struct {
	Config
	matters matters
}

// NewWebhook makes a webhook; it owns no goroutine.
func NewWebhook(c Config) *Webhook {
	StartAtZero(c.Metrics, c.Policy())
	return &Webhook{Config: c, matters: matters{c.Bucket}}
}

// StartAtZero makes the counters of a policy's alert rules, before it is in force: an
// increase from nothing is not seen.
func StartAtZero(m *metrics.Metrics, p *policy.Policy) {
	for _, rule := range p.Alerts {
		for _, result := range []string{resultRequested, resultDuplicate, resultNotYet, resultGrouped, resultCooling, resultResolved, resultCancelled, resultRefused, resultFailed} {
			m.Alerts.WithLabelValues(rule.Name, result)
		}
	}
}

// Outcome is what became of one alert: an entry of the answer.
type Outcome struct {
	Alert       string `json:"alert,omitempty"` // its name
	Fingerprint string `json:"fingerprint,omitempty"`
	Rule        string `json:"rule,omitempty"`
	Result      string `json:"result"`
	OperationID string `json:"operation_id,omitempty"`
	Message     string `json:"message,omitempty"`
}

// ServeHTTP answers 200 once all that is to be done about every alert is on disk, or
// refused for good; 503 where Alertmanager must try again.
func (w *Webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	status, err := w.mayCome(r)
	var body []byte
	if err == nil {
		if body, err = io.ReadAll(http.MaxBytesReader(rw, r.Body, MaxBodyBytes)); err != nil {
			status = http.StatusBadRequest
			if errors.As(err, new(*http.MaxBytesError)) {
				status, err = http.StatusRequestEntityTooLarge, fmt.Errorf("the body is over %d bytes: set max_alerts in Alertmanager's webhook_configs", MaxBodyBytes)
			}
		}
	}
	var all []json.RawMessage
	if err == nil {
		status = http.StatusBadRequest
		all, err = decodeBody(body)
	}
	if err != nil {
		w.Metrics.Alerts.WithLabelValues(metrics.NoRule, resultRefused).Inc()
		w.Log.Warn("webhook refused", "from", r.RemoteAddr, "status", status, "error", err)
		if status == http.StatusUnauthorized {
			rw.Header().Add("WWW-Authenticate", `Basic realm="obwarden"`)
			rw.Header().Add("WWW-Authenticate", `Bearer realm="obwarden"`)
		}
		answer(rw, status, map[string]string{"error": err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	outcomes := make([]Outcome, len(all))
	status = http.StatusOK
	for i, raw := range all {
		outcomes[i] = w.take(ctx, raw, time.Now())
		if outcomes[i].Result == resultFailed {
			status = http.StatusServiceUnavailable
		}
	}
	answer(rw, status, map[string][]Outcome{"alerts": outcomes})
}

func answer(rw http.ResponseWriter, status int, body any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(body) // the client is gone: nobody to tell
}

// mayCome refuses who does not know the credentials. Where there are none it refuses
// browsers: a page from elsewhere can make one post to this machine, but not JSON, nor
// by a name that is this machine's own.
func (w *Webhook) mayCome(r *http.Request) (status int, err error) {
	open := w.Credentials == (Credentials{})
	switch {
	case open && !w.Loopback:
		return http.StatusForbidden, errors.New("anybody could stop servers here: set OBWARDEN_WEBHOOK_TOKEN, or OBWARDEN_WEBHOOK_USERNAME and OBWARDEN_WEBHOOK_PASSWORD, or have OBWARDEN_HTTP_LISTEN listen on a loopback address")
	case open && !isLoopback(r.Host):
		return http.StatusForbidden, errors.New("without credentials the URL must name localhost or a loopback address: set OBWARDEN_WEBHOOK_TOKEN for another")
	case !open && !w.Credentials.known(r):
		return http.StatusUnauthorized, errors.New("wrong credentials, or none")
	}
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/json" {
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

func (c Credentials) known(r *http.Request) bool {
	if username, password, ok := r.BasicAuth(); ok && c.Password != "" {
		return same(username, c.Username) && same(password, c.Password)
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return c.Token != "" && strings.EqualFold(scheme, "Bearer") && same(token, c.Token)
}

// same takes as long whatever differs, lengths included.
func same(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// take does what one alert asks for, counts it and tells of it.
func (w *Webhook) take(ctx context.Context, raw json.RawMessage, now time.Time) Outcome {
	a, err := decodeAlert(raw)
	var rule *policy.AlertRule
	if err == nil {
		rule = match(w.Policy().Alerts, a.Labels)
	}
	o := Outcome{Alert: fmt.Sprintf("%.64s", a.name()), Fingerprint: a.Fingerprint}
	switch {
	case err != nil:
		o.Result, o.Message = resultRefused, err.Error()
	case rule == nil:
		o.Result, o.Message = resultRefused, "no rule of the policy matches it"
	default:
		o.Rule = rule.Name
		err = w.act(ctx, rule, a, now, &o)
		if isRefusal(err) {
			o.Result, o.Message = resultRefused, err.Error()
		} else if err != nil {
			o.Result, o.Message = resultFailed, err.Error()
		}
	}
	label, level := o.Rule, slog.LevelInfo
	if rule == nil {
		label = metrics.NoRule
	}
	switch o.Result {
	case resultFailed:
		level = slog.LevelError
	case resultDuplicate, resultNotYet, resultGrouped, resultCooling, resultResolved:
		level = slog.LevelDebug // they come again and again
	}
	w.Metrics.Alerts.WithLabelValues(label, o.Result).Inc()
	w.Log.Log(ctx, level, "alert", "alert", o.Alert, "fingerprint", o.Fingerprint, "rule", label, "result", o.Result, "operation_id", o.OperationID, "message", o.Message)
	return o
}

// act is what a rule makes of an alert.
func (w *Webhook) act(ctx context.Context, rule *policy.AlertRule, a alert, now time.Time, o *Outcome) error {
	if !a.Firing {
		return w.resolve(ctx, rule, a, now, o)
	}
	if age := a.age(now); age < rule.For {
		o.Result, o.Message = resultNotYet, fmt.Sprintf("firing for %s, the rule wants %s", age.Round(time.Second), rule.For)
		return nil
	}
	key := matterKey(rule, a.Labels)
	var m matter
	err := w.matters.update(ctx, key, now, func(stored *matter) (bool, error) {
		write, err := w.weigh(ctx, rule, a, now, stored, o)
		m = *stored
		return write, err
	})
	if err != nil || m.Request == nil || m.Published || m.Resolved {
		return err
	}
	// Written down, and not published yet: by this agent, or by one that died between.
	if _, err := m.Request.Publish(ctx, w.JetStream, m.Kind, source); err != nil {
		return err
	}
	return w.matters.update(ctx, key, now, func(stored *matter) (bool, error) {
		if stored.Request == nil || stored.Request.IdempotencyKey != m.Request.IdempotencyKey || stored.Published {
			return false, nil
		}
		stored.Published = true
		return true, nil
	})
}

// weigh decides on a firing alert in the light of what was done before, and reports
// whether m changed.
func (w *Webhook) weigh(ctx context.Context, rule *policy.AlertRule, a alert, now time.Time, m *matter, o *Outcome) (bool, error) {
	o.Result, o.Message, o.OperationID = "", "", ""
	if m.over(a) {
		o.Result, o.Message = resultResolved, "this firing of it has been resolved"
		return false, nil
	}
	news := m.tell(a) || now.Sub(m.UpdatedAt) > w.Retention/3
	key := keyOf(rule.Name, a)
	if m.Request != nil {
		o.OperationID = events.OperationID(m.Request.IdempotencyKey)
		if m.Request.IdempotencyKey == key {
			o.Result = resultDuplicate
			if !m.Published {
				o.Result = resultRequested
			}
			return news, nil
		}
		op, err := last(ctx, w.Journal, m.Request.IdempotencyKey)
		if err != nil {
			return false, err
		}
		if o.Result, o.Message = m.hinders(rule, op, now); o.Result != "" {
			return news, nil
		}
	}
	o.OperationID = events.OperationID(key)
	// Of an earlier firing, or from before the bucket was made anew.
	if op, err := last(ctx, w.Journal, key); err != nil || op.N > 0 {
		o.Result, o.Message = resultDuplicate, fmt.Sprintf("the operation is %s", op.State)
		return news, err
	}
	cluster, server, err := w.Directory.find(ctx, rule.Target, a.Labels)
	if err != nil {
		o.OperationID = ""
		return false, err
	}
	r, err := requestOf(rule, a, cluster, server)
	if err != nil {
		o.OperationID = ""
		return false, refusal{err}
	}
	m.Request, m.Kind, m.RequestedAt, m.Published, m.Resolved = &r, rule.Kind, now.UTC(), false, false
	o.Result, o.Message = resultRequested, fmt.Sprintf("%s server %d of cluster %d", rule.Kind, server, cluster)
	return true, nil
}

// resolve cancels what waits for alerts that have all been resolved.
func (w *Webhook) resolve(ctx context.Context, rule *policy.AlertRule, a alert, now time.Time, o *Outcome) error {
	var m matter
	err := w.matters.update(ctx, matterKey(rule, a.Labels), now, func(stored *matter) (bool, error) {
		news := stored.tell(a)
		m = *stored
		return news, nil
	})
	if err != nil {
		return err
	}
	o.Result = resultResolved
	if m.Request == nil || !m.Resolved {
		return nil
	}
	o.OperationID = events.OperationID(m.Request.IdempotencyKey)
	op, err := last(ctx, w.Journal, m.Request.IdempotencyKey)
	if err != nil {
		return err
	}
	// An operation without events is one whose request no agent has taken yet: the
	// order comes behind it.
	op.OperationID, op.Kind, op.ClusterID, op.ServerID = o.OperationID, m.Kind, m.Request.ClusterID, m.Request.ServerID
	if op.N > 0 && op.State != events.Accepted && op.State != events.Waiting {
		o.Message = fmt.Sprintf("the operation is %s", op.State)
		return nil
	}
	order := events.OrderTo(events.Cancel, op)
	order.Reason, order.RequestedBy = strings.TrimSpace("resolved: alert "+a.name()), source
	if _, err := order.Publish(ctx, w.JetStream); err != nil {
		return err
	}
	o.Result = resultCancelled
	return nil
}
