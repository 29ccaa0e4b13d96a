package server_test

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
)

// nextEvent is the next event of a stream; its type is empty behind the last.
func nextEvent(t *testing.T, lines *bufio.Scanner) (e admin.Event) {
	t.Helper()
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatalf("an event is %q: %v", data, err)
			}
			return e
		}
	}
	return e
}

// follow follows the events of a door, from the first that is remembered.
func (d *liveDoor) follow(t *testing.T) *bufio.Scanner {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://localhost/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Last-Event-ID", "0")
	resp, err := d.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return bufio.NewScanner(resp.Body)
}

// What happens is told, in order of the happening, to the end.
func TestDoorTellsWhatHappens(t *testing.T) {
	d := newDoor(t)
	lines := d.follow(t)
	for seen := map[admin.EventType]bool{}; len(seen) < 2; { // in either order
		switch e := nextEvent(t, lines); e.Type {
		case admin.EventListener:
			seen[e.Type] = true
			if e.Listener.Name != "in" || !e.Listener.Accepting || e.Listener.Address != d.server.Addresses()["in"].String() {
				t.Errorf("the listener is told as %+v", e.Listener)
			}
		case admin.EventConfig:
			seen[e.Type] = true
			if e.Config.Revision != 1 || e.Config.Author.Door != "file" || e.Config.Paths == nil {
				t.Errorf("the first revision is told as %+v", e.Config)
			}
		default:
			t.Fatalf("told is %+v", e)
		}
	}
	if got := d.ask(t, "PUT", endpointAPI+"/weight", "20", "If-Match: *", "X-Comment: because"); got.code != 200 {
		t.Fatal(got.body)
	}
	if e := nextEvent(t, lines); e.Type != admin.EventConfig || e.Config.Revision != 2 || e.Config.Why != "because" || e.Config.Author.UID == nil ||
		e.Config.Changes != 1 || e.Config.Paths[0] != strings.TrimPrefix(endpointAPI, "/v1/config/")+"/weight" {
		t.Errorf("a change is told as %+v", e.Config)
	}
	if got := d.ask(t, "PUT", "/v1/log", `{"level": "debug"}`); got.code != 200 {
		t.Fatal(got.body)
	}
	if e := nextEvent(t, lines); e.Type != admin.EventLog || e.Log.Level != "debug" || e.Log.Author.UID == nil || time.Until(e.Log.Until) > 10*time.Minute {
		t.Errorf("the level is told as %+v", e.Log)
	}
	if got := d.ask(t, "PUT", "/v1/config/log", `{"level": "error"}`, "If-None-Match: *"); got.code != 200 {
		t.Fatal(got.body)
	}
	var last admin.Event
	stopped := make(chan error, 1)
	go func() { stopped <- d.stop() }() // ends with the server
	var types []string
	for e := nextEvent(t, lines); e.Type != ""; e = nextEvent(t, lines) {
		types, last = append(types, string(e.Type)), e
	}
	if last.Type != admin.EventEnd || strings.Join(types, " ") != "config log listener end" && strings.Join(types, " ") != "log config listener end" {
		t.Errorf("the last events are %q, want a change, what it did to the log, the listener and the end", types)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

func TestDoorLogLevel(t *testing.T) {
	d := newDoor(t)
	step := func(method, body string, code int, inForce zapcore.Level, has ...string) {
		t.Helper()
		got := d.ask(t, method, "/v1/log", body)
		if got.code != code || d.level.Level() != inForce {
			t.Errorf("%s %s gives %d %s, and the level %v; want %d and %v", method, body, got.code, got.body, d.level, code, inForce)
		}
		for _, text := range has {
			if !strings.Contains(got.body, text) {
				t.Errorf("%s %s gives\n%s\nwant it to have %s", method, body, got.body, text)
			}
		}
	}
	const info, debug = zapcore.InfoLevel, zapcore.DebugLevel
	step("GET", "", 200, info, `"level": "info"`, `"configured": "info"`)
	step("PUT", `{"level": "debug", "for": "30s"}`, 200, debug, `"level": "debug"`, `"configured": "info"`, `"until": "`, `"door": "unix"`)
	for body, has := range map[string]string{
		``: "empty", `{}`: "/level", `{"level": "loud"}`: "/level", `{"level": 1}`: "/level", `{"level": "warn", "for": "25h"}`: "/for",
		`{"level": "warn", "for": "10"}`: "unit", `{"level": "warn", "for": "none"}`: "/for", `{"level": "warn", "for": "1ms"}`: "/for",
		`{"level": "warn", "until": "x"}`: "unknown field", `{"level": "warn"} {}`: "behind", `[]`: "array", `{"level": "` + strings.Repeat("x", 20<<10) + `"}`: "16384",
	} {
		code := 422
		switch {
		case strings.HasPrefix(has, "1"):
			code = 413
		case !strings.HasPrefix(has, "/") && has != "unit":
			code = 400
		}
		step("PUT", body, code, debug, has)
	}
	step("PUT", `{"level": null}`, 200, info, `"level": "info"`)
	step("PUT", `{"level": "debug"}`, 200, debug, `"until"`)
	step("DELETE", "", 200, info, `"level": "info"`)
	step("DELETE", "", 200, info)

	release := d.server.HoldForTest(t.Context())
	step("PUT", `{"level": "debug"}`, 503, info, "another process")
	release()
	step("PUT", `{"level": "debug"}`, 200, debug)
}

// Profiles are switched on and off while the process runs.
func TestDoorProfiles(t *testing.T) {
	d := newDoor(t)
	const path = "/debug/pprof/goroutine?debug=1"
	if got := d.ask(t, "GET", path, ""); got.code != 404 || !strings.Contains(got.body, "admin.pprof") {
		t.Errorf("by default a profile is %d %s, want 404 and the field", got.code, got.body)
	}
	if got := d.ask(t, "PUT", "/v1/config/admin/pprof", "true", "If-None-Match: *"); got.code != 200 || !strings.Contains(got.body, `"needs_upgrade": []`) {
		t.Fatalf("switching it on gives %d %s, want that it needs no upgrade", got.code, got.body)
	}
	if got := d.ask(t, "GET", path, ""); got.code != 200 || !strings.Contains(got.body, "goroutine profile:") {
		t.Errorf("then it is %d %.200s", got.code, got.body)
	}
	if got := d.ask(t, "PUT", "/v1/config/admin/mode", `"0600"`, "If-None-Match: *"); got.code != 200 || !strings.Contains(got.body, `"/admin"`) {
		t.Errorf("another mode gives %d %s, want that it needs an upgrade", got.code, got.body)
	}
}

// The numbers as JSON are those of the metrics, those of exchanges among them.
func TestDoorStats(t *testing.T) {
	s, _ := run(t, parse(t, oneHop, startEcho(t, echo.Options{})))
	code, body := get(t, s.AdminTCPAddress(), "/v1/stats?name=relevo_listener_connections")
	var got struct {
		Metrics []struct {
			Name, Type, Help string
			Labels           map[string]string
			Value            *float64
		}
	}
	if err := json.Unmarshal([]byte(body), &got); code != 200 || err != nil || len(got.Metrics) == 0 {
		t.Fatalf("the numbers are %d, %v\n%s", code, err, body)
	}
	for _, m := range got.Metrics {
		if m.Labels["listener"] != "in" || m.Value == nil || m.Type == "" || m.Help == "" {
			t.Errorf("a number is %+v", m)
		}
	}
}
