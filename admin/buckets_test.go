package admin

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	b := newBuckets(5, 20)
	start := time.Unix(1000, 0)
	count := func(who origin, at time.Time) (n int) {
		for b.allow(who, at) {
			n++
		}
		return n
	}
	one, two := origin{uid: 1}, origin{uid: 2}
	if n := count(one, start); n != 20 {
		t.Errorf("at once %d are let through, want the burst, 20", n)
	}
	if n := count(two, start); n != 20 {
		t.Errorf("of another caller %d are let through, want 20", n)
	}
	if n := count(one, start.Add(time.Second)); n != 5 {
		t.Errorf("a second later %d are let through, want 5", n)
	}
	// However many come, who comes again and again stays known, and they are not all remembered.
	for i := range 4 * maxCallers {
		if !b.allow(origin{uid: 100 + i}, start) {
			t.Fatalf("caller %d is not let through at all", i)
		}
		if b.allow(one, start.Add(time.Second)) {
			t.Fatalf("behind %d others, who is at its bound is let through", i)
		}
	}
	if n := len(b.young) + len(b.old); n > 2*maxCallers {
		t.Errorf("%d callers are remembered, want %d at most", n, 2*maxCallers)
	}
}

func TestOrigins(t *testing.T) {
	for remote, want := range map[string]string{
		"10.1.2.3:4711":                  "10.1.2.3/32",
		"[::ffff:10.1.2.3]:4711":         "10.1.2.3/32",
		"[2001:db8:1:2:3:4:5:6]:4711":    "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff:4:5:6]:4712": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1":               "fe80::/64",
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = remote
		if got := originOf(r); got != (origin{-1, netip.MustParsePrefix(want)}) {
			t.Errorf("%s counts as %v, want %s", remote, got, want)
		}
	}
	for _, remote := range []string{"@", ""} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = remote
		if got := originOf(r); got != (origin{uid: -1}) {
			t.Errorf("%q counts as %v, want an unknown user", remote, got)
		}
	}
}

// TestCallersAreLimited asks more often than is allowed.
func TestCallersAreLimited(t *testing.T) {
	h := limitRate(newBuckets(0.001, 3), okHandler)
	for i := range 5 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		want := http.StatusOK
		if i >= 3 {
			want = http.StatusTooManyRequests
		}
		if w.Code != want || (w.Header().Get("Retry-After") != "") != (want == http.StatusTooManyRequests) {
			t.Errorf("request %d gives %d, Retry-After %q; want %d, and a 429 to say when", i+1, w.Code, w.Header().Get("Retry-After"), want)
		}
	}
}
