package alerts

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/common/model"
)

// Limits of webhook bodies. A body or alert beyond them is refused, never truncated.
const (
	MaxBodyBytes       = 1 << 20
	maxAlerts          = 10_000 // of one body; fewer valid alerts fit into one
	maxLabels          = 64     // of one alert
	maxLabelNameBytes  = 128
	maxLabelValueBytes = 1 << 10
)

// alert is one alert of a webhook body. An alert that decodeAlert returned without an error is valid.
type alert struct {
	Firing      bool // false: resolved
	Labels      map[string]string
	Annotations map[string]string
	StartsAt    time.Time
	Fingerprint string // of the labels, as Prometheus and Alertmanager compute it
}

// decodeBody splits a webhook body into its alerts. It understands version 4 of Alertmanager's and version 1 of
// Grafana's, which resembles it. Unknown fields are ignored: both programs add some now and then.
func decodeBody(body []byte) ([]json.RawMessage, error) {
	if len(body) > MaxBodyBytes {
		return nil, fmt.Errorf("the body is over %d bytes: set max_alerts of Alertmanager's webhook_config", MaxBodyBytes)
	}
	if !utf8.Valid(body) {
		return nil, errors.New("the body is not valid UTF-8")
	}
	var wire struct {
		Version string             `json:"version"`
		Alerts  *[]json.RawMessage `json:"alerts"`
	}
	if err := json.Unmarshal(body, &wire); err != nil {
		return nil, fmt.Errorf("the body is not a webhook of Alertmanager: %w", err)
	}
	if wire.Version != "4" && wire.Version != "1" { // 1 is Grafana's
		return nil, fmt.Errorf("version %.16q of the webhook: Alertmanager's 4 and Grafana's 1 are understood", wire.Version)
	}
	if wire.Alerts == nil {
		return nil, errors.New("the body is not a webhook of Alertmanager: it has no alerts")
	}
	if len(*wire.Alerts) > maxAlerts {
		return nil, fmt.Errorf("%d alerts, at most %d are allowed: set max_alerts of Alertmanager's webhook_config",
			len(*wire.Alerts), maxAlerts)
	}
	return *wire.Alerts, nil
}

// decodeAlert reads one alert. On an error the alert holds the labels that could be read, so that the refusal can name
// the alert.
func decodeAlert(raw json.RawMessage) (alert, error) {
	var wire struct {
		Status      string            `json:"status"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
		StartsAt    time.Time         `json:"startsAt"`
	}
	err := json.Unmarshal(raw, &wire)
	a := alert{
		Firing: wire.Status == "firing", Labels: wire.Labels, Annotations: wire.Annotations, StartsAt: wire.StartsAt.UTC(),
	}
	if err != nil {
		return a, fmt.Errorf("not an alert of Alertmanager: %w", err)
	}
	if wire.Status != "firing" && wire.Status != "resolved" {
		return a, fmt.Errorf("status %.32q is neither firing nor resolved", wire.Status)
	}
	if y := a.StartsAt.Year(); y < 1970 || y > 9999 {
		return a, errors.New("startsAt is missing, or not in the years 1970 to 9999")
	}
	if err := checkLabels(a.Labels); err != nil {
		return a, err
	}
	set := make(model.LabelSet, len(a.Labels))
	for name, value := range a.Labels {
		set[model.LabelName(name)] = model.LabelValue(value)
	}
	a.Fingerprint = set.Fingerprint().String()
	return a, nil
}

func checkLabels(all map[string]string) error {
	switch {
	case len(all) == 0:
		return errors.New("it has no labels")
	case len(all) > maxLabels:
		return fmt.Errorf("it has %d labels, at most %d are allowed", len(all), maxLabels)
	}
	for name, value := range all {
		switch {
		case name == "" || len(name) > maxLabelNameBytes:
			return fmt.Errorf("label %.64q: a name has 1 to %d bytes", name, maxLabelNameBytes)
		case len(value) > maxLabelValueBytes:
			return fmt.Errorf("label %.64q: %d bytes, at most %d are allowed", name, len(value), maxLabelValueBytes)
		case strings.ContainsFunc(name+value, unicode.IsControl):
			return fmt.Errorf("label %.64q: control characters are not allowed", name)
		}
	}
	return nil
}

// age is how long the alert has been firing. An alert whose start lies in the future, by a clock that is ahead, has
// just started.
func (a alert) age(now time.Time) time.Duration { return max(0, now.Sub(a.StartsAt)) }

// name is the name that people know the alert by.
func (a alert) name() string { return a.Labels[model.AlertNameLabel] }
