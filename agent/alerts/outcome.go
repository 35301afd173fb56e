package alerts

import (
	"errors"
	"fmt"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/metrics"
)

// What becomes of an alert.
const (
	resultRequested = "requested"    // its request is on disk
	resultDuplicate = "duplicate"    // its request was on disk before
	resultNotYet    = "not_yet"      // it has not fired for long enough
	resultGrouped   = "grouped"      // an operation on the same server has not ended
	resultCooling   = "cooling_down" // an operation has ended, and the alert has not been resolved since
	resultResolved  = "resolved"     // nothing is left to do
	resultCancelled = "cancelled"    // it is resolved, and its operation, which waited, is cancelled
	resultRefused   = "refused"      // it asks for nothing that can be done
	resultFailed    = "failed"       // Alertmanager must try again
)

// results returns all of them.
func results() []string {
	return []string{
		resultRequested, resultDuplicate, resultNotYet, resultGrouped, resultCooling, resultResolved, resultCancelled,
		resultRefused, resultFailed,
	}
}

// Outcome says what became of one alert. It is an entry of the webhook's answer.
type Outcome struct {
	Alert       string `json:"alert,omitempty"` // its name
	Fingerprint string `json:"fingerprint,omitempty"`
	Rule        string `json:"rule,omitempty"`
	Result      string `json:"result"`
	OperationID string `json:"operation_id,omitempty"`
	Message     string `json:"message,omitempty"`
}

// InitMetrics sets the counters of a policy's alert rules to 0. Call it before the policy is in force: Prometheus does
// not see an increase of a counter that did not exist.
func InitMetrics(m *metrics.Metrics, p *policy.Policy) {
	for _, rule := range p.Alerts {
		for _, result := range results() {
			m.Alerts.WithLabelValues(rule.Name, result)
		}
	}
}

// refusal is an error that trying again does not mend.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

// isRefusal reports whether trying again is useless: the alert is at fault, or OCP does not show what it is about.
func isRefusal(err error) bool {
	return errors.As(err, new(refusal)) || errors.Is(err, facts.ErrNotShown)
}
