// Package alerts is where obwarden and Alertmanager meet: firing alerts become requests, and alerts that an operation
// must cause are silenced while it runs.
//
// Start reading in webhook.go, where alerts come in. alert.go decodes them; target.go and request.go say what an alert
// asks for; incident.go says whether it asks for the first time; outcome.go lists what can become of it. Silences go
// out through silence.go. Requests made here get no special treatment: the guard evaluates them like any other. The
// package imports events, metrics, agent/facts, agent/guard, agent/journal and agent/ocp.
package alerts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// answerTimeout is how long one body may take. Alertmanager sends a body again that was not finished; requests that
// were on disk by then are duplicates.
const answerTimeout = 20 * time.Second

// Config is what a webhook works with. All fields but the credentials are required.
type Config struct {
	JetStream jetstream.JetStream
	Journal   jetstream.Stream   // events.OperationStream
	Bucket    jetstream.KeyValue // by OpenBucket
	Directory *facts.Directory
	Policy    func() *policy.Policy // the policy in force now
	Metrics   *metrics.Metrics
	Log       *slog.Logger
	Retention time.Duration // of the bucket

	Credentials Credentials
	// Loopback says that only this machine can reach the webhook. Such a webhook is open where no credentials are set.
	Loopback bool
}

// Webhook receives Alertmanager's notifications. It is an http.Handler and may be called concurrently.
type Webhook struct {
	Config
	incidents incidents
}

// NewWebhook makes a webhook. It starts no goroutine.
func NewWebhook(c Config) *Webhook {
	InitMetrics(c.Metrics, c.Policy())
	return &Webhook{Config: c, incidents: incidents{c.Bucket}}
}

// ServeHTTP answers 200 once every alert of the body is done with: its request is on disk, or refused for good. It
// answers 503 where Alertmanager must send the body again.
func (w *Webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	all, status, err := w.receive(rw, r)
	if err != nil {
		w.Metrics.Alerts.WithLabelValues(metrics.NoRule, resultRefused).Inc()
		w.Log.Warn("webhook call refused", "from", r.RemoteAddr, "status", status, "error", err)
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
		outcomes[i] = w.handle(ctx, raw, time.Now())
		if outcomes[i].Result == resultFailed {
			status = http.StatusServiceUnavailable
		}
	}
	answer(rw, status, map[string][]Outcome{"alerts": outcomes})
}

// receive authorizes a call and splits its body into alerts. On an error, status is the one to answer with.
func (w *Webhook) receive(rw http.ResponseWriter, r *http.Request) (all []json.RawMessage, status int, err error) {
	if status, err = w.authorize(r); err != nil {
		return nil, status, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, MaxBodyBytes))
	if errors.As(err, new(*http.MaxBytesError)) {
		return nil, http.StatusRequestEntityTooLarge,
			fmt.Errorf("the body is over %d bytes: set max_alerts in Alertmanager's webhook_configs", MaxBodyBytes)
	}
	if err == nil {
		all, err = decodeBody(body)
	}
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	return all, http.StatusOK, nil
}

func answer(rw http.ResponseWriter, status int, body any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(body) // an error means that the client is gone
}

// handle does what one alert asks for, counts the alert and logs it.
func (w *Webhook) handle(ctx context.Context, raw json.RawMessage, now time.Time) Outcome {
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
		level = slog.LevelDebug // Alertmanager repeats these again and again
	}
	w.Metrics.Alerts.WithLabelValues(label, o.Result).Inc()
	w.Log.Log(ctx, level, "alert", "alert", o.Alert, "fingerprint", o.Fingerprint, "rule", label, "result", o.Result,
		"operation_id", o.OperationID, "message", o.Message)
	return o
}

