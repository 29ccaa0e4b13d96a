package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// unixDoor opens a socket in a folder of the test.
func unixDoor(t *testing.T) net.Listener { return listen(t, "unix:"+t.TempDir()+"/a.sock") }

// shortLimits are of a door whose bounds a stream outlives, and a profile.
func shortLimits() limits {
	l := defaultLimits
	l.read, l.write = 100*time.Millisecond, 100*time.Millisecond
	return l
}

// stream is a client that follows events.
type stream struct {
	t     *testing.T
	resp  *http.Response
	lines *bufio.Scanner
}

// follow begins to follow. ended is the id that was seen last.
func follow(t *testing.T, c *http.Client, query, seen string) *stream {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", base+"/v1/events"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	if seen != "" {
		r.Header.Set("Last-Event-ID", seen)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("following gives %d, %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	return &stream{t, resp, bufio.NewScanner(resp.Body)}
}

// next is the next event; its type is empty when there is none any more.
func (s *stream) next() (e Event) {
	s.t.Helper()
	var id, data string
	for s.lines.Scan() {
		switch name, value, _ := strings.Cut(s.lines.Text(), ": "); {
		case name == "id":
			id = value
		case name == "data":
			data = value
		case name == "" && data != "":
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				s.t.Fatalf("an event is %.200q: %v", data, err)
			}
			e.ID = id
			return e
		}
	}
	return e
}

// comment waits for the next line that means nothing.
func (s *stream) comment() {
	s.t.Helper()
	for s.lines.Scan() {
		if strings.HasPrefix(s.lines.Text(), ":") {
			return
		}
	}
	s.t.Fatalf("the stream ends without another comment: %v", s.lines.Err())
}

// say publishes an event with this number of a revision.
func say(s *Events, n int) {
	s.Publish(Event{Type: EventConfig, Config: &ConfigEvent{Revision: uint64(n), Paths: []string{}}})
}

// revisions are the next so many events, which are of configurations.
func (s *stream) revisions(n int) (list []int) {
	s.t.Helper()
	for range n {
		e := s.next()
		if e.Type != EventConfig {
			s.t.Fatalf("behind the revisions %v comes %+v, want another one", list, e)
		}
		list = append(list, int(e.Config.Revision))
	}
	return list
}

func count(from, to int) (list []int) {
	for n := from; n <= to; n++ {
		list = append(list, n)
	}
	return list
}

func TestEventsFollow(t *testing.T) {
	events := NewEvents(3, time.UnixMilli(0x1234))
	l := unixDoor(t)
	serve(t, l, newEventDoor(events), shortLimits())
	c := client(t, l)
	c.Timeout = 0

	say(events, 1)
	all := follow(t, c, "", "") // begins with what comes
	some := follow(t, c, "?types=log,listener", "")
	say(events, 2)
	events.Publish(Event{Type: EventLog, Log: &LogLevel{Level: "debug", Configured: "info"}})
	if got := all.revisions(1); got[0] != 2 {
		t.Errorf("the first event is revision %d, want 2", got[0])
	}
	for _, s := range []*stream{all, some} {
		if e := s.next(); e.Type != EventLog || e.Log.Level != "debug" || e.ID != "3-1234-3" || time.Since(e.Time) > time.Hour {
			t.Errorf("the next event is %+v, want that of the log, with the id 3-1234-3", e)
		}
	}

	for n := 4; n <= 2*maxEvents; n++ {
		say(events, n)
		if n%100 == 0 { // within the ring
			all.revisions(n - max(n-100, 3))
		}
	}
	for _, tc := range []struct {
		seen  string
		first int
		lost  uint64
	}{
		{"3-1234-500", 501, 0},
		{"3-1234-512", 0, 0},
		{"3-1234-256", 257, 0},
		{"3-1234-250", 257, 6},
		{"3-1234-513", 257, 0}, // there is none
		{"2-1234-500", 257, 0}, // of another process
		{"0", 257, 0},
	} {
		s := follow(t, c, "", tc.seen)
		if tc.lost > 0 {
			if e := s.next(); e.Type != EventLost || e.Lost != tc.lost || e.ID != "" {
				t.Errorf("behind %s comes %+v, want that %d are lost", tc.seen, e, tc.lost)
			}
		}
		if tc.first > 0 {
			if diff := cmp.Diff(count(tc.first, 512), s.revisions(513-tc.first)); diff != "" {
				t.Errorf("behind %s (-want +got):\n%s", tc.seen, diff)
			}
		}
		s.resp.Body.Close()
	}

	events.End("enough")
	events.End("twice")
	say(events, 1000)
	e := some.next()
	if e.Type == EventLost { // of the many that it did not ask for, where it was slow
		e = some.next()
	}
	if e.Type != EventEnd || e.End != "enough" {
		t.Errorf("the last event is %+v, want the end", e)
	}
	if e := some.next(); e.Type != "" || some.lines.Err() != nil {
		t.Errorf("behind the end comes %+v, %v; want nothing", e, some.lines.Err())
	}
	if e := follow(t, c, "?types=log", "0").next(); e.Type != EventEnd {
		t.Errorf("who comes behind the end gets %+v, want it", e)
	}
	for _, bad := range []string{"?types=", "?types=config,x"} {
		if got := ask(t, c, "GET", base+"/v1/events"+bad); got.code != 400 || !strings.Contains(got.body, "config, upgrade, endpoint, listener, log") {
			t.Errorf("%s gives %d %s, want 400 and what there is", bad, got.code, got.body)
		}
	}
	if got := ask(t, c, "HEAD", base+"/v1/events"); got.code != 200 {
		t.Errorf("HEAD gives %d, want 200 and its end", got.code)
	}
}

