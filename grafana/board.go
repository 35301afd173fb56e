// Package grafana builds the dashboards, and contains them as the files that are given to Grafana.
//
// fleet.go, operation.go, guard.go and agent.go are one dashboard each; board.go is what all panels have in common. No
// program imports the package: after a change, go test ./grafana -update writes dashboards/*.json anew.
package grafana

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// Dashboards are all dashboards as JSON, by uid, to which links and alerts refer.
func Dashboards() (map[string][]byte, error) {
	all := map[string][]byte{}
	for uid, build := range map[string]func(*board){
		"obwarden-fleet":     fleet,
		"obwarden-operation": operation,
		"obwarden-guard":     guard,
		"obwarden-agent":     agent,
	} {
		b := newBoard(uid)
		build(b)
		for _, add := range b.parts {
			add()
		}
		built, err := b.Build()
		if err != nil {
			return nil, fmt.Errorf("build dashboard %s: %w", uid, err)
		}
		content, err := json.MarshalIndent(built, "", " ")
		if err != nil {
			return nil, fmt.Errorf("build dashboard %s: %w", uid, err)
		}
		all[uid] = append(content, '\n')
	}
	return all, nil
}

// board is a dashboard that is being built, from top to bottom.
type board struct {
	//nolint:staticcheck // The form that every Grafana in use reads; its successor needs 13.
	*dashboard.DashboardBuilder
	// parts are rows and panels, added at the end: the builder copies a panel that it is given, and misses later changes.
	parts []func()
}

func (b *board) panel(p cog.Builder[dashboard.Panel]) {
	b.parts = append(b.parts, func() { b.WithPanel(p) })
}

// next is the id of the next panel.
func (b *board) next() uint32 { return uint32(len(b.parts)) + 1 }

// Selectors of series by the variables of a dashboard: of the chosen jobs, and of the chosen agents or kinds in these.
const (
	ofJob   = `job=~"$job"`
	ofAgent = `job=~"$job",instance=~"$instance"`
	ofKind  = `job=~"$job",kind=~"$kind"`
)

func source() common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}
}

func newBoard(uid string) *board {
	//nolint:staticcheck // see board
	b := &board{DashboardBuilder: dashboard.NewDashboardBuilder("")}
	b.Uid(uid).Tags([]string{"obwarden", "oceanbase"}).Editable().
		Time("now-6h", "now").Refresh("30s").Timezone("browser").Tooltip(dashboard.DashboardCursorSyncCrosshair).
		Link(dashboard.NewDashboardLinkBuilder("obwarden").Type(dashboard.DashboardLinkTypeDashboards).
			Tags([]string{"obwarden"}).IncludeVars(true).KeepTime(true)).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus"))
	b.choice("job", "Job", `label_values(obwarden_build_info, job)`)
	b.mark("Failed", "red", `failed`)
	b.mark("Succeeded", "green", `succeeded`)
	return b
}

// about says what the dashboard is for.
func (b *board) about(title, description string) {
	b.Title("obwarden / " + title).Description(description)
}

// mark annotates every graph with the moments at which operations ended with an outcome.
func (b *board) mark(name, color, outcome string) {
	b.Annotation(dashboard.NewAnnotationQueryBuilder().Name(name).Datasource(source()).Enable(true).IconColor(color).
		Expr(`sum by (kind, outcome) (increase(obwarden_operations_total{` + ofJob + `,outcome="` + outcome + `"}[1m])) > 0`).
		Step("60s").TagKeys("kind").TitleFormat("{{kind}} {{outcome}}").
		TextFormat("obwarden list names the operations"))
}

func all() dashboard.VariableOption {
	return dashboard.VariableOption{
		Text:  dashboard.StringOrArrayOfString{ArrayOfString: []string{"All"}},
		Value: dashboard.StringOrArrayOfString{ArrayOfString: []string{"$__all"}},
	}
}

// choice is a variable with the values that a query finds.
func (b *board) choice(name, label, query string) {
	b.WithVariable(dashboard.NewQueryVariableBuilder(name).Label(label).Datasource(source()).
		Query(dashboard.StringOrMap{Map: map[string]any{"query": query, "refId": name}}).Definition(query).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortNaturalAsc).
		Multi(true).IncludeAll(true).AllValue(".*").Current(all()))
}

