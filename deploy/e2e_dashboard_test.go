//go:build linux

package deploy

import (
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// answer is what Prometheus' API says to a query.
type answer struct {
	Data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
			Values [][2]any
		}
	}
}

// finds reports whether there is a number in it.
func (a answer) finds() bool {
	for _, r := range a.Data.Result {
		for _, v := range append(r.Values, r.Value) {
			text, _ := v[1].(string)
			if f, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
				return true
			}
		}
	}
	return false
}

// query asks for the last minute.
func (w *world) query(expr string) (a answer, err error) {
	now := time.Now().Unix()
	form := url.Values{"query": {expr}, "start": {fmt.Sprint(now - 60)}, "end": {fmt.Sprint(now)}, "step": {"1"}}
	return a, get("http://"+w.prometheus+"/api/v1/query_range?"+form.Encode(), &a)
}

// untilFound waits until a query finds something now.
func (w *world) untilFound(t *testing.T, expr string) {
	t.Helper()
	until(t, expr, func() string {
		var a answer
		if err := get("http://"+w.prometheus+"/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &a); err != nil {
			t.Fatal(err)
		}
		if !a.finds() {
			return "a sample"
		}
		return ""
	})
}

// board is what is looked at of a dashboard.
type board struct {
	UID         string
	Title       string
	Annotations struct{ List []struct{ Name, Expr string } }
	Panels      []struct {
		Title, Type string
		GridPos     struct{ H, W, X, Y int }
		FieldConfig json.RawMessage // for who draws it
		Targets     []struct {
			Expr, LegendFormat string
			Answer             answer
		}
	}
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
}

func boards(t *testing.T) (all []board) {
	t.Helper()
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d dashboards, error %v", len(files), err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var b board
		if err := json.Unmarshal(content, &b); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, b)
	}
	return all
}

// filledIn puts in what Grafana would for its variables.
func filledIn(expr string) string {
	expr = strings.NewReplacer("$__rate_interval", "10s", "$__range", "5m", "$window", "5m").Replace(expr)
	return regexp.MustCompile(`\$[a-z_]+`).ReplaceAllString(expr, ".*")
}

func (w *world) dashboardsShow(t *testing.T) {
	pending := map[string]string{} // what shows it, by query
	for _, b := range boards(t) {
		for _, p := range b.Panels {
			for _, q := range p.Targets {
				pending[filledIn(q.Expr)] = b.UID + ": " + p.Title
			}
		}
		for _, a := range b.Annotations.List {
			if a.Expr != "" {
				pending[filledIn(a.Expr)] = b.UID + ": annotation " + a.Name
			}
		}
	}
	if len(pending) < 60 {
		t.Fatalf("%d queries", len(pending))
	}
	until(t, "queries of the dashboards find something", func() string {
		still := ""
		for expr, where := range pending {
			a, err := w.query(expr)
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			if a.finds() {
				delete(pending, expr)
			} else {
				still += where + ": " + expr + "\n"
			}
		}
		return still
	})
	for _, b := range boards(t) {
		for _, v := range b.Templating.List {
			m := regexp.MustCompile(`^label_values\((.*), ([a-z_]+)\)$`).FindStringSubmatch(filledIn(v.Definition))
			if v.Type != "query" {
				continue
			}
			var values struct{ Data []string }
			if m == nil {
				t.Errorf("%s: variable %s: %q is no label_values", b.UID, v.Name, v.Definition)
			} else if err := get("http://"+w.prometheus+"/api/v1/label/"+m[2]+"/values?match[]="+url.QueryEscape(m[1]), &values); err != nil || len(values.Data) == 0 {
				t.Errorf("%s: variable %s has %d values, error %v", b.UID, v.Name, len(values.Data), err)
			}
		}
	}
	w.keepWhatIsShown(t)
}

// keepWhatIsShown writes every panel with its data, for the command that draws them.
func (w *world) keepWhatIsShown(t *testing.T) {
	if *shown == "" {
		return
	}
	until(t, "more data", func() string {
		if a, err := w.query(`count_over_time(up{job="obwarden"}[2m]) > 40`); err != nil || !a.finds() {
			return fmt.Sprint("not yet ", err)
		}
		return ""
	})
	for _, b := range boards(t) {
		for i := range b.Panels {
			for j := range b.Panels[i].Targets {
				target := &b.Panels[i].Targets[j]
				var err error
				if target.Answer, err = w.query(filledIn(target.Expr)); err != nil {
					t.Fatal(err)
				}
			}
		}
		content, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(*shown, b.UID+".json"), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
