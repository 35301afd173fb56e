package policy

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/template"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/events"
)

// AlertRule makes requests of firing alerts. If several rules match an alert, the first
// one counts.
type AlertRule struct {
	Name     string // in a metric's label and in keys: 1 to 64 of A-Z a-z 0-9 _ . -
	Matchers labels.Matchers
	Target   AlertTarget
	Kind     events.Kind
	For      time.Duration // the alert must have fired for so long
	// AgainAfter is how long after an operation, whatever its outcome, the same server may
	// get another although the rule's alerts about it have not been resolved; 0: never.
	AgainAfter time.Duration
	Reason     *template.Template // by ParseReason; nil: the name of the alert
	Labels     []string           // of the alert, carried into the request; empty: all
	DryRun     bool               // decide and report only: to try a rule
}

// AlertData is the data of a reason's template.
type AlertData struct{ Labels, Annotations map[string]string }

// ParseReason reads the template of a rule's reason. Its data is AlertData. Executing it
// fails if it uses a label that the alert does not have.
func ParseReason(text string) (*template.Template, error) {
	t, err := template.New("reason").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	// Executing it once without data tells a label that is missing, which is to be expected,
	// from a field that no alert has.
	if err := t.Execute(io.Discard, AlertData{}); err != nil && strings.Contains(err.Error(), "can't evaluate field") {
		return nil, err
	}
	return t, nil
}

// SilenceData is the data of the templates in a silence's values. In a regular expression
// its texts match literally.
type SilenceData struct {
	Cluster             string // name
	ClusterID, ServerID int64
	Address, IP, Zone   string // Address is ip:port
	Port, SQLPort       int
	Kind                events.Kind
}

// ParseSilenceMatcher reads a matcher as Alertmanager writes it. Its value is a template
// whose data is SilenceData.
func ParseSilenceMatcher(text string) (SilenceMatcher, error) {
	m, err := labels.ParseMatcher(text)
	if err != nil {
		return SilenceMatcher{}, err
	}
	value, err := template.New(m.Name).Parse(m.Value)
	if err != nil {
		return SilenceMatcher{}, err
	}
	s := SilenceMatcher{Name: m.Name, Type: m.Type, Value: value}
	_, err = s.For(SilenceData{Cluster: "c", ClusterID: 1, ServerID: 2, Address: "a:1", IP: "a", Zone: "z", Port: 1,
		SQLPort: 2, Kind: events.Stop})
	return s, err
}

// For makes the matcher for one operation. An empty value is an error: it would match
// every alert that does not have the label.
func (s SilenceMatcher) For(data SilenceData) (*labels.Matcher, error) {
	if s.Type == labels.MatchRegexp || s.Type == labels.MatchNotRegexp {
		for _, text := range []*string{&data.Cluster, &data.Address, &data.IP, &data.Zone} {
			*text = regexp.QuoteMeta(*text)
		}
	}
	var value strings.Builder
	if err := s.Value.Execute(&value, data); err != nil {
		return nil, err
	}
	if value.Len() == 0 {
		return nil, fmt.Errorf("matcher %s: its value is empty", s.Name)
	}
	return labels.NewMatcher(s.Type, s.Name, value.String())
}

// AlertTarget names the labels that say which server an alert is about: one of ServerID,
// Address and Host, and one of ClusterID and Cluster, which ServerID needs and the others
// can do without.
type AlertTarget struct {
	ClusterID string // OCP's id of the cluster
	Cluster   string // its name
	ServerID  string // OCP's id of the server
	Address   string // ip:port or host:port, the port being that of the server or of its SQL
	Host      string // ip or host name; a port behind it, such as an exporter's, does not count
}

// SilenceRule says which alerts are silenced while an operation runs.
type SilenceRule struct {
	Silences [][]SilenceMatcher // each is a silence of its own
	Grace    time.Duration      // from the end of the operation to the end of its silences
	// Wait makes an operation wait while Alertmanager cannot be reached; otherwise the
	// operation goes on without silences.
	Wait bool
}

// SilenceMatcher is a matcher whose value depends on the operation; ParseSilenceMatcher
// makes it.
type SilenceMatcher struct {
	Name  string
	Type  labels.MatchType
	Value *template.Template
}
