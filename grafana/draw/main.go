// Command draw makes a picture of each dashboard, so that a person can look at it
// where there is no Grafana: make panels. It is a module of its own, because what
// it needs to draw is nothing that obwarden needs.
//
//	draw DIRECTORY
//
// reads the JSON files there, dashboards with an answer of Prometheus' API in each
// target, and writes a PNG beside each.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/palette/brewer"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

type board struct {
	UID, Title string
	Panels     []panel
}

type panel struct {
	Title, Type string
	GridPos     struct{ H, W, X, Y int }
	FieldConfig struct {
		Defaults struct {
			Unit, NoValue string
			Custom        struct{ Stacking struct{ Mode string } }
		}
	}
	Targets []struct {
		LegendFormat string
		Answer       struct {
			Data struct {
				Result []struct {
					Metric map[string]string
					Values [][2]any
				}
			}
		}
	}
}

// series is one line of a panel.
type series struct {
	name   string
	labels map[string]string
	points plotter.XYs // seconds before now
}

// Points of one unit of Grafana's grid.
const (
	gridWidth  = 46
	gridHeight = 26
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: draw DIRECTORY")
		os.Exit(2)
	}
	files, err := filepath.Glob(filepath.Join(os.Args[1], "*.json"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no dashboards in %s", os.Args[1])
	}
	for _, file := range files {
		if err == nil {
			err = drawBoard(file)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "draw:", err)
		os.Exit(1)
	}
}

func drawBoard(file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var b board
	if err := json.Unmarshal(content, &b); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	height := 0
	for _, p := range b.Panels {
		height = max(height, p.GridPos.Y+p.GridPos.H)
	}
	w, h := vg.Length(24*gridWidth), vg.Length(height*gridHeight)
	image := vgimg.New(w, h)
	all := draw.New(image)
	for _, p := range b.Panels {
		g := p.GridPos
		left, right := vg.Length(g.X*gridWidth), vg.Length((24-g.X-g.W)*gridWidth)
		top, bottom := vg.Length(g.Y*gridHeight), vg.Length((height-g.Y-g.H)*gridHeight)
		if err := p.draw(draw.Crop(all, left+4, -right-4, bottom+4, -top-4)); err != nil {
			return fmt.Errorf("%s: panel %q: %w", file, p.Title, err)
		}
	}
	name := strings.TrimSuffix(file, ".json") + ".png"
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	if _, err := (vgimg.PngCanvas{Canvas: image}).WriteTo(out); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Println(name)
	return out.Close()
}

func (p panel) draw(c draw.Canvas) error {
	drawn := plot.New()
	drawn.Title.Text = p.Title
	drawn.Title.TextStyle.Font.Size = 11
	all := p.series()
	switch {
	case p.Type == "row":
		drawn.HideAxes()
		drawn.Title.Text = "▾ " + p.Title
	case len(all) == 0:
		drawn.HideAxes()
		return p.words(drawn, c, p.FieldConfig.Defaults.NoValue)
	case p.Type == "stat":
		drawn.HideAxes()
		return p.words(drawn, c, p.last(all))
	case p.Type == "bargauge":
		if err := p.bars(drawn, all); err != nil {
			return err
		}
	case p.Type == "heatmap":
		if err := p.heat(drawn, all); err != nil {
			return err
		}
	default:
		if err := p.lines(drawn, all); err != nil {
			return err
		}
	}
	drawn.Draw(c)
	return nil
}

var label = regexp.MustCompile(`\{\{([a-z_]+)\}\}`)

func (p panel) series() (all []series) {
	for _, t := range p.Targets {
		for _, r := range t.Answer.Data.Result {
			s := series{labels: r.Metric}
			s.name = label.ReplaceAllStringFunc(t.LegendFormat, func(m string) string { return r.Metric[strings.Trim(m, "{}")] })
			for _, v := range r.Values {
				at, _ := v[0].(float64)
				text, _ := v[1].(string)
				if y, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(y) && !math.IsInf(y, 0) {
					s.points = append(s.points, plotter.XY{X: at, Y: y})
				}
			}
			if len(s.points) > 0 {
				all = append(all, s)
			}
		}
	}
	last := 0.0
	for _, s := range all {
		last = max(last, s.points[len(s.points)-1].X)
	}
	for _, s := range all {
		for i := range s.points {
			s.points[i].X -= last
		}
	}
	return all
}

