package alerts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

const (
	// silenceFor is how long a silence lasts unless it is extended: if all agents die, alerts are heard again after
	// that time. A silence is extended once half of it is over.
	silenceFor = 10 * time.Minute
	// tendInterval is how often the silences are tended.
	tendInterval = time.Minute
	// clockSkew is how far this machine's clock may be ahead of Alertmanager's. A silence that is to start in the
	// future starts late; a silence whose start lies in the past starts at once.
	clockSkew = 5 * time.Minute
	// beforeTimeout is how long an operation may be kept by making its silences.
	beforeTimeout = 5 * time.Second

	createdBy = "obwarden"
)

// What becomes of a silence.
const (
	silenceCreated  = "created"
	silenceExtended = "extended"
	silenceEnded    = "ended"
	silenceFailed   = "failed"
)

// SilencerConfig is what a silencer works with. All fields but the credentials are required.
type SilencerConfig struct {
	URL                string // of Alertmanager; of any one Alertmanager of a cluster
	Username, Password string // HTTP Basic
	Journal            jetstream.Stream
	Directory          *facts.Directory
	Policy             func() *policy.Policy // the policy in force now
	Metrics            *metrics.Metrics
	Log                *slog.Logger
}

// Silencer silences, in Alertmanager, the alerts that operations must cause. It keeps no state: the comment of a
// silence names its operation, and the journal has the state of that operation. So any agent takes over the silences of
// an agent that died. Its methods may be called concurrently.
type Silencer struct {
	SilencerConfig
	alertmanager *alertmanager
}

// NewSilencer checks the configuration; it does not call Alertmanager.
func NewSilencer(c SilencerConfig) (*Silencer, error) {
	am, err := newAlertmanager(c.URL, c.Username, c.Password)
	return &Silencer{SilencerConfig: c, alertmanager: am}, err
}

// Before makes the silences of an operation that is about to be submitted, or extends its existing silences. An error
// means that Alertmanager is away and the policy says to wait for it: the operation must wait, and Before must be
// called again.
func (s *Silencer) Before(ctx context.Context, op events.Operation) error {
	rule := s.Policy().Silence
	if rule == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, beforeTimeout)
	defer cancel()
	err := s.before(ctx, rule, op, time.Now())
	if err == nil {
		return nil
	}
	s.count(silenceFailed)
	if rule.Wait && !isRefusal(err) {
		return err
	}
	s.Log.Warn("the operation goes on without its silences", "operation_id", op.OperationID, "error", err)
	return nil
}

func (s *Silencer) before(ctx context.Context, rule *policy.SilenceRule, op events.Operation, now time.Time) error {
	wanted, err := s.silencesOf(ctx, rule, op)
	if err != nil {
		return err
	}
	there, err := s.alertmanager.list(ctx)
	if err != nil {
		return err
	}
	for _, matchers := range wanted {
		i := slices.IndexFunc(there, func(t silence) bool {
			return operationOf(t) == op.OperationID && sameMatchers(t.Matchers, matchers)
		})
		n := silence{
			Matchers: matchers, StartsAt: now.Add(-clockSkew).UTC(), EndsAt: now.Add(silenceFor).UTC(), CreatedBy: createdBy,
			Comment: commentFor(op),
		}
		result := silenceCreated
		if i >= 0 {
			if there[i].EndsAt.Sub(now) > silenceFor/2 {
				continue
			}
			n.ID, n.StartsAt, result = there[i].ID, there[i].StartsAt, silenceExtended
		}
		if err := s.alertmanager.put(ctx, n); err != nil {
			return err
		}
		s.count(result)
	}
	return nil
}

// silencesOf returns the matchers of each silence that the policy wants for op.
func (s *Silencer) silencesOf(ctx context.Context, rule *policy.SilenceRule, op events.Operation) ([][]matcher, error) {
	server, clusterName, err := s.Directory.Server(ctx, op.ClusterID, op.ServerID)
	if err != nil {
		return nil, err
	}
	data := policy.SilenceData{
		Cluster: clusterName, ClusterID: op.ClusterID, ServerID: op.ServerID, Kind: op.Kind, Zone: server.Zone,
		Address: net.JoinHostPort(server.IP, strconv.Itoa(server.Port)),
		IP:      server.IP, Port: server.Port, SQLPort: server.SQLPort,
	}
	var all [][]matcher
	for _, templates := range rule.Silences {
		var matchers []matcher
		for _, t := range templates {
			m, err := t.For(data)
			if err != nil {
				return nil, refuse("silence: %w", err)
			}
			matchers = append(matchers, matcher{
				Name: m.Name, Value: m.Value,
				IsRegex: m.Type == labels.MatchRegexp || m.Type == labels.MatchNotRegexp,
				IsEqual: m.Type == labels.MatchEqual || m.Type == labels.MatchRegexp,
			})
		}
		all = append(all, matchers)
	}
	return all, nil
}

