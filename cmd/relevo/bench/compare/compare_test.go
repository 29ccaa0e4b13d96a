package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

func TestChooseKeepsTheOrderOfTheTable(t *testing.T) {
	chosen, err := choose("1x1x1K,8x64x1K")
	if err != nil {
		t.Fatal(err)
	}
	if len(chosen) != 2 || chosen[0].name != "8x64x1K" || chosen[1].name != "1x1x1K" {
		t.Errorf("chose %v, want 8x64x1K, then 1x1x1K", chosen)
	}
	if all, err := choose(""); err != nil || len(all) != len(workloads) {
		t.Errorf("no names chose %v (%v), want all workloads", all, err)
	}
	if _, err := choose("8x64x1K,"); err == nil {
		t.Error("an empty name among others was accepted")
	}
}

func TestDocumentComparesMediansWithThoseOfHaproxy(t *testing.T) {
	targets := []*target{
		{name: relevoName, version: "relevo 1", proc: &yard.Process{}},
		{name: workerName, proc: &yard.Process{}},
		{name: haproxyName, proc: &yard.Process{}},
		{name: directName},
	}
	w := workloads[0]
	run := func(target string, cpu, p99 float64, lost uint64) result {
		return result{Workload: w.name, Target: target, Report: bench.Report{
			Throughput: 1000, Lost: lost,
			Latency: &bench.Latency{P50: 100, P99: p99},
			Process: &bench.Process{CPU: cpu, RSS: 20 << 20},
		}}
	}
	results := []result{
		run(relevoName, 1, 200, 0), run(relevoName, 90, 9000, 3), run(relevoName, 2, 300, 1),
		run(workerName, 5, 500, 0), run(workerName, 7, 700, 2), run(workerName, 6, 600, 0),
		run(haproxyName, 4, 400, 0), run(haproxyName, 4, 400, 0), run(haproxyName, 1, 400, 0),
		{Workload: w.name, Target: directName, Report: bench.Report{Throughput: 5000}},
	}
	page := document(options{rounds: 3, duration: time.Second}, "a machine", targets, []workload{w}, results, nil)
	for _, want := range []string{
		"| 8x64x1K | relevo | 2.00 | 0.50 | 0.8 | 1000 | 0.100 | 0.300 | 20 | 4 |\n",
		"|  | relevo worker | 6.00 | 1.50 | 1.8 | 1000 | 0.100 | 0.600 | 20 | 2 |\n",
		"|  | haproxy tcp | 4.00 | 1.00 |  | 1000 | 0.100 | 0.400 | 20 | 0 |\n",
		"|  | direct |  |  |  | 5000 | 0.000 | 0.000 |  | 0 |\n",
		"- a machine\n- relevo: relevo 1\n\n", // a worker's version is relevo's
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "baseline") || strings.Contains(page, "bare") {
		t.Errorf("the page tells of a baseline or a bare relay, and there was none:\n%s", page)
	}
	if err := failed(results); err == nil || !strings.HasPrefix(err.Error(), "6 requests") {
		t.Errorf("failed() = %v, want it to name 6 requests", err)
	}
}

func TestDocumentComparesWithABaselineThatWasGiven(t *testing.T) {
	targets := []*target{
		{name: relevoName, version: "relevo 2", proc: &yard.Process{}},
		{name: baselineName, version: "relevo 1", proc: &yard.Process{}},
		{name: workerName, proc: &yard.Process{}},
		{name: haproxyName, proc: &yard.Process{}},
		{name: floorName, proc: &yard.Process{}},
		{name: directName},
	}
	w := workloads[2]
	var results []result
	for target, cpu := range map[string]float64{relevoName: 3, baselineName: 4, workerName: 5, haproxyName: 2, floorName: 1.5} {
		results = append(results, result{Workload: w.name, Target: target, Report: bench.Report{Process: &bench.Process{CPU: cpu}}})
	}
	o := options{baseline: "/somewhere/else/relevo", floor: "/somewhere/floor", rounds: 1, duration: time.Second, only: w.name, direct: true}
	page := document(o, "a machine", targets, []workload{w}, results, nil)
	for _, want := range []string{
		"**x baseline** is\nthe ratio",
		"**x bare** is the ratio to its CPU time per request",
		"| workload |  | CPU µs/request | x haproxy | x baseline | x bare | goal | requests/s | p50 ms | p99 ms | RSS MiB | failed |\n" +
			"|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n" +
			"| 1x1x1K | relevo | 3.00 | 1.50 | 0.75 | 2.00 | 1.7 | 0 | 0.000 | 0.000 | 0 | 0 |\n" +
			"|  | relevo baseline | 4.00 | 2.00 |  | 2.67 |  | 0 | 0.000 | 0.000 | 0 | 0 |\n" +
			"|  | relevo worker | 5.00 | 2.50 |  | 3.33 |  | 0 | 0.000 | 0.000 | 0 | 0 |\n" +
			"|  | haproxy tcp | 2.00 | 1.00 |  | 1.33 |  | 0 | 0.000 | 0.000 | 0 | 0 |\n" +
			"|  | bare relay | 1.50 | 0.75 |  | 1.00 |  | 0 | 0.000 | 0.000 | 0 | 0 |\n" +
			"|  | direct |  |  |  |  |  | 0 | 0.000 | 0.000 |  | 0 |\n",
		"- relevo: relevo 2\n- relevo baseline: relevo 1\n\n",
		"make build build-floor && go run ./cmd/relevo/bench/compare -rounds 1 -duration 1s -floor bin/floor -baseline PATH -workloads 1x1x1K -neighbours=false\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "somewhere") {
		t.Errorf("the page tells where the baseline lay:\n%s", page)
	}
}

func TestOptionsAreCheckedBeforeAnythingIsStarted(t *testing.T) {
	folder := t.TempDir()
	present, absent := filepath.Join(folder, "present"), filepath.Join(folder, "absent")
	if err := os.WriteFile(present, nil, 0o600); err != nil { // not executable: nothing can be started by mistake
		t.Fatal(err)
	}
	sound := options{relevo: present, baseline: present, rounds: 1, duration: time.Second}
	for _, c := range []struct {
		wrong func(*options)
		want  string
	}{
		{func(o *options) { o.relevo = absent }, "make build"},
		{func(o *options) { o.baseline = absent }, "-baseline: "},
		{func(o *options) { o.floor = absent }, "-floor: "},
		{func(o *options) { o.only = "1x1x1M" }, `no workload is called "1x1x1M"`},
		{func(o *options) { o.rounds = 0 }, "-rounds"},
		{func(o *options) { o.duration = 0 }, "-duration"},
	} {
		o := sound
		c.wrong(&o)
		if err := compare(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("compare(%+v) = %v, want an error with %q", o, err, c.want)
		}
	}
}
