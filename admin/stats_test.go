package admin

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What /metrics has, /v1/stats has, too: of each kind one is looked at whole.
func TestStats(t *testing.T) {
	l := unixDoor(t)
	serve(t, l, serveStats(testRegistry(), testBuild), defaultLimits)
	c := client(t, l)
	var all, some struct{ Metrics []metric }
	got := ask(t, c, "GET", base+"/")
	if err := json.Unmarshal([]byte(got.body), &all); err != nil || got.code != 200 {
		t.Fatalf("the numbers are %d, %v:\n%s", got.code, err, got.body)
	}
	kinds := map[string]int{}
	for _, m := range all.Metrics {
		kinds[m.Type]++
		if m.Type == "summary" && (m.Name != "go_gc_duration_seconds" || len(m.Summary.Quantiles) != 5) {
			t.Errorf("a summary is %+v", m)
		}
	}
	if len(kinds) != 4 || kinds["summary"] != 1 {
		t.Errorf("there are so many of each kind: %v", kinds)
	}
	body := ask(t, c, "GET", base+"/?name=relevo_request").body
	if err := json.Unmarshal([]byte(body), &some); err != nil {
		t.Fatal(err)
	}
	if len(some.Metrics) != 3 {
		t.Fatalf("of those whose name begins with relevo_request there are %d, want 3:\n%s", len(some.Metrics), body)
	}
	h := some.Metrics[0].Histogram
	if h == nil || h.Count != 1 || h.Sum != 0.001 || h.Buckets[0].Count != 0 || h.Buckets[len(h.Buckets)-1].Count != 1 {
		t.Errorf("the histogram is %+v, want one of a millisecond", h)
	}
	want := []metric{
		{Name: "relevo_requests_in_flight", Type: "gauge", Help: "Requests without a reply yet.", Labels: map[string]string{}, Value: new(number64(3))},
		{Name: "relevo_requests_total", Type: "counter", Help: "Requests taken in.", Labels: map[string]string{"route": `rpc\xff`}, Value: new(number64(7))},
	}
	if diff := cmp.Diff(want, some.Metrics[1:]); diff != "" {
		t.Errorf("the others (-want +got):\n%s", diff)
	}
	if got := ask(t, c, "GET", base+"/?name=none_such").body; strings.TrimSpace(got) != "{\n  \"metrics\": []\n}" {
		t.Errorf("of a name that nothing has there is %s", got)
	}
}

func TestNumbersThatJSONHasNoWordFor(t *testing.T) {
	text, err := json.Marshal([]number64{0, -1.5, 1e21, number64(math.NaN()), number64(math.Inf(1)), number64(math.Inf(-1))})
	if want := `[0,-1.5,1e+21,"NaN","+Inf","-Inf"]`; err != nil || string(text) != want {
		t.Errorf("numbers are %s, %v; want %s", text, err, want)
	}
}
