package policy

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/alertmanager/timeinterval"

	"github.com/obwarden/obwarden/agent/policy/internal/strict"
	"github.com/obwarden/obwarden/events"
)

//go:embed policy.yaml
var defaultFile string

//go:embed policy.schema.json
var schemaFile string

// DefaultFile is the built-in policy as a commented file, for people to copy and change.
func DefaultFile() string { return defaultFile }

// SchemaFile is the JSON Schema of a policy file, for editors. Load is stricter.
func SchemaFile() string { return schemaFile }

// Fault is one thing that is wrong with a file: where, what, and what to do.
type Fault = strict.Fault

// Faults are all that is wrong with a file, in the order of its lines.
type Faults = strict.Faults

// maxZones is the largest number of zones that a policy may ask to keep, beyond any use.
const maxZones = 1000

// Default is the built-in policy.
func Default() *Policy {
	p, err := parse("built-in policy", []byte(defaultFile), Limits{}, Budget{})
	if err != nil {
		panic(err) // a fault of this program: the file is a part of it
	}
	p.Hash = "default"
	return p
}

// Load reads a policy file. The error is Faults, which lists everything that is wrong
// with the file, or says why the file cannot be read.
func Load(path string) (*Policy, error) {
	content, err := strict.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return Parse(path, content)
}

// Parse reads the content of a policy file, which faults call file. Settings that the
// content does not name are as in the built-in policy. The error is Faults.
func Parse(file string, content []byte) (*Policy, error) {
	byDefault := Default()
	return parse(file, content, byDefault.Limits, byDefault.Fleet)
}

func parse(file string, content []byte, limits Limits, fleet Budget) (*Policy, error) {
	var f policyFile
	d := strict.Decode(file, content, &f, advice)
	p := f.policy(d, limits, fleet)
	if err := d.Err(); err != nil {
		return nil, err
	}
	p.Hash = Hash(content)
	return p, nil
}

// Hash names a policy file by its content.
func Hash(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])[:12]
}

// policyFile is a policy as people write it. The tags of a field are its only
// documentation: the JSON Schema is made from them. A section that is added here is read,
// checked against its type and published; the method policy says what it means.
type policyFile struct {
	Defaults      limitsFile       `yaml:"defaults" doc:"what every cluster's operations are held to"`
	FleetBudget   *fleetBudgetFile `yaml:"fleet_budget" doc:"how many operations that take a server down may start in all clusters together"`
	TimeIntervals []windowFile     `yaml:"time_intervals" doc:"named windows, as Alertmanager writes them"`
	Deny          []denialFile     `yaml:"deny" doc:"what is rejected, whatever else is said"`
	Approvals     []approvalFile   `yaml:"approvals" doc:"what a person must approve; of several rules that match the first counts, and force always needs an approval"`
	Overrides     []overrideFile   `yaml:"overrides" doc:"other limits where matchers match; all that match apply, the later ones last"`
	Alerts        []alertFile      `yaml:"alerts" doc:"which requests are made of firing alerts, sent to POST /alertmanager"`
	Silences      *silencesFile    `yaml:"silences" doc:"what Alertmanager keeps quiet about while an operation runs"`
}

// limitsFile is Limits with nil for whatever the file does not say.
type limitsFile struct {
	MaxConcurrent      *int             `yaml:"max_concurrent" min:"1" max:"1000" doc:"operations at once in one cluster"`
	KeepZones          *keepZones       `yaml:"keep_zones" doc:"zones that must stay whole when a server is taken down: majority (more than half), or a number; 0: no matter"`
	OneZoneAtATime     *bool            `yaml:"one_zone_at_a_time" doc:"never have servers of two zones down or on their way"`
	KeepRootServer     *bool            `yaml:"keep_root_server" doc:"never take the last root service down"`
	Cooldown           *cooldownFile    `yaml:"cooldown" doc:"how long nothing is done after something was"`
	Budget             *budgetFile      `yaml:"budget" doc:"how many operations that take a server down may start in one cluster"`
	PauseAfterFailures *int             `yaml:"pause_after_failures" min:"0" max:"1000" doc:"failures in a row after which a cluster waits for obwarden resume; 0: never"`
	MaxWait            *strict.Duration `yaml:"max_wait" doc:"a request that has waited so long is expired; 0s: no limit but its own expires_at"`
	Supersede          *bool            `yaml:"supersede" doc:"a newer request for the same server ends one that waits"`
	Windows            *windowsFile     `yaml:"windows" doc:"when servers may be taken down, by names of time_intervals"`
}

type cooldownFile struct {
	Server  *strict.Duration `yaml:"server" doc:"after an operation on the same server"`
	Zone    *strict.Duration `yaml:"zone" doc:"after an operation in the same zone"`
	Failure *strict.Duration `yaml:"failure" doc:"after a failure in the cluster"`
}

// The largest budgets are a little smaller than what agents remember, which is 512
// operations of a cluster and 4096 of all clusters: a larger budget could not be kept.
type budgetFile struct {
	Operations *int           `yaml:"operations" min:"0" max:"500" doc:"0: no limit"`
	Window     *strict.Period `yaml:"window" doc:"the time in which they are counted, more than 0s"`
}

