package main

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v10"

	"github.com/obwarden/obwarden/agent/policy"
)

const envPrefix = "OBWARDEN_"

// Config is everything that can be configured, all of it by environment variables. The tags of a field are its only
// documentation: the tables of `obwarden run --help` and of the README are generated from them.
type Config struct {
	OCPURL       string        `env:"OCP_URL" help:"base URL of OCP, e.g. https://ocp.example.com:8080"`
	OCPUsername  string        `env:"OCP_USERNAME" help:"user for HTTP Basic authentication"`
	OCPPassword  string        `env:"OCP_PASSWORD" secret:"true" help:"password for HTTP Basic authentication"`
	OCPAccessKey string        `env:"OCP_ACCESS_KEY" help:"access key for AK/SK signatures, instead of HTTP Basic"`
	OCPSecretKey string        `env:"OCP_SECRET_KEY" secret:"true" help:"secret key for AK/SK signatures"`
	OCPAPI       string        `env:"OCP_API" envDefault:"v3" oneof:"v3 v4.3" help:"version of OCP's API, which decides the parameters of operations"`
	OCPParams    string        `env:"OCP_PARAMS" envDefault:"query" oneof:"query json" help:"where the parameters of operations are sent: in the query or in a JSON body"`
	OCPCAFile    string        `env:"OCP_CA_FILE" help:"PEM file with the root certificates that OCP's certificate is checked against; empty: those of the system"`
	OCPTimeout   time.Duration `env:"OCP_TIMEOUT" envDefault:"10s" min:"100ms" help:"deadline of one call to OCP"`
	OCPMaxRPS    float64       `env:"OCP_MAX_RPS" envDefault:"20" min:"0.1" help:"maximum number of calls to OCP per second"`

	NATSURL       string        `env:"NATS_URL" help:"NATS servers, comma-separated; empty: the embedded server"`
	NATSCredsFile string        `env:"NATS_CREDS_FILE" help:"NATS credentials file"`
	NATSListen    string        `env:"NATS_LISTEN" envDefault:"127.0.0.1:4222" addr:"true" help:"address on which the embedded NATS server listens; port 0: any free port"`
	HTTPListen    string        `env:"HTTP_LISTEN" envDefault:"127.0.0.1:9480" addr:"true" help:"address on which /metrics, /-/healthy, /-/ready and /alertmanager are served; port 0: any free port"`
	DataDir       string        `env:"DATA_DIR" envDefault:"obwarden-data" help:"directory for the files of the embedded NATS server"`
	PolicyFile    string        `env:"POLICY_FILE" help:"file with the policy that operations must comply with; empty: the built-in policy (obwarden check policy --default)"`
	Replicas      int           `env:"STREAM_REPLICAS" envDefault:"1" oneof:"1 3 5" help:"number of copies of each stream in a NATS cluster"`
	Retention     time.Duration `env:"RETENTION" envDefault:"720h" min:"1m" help:"how long events are kept and idempotency keys remembered"`
	AckWait       time.Duration `env:"ACK_WAIT" envDefault:"15s" min:"1s" help:"time after an agent's death until another agent takes over its operations"`

	WebhookUsername      string `env:"WEBHOOK_USERNAME" help:"user that Alertmanager must present at /alertmanager (HTTP Basic)"`
	WebhookPassword      string `env:"WEBHOOK_PASSWORD" secret:"true" help:"password that Alertmanager must present at /alertmanager (HTTP Basic)"`
	WebhookToken         string `env:"WEBHOOK_TOKEN" secret:"true" help:"bearer token that Alertmanager may present instead; without token and password, /alertmanager is open on a loopback address and closed on any other address"`
	AlertmanagerURL      string `env:"ALERTMANAGER_URL" help:"base URL of the Alertmanager in which the policy's silences are created; empty: no silences"`
	AlertmanagerUsername string `env:"ALERTMANAGER_USERNAME" help:"user at Alertmanager (HTTP Basic)"`
	AlertmanagerPassword string `env:"ALERTMANAGER_PASSWORD" secret:"true" help:"password at Alertmanager (HTTP Basic)"`

	Settle     time.Duration `env:"SETTLE" envDefault:"30s" min:"200ms" help:"how long an unanswered call to OCP may still take effect; the call itself may last half of that at most"`
	PollMin    time.Duration `env:"POLL_MIN" envDefault:"1s" min:"10ms" help:"time between polls of a task that makes progress"`
	PollMax    time.Duration `env:"POLL_MAX" envDefault:"15s" min:"10ms" help:"time between polls of a task that makes no progress"`
	StallAfter time.Duration `env:"STALL_AFTER" envDefault:"10m" min:"1s" help:"a task without progress for this long is reported as stalled"`

	LogLevel  string `env:"LOG_LEVEL" envDefault:"info" oneof:"debug info warn error" help:"lowest level that is logged"`
	LogFormat string `env:"LOG_FORMAT" oneof:"text json" help:"format of the log, which goes to stderr; empty: text on a terminal, else json"`

	PprofListen string `env:"PPROF_LISTEN" addr:"true" help:"address on which Go's profiles are served under /debug/pprof/, to everybody who can connect; empty: they are not served"`
}

