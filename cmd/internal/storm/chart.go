package storm

import (
	_ "embed"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/template"
)

//go:embed chart.svg.tmpl
var chartText string

// The chart's plot in SVG units; the template has the same numbers for what is around it.
const (
	plotLeft, plotTop     = 70, 60
	plotWidth, plotHeight = 600, 300
)

// colours that are told apart by everyone (Okabe and Ito), in the order of arms.
var colours = [...]string{"#0072b2", "#d55e00", "#009e73", "#cc79a7"}

// A chart is what the template shows. All text in it is this package's own.
type chart struct {
	Title       string
	Left, Right float64
	Top, Bottom float64
	Bound       float64 // its place
	BoundText   string
	XTicks      []mark
	YTicks      []mark
	Lines       []line
}

type mark struct {
	At   float64
	Text string
}

type line struct {
	Colour, Points, Text string
	Legend               float64 // its height
}

// Chart writes the result as an SVG picture: the share of nodes that are ready
// over time, a line for each arm over all its runs, and the bound.
func (r *Result) Chart(w io.Writer) error {
	t, err := template.New("chart").Parse(chartText)
	if err != nil {
		return err
	}
	return t.Execute(w, r.chart())
}

func (r *Result) chart() chart {
	end := r.Bound
	for _, a := range r.Arms {
		for _, s := range a.Runs {
			end = max(end, s.LastReady)
		}
	}
	step := tickStep(end)
	end = step * math.Ceil(end*1.02/step)
	x := func(seconds float64) float64 { return plotLeft + plotWidth*seconds/end }
	y := func(share float64) float64 { return plotTop + plotHeight*(1-share) }
	c := chart{
		Title: fmt.Sprintf("%d nodes, model of %.0f MB, links of %.0f Mbit/s, origin %.0f Mbit/s", r.Options.Nodes,
			float64(r.ModelBytes)/1e6, float64(r.Options.Link)*8/1e6, float64(r.Options.OriginLink)*8/1e6),
		Left: plotLeft, Right: plotLeft + plotWidth, Top: plotTop, Bottom: plotTop + plotHeight,
		Bound: x(r.Bound), BoundText: fmt.Sprintf("bound %.1f s", r.Bound),
	}
	for i := 0; float64(i)*step <= end*1.001; i++ {
		c.XTicks = append(c.XTicks, mark{x(float64(i) * step), fmt.Sprintf("%.4g", float64(i)*step)})
	}
	for _, percent := range []float64{0, 25, 50, 75, 100} {
		c.YTicks = append(c.YTicks, mark{y(percent / 100), fmt.Sprintf("%.0f %%", percent)})
	}
	for _, a := range r.Arms {
		if a.Name == lone.name { // one node is no storm
			continue
		}
		c.Lines = append(c.Lines, line{
			Colour: colours[len(c.Lines)%len(colours)], Points: steps(a, x, y, end), Text: legend(a),
			Legend: plotTop + 12 + 36*float64(len(c.Lines)),
		})
	}
	return c
}

func legend(a *Arm) string {
	name := a.Name
	if !a.Valid {
		name += " (invalid)"
	}
	if a.Prefetch > 0 {
		return fmt.Sprintf("%s: last %.1f s, after %.1f s", name, a.LastReady, a.Prefetch)
	}
	return fmt.Sprintf("%s: last %.1f s", name, a.LastReady)
}

// steps returns the line of an arm, as an SVG polyline's points.
func steps(a *Arm, x, y func(float64) float64, end float64) string {
	var ready []float64
	for _, s := range a.Runs {
		for _, n := range s.Nodes {
			ready = append(ready, n.Ready)
		}
	}
	slices.Sort(ready)
	var b strings.Builder
	share := 0.0
	point := func(t float64) { fmt.Fprintf(&b, "%.1f,%.1f ", x(t), y(share)) }
	point(0)
	for i, t := range ready {
		point(t)
		share = float64(i+1) / float64(len(ready))
		point(t)
	}
	point(end)
	return strings.TrimSpace(b.String())
}

// tickStep returns a round number of which five to ten fit into end.
func tickStep(end float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(end)))
	for _, part := range []float64{0.1, 0.2, 0.5} {
		if end/(step*part) <= 10 {
			return step * part
		}
	}
	return step
}