// kinds is the variable of the kinds of operations.
func (b *board) kinds() {
	b.WithVariable(dashboard.NewCustomVariableBuilder("kind").Label("Kind").
		Values(dashboard.StringOrMap{String: cog.ToPtr("stop,start,restart")}).
		Multi(true).IncludeAll(true).AllValue(".*").Current(all()))
}

// window is the variable of the time over which quantiles are taken. Operations are few: in most minutes none ends, and
// there is no quantile of nothing.
func (b *board) window() {
	hour := dashboard.StringOrArrayOfString{String: cog.ToPtr("1h")}
	b.WithVariable(dashboard.NewCustomVariableBuilder("window").Label("Quantiles over").
		Values(dashboard.StringOrMap{String: cog.ToPtr("5m,1h,6h,1d")}).
		Current(dashboard.VariableOption{Text: hour, Value: hour}))
}

// row begins a new row.
func (b *board) row(title string) {
	row := dashboard.NewRowBuilder(title).Id(b.next())
	b.parts = append(b.parts, func() { b.WithRow(row) })
}

// query is an expression and the legend of the series that it finds.
type query struct {
	expr, legend string
	exemplars    bool
	heat         bool
}

func (q query) target(n int) *prometheus.DataqueryBuilder {
	t := prometheus.NewDataqueryBuilder().RefId(string(rune('A' + n))).Expr(q.expr).LegendFormat(q.legend).
		Datasource(source()).EditorMode(prometheus.QueryEditorModeCode).Range()
	if q.exemplars {
		t.Exemplar(true)
	}
	if q.heat {
		t.Format(prometheus.PromQueryFormatHeatmap)
	}
	return t
}

// panel is what every panel has.
type panel struct {
	title, description string
	unit               string
	empty              string // shown if there is no data
	width              uint32 // of 24
	queries            []query
}

const (
	statHeight  = 4
	graphHeight = 8
)

// level is the color of values from some value on.
type level struct {
	from  float64
	color string
}

// levels are thresholds with green below the first.
func levels(above ...level) *dashboard.ThresholdsConfigBuilder { return steps("green", above...) }

// steps are thresholds with a color of its own below the first.
func steps(below string, above ...level) *dashboard.ThresholdsConfigBuilder {
	steps := []dashboard.Threshold{{Color: below}}
	for _, l := range above {
		steps = append(steps, dashboard.Threshold{Value: cog.ToPtr(l.from), Color: l.color})
	}
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(steps)
}

// stat is one number, colored by its level. It links to a dashboard that shows more.
func (b *board) stat(p panel, to string, levels *dashboard.ThresholdsConfigBuilder) *stat.PanelBuilder {
	s := stat.NewPanelBuilder().Id(b.next()).Title(p.title).Description(p.description).Unit(p.unit).NoValue(p.empty).
		Span(p.width).Height(statHeight).Datasource(source()).Thresholds(levels).
		ColorScheme(dashboard.NewFieldColorBuilder().Mode(dashboard.FieldColorModeIdThresholds)).
		ColorMode(common.BigValueColorModeBackground).GraphMode(common.BigValueGraphModeArea).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
	for i, q := range p.queries {
		s.WithTarget(q.target(i))
	}
	if to != "" {
		s.Links([]cog.Builder[dashboard.DashboardLink]{dashboard.NewDashboardLinkBuilder("More").
			Type(dashboard.DashboardLinkTypeLink).Url("/d/" + to + "?${__url_time_range}&${job:queryparam}&${datasource:queryparam}")})
	}
	b.panel(s)
	return s
}

// health is a stat that says in words whether everything is well.
func (b *board) health(p panel, well, ill string) {
	words := dashboard.ValueMap{Type: dashboard.MappingTypeValueToText, Options: map[string]dashboard.ValueMappingResult{
		"0": {Text: cog.ToPtr(ill), Color: cog.ToPtr("red")},
		"1": {Text: cog.ToPtr(well), Color: cog.ToPtr("green")},
	}}
	b.stat(p, "", levels()).Mappings([]dashboard.ValueMapping{{ValueMap: &words}}).GraphMode(common.BigValueGraphModeNone)
}

