package main

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func line(name string, values ...float64) series {
	s := series{name: name}
	for i, v := range values {
		s.points = append(s.points, point{float64(i*i*i*10 + 1), v})
	}
	return s
}

func TestAxesHoldAllPointsAtRoundNumbers(t *testing.T) {
	for _, c := range []struct {
		lines []series
		ticks []float64 // of y
		log   bool
	}{
		{[]series{line("a", 1.2, 3.9)}, []float64{0, 1, 2, 3, 4}, false},
		{[]series{line("a", 1.2, 3.9), line("b", 17)}, []float64{0, 5, 10, 15, 20}, false},
		{[]series{line("a", 0)}, []float64{0, 1}, false},
		{[]series{line("a", 1, 40)}, []float64{1, 2, 5, 10, 20, 50}, true},
		{[]series{line("a", 0.67, 38)}, []float64{0.5, 1, 2, 5, 10, 20, 50}, true},
	} {
		x, y := axes(c.lines)
		if !slices.EqualFunc(y.ticks, c.ticks, func(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 }) || y.log != c.log {
			t.Errorf("for %v the ticks are %v, logarithmic %v; want %v, %v", c.lines, y.ticks, y.log, c.ticks, c.log)
		}
		for _, s := range c.lines {
			for _, p := range s.points {
				if px, py := x.at(p.x), y.at(p.y); px < left || px > width-right || py < top-0.001 || py > height-bottom+0.001 {
					t.Errorf("the point %v is drawn at %.1f, %.1f, outside of the chart", p, px, py)
				}
			}
		}
	}
}

func TestChartIsWellFormed(t *testing.T) {
	picture := chart(curve{title: "a < b & c", x: "x", y: "y"}, []series{line("one", 1, 2, 3), line("two", 5), line("three", 2, 2, 2)})
	decoder := xml.NewDecoder(strings.NewReader(picture))
	lines := 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v: in\n%s", err, picture)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 3 {
		t.Errorf("got %d lines, want 3", lines)
	}
}

func TestThousands(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 100_000: "100,000", 1_234_567: "1,234,567"} {
		if got := thousands(x); got != want {
			t.Errorf("thousands(%v) = %q, want %q", x, got, want)
		}
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func TestCostIsThatOfTheWindow(t *testing.T) {
	second := func(at, cpu float64) look { return look{at: seconds(at), cpu: seconds(cpu)} }
	looks := []look{second(0, 0), second(1, 0.5), second(2, 0.7), second(3, 0.9), second(4, 3)}
	// 0.4 s of CPU in 2 s of 20,000 requests each.
	if got, err := costBetween(looks, seconds(0.5), seconds(3.5)); err != nil || got < 9.99 || got > 10.01 {
		t.Errorf("got %v µs per request (%v), want 10", got, err)
	}
	if _, err := costBetween(looks, seconds(0.5), seconds(1.5)); err == nil {
		t.Error("one look makes no window, and was taken for one")
	}
}