// act does what a rule says about an alert.
func (w *Webhook) act(ctx context.Context, rule *policy.AlertRule, a alert, now time.Time, o *Outcome) error {
	if !a.Firing {
		return w.resolve(ctx, rule, a, now, o)
	}
	if age := a.age(now); age < rule.For {
		o.Result, o.Message = resultNotYet, fmt.Sprintf("firing for %s, the rule wants %s", age.Round(time.Second), rule.For)
		return nil
	}
	key := incidentKey(rule, a.Labels)
	var i incident
	err := w.incidents.update(ctx, key, now, func(stored *incident) (bool, error) {
		write, err := w.evaluate(ctx, rule, a, now, stored, o)
		i = *stored
		return write, err
	})
	if err != nil || i.Request == nil || i.Published || i.Resolved {
		return err
	}
	// The request is stored and not published yet, by this agent or by one that died in between.
	if _, err := i.Request.Publish(ctx, w.JetStream, i.Kind, source); err != nil {
		return err
	}
	return w.incidents.update(ctx, key, now, func(stored *incident) (bool, error) {
		if stored.Request == nil || stored.Request.IdempotencyKey != i.Request.IdempotencyKey || stored.Published {
			return false, nil
		}
		stored.Published = true
		return true, nil
	})
}

// evaluate decides on a firing alert in the light of its incident, and reports whether i changed.
func (w *Webhook) evaluate(
	ctx context.Context, rule *policy.AlertRule, a alert, now time.Time, i *incident, o *Outcome,
) (bool, error) {
	o.Result, o.Message, o.OperationID = "", "", ""
	if i.wasResolved(a) {
		o.Result, o.Message = resultResolved, "this firing has been resolved"
		return false, nil
	}
	// An unchanged incident is written now and then, so that it is not forgotten while its alerts still fire.
	changed := i.observe(a) || now.Sub(i.UpdatedAt) > w.Retention/3
	key := keyOf(rule.Name, a)
	if i.Request != nil {
		o.OperationID = events.OperationID(i.Request.IdempotencyKey)
		if i.Request.IdempotencyKey == key {
			o.Result = resultDuplicate
			if !i.Published {
				o.Result = resultRequested
			}
			return changed, nil
		}
		last, err := w.last(ctx, i.Request.IdempotencyKey)
		if err != nil {
			return false, err
		}
		if o.Result, o.Message = i.blocked(rule, last, now); o.Result != "" {
			return changed, nil
		}
	}
	o.OperationID = events.OperationID(key)
	// The key may have an operation all the same: the incident had another request since, or the bucket was lost.
	if last, err := w.last(ctx, key); err != nil || last.N > 0 {
		o.Result, o.Message = resultDuplicate, fmt.Sprintf("the operation is %s", last.State)
		return changed, err
	}
	r, err := makeRequest(ctx, w.Directory, rule, a)
	if err != nil {
		o.OperationID = ""
		return false, err
	}
	i.Request, i.Kind, i.RequestedAt, i.Published, i.Resolved = &r, rule.Kind, now.UTC(), false, false
	o.Result, o.Message = resultRequested, fmt.Sprintf("%s server %d of cluster %d", rule.Kind, r.ServerID, r.ClusterID)
	return true, nil
}

// last returns the operation of a key as the journal has it; the zero Operation where it has none.
func (w *Webhook) last(ctx context.Context, key string) (events.Operation, error) {
	entry, err := journal.Last(ctx, w.Journal, events.OperationID(key))
	return entry.Operation, err
}

// resolve records that an alert is resolved. Once all alerts of the incident are, it cancels an operation that has not
// been submitted.
func (w *Webhook) resolve(ctx context.Context, rule *policy.AlertRule, a alert, now time.Time, o *Outcome) error {
	var i incident
	err := w.incidents.update(ctx, incidentKey(rule, a.Labels), now, func(stored *incident) (bool, error) {
		changed := stored.observe(a)
		i = *stored
		return changed, nil
	})
	if err != nil {
		return err
	}
	o.Result = resultResolved
	if i.Request == nil || !i.Resolved {
		return nil
	}
	o.OperationID = events.OperationID(i.Request.IdempotencyKey)
	op, err := w.last(ctx, i.Request.IdempotencyKey)
	if err != nil {
		return err
	}
	// An operation without events is one whose request no agent has taken yet: the order is queued behind the request.
	op.OperationID, op.Kind, op.ClusterID, op.ServerID = o.OperationID, i.Kind, i.Request.ClusterID, i.Request.ServerID
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