// words are a text in the middle.
func (p panel) words(drawn *plot.Plot, c draw.Canvas, text string) error {
	labels, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: 0, Y: 0}}, Labels: []string{text}})
	if err != nil {
		return err
	}
	labels.TextStyle[0].Font.Size = 13
	labels.TextStyle[0].XAlign = draw.XCenter
	drawn.Add(labels)
	drawn.X.Min, drawn.X.Max, drawn.Y.Min, drawn.Y.Max = -1, 1, -1, 1
	drawn.Draw(c)
	return nil
}

func (p panel) last(all []series) string {
	var values []string
	for _, s := range all {
		values = append(values, fmt.Sprintf("%s: %.3g %s", s.name, s.points[len(s.points)-1].Y, p.FieldConfig.Defaults.Unit))
	}
	return strings.Join(values, "\n")
}

func (p panel) bars(drawn *plot.Plot, all []series) error {
	var values plotter.Values
	var names []string
	for _, s := range all {
		values, names = append(values, s.points[len(s.points)-1].Y), append(names, s.name)
	}
	bars, err := plotter.NewBarChart(values, 10)
	if err != nil {
		return err
	}
	bars.Horizontal, bars.Color = true, color.RGBA{R: 90, G: 160, B: 90, A: 255}
	drawn.Add(bars)
	drawn.NominalY(names...)
	drawn.X.Min = 0
	return nil
}

// runs are the points without the gaps between them, as Grafana shows them: there is
// one a second.
func (s series) runs() (all []plotter.XYs) {
	from := 0
	for i := range s.points {
		if i+1 == len(s.points) || s.points[i+1].X-s.points[i].X > 1.5 {
			all = append(all, s.points[from:i+1])
			from = i + 1
		}
	}
	return all
}

func (p panel) lines(drawn *plot.Plot, all []series) error {
	drawn.Y.Label.Text, drawn.Y.Min = p.FieldConfig.Defaults.Unit, 0
	drawn.Legend.Top, drawn.Legend.Left = true, true
	drawn.Legend.TextStyle.Font.Size = 8
	stack := map[float64]float64{}
	for i, s := range all {
		if p.FieldConfig.Defaults.Custom.Stacking.Mode == "normal" {
			for j := range s.points {
				at := &s.points[j]
				stack[at.X] += at.Y
				at.Y = stack[at.X]
			}
		}
		for n, run := range s.runs() {
			line, err := plotter.NewLine(run)
			if err != nil {
				return err
			}
			line.Color = plotutil.Color(i)
			line.Dashes = plotutil.Dashes(i / 7)
			drawn.Add(line)
			if i < 12 && n == 0 {
				drawn.Legend.Add(s.name, line)
			}
		}
	}
	if len(all) > 12 {
		drawn.Legend.Add(fmt.Sprintf("and %d more", len(all)-12))
	}
	drawn.Y.Max *= 1.05
	return nil
}

// grid is a histogram over time: what is in each bucket apart from those below it.
type grid struct {
	times  []float64
	bounds []float64
	counts map[[2]int]float64
}

func (g grid) Dims() (int, int)   { return len(g.times), len(g.bounds) }
func (g grid) Z(c, r int) float64 { return g.counts[[2]int{c, r}] }
func (g grid) X(c int) float64    { return g.times[c] }
func (g grid) Y(r int) float64    { return float64(r) }

// bound is the upper one of a bucket.
func bound(s series) float64 {
	f, _ := strconv.ParseFloat(s.labels["le"], 64) // +Inf is read too
	return f
}

// at is the value at a time; 0 where there is none.
func (s series) at(x float64) float64 {
	for _, p := range s.points {
		if p.X == x {
			return p.Y
		}
	}
	return 0
}

func (p panel) heat(drawn *plot.Plot, all []series) error {
	slices.SortFunc(all, func(a, b series) int { return cmp.Compare(bound(a), bound(b)) })
	g := grid{counts: map[[2]int]float64{}}
	for x := -60.0; x <= 0; x += 2 {
		g.times = append(g.times, x)
	}
	most := 1.0
	var names []string
	for r, s := range all {
		g.bounds, names = append(g.bounds, bound(s)), append(names, s.labels["le"])
		for c, x := range g.times {
			here := s.at(x)
			if r > 0 {
				here -= all[r-1].at(x)
			}
			g.counts[[2]int{c, r}] = max(here, 0)
			most = max(most, here)
		}
	}
	oranges, err := brewer.GetPalette(brewer.TypeSequential, "Oranges", 9)
	if err != nil {
		return err
	}
	shown := plotter.NewHeatMap(g, oranges)
	shown.Min, shown.Max = 0, most
	drawn.Add(shown)
	drawn.NominalY(names...)
	return nil
}