// lines is a graph over time. It always includes zero, so that small changes look small.
func (b *board) lines(p panel) *timeseries.PanelBuilder {
	g := timeseries.NewPanelBuilder().Id(b.next()).Title(p.title).Description(p.description).Unit(p.unit).NoValue(p.empty).
		Span(p.width).Height(graphHeight).Datasource(source()).Min(0).
		LineWidth(1).FillOpacity(8).ShowPoints(common.VisibilityModeAuto).
		Legend(common.NewVizLegendOptionsBuilder().ShowLegend(true).DisplayMode(common.LegendDisplayModeTable).
			Placement(common.LegendPlacementBottom).Calcs([]string{"lastNotNull", "max"})).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
	for i, q := range p.queries {
		g.WithTarget(q.target(i))
	}
	b.panel(g)
	return g
}

// bars is a graph of events in each interval, stacked. The intervals overlap, so that no event is lost between two scrapes;
// a sum over the bars would therefore count some events twice.
func (b *board) bars(p panel) *timeseries.PanelBuilder {
	return b.stacked(p).DrawStyle(common.GraphDrawStyleBars).FillOpacity(80).LineWidth(0)
}

// stacked is a graph of the parts of a whole.
func (b *board) stacked(p panel) *timeseries.PanelBuilder {
	return b.lines(p).FillOpacity(40).Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal))
}

// heat shows the observations of a histogram over time.
func (b *board) heat(p panel) {
	h := heatmap.NewPanelBuilder().Id(b.next()).Title(p.title).Description(p.description).Unit(p.unit).NoValue(p.empty).
		Span(p.width).Height(graphHeight).Datasource(source()).
		Color(heatmap.NewHeatmapColorOptionsBuilder().Mode(heatmap.HeatmapColorModeScheme).Scheme("Oranges").Steps(64)).
		YAxis(heatmap.NewYAxisConfigBuilder().Unit(p.unit)).ShowLegend()
	for i, q := range p.queries {
		q.heat, q.exemplars = true, true
		h.WithTarget(q.target(i))
	}
	b.panel(h)
}

// ranking is a bar for each series of a query, which should find few.
func (b *board) ranking(p panel, levels *dashboard.ThresholdsConfigBuilder) {
	g := bargauge.NewPanelBuilder().Id(b.next()).Title(p.title).Description(p.description).Unit(p.unit).NoValue(p.empty).
		Span(p.width).Height(graphHeight).Datasource(source()).Min(0).Thresholds(levels).
		ColorScheme(dashboard.NewFieldColorBuilder().Mode(dashboard.FieldColorModeIdThresholds)).
		Orientation(common.VizOrientationHorizontal).DisplayMode(common.BarGaugeDisplayModeBasic).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
	for i, q := range p.queries {
		g.WithTarget(q.target(i).Instant())
	}
	b.panel(g)
}

// colored gives series their colors by name, so that they look the same in every panel.
func colored(g *timeseries.PanelBuilder, colors map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(colors)) {
		g.OverrideByName(name, []dashboard.DynamicConfigValue{{Id: "color", Value: map[string]string{"mode": "fixed", "fixedColor": colors[name]}}})
	}
}

func outcomeColors() map[string]string {
	return map[string]string{"succeeded": "green", "failed": "red", "cancelled": "blue", "rejected": "purple", "expired": "orange"}
}

func stateColors() map[string]string {
	return map[string]string{"accepted": "super-light-blue", "waiting": "yellow", "submitting": "purple", "running": "blue"}
}

// quantile is a quantile of the histogram with the name metric, over the chosen window.
func quantile(q float64, metric, selector, by string) string {
	labels := "le"
	if by != "" {
		labels += ", " + by
	}
	return fmt.Sprintf("histogram_quantile(%g, sum by (%s) (rate(%s_bucket{%s}[$window])))", q, labels, metric, selector)
}
