package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

func TestNeighbourSectionTellsDisturbedFromQuietAndBusy(t *testing.T) {
	small := func(p99 float64) bench.Report {
		return bench.Report{Latency: &bench.Latency{P50: 100, P99: p99, P999: 5000, Max: 2 * p99}}
	}
	silent, large := neighbourCases[0], neighbourCases[1]
	beside := small(3000)
	beside.Statuses = map[string]uint64{timeoutStatus: 7, "ERROR_COMM": 2}
	late := small(1000)
	late.Statuses = map[string]uint64{timeoutStatus: 4}
	big := func(ok, lost uint64) *bench.Report { return &bench.Report{OK: ok, Lost: lost, BytesPerS: 500e6} }
	results := []neighbourResult{
		{Case: silent.name, Condition: quiet, Small: small(1000), Peak: peak{Buffered: 1 << 20, RSS: 20 << 20}},
		{Case: silent.name, Condition: quiet, Small: small(2000), Peak: peak{Buffered: 2 << 20, RSS: 10 << 20}},
		{Case: silent.name, Condition: disturbed, Small: beside, Peak: peak{Buffered: 3 << 20, RSS: 30 << 20, Gated: 1}},
		{Case: large.name, Condition: quiet, Small: late},
		{Case: large.name, Condition: disturbed, Small: small(8000), Large: big(10, 0), Peak: peak{Buffered: 200 << 20}},
		{Case: large.name, Condition: disturbed, Small: small(4000), Large: big(20, 3), Peak: peak{Buffered: 100 << 20}},
		{Case: large.name, Condition: busy, Small: small(4000), Large: big(40, 0)},
	}
	section := neighbourhoodSection(results)
	for _, want := range []string{
		"| " + silent.name + " | quiet | 0.100 | 1.500 | 5.000 | 4.000 |  |  | 0 | 0 |  |  | 2 | 20 |\n",
		"|  | disturbed | 0.100 | 3.000 | 5.000 | 6.000 | 2.00 |  | 2 | 7 |  |  | 3 | 30 |\n",
		// Where no endpoint is silent, a timeout is a failure.
		"| " + large.name + " | quiet | 0.100 | 1.000 | 5.000 | 2.000 |  |  | 4 | 0 |  |  | 0 | 0 |\n",
		"|  | disturbed | 0.100 | 6.000 | 5.000 | 16.000 | 6.00 | 1.50 | 0 | 0 | 30 / 3 | 500 | 200 | 0 |\n",
		"|  | equally busy | 0.100 | 4.000 | 5.000 | 8.000 | 4.00 |  | 0 | 0 | 40 / 0 | 500 | 0 | 0 |\n",
	} {
		if !strings.Contains(section, want) {
			t.Errorf("the section lacks %q:\n%s", want, section)
		}
	}
	want := "6 requests and 3 large frames failed"
	if err := failedBeside(results); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("failedBeside() = %v, want %q", err, want)
	}
	if err := failedBeside(nil); err != nil {
		t.Errorf("failedBeside(nil) = %v, want none", err)
	}
}

func TestWatchKeepsTheMost(t *testing.T) {
	buffered := make(chan int, 3) // closed before the server is asked
	for _, n := range []int{5, 9, 2} {
		buffered <- n
	}
	close(buffered)
	looked := make(chan struct{}) // closed by the server when it was asked for the fourth time
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n, more := <-buffered
		if !more && looked != nil {
			close(looked)
			looked = nil
		}
		fmt.Fprintf(w, "%s %d\n%s 1\n", bufferedMetric, n, gatedMetric)
	}))
	defer server.Close()
	seen := looked
	n := &neighbourhood{relevo: &yard.Process{PID: os.Getpid()}, metrics: server.URL}
	w := n.watch(t.Context())
	<-seen
	most, err := w.end()
	if err != nil {
		t.Fatal(err)
	}
	if most.Buffered != 9 || most.Gated != 1 || most.RSS == 0 || most.Looks < 3 {
		t.Errorf("the most was %+v, want 9 bytes buffered, 1 gated, some RSS, 3 looks or more", most)
	}
}

func TestWatchSaysWhenThereIsNothingToLookAt(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	w := (&neighbourhood{relevo: &yard.Process{PID: os.Getpid()}, metrics: server.URL}).watch(t.Context())
	w.group.Wait()
	if _, err := w.end(); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("end() = %v, want it to name the 404", err)
	}
}