// A stream outlives the bounds of other requests, and says now and then that it is there.
func TestEventsOutliveTheBounds(t *testing.T) {
	events := NewEvents(1, time.Now())
	d := newEventDoor(events)
	d.keepAlive = 60 * time.Millisecond
	l := unixDoor(t)
	serve(t, l, d, shortLimits())
	c := client(t, l)
	c.Timeout = 0
	s := follow(t, c, "", "")
	for range 10 { // several times as long as the door's bounds
		s.comment()
	}
	say(events, 1)
	s.revisions(1)
	events.End("")
}

// stuck is a client that reads nothing of what it asks for.
func stuck(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually waits for something.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s", what)
		}
	}
}

// flood publishes more than the kernel takes for a client that does not read.
func flood(s *Events) {
	for n := range 4 * maxEvents {
		s.Publish(Event{Type: EventConfig, Config: &ConfigEvent{Revision: uint64(n), Why: strings.Repeat("x", 8<<10)}})
	}
}

// Who does not read is cut off, who has gone leaves its place, and neither holds up anybody.
func TestEventsCutWhoDoesNotRead(t *testing.T) {
	events := NewEvents(1, time.Now())
	d := newEventDoor(events)
	d.timeout = 50 * time.Millisecond
	l := unixDoor(t)
	serve(t, l, d, defaultLimits)
	c := client(t, l)
	c.Timeout = 0
	for range maxStreams - 1 {
		stuck(t, l)
	}
	eventually(t, "all to be heard", func() bool { return len(d.places) == maxStreams-1 })
	s := follow(t, c, "", "")
	if got := ask(t, c, "GET", base+"/v1/events"); got.code != 503 || !strings.Contains(got.body, fmt.Sprint(maxStreams)) || got.header.Get("Retry-After") == "" {
		t.Errorf("one more gives %d %s, want 503 and Retry-After", got.code, got.body)
	}
	flood(events) // waits for nobody
	eventually(t, "those who do not read to be cut off", func() bool { return len(d.places) <= 1 })
	s.resp.Body.Close()
	eventually(t, "who has gone to leave its place", func() bool { return len(d.places) == 0 })
	events.End("")
}

// A door that leaves does not wait for those who do not read, nor for those who do.
func TestEventsDoNotHoldTheDoor(t *testing.T) {
	events := NewEvents(1, time.Now())
	d := newEventDoor(events)
	core, logs := observer.New(zapcore.WarnLevel)
	l := unixDoor(t)
	lim := defaultLimits
	lim.shutdown, d.timeout = 30*time.Second, time.Hour
	s := newServer(l, d, zap.New(core), lim)
	ended := running(context.Background(), s)
	c := client(t, l)
	c.Timeout = 0
	reader, read := follow(t, c, "", ""), make(chan error, 1)
	go func() { // ends with the stream
		_, err := io.Copy(io.Discard, reader.resp.Body)
		read <- err
	}()
	for range 3 {
		stuck(t, l)
	}
	eventually(t, "all to be heard", func() bool { return len(d.places) == 4 })
	flood(events)
	events.End("over")
	s.Leave()
	if err := <-ended; err != nil {
		t.Errorf("Run returned %v, want nil", err)
	}
	if n := logs.Len(); n > 0 {
		t.Errorf("the door has waited: %v", logs.All())
	}
	// Whether it was fast enough for all of it or not:
	<-read
}
