package admin

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// pprofRoutes are the door of profiles alone.
func pprofRoutes(on *atomic.Bool) http.Handler {
	d := &pprofDoor{on.Load, make(chan struct{}, 1)}
	return router([]route{
		{http.MethodGet, pprofPath, "", d.allowed(d.index)},
		{http.MethodGet, pprofPath + "{name}", "", d.allowed(d.take)},
	})
}

func TestProfiles(t *testing.T) {
	var on atomic.Bool
	l := unixDoor(t)
	serve(t, l, pprofRoutes(&on), shortLimits())
	c := byContract(t, client(t, l))
	const all = base + pprofPath
	for _, path := range []string{"", "heap", "cmdline"} {
		if got := ask(t, c, "GET", all+path); got.code != 404 || !strings.Contains(got.body, "admin.pprof: true") {
			t.Errorf("with profiles off %q gives %d %s, want 404 and the field", path, got.code, got.body)
		}
	}
	on.Store(true)
	index := ask(t, c, "GET", all)
	const gzip = "\x1f\x8b"
	for path, has := range map[string]string{
		"allocs": gzip, "block?seconds=1": gzip, "goroutine": gzip, "goroutine?debug=2": "goroutine 1 [", "heap": gzip, "heap?debug=1": "heap profile:",
		"mutex?seconds=1": gzip, "profile?seconds=1": gzip, "threadcreate": gzip, "trace?seconds=1": "go 1.",
	} {
		name, _, _ := strings.Cut(path, "?")
		if !strings.Contains(index.body, name+" ") {
			t.Errorf("the list is\n%s\nwant it to have %s", index.body, name)
		}
		got := ask(t, c, "GET", all+path) // longer than the door's bounds
		kind := "application/octet-stream"
		if strings.Contains(path, "debug") {
			kind = profileTypeText
		}
		if got.code != 200 || !strings.HasPrefix(got.body, has) && !strings.Contains(got.body, has) || got.header.Get("Content-Type") != kind {
			t.Errorf("%s gives %d, %s, %.80q; want 200, %s and %q", path, got.code, got.header.Get("Content-Type"), got.body, kind, has)
		}
	}
	for path, code := range map[string]int{
		"cmdline": 404, "symbol": 404, "x": 404, "heap?seconds=1": 400, "profile?seconds=61": 400, "profile?seconds=0": 400, "profile?seconds=-1": 400,
		"trace?seconds=x": 400, "heap?debug=3": 400,
	} {
		if got := ask(t, c, "GET", all+path); got.code != code || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s gives %d %s, want %d", path, got.code, got.body, code)
		}
	}
	if got := ask(t, c, "HEAD", all+"profile"); got.code != 200 || got.header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("HEAD gives %d, %s, want 200 at once, and what GET is", got.code, got.header.Get("Content-Type"))
	}
}

// One at a time: the second is told so, and when the first has gone there is room.
func TestProfilesOneAtATime(t *testing.T) {
	var on atomic.Bool
	on.Store(true)
	l := unixDoor(t)
	serve(t, l, pprofRoutes(&on), defaultLimits)
	c := client(t, l)
	first := newRequest(t, base+pprofPath+"trace?seconds=60")
	resp, err := c.Do(first)
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, "GET", base+pprofPath+"heap"); got.code != 409 {
		t.Errorf("beside another profile one gives %d %s, want 409", got.code, got.body)
	}
	resp.Body.Close()
	eventually(t, "the profile of who has gone to end", func() bool { return ask(t, c, "GET", base+pprofPath+"heap").code == 200 })
}

func newRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
