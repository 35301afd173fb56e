package ocp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNewListsEverythingThatIsWrong(t *testing.T) {
	t.Parallel()
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*Config)
		want   string // "": accepted
	}{
		"complete":           {func(*Config) {}, ""},
		"path prefix":        {func(c *Config) { c.URL = "https://ocp.example.com/ocp/" }, ""},
		"AK/SK":              {func(c *Config) { signing(c) }, ""},
		"no URL":             {func(c *Config) { c.URL = "" }, "URL: "},
		"relative URL":       {func(c *Config) { c.URL = "ocp.example.com:8080" }, "URL: "},
		"other scheme":       {func(c *Config) { c.URL = "ftp://ocp.example.com" }, "URL: "},
		"password in URL":    {func(c *Config) { c.URL = "http://root:" + password + "@ocp" }, "URL: take user"},
		"broken URL":         {func(c *Config) { c.URL = "http://root:" + password + "@ocp:port" }, "URL: "},
		"query in URL":       {func(c *Config) { c.URL = "http://ocp?x=1" }, "URL: "},
		"half of a pair":     {func(c *Config) { c.Password = "" }, "credentials: "},
		"both credentials":   {func(c *Config) { c.AccessKey, c.SecretKey = "a", "b" }, "credentials: "},
		"colon in username":  {func(c *Config) { c.Username = "a:b" }, "username: "},
		"API":                {func(c *Config) { c.API = "v5" }, "API: "},
		"parameter style":    {func(c *Config) { c.Params = "xml" }, "parameter style: "},
		"timeout":            {func(c *Config) { c.Timeout = -time.Second }, "timeout: "},
		"budget":             {func(c *Config) { c.MaxRPS = -1 }, "request budget: "},
		"CA file is missing": {func(c *Config) { c.CAFile = notPEM + "x" }, "CA file: "},
		"CA file is not PEM": {func(c *Config) { c.CAFile = notPEM }, "CA file: "},
		"all faults at once": {func(c *Config) { c.URL = ""; c.API = "v5" }, "URL: set an absolute one, such as https://ocp.example.com:8080\nAPI: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := Config{URL: "http://ocp.example.com", Username: "root", Password: password}
			tt.change(&config)
			_, err := New(config)
			switch {
			case (err == nil) != (tt.want == ""):
				t.Errorf("got %v, want %q", err, tt.want)
			case err != nil && (!strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), password)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