type fleetBudgetFile struct {
	Operations *int           `yaml:"operations" min:"0" max:"4000" doc:"0: no limit"`
	Window     *strict.Period `yaml:"window" doc:"the time in which they are counted, more than 0s"`
}

type windowsFile struct {
	Allow *[]strict.Word `yaml:"allow" doc:"only inside one of these; empty: always"`
	Block *[]strict.Word `yaml:"block" doc:"never inside one of these"`
	At    strict.Position
}

type windowFile struct {
	Name      strict.Word `yaml:"name" required:"true" doc:"what windows call it"`
	Intervals intervals   `yaml:"time_intervals" required:"true" doc:"inside is a moment that one of these contains"`
}

type denialFile struct {
	Matchers matcherLines `yaml:"matchers" required:"true" doc:"all must match"`
	Reason   strict.Text  `yaml:"reason" required:"true" doc:"told to who asked"`
}

type approvalFile struct {
	Matchers  matcherLines   `yaml:"matchers" required:"true" doc:"all must match"`
	Approvers []strict.Text  `yaml:"approvers" doc:"who may approve; empty: anybody but who asked"`
	Expires   *strict.Period `yaml:"expires" doc:"for how long an approval counts, more than 0s; 1h where nothing is said"`
}

type overrideFile struct {
	Matchers   matcherLines `yaml:"matchers" required:"true" doc:"all must match"`
	limitsFile `yaml:",inline"`
}

func (f overrideFile) Fault() string {
	if f.limitsFile == (limitsFile{}) {
		return "changes nothing; add what is different here, e.g. max_concurrent: 2, or leave it out"
	}
	return ""
}

// policy returns what the file means. Settings that it leaves out are as in limits and
// fleet.
func (f *policyFile) policy(d *strict.Document, limits Limits, fleet Budget) *Policy {
	p := &Policy{Limits: limits, Fleet: fleet, Alerts: f.alertRules(d), Silence: f.silence()}
	windows := f.windows(d)
	f.Defaults.resolve(d, windows)(&p.Limits)
	f.Defaults.Windows.check(d, p.Limits)
	set((*budgetFile)(f.FleetBudget), &p.Fleet)
	for _, o := range f.Overrides {
		apply := o.resolve(d, windows)
		p.Override = append(p.Override, Override{Matchers: o.Matchers.all(), Apply: apply})
		changed := p.Limits
		apply(&changed)
		o.Windows.check(d, changed)
	}
	for _, denial := range f.Deny {
		p.Deny = append(p.Deny, Denial{Matchers: denial.Matchers.all(), Reason: string(denial.Reason)})
	}
	for _, a := range f.Approvals {
		rule := ApprovalRule{Matchers: a.Matchers.all(), Expires: time.Hour}
		for _, approver := range a.Approvers {
			rule.Approvers = append(rule.Approvers, string(approver))
		}
		replace(&rule.Expires, (*time.Duration)(a.Expires))
		p.Approvals = append(p.Approvals, rule)
	}
	return p
}

// windows returns the windows of time_intervals by name.
func (f *policyFile) windows(d *strict.Document) map[string]Window {
	windows := map[string]Window{}
	for _, w := range f.TimeIntervals {
		if w.Name.Text == "" {
			continue // is a fault already
		}
		if _, twice := windows[w.Name.Text]; twice {
			d.Faultf(w.Name.At, "there is a window %.60q already; choose another name", w.Name.Text)
		}
		windows[w.Name.Text] = Window{Name: w.Name.Text, Intervals: []timeinterval.TimeInterval(w.Intervals)}
	}
	return windows
}

// resolve returns a function that changes limits to what the file says. Names of windows
// are looked up here, because that function is called for every decision.
func (f limitsFile) resolve(d *strict.Document, windows map[string]Window) func(*Limits) {
	var allow, block *[]Window
	if f.Windows != nil {
		allow, block = named(d, windows, f.Windows.Allow), named(d, windows, f.Windows.Block)
	}
	return func(l *Limits) {
		replace(&l.MaxConcurrent, f.MaxConcurrent)
		replace(&l.KeepZones, (*int)(f.KeepZones))
		replace(&l.OneZoneAtATime, f.OneZoneAtATime)
		replace(&l.KeepRootServer, f.KeepRootServer)
		if c := f.Cooldown; c != nil {
			replace(&l.Cooldown.Server, (*time.Duration)(c.Server))
			replace(&l.Cooldown.Zone, (*time.Duration)(c.Zone))
			replace(&l.Cooldown.Failure, (*time.Duration)(c.Failure))
		}
		set(f.Budget, &l.Budget)
		replace(&l.PauseAfterFailures, f.PauseAfterFailures)
		replace(&l.MaxWait, (*time.Duration)(f.MaxWait))
		replace(&l.Supersede, f.Supersede)
		replace(&l.Allow, allow)
		replace(&l.Block, block)
	}
}

