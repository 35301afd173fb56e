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

	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

const (
	// silenceFor is how long a silence lasts unless it is extended: should all agents
	// die, alerts are heard again after that. It is extended when half is over.
	silenceFor = 10 * time.Minute
	// silenceLook is the time between looks at the silences.
	silenceLook = time.Minute
	// clockSkew is how far this machine's clock may be ahead of Alertmanager's, which
	// takes a start in the past for now, and one in the future at its word.
	clockSkew = 5 * time.Minute
	// beforeTimeout is how long the silences of one operation may keep it.
	beforeTimeout = 5 * time.Second

	createdBy = "obwarden"
)

// What became of a silence.
const (
	silenceCreated  = "created"
	silenceExtended = "extended"
	silenceEnded    = "ended"
	silenceFailed   = "failed"
)

// SilencerConfig is what a silencer works with. All fields but the credentials are required.
type SilencerConfig struct {
	URL                string // of Alertmanager, of any one where several share their silences
	Username, Password string // HTTP Basic
	Journal            jetstream.Stream
	Directory          *Directory
	Policy             func() *policy.Policy // as it is now
	Metrics            *metrics.Metrics
	Log                *slog.Logger
}

// Silencer keeps Alertmanager quiet about what operations must cause. It remembers
// nothing: a silence's comment names its operation, and the journal says how that
// stands, so that any agent goes on with the silences of one that died. Its methods
// may be called concurrently.
type Silencer struct {
	SilencerConfig
	alertmanager *alertmanager
}

// NewSilencer checks the configuration; it does not call Alertmanager.
func NewSilencer(c SilencerConfig) (*Silencer, error) {
	am, err := newAlertmanager(c.URL, c.Username, c.Password)
	return &Silencer{SilencerConfig: c, alertmanager: am}, err
}

// Before makes the silences of an operation that is about to be submitted, or
// extends those that are there. An error means that it must wait and Before be
// called again: Alertmanager is away, and the policy says to wait for it.
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
			Comment: fmt.Sprintf("%s of server %d of cluster %d, operation %s", op.Kind, op.ServerID, op.ClusterID, op.OperationID),
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

// silencesOf are the matchers of each silence that the policy wants for op.
func (s *Silencer) silencesOf(ctx context.Context, rule *policy.SilenceRule, op events.Operation) ([][]matcher, error) {
	server, clusterName, err := s.Directory.server(ctx, op.ClusterID, op.ServerID)
	if err != nil {
		return nil, err
	}
	data := policy.SilenceData{
		Cluster: clusterName, ClusterID: op.ClusterID, ServerID: op.ServerID, Kind: op.Kind, Zone: server.Zone,
		Address: net.JoinHostPort(server.IP, strconv.Itoa(server.Port)), IP: server.IP, Port: server.Port, SQLPort: server.SQLPort,
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
		return slices.SortedFunc(slices.Values(all), func(a, b matcher) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	return slices.Equal(sorted(a), sorted(b))
}

// operationOf is the operation that a silence of ours belongs to, "" for others'.
func operationOf(s silence) string {
	_, id, found := strings.Cut(s.Comment, ", operation ")
	if s.CreatedBy != createdBy || !found || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return ""
	}
	return id
}

// Run looks after all silences of ours until ctx ends.
func (s *Silencer) Run(ctx context.Context) error {
	tick := time.NewTicker(silenceLook)
	defer tick.Stop()
	for {
		if err := s.Tend(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.count(silenceFailed)
			s.Log.Warn("silences not looked after, trying again", "error", err, "in", silenceLook)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Tend extends the silences of operations that are under way and ends those of
// operations that are not, whichever agent made them.
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
		op, err := lastOf(ctx, s.Journal, id)
		if err != nil {
			return err
		}
		until := silenceUntil(op, silence.EndsAt, silence.UpdatedAt, grace, now)
		result := silenceEnded
		switch {
		case until.Equal(silence.EndsAt):
			continue
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
			faults = append(faults, err)
			continue
		}
		s.count(result)
		s.Log.Info("silence "+result, "operation_id", id, "silence", silence.ID, "ends_at", until)
	}
	return errors.Join(faults...)
}

// silenceUntil says when the silence of an operation is to end, which is endsAt where
// nothing is to be changed. An operation that the journal does not know is another
// installation's, and its silence too.
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
	case now.Sub(updatedAt) > silenceLook: // it was not submitted after all, and waits
		return now
	}
	return endsAt
}

// Silences is how many silences Alertmanager has that have not expired: a call that
// changes nothing, to try it.
func (s *Silencer) Silences(ctx context.Context) (int, error) {
	all, err := s.alertmanager.list(ctx)
	return len(all), err
}

func (s *Silencer) count(result string) { s.Metrics.Silences.WithLabelValues(result).Inc() }
