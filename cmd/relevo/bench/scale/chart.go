package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The chart's measures, in the units of its picture.
const (
	width, height            = 720, 360
	left, right, top, bottom = 64, 24, 56, 48
)

// style has colours for light and dark backgrounds, of which the chart has none itself. A line is told from another by its
// mark, too.
const style = `<style>
svg { --ink: #1f2328; --grid: #d0d7de; --line0: #0969da; --line1: #bc4c00; --line2: #1a7f37; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --grid: #3d444d; --line0: #58a6ff; --line1: #f0883e; --line2: #56d364; }
}
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.title { font-size: 15px; font-weight: 600; }
.grid { stroke: var(--grid); stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
</style>
`

const maxLines = 3 // as many as there are colours and marks

// chart draws a curve as SVG: x is logarithmic, y begins at 0, unless its values lie far apart: then it is logarithmic too.
func chart(c curve, lines []series) string {
	x, y := axes(lines[:min(len(lines), maxLines)])
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`+"\n",
		width, height, width, height, html.EscapeString(c.title))
	b.WriteString(style)
	text := func(class string, px, py float64, anchor, s string) {
		fmt.Fprintf(&b, `<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", class, px, py, anchor, html.EscapeString(s))
	}
	text("title", left, 20, "start", c.title)
	for _, tick := range y.ticks {
		py := y.at(tick)
		fmt.Fprintf(&b, `<line class="grid" x1="%d" y1="%.1f" x2="%d" y2="%.1f"/>`+"\n", left, py, width-right, py)
		text("", left-8, py+4, "end", number(tick))
	}
	for _, tick := range x.ticks {
		text("", x.at(tick), height-bottom+20, "middle", thousands(tick))
	}
	text("", (left+width-right)/2.0, height-8, "middle", c.x)
	text("", left, 42, "start", c.y)
	legend := float64(left + 130)
	for i, s := range lines[:min(len(lines), maxLines)] {
		colour := fmt.Sprintf("var(--line%d)", i)
		mark(&b, i, colour, legend, 38)
		text("", legend+10, 42, "start", s.name)
		legend += 34 + 7*float64(len(s.name))
		var path []string
		for _, p := range s.points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", x.at(p.x), y.at(p.y)))
		}
		fmt.Fprintf(&b, `<polyline class="line" stroke="%s" points="%s"/>`+"\n", colour, strings.Join(path, " "))
		for _, p := range s.points {
			mark(&b, i, colour, x.at(p.x), y.at(p.y))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// mark draws the mark of the line with this number: a disc, a square or a triangle.
func mark(b *strings.Builder, line int, colour string, x, y float64) {
	switch line {
	case 0:
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`+"\n", x, y, colour)
	case 1:
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="8" height="8" fill="%s"/>`+"\n", x-4, y-4, colour)
	default:
		fmt.Fprintf(b, `<polygon points="%.1f,%.1f %.1f,%.1f %.1f,%.1f" fill="%s"/>`+"\n", x, y-5, x-5, y+4, x+5, y+4, colour)
	}
}

// axis maps values to places.
type axis struct {
	ticks    []float64
	low      float64 // the value at from
	high     float64 // and at to
	from, to float64
	log      bool
}

func (a axis) at(v float64) float64 {
	low, high := a.low, a.high
	if a.log {
		v, low, high = math.Log(v), math.Log(low), math.Log(high)
	}
	if high == low {
		return a.from
	}
	return a.from + (v-low)/(high-low)*(a.to-a.from)
}

// farApart is the ratio of values from which on their axis is logarithmic.
const farApart = 30

// axes returns those that all points fit into: a tick for each x, and some at round numbers for y.
func axes(lines []series) (x, y axis) {
	low, high := math.Inf(1), 0.0
	for _, s := range lines {
		for _, p := range s.points {
			x.ticks = append(x.ticks, p.x)
			low, high = min(low, p.y), max(high, p.y)
		}
	}
	slices.Sort(x.ticks)
	x.ticks = slices.Compact(x.ticks)
	x.log, x.from, x.to = true, left+8, width-right-24
	x.low, x.high = x.ticks[0], x.ticks[len(x.ticks)-1]

	y.from, y.to = height-bottom, top
	if low > 0 && high/low > farApart {
		y.log = true
		for y.low = roundStep(low); y.low > low; { // the next one below
			y.low = roundStep(y.low / 3)
		}
		for tick := y.low; ; tick = roundStep(tick * 1.5) {
			y.ticks = append(y.ticks, tick)
			if tick >= high {
				y.high = tick
				break
			}
		}
		return x, y
	}
	step := roundStep(high / 4)
	y.high = step * max(1, math.Ceil(high/step))
	for i := range int(math.Round(y.high/step)) + 1 {
		y.ticks = append(y.ticks, float64(i)*step)
	}
	return x, y
}

// roundStep is the smallest of 1, 2 and 5 times a power of ten that is not below v.
func roundStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 2, 5} {
		if n*power >= v*(1-1e-9) {
			return n * power
		}
	}
	return 10 * power
}

// number writes a value of y.
func number(v float64) string {
	if v != math.Trunc(v) {
		return fmt.Sprintf("%.3g", v)
	}
	return thousands(v)
}
