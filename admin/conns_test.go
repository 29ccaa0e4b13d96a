package admin

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// askOn makes a request on a connection, and reads its answer within this time.
func askOn(c net.Conn, request string, wait time.Duration) error {
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	code, err := readAnswer(bufio.NewReader(c))
	if err == nil && code != http.StatusOK {
		err = errors.New(http.StatusText(code))
	}
	return err
}

// expectClosed reads until the other side closes.
func expectClosed(t *testing.T, what string, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: reading gives %d bytes, %v; want it closed", what, n, err)
	}
}

// TestIdleConnectionsMakeRoom has a door with two places: who has asked nothing for longest goes first, whether it has never
// asked or not since.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	lim := defaultLimits
	lim.connections, lim.grace = 2, 0
	l := listen(t, "127.0.0.1:0")
	s := serve(t, l, okHandler, lim)
	request := func(what string, c net.Conn) {
		t.Helper()
		if err := askOn(c, get, 10*time.Second); err != nil {
			t.Errorf("%s: %v, want an answer", what, err)
		}
		for idle := 0; idle < 2 && !t.Failed(); time.Sleep(time.Millisecond) { // the server is done a moment after its answer is there
			s.listener.mu.Lock()
			idle = s.listener.idle.Len()
			s.listener.mu.Unlock()
		}
	}
	silent, second := dial(t, l), dial(t, l)
	request("a connection within the bound", second)
	request("the same once more", second)
	third := dial(t, l)
	request("a connection above the bound", third)
	expectClosed(t, "the one that never asked", silent)
	request("the second one, which asked later", second)
	request("one more above the bound", dial(t, l))
	expectClosed(t, "the third one, which has asked nothing for longest", third)
	request("the second one, which asked last", second)
}

// TestRequestsUnderWayMakeNoRoom fills the places with requests that take their time.
func TestRequestsUnderWayMakeNoRoom(t *testing.T) {
	lim := defaultLimits
	lim.connections, lim.grace = 2, time.Hour
	l := listen(t, "127.0.0.1:0")
	entered, leave := make(chan struct{}), make(chan struct{})
	serve(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- struct{}{}
			<-leave
		}
		okHandler.ServeHTTP(w, r)
	}), lim)
	slow := make(chan error, 2)
	var c net.Conn
	for range 2 {
		c = dial(t, l)
		go func() { slow <- askOn(c, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n", 10*time.Second) }() // ends with leave
		<-entered
	}
	third := dial(t, l)
	if err := askOn(third, get, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection while all places have a request: %v, want no answer yet", err)
	}
	close(leave)
	for range 2 {
		if err := <-slow; err != nil {
			t.Errorf("a request under way at the bound: %v, want its answer", err)
		}
	}
	_ = c.Close()
	if err := third.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if code, err := readAnswer(bufio.NewReader(third)); err != nil || code != 200 {
		t.Errorf("when there is room again, it gets %d, %v; want 200", code, err)
	}
}

// TestClientsThatReadNothingMakeRoom fills the places with clients that ask and do not take the answer: before they are cut off, the one
// that has taken nothing for longest goes for a new one.
func TestClientsThatReadNothingMakeRoom(t *testing.T) {
	for _, patience := range []time.Duration{50 * time.Millisecond, time.Hour} {
		lim := defaultLimits
		lim.connections, lim.grace, lim.patience = 2, time.Hour, patience
		l := listen(t, "127.0.0.1:0")
		entered, wrote := make(chan struct{}), make(chan error, 2)
		serve(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/much" {
				okHandler.ServeHTTP(w, r)
				return
			}
			entered <- struct{}{}
			_, err := w.Write(make([]byte, 64<<20))
			wrote <- err
		}), lim)
		for range lim.connections {
			if _, err := io.WriteString(dial(t, l), "GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			<-entered
		}
		if patience == time.Hour {
			if err := askOn(dial(t, l), get, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a connection beside clients that may take their time: %v, want no answer yet", err)
			}
			continue
		}
		if err := askOn(dial(t, l), get, 10*time.Second); err != nil {
			t.Errorf("a connection beside clients that take nothing: %v, want an answer", err)
		}
		if err := <-wrote; !errors.Is(err, net.ErrClosed) {
			t.Errorf("writing to the first of them ends with %v, want it closed", err)
		}
		if len(wrote) > 0 {
			t.Error("the second of them is closed, too, want one alone")
		}
	}
}

// TestGrace has nobody closed before he has had his time.
func TestGrace(t *testing.T) {
	l := newLimitListener(listen(t, "127.0.0.1:0"), 1, time.Hour, time.Hour)
	defer l.Close()
	dial(t, l)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if wait, ok := l.room(); ok || wait < 59*time.Minute {
		t.Errorf("with a young connection at the bound there is room: %v, or in %v; want it in an hour", ok, wait)
	}
	c.(*limitConn).since = time.Now().Add(-time.Hour)
	if _, ok := l.room(); !ok {
		t.Error("with an old connection at the bound there is no room, want some")
	}
	noteState(c, http.StateActive)
	if wait, ok := l.room(); ok || wait != 0 {
		t.Errorf("with a request at the bound there is room: %v, or in %v; want to wait for a change", ok, wait)
	}
	// A request that has come and was not read yet is as good as one under way.
	other := dial(t, l)
	if _, err := io.WriteString(other, get); err != nil {
		t.Fatal(err)
	}
	unread, err := l.Listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	asked := &limitConn{Conn: unread, listener: l}
	l.admit(asked)
	asked.since = time.Now().Add(-time.Hour)
	third := &limitConn{Conn: c, listener: l}
	if out := l.admit(third); len(out) != 0 {
		t.Error("a connection with a request has to go for a new one, want it to stay")
	}
	_ = asked.Close()
	_ = third.Close()
	_ = c.Close()
	if _, ok := l.room(); !ok {
		t.Error("with all closed there is no room, want some")
	}
}

// TestRequestOnAConnectionThatWasGivenUp: the request came at the moment at which the connection had to go. It is not run.
func TestRequestOnAConnectionThatWasGivenUp(t *testing.T) {
	ran := false
	h := onlyOpen(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran = true }))
	l := newLimitListener(listen(t, "127.0.0.1:0"), 1, 0, time.Hour)
	defer l.Close()
	dial(t, l)
	dial(t, l)
	var conns []net.Conn
	for range 2 { // the second makes the first go
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for i, c := range conns {
		ran = false
		noteState(c, http.StateActive)
		r, err := http.NewRequestWithContext(withConn(t.Context(), c), http.MethodGet, base, nil)
		if err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if v := recover(); (v == http.ErrAbortHandler) != (i == 0) { //nolint:errorlint // what was panicked with
					t.Errorf("connection %d: the handler panics with %v", i, v)
				}
			}()
			h.ServeHTTP(nil, r)
		}()
		if want := i == 1; ran != want {
			t.Errorf("connection %d: its request was run: %v, want %v", i, ran, want)
		}
	}
	if l.open != 1 { // the first one is closed, and has given its place back
		t.Errorf("%d connections are open, want 1", l.open)
	}
}

// TestCloseWakesAWaitingAccept closes while every place is taken.
func TestCloseWakesAWaitingAccept(t *testing.T) {
	l := newLimitListener(listen(t, "127.0.0.1:0"), 1, time.Hour, time.Hour)
	dial(t, l)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := l.Accept(); ended <- err }() // ends by Close
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept returns %v, want net.ErrClosed", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close the connection: %v", err)
	}
	_ = c.Close()
	if n := l.open; n != 0 {
		t.Errorf("%d places are taken after closing twice, want 0", n)
	}
}