// replace changes a limit to what the file says, if it says anything.
func replace[T any](limit, said *T) {
	if said != nil {
		*limit = *said
	}
}

func set(said *budgetFile, b *Budget) {
	if said != nil {
		replace(&b.Operations, said.Operations)
		replace(&b.Window, (*time.Duration)(said.Window))
	}
}

func named(d *strict.Document, windows map[string]Window, names *[]strict.Word) *[]Window {
	if names == nil {
		return nil
	}
	var found []Window
	for _, name := range *names {
		window, ok := windows[name.Text]
		if !ok {
			known := "there is none"
			if len(windows) > 0 {
				known = "there are: " + strings.Join(slices.Sorted(maps.Keys(windows)), ", ")
			}
			d.Faultf(name.At, "no window %.60q in time_intervals; %s", name.Text, known)
		}
		found = append(found, window)
	}
	return &found
}

// check finds windows that both allow and block.
func (w *windowsFile) check(d *strict.Document, l Limits) {
	if w == nil {
		return
	}
	for _, allow := range l.Allow {
		if slices.ContainsFunc(l.Block, func(block Window) bool { return block.Name == allow.Name }) && allow.Name != "" {
			d.Faultf(w.At, "the window %s both allows and blocks, that is never; leave it out of one", allow.Name)
		}
	}
}

// keepZones is a number, or the word majority.
type keepZones int

func (k *keepZones) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	n, err := strconv.Atoi(text)
	switch {
	case text == "majority":
		n = Majority
	case err != nil || n < 0 || n > maxZones:
		return fmt.Errorf("%.60q is no number of zones; write majority, or a number from 0 to %d", text, maxZones)
	}
	*k = keepZones(n)
	return nil
}

// intervals are Alertmanager's, whose own decoder accepts months that do not exist.
type intervals []timeinterval.TimeInterval

func (is intervals) Fault() string {
	for _, interval := range is {
		for _, months := range interval.Months {
			if months.Begin < 1 || months.End > 12 {
				return fmt.Sprintf("months %d:%d: must be from 1 to 12, or names", months.Begin, months.End)
			}
		}
	}
	if len(is) == 0 {
		return "a window that contains no moment; add intervals or leave it out"
	}
	return ""
}

// matcherLines are one or more matchers each.
type matcherLines []matcherLine

type matcherLine struct{ matchers labels.Matchers }

func (ms matcherLines) Fault() string {
	if len(ms) == 0 {
		return `no matcher; add one, e.g. cluster="prod", or cluster=~".*" for all`
	}
	return ""
}

func (ms matcherLines) all() labels.Matchers {
	var all labels.Matchers
	for _, line := range ms {
		all = append(all, line.matchers...)
	}
	return all
}

func (m *matcherLine) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	parsed, err := labels.ParseMatchers(text)
	if err != nil {
		return fmt.Errorf("%w; write a matcher as Alertmanager does, e.g. cluster=\"prod\" or zone=~\"zone[12]\"", err)
	}
	if len(parsed) == 0 {
		return errors.New(`an empty matcher; write e.g. cluster="prod"`)
	}
	for _, one := range parsed {
		if err := possible(one); err != nil {
			return err
		}
	}
	m.matchers = parsed
	return nil
}

// possible returns an error for a matcher that compares its label with a value that the
// label never has: such a matcher would switch a rule off without anybody noticing.
func possible(m *labels.Matcher) error {
	if m.Type != labels.MatchEqual && m.Type != labels.MatchNotEqual {
		return nil
	}
	id, err := strconv.ParseInt(m.Value, 10, 64)
	switch {
	case m.Name == "kind" && !events.Kind(m.Value).Known():
		return fmt.Errorf("%s: a kind is stop, start or restart", m)
	case m.Name == "force" && m.Value != "true" && m.Value != "false":
		return fmt.Errorf("%s: force is true or false", m)
	case (m.Name == "cluster_id" || m.Name == "server_id") && (err != nil || id < 1):
		return fmt.Errorf("%s: an id is a whole number of at least 1; a cluster's name is the label cluster", m)
	}
	return nil
}

// advice adds an example to an error of one of Alertmanager's types.
func advice(of any, err error) string {
	example := ""
	switch of.(type) {
	case *timeinterval.TimeRange:
		example = `{start_time: "09:00", end_time: "17:00"}, in the same day`
	case *timeinterval.WeekdayRange:
		example = "saturday or monday:friday"
	case *timeinterval.DayOfMonthRange:
		example = "1, 1:7 or -3:-1"
	case *timeinterval.MonthRange:
		example = "january:march or 12"
	case *timeinterval.YearRange:
		example = "2026 or 2026:2027"
	case *timeinterval.Location:
		example = "Asia/Shanghai or UTC"
	default:
		return err.Error()
	}
	if number, ok := errors.AsType[*strconv.NumError](err); ok {
		err = fmt.Errorf("%.60q is no number", number.Num)
	}
	return fmt.Sprintf("%v; write e.g. %s", err, example)
}
