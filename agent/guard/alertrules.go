package guard

import (
	"text/template"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"

	"obwarden/events"
)

// AlertRule makes requests of firing alerts. Of several rules that match an alert
// the first counts.
type AlertRule struct {
	Name     string // of the metric's label and of the keys: 1 to 64 of A-Z a-z 0-9 _ . -
	Matchers labels.Matchers
	Target   AlertTarget
	Kind     events.Kind
	For      time.Duration // the alert must have fired for so long
	// AgainAfter is how long after an operation, whatever became of it, the same server
	// gets another without the rule's alerts about it having been resolved; 0: never.
	AgainAfter time.Duration
	Reason     *template.Template // by ParseReason; nil: the name of the alert
	Labels     []string           // of the alert, carried into the request; empty: all
	DryRun     bool               // decide and report only: to try a rule
}

// ParseReason reads the template of a rule's reason, over .Labels and .Annotations.
// A label that an alert does not have is an error when it is carried out.
func ParseReason(text string) (*template.Template, error) {
	return template.New("reason").Option("missingkey=error").Parse(text)
}

// ParseSilenceMatcher reads a matcher as Alertmanager writes it, its value a template.
func ParseSilenceMatcher(text string) (SilenceMatcher, error) {
	m, err := labels.ParseMatcher(text)
	if err != nil {
		return SilenceMatcher{}, err
	}
	value, err := template.New(m.Name).Option("missingkey=error").Parse(m.Value)
	return SilenceMatcher{Name: m.Name, Type: m.Type, Value: value}, err
}

// AlertTarget names the labels that say which server an alert is about: one of the
// last three, and one of the first two, which only Address and Host can do without.
type AlertTarget struct {
	ClusterID string // OCP's id of the cluster
	Cluster   string // its name
	ServerID  string // OCP's id of the server
	Address   string // ip:port or host:port, the port being that of the server or of its SQL
	Host      string // ip or host name; a port behind it, such as an exporter's, does not count
}

// SilenceRule says what Alertmanager keeps quiet about while an operation runs.
type SilenceRule struct {
	Silences [][]SilenceMatcher // each is a silence of its own
	Grace    time.Duration      // from the end of the operation to the end of its silences
	// Wait makes an operation wait where Alertmanager cannot be reached; else it goes on.
	Wait bool
}

// SilenceMatcher is a matcher whose value is made of the operation: .Cluster,
// .ClusterID, .ServerID, .Address (ip:port), .IP, .Port, .SQLPort, .Zone and .Kind. In
// a regular expression what is put in stands for itself.
type SilenceMatcher struct {
	Name  string
	Type  labels.MatchType
	Value *template.Template
}
