package strict

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/common/model"

	"github.com/obwarden/obwarden/events"
)

// maxDuration is the longest Duration that a file may say: longer than anybody needs.
const maxDuration = 366 * 24 * time.Hour

// Duration is written as in Prometheus: 30s, 10m, 1h30m, 7d.
type Duration time.Duration

// UnmarshalYAML implements the interface that the decoder looks for.
func (u *Duration) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	parsed, err := model.ParseDuration(text)
	if err != nil || time.Duration(parsed) > maxDuration {
		return fmt.Errorf("%.60q is no duration; write one like 30s, 10m, 1h30m or 7d, of a year at most", text)
	}
	*u = Duration(parsed)
	return nil
}

// Period is a Duration of more than 0s.
type Period time.Duration

// UnmarshalYAML implements the interface that the decoder looks for.
func (p *Period) UnmarshalYAML(unmarshal func(any) error) error {
	if err := (*Duration)(p).UnmarshalYAML(unmarshal); err != nil {
		return err
	}
	if *p == 0 {
		return errors.New("must be more than 0s; leave it out for what is built in")
	}
	return nil
}

// Text is a text that is not blank.
type Text string

// Fault implements Checked.
func (t Text) Fault() string {
	if strings.TrimSpace(string(t)) == "" {
		return "is empty; a person must be able to read it"
	}
	return ""
}

// Kind is a kind of operation.
type Kind string

// Fault implements Checked.
func (k Kind) Fault() string {
	if !events.Kind(k).Known() {
		return fmt.Sprintf("%.60q is no kind; write stop, start or restart", string(k))
	}
	return ""
}