// loadConfig reads the environment and reports all faults at once. A secret may come from a file, which the variable's
// name with _FILE appended names.
func loadConfig(environ map[string]string) (Config, error) {
	environ, faults := readSecretFiles(environ)
	var c Config
	if err := env.ParseWithOptions(&c, env.Options{Prefix: envPrefix, Environment: environ}); err != nil {
		var all env.AggregateError
		if errors.As(err, &all) {
			faults = append(faults, describeParseErrors(all, environ)...)
		} else {
			faults = append(faults, err)
		}
	}
	for _, v := range variables() {
		if value := environ[v.Name]; value != "" {
			if err := v.check(value); err != nil {
				faults = append(faults, fmt.Errorf("%s=%s: %w", v.Name, v.shown(value), err))
			}
		}
	}
	faults = append(faults, c.check()...)
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return c, errors.Join(slices.CompactFunc(faults, func(a, b error) bool { return a.Error() == b.Error() })...)
}

// unknownVariables are the variables that have our prefix and no meaning, mostly typing errors. They cause a warning
// and no failure, because Kubernetes adds such variables to every container in the namespace of a service called
// obwarden.
func unknownVariables(environ map[string]string) []string {
	known := map[string]bool{}
	for _, v := range variables() {
		known[v.Name], known[v.Name+"_FILE"] = true, v.Secret
	}
	var unknown []string
	for name := range environ {
		ofKubernetes := strings.HasPrefix(name, envPrefix+"SERVICE_") || strings.HasPrefix(name, envPrefix+"PORT")
		if strings.HasPrefix(name, envPrefix) && !known[name] && !ofKubernetes {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// check reports faults that concern more than one variable.
func (c Config) check() []error {
	var faults []error
	for _, pair := range []struct{ names, a, b string }{
		{"OBWARDEN_OCP_USERNAME, OBWARDEN_OCP_PASSWORD", c.OCPUsername, c.OCPPassword},
		{"OBWARDEN_OCP_ACCESS_KEY, OBWARDEN_OCP_SECRET_KEY", c.OCPAccessKey, c.OCPSecretKey},
		{"OBWARDEN_WEBHOOK_USERNAME, OBWARDEN_WEBHOOK_PASSWORD", c.WebhookUsername, c.WebhookPassword},
		{"OBWARDEN_ALERTMANAGER_USERNAME, OBWARDEN_ALERTMANAGER_PASSWORD", c.AlertmanagerUsername, c.AlertmanagerPassword},
	} {
		if (pair.a == "") != (pair.b == "") {
			faults = append(faults, fmt.Errorf("%s: set both or none", pair.names))
		}
	}
	if c.OCPUsername != "" && c.OCPAccessKey != "" {
		faults = append(faults, errors.New("OBWARDEN_OCP_USERNAME, OBWARDEN_OCP_ACCESS_KEY: set one of them, Basic or AK/SK"))
	}
	for name, base := range map[string]string{"OBWARDEN_OCP_URL": c.OCPURL, "OBWARDEN_ALERTMANAGER_URL": c.AlertmanagerURL} {
		if u, err := url.Parse(base); base != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil) {
			faults = append(faults, fmt.Errorf("%s: must be http:// or https:// with a host and without user and password", name))
		}
	}
	if c.PollMin > c.PollMax {
		faults = append(faults, fmt.Errorf("OBWARDEN_POLL_MIN=%s: must not be more than OBWARDEN_POLL_MAX=%s", c.PollMin, c.PollMax))
	}
	if c.NATSURL == "" && c.Replicas > 1 {
		faults = append(faults, fmt.Errorf("OBWARDEN_STREAM_REPLICAS=%d: the embedded NATS server keeps one copy; set OBWARDEN_NATS_URL to a cluster", c.Replicas))
	}
	return faults
}

// policy is the policy that operations must comply with. The error lists all faults of the file.
func (c Config) policy() (*policy.Policy, error) {
	if c.PolicyFile == "" {
		return policy.Default(), nil
	}
	return policy.Load(c.PolicyFile)
}

// checkOCP reports whether the configuration suffices for a command that calls OCP.
func (c Config) checkOCP() error {
	if c.OCPURL == "" {
		return errors.New("OBWARDEN_OCP_URL: not set; it is the base URL of OCP, e.g. https://ocp.example.com:8080 (to try without an OCP: `obwarden demo`)")
	}
	return nil
}

// anonymous reports whether OCP is called without credentials. OCP refuses that, unless a gateway in front of it adds
// them.
func (c Config) anonymous() bool { return c.OCPUsername == "" && c.OCPAccessKey == "" }

// variable is one row of the table of variables.
type variable struct {
	Name, Default, Help string
	Secret              bool
	oneOf               []string
	min                 string
	addr                bool
	kind                reflect.Type
}

func variables() []variable {
	var vs []variable
	for f := range reflect.TypeFor[Config]().Fields() {
		v := variable{
			Name: envPrefix + f.Tag.Get("env"), Default: f.Tag.Get("envDefault"), Help: f.Tag.Get("help"),
			Secret: f.Tag.Get("secret") == "true", oneOf: strings.Fields(f.Tag.Get("oneof")), min: f.Tag.Get("min"),
			addr: f.Tag.Get("addr") == "true", kind: f.Type,
		}
		vs = append(vs, v)
	}
	return vs
}

// shown is a value as it may be printed: without secrets.
func (v variable) shown(value string) string {
	switch {
	case v.Secret:
		return "(hidden)"
	case v.Name == envPrefix+"NATS_URL": // may carry a password
		value = redact(value)
	}
	return fmt.Sprintf("%.100q", value)
}

// allowed says what a value must look like.
func (v variable) allowed() string {
	switch {
	case len(v.oneOf) > 0:
		return "one of " + strings.Join(v.oneOf, ", ")
	case v.addr:
		return "host:port"
	case v.kind == reflect.TypeFor[time.Duration]():
		return fmt.Sprintf("a duration of at least %s, e.g. 30s, 10m or 720h", v.min)
	case v.kind.Kind() == reflect.Float64:
		return "a number of at least " + v.min
	case v.kind.Kind() == reflect.Int:
		return "a whole number"
	}
	return "text"
}

// check reports a value that parses and yet is not allowed, or does not parse.
func (v variable) check(value string) error {
	bad := fmt.Errorf("must be %s", v.allowed())
	switch {
	case len(v.oneOf) > 0 && !slices.Contains(v.oneOf, value):
		return bad
	case v.addr:
		if _, _, err := net.SplitHostPort(value); err != nil {
			return bad
		}
	case v.kind == reflect.TypeFor[time.Duration]():
		least, _ := time.ParseDuration(v.min)
		if d, err := time.ParseDuration(value); err != nil || d < least {
			return bad
		}
	case v.kind.Kind() == reflect.Float64:
		least, _ := strconv.ParseFloat(v.min, 64)
		if f, err := strconv.ParseFloat(value, 64); err != nil || !(f >= least) || math.IsInf(f, 1) {
			return bad
		}
	}
	return nil
}

// describeParseErrors says of values that do not parse what is allowed, in the words of variable.check, so that a fault
// that both find is reported once.
func describeParseErrors(all env.AggregateError, environ map[string]string) []error {
	var faults []error
	for _, err := range all.Errors {
		var parse env.ParseError
		if !errors.As(err, &parse) {
			faults = append(faults, err)
			continue
		}
		for _, v := range variables() {
			if f, ok := reflect.TypeFor[Config]().FieldByName(parse.Name); ok && envPrefix+f.Tag.Get("env") == v.Name {
				faults = append(faults, fmt.Errorf("%s=%s: must be %s", v.Name, v.shown(environ[v.Name]), v.allowed()))
			}
		}
	}
	return faults
}

// readSecretFiles returns the environment with the contents of secret files in the place of their names.
func readSecretFiles(environ map[string]string) (map[string]string, []error) {
	var faults []error
	read := make(map[string]string, len(environ))
	for name, value := range environ {
		read[name] = value
	}
	for _, v := range variables() {
		file := environ[v.Name+"_FILE"]
		if !v.Secret || file == "" {
			continue
		}
		if read[v.Name] != "" {
			faults = append(faults, fmt.Errorf("%s, %s_FILE: set one of them", v.Name, v.Name))
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s_FILE: %w", v.Name, err))
			continue
		}
		read[v.Name] = strings.TrimRight(string(content), "\r\n")
	}
	return read, faults
}

// environment is the environment of this process.
func environment() map[string]string {
	vars := map[string]string{}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		vars[name] = value
	}
	return vars
}