func sameMatchers(a, b []matcher) bool {
	sorted := func(all []matcher) []matcher {
		return slices.SortedFunc(slices.Values(all), func(a, b matcher) int {
			return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
		})
	}
	return slices.Equal(sorted(a), sorted(b))
}

// commentFor returns the comment of an operation's silences; operationOf reads it.
func commentFor(op events.Operation) string {
	return fmt.Sprintf("%s of server %d of cluster %d, operation %s", op.Kind, op.ServerID, op.ClusterID, op.OperationID)
}

// operationOf returns the id of the operation that a silence was made for; "" for silences that obwarden did not make.
func operationOf(s silence) string {
	_, id, found := strings.Cut(s.Comment, ", operation ")
	if s.CreatedBy != createdBy || !found || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return ""
	}
	return id
}

// Run tends all silences that agents have made until ctx ends.
func (s *Silencer) Run(ctx context.Context) error {
	tick := time.NewTicker(tendInterval)
	defer tick.Stop()
	for {
		if err := s.Tend(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.count(silenceFailed)
			s.Log.Warn("the silences of operations could not be kept up to date, trying again", "error", err, "in", tendInterval)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Tend extends the silences of operations that are under way, and ends the silences of operations that have ended,
// whichever agent made them.
func (s *Silencer) Tend(ctx context.Context, now time.Time) error {
	var grace time.Duration
	if rule := s.Policy().Silence; rule != nil {
		grace = rule.Grace
	}
	all, err := s.alertmanager.list(ctx)
	if err != nil {
		return err
	}
	var faults []error
	for _, silence := range all {
		id := operationOf(silence)
		if id == "" {
			continue
		}
		last, err := journal.Last(ctx, s.Journal, id)
		if err != nil {
			return err
		}
		until := silenceUntil(last.Operation, silence.EndsAt, silence.UpdatedAt, grace, now)
		if err := s.setEnd(ctx, silence, until, now); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// setEnd has a silence end at until. It does nothing where the silence ends at that time already.
func (s *Silencer) setEnd(ctx context.Context, silence silence, until, now time.Time) error {
	result := silenceEnded
	var err error
	switch {
	case until.Equal(silence.EndsAt):
		return nil
	case !until.After(now):
		err = s.alertmanager.end(ctx, silence.ID)
	default:
		if until.After(silence.EndsAt) {
			result = silenceExtended
		}
		silence.EndsAt = until.UTC()
		err = s.alertmanager.put(ctx, silence)
	}
	if err != nil {
		return err
	}
	s.count(result)
	s.Log.Info("silence "+result, "operation_id", operationOf(silence), "silence", silence.ID, "ends_at", until)
	return nil
}

// silenceUntil returns when the silence of an operation is to end: endsAt where nothing is to be changed. An operation
// that the journal does not know belongs to another installation, and so does its silence.
func silenceUntil(op events.Operation, endsAt, updatedAt time.Time, grace time.Duration, now time.Time) time.Time {
	switch {
	case op.N == 0:
	case op.State.Final():
		// Alertmanager keeps milliseconds.
		if end := op.EndedAt.Add(grace); end.Sub(endsAt).Abs() > time.Second {
			return end
		}
	case op.State == events.Submitting || op.State == events.Running:
		if endsAt.Sub(now) <= silenceFor/2 {
			return now.Add(silenceFor)
		}
	case now.Sub(updatedAt) > tendInterval: // the operation was not submitted after all, and waits
		return now
	}
	return endsAt
}

// Silences returns how many silences in Alertmanager have not expired. It changes nothing, which makes it fit to try
// the connection.
func (s *Silencer) Silences(ctx context.Context) (int, error) {
	all, err := s.alertmanager.list(ctx)
	return len(all), err
}

func (s *Silencer) count(result string) { s.Metrics.Silences.WithLabelValues(result).Inc() }
