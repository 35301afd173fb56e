package ocpsim_test

import (
	"strings"
	"testing"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	cfg, err := ocpsim.Options{
		Listen: "127.0.0.1:0", Clusters: 2, Zones: 3, ServersPerZone: 2, Speed: 20, Shape: 2, API: "v4.3",
		Faults: []string{"server_stop:lose_after,count=1"}, Username: "root", Password: "secret", Seed: 5,
	}.Config()
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, cfg)
	c.user, c.password = "root", "secret"
	if contents, _ := c.get("/api/v2/ob/clusters").at("data", "contents").([]any); len(contents) != 2 {
		t.Errorf("clusters: got %d, want 2", len(contents))
	}
	if _, err := c.try("POST", serverPath(2, "stop?freezeServer=true"), ""); err == nil {
		t.Error("first stop: got an answer, want it lost")
	}
}

func TestOptionsReportEverythingAtOnce(t *testing.T) {
	t.Parallel()
	_, err := ocpsim.Options{Listen: "nowhere", Clusters: -1, Speed: -1, Shape: 9, API: "x", Faults: []string{"a:b", "c"}, Username: "a:b"}.Config()
	for _, want := range []string{"listen:", "-1 clusters", "speed -1", "shape 9", `API "x"`, `fault "a:b"`, `fault "c"`, `user "a:b"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q: %v", want, err)
		}
	}
	if _, err := (ocpsim.Options{Topology: "x.json", Zones: 3}).Config(); err == nil || !strings.Contains(err.Error(), "not both") {
		t.Errorf("file and numbers: got %v, want an error", err)
	}
	if _, err := (ocpsim.Options{}).Config(); err != nil {
		t.Errorf("no options at all: got %v, want the defaults", err)
	}
}
