package admin

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/admin/admintest"
	"github.com/relevo-proxy/relevo/server/config"
)

const get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

var okHandler = serveText(func(*http.Request) (int, string) { return 200, "ok\n" })

func TestDefaultLimitsReachTheServer(t *testing.T) {
	s := NewServer(listen(t, "127.0.0.1:0"), okHandler, zap.NewNop())
	defer s.Close()
	got := [...]time.Duration{s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.WriteTimeout, s.http.IdleTimeout, s.shutdown}
	want := [...]time.Duration{5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second, 2 * time.Second}
	if got != want {
		t.Errorf("the timeouts are %v, want %v", got, want)
	}
	if got, want := s.http.MaxHeaderBytes, 16384; got != want {
		t.Errorf("headers may have %d bytes, want %d", got, want)
	}
	if got, want := s.listener.limit, 256; got != want {
		t.Errorf("%d connections may be open, want %d", got, want)
	}
}

// TestSlowClientsAreCutOff has clients that stop at each place where a client can.
func TestSlowClientsAreCutOff(t *testing.T) {
	lim := defaultLimits
	lim.readHeader, lim.read, lim.idle = 100*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
	reads := make(chan error, 1)
	for kind, dial := range serveBoth(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			_, err := io.ReadAll(r.Body)
			reads <- err
			return
		}
		okHandler.ServeHTTP(w, r)
	}), lim) {
		for name, text := range map[string]string{
			"before the first byte": "",
			"inside the header":     "GET /healthz HTTP/1.1\r\nHost: loc",
			"inside the body":       "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12",
			"after an answer":       get,
		} {
			start := time.Now()
			c := dial()
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(c); err != nil { // ends when the server closes
				t.Errorf("%s: a client that stops %s: %v", kind, name, err)
			}
			if took := time.Since(start); took < 50*time.Millisecond {
				t.Errorf("%s: a client that stops %s is cut off after %v, want it given its time", kind, name, took)
			}
		}
		if err := <-reads; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: reading the body gives %v, want a timeout", kind, err)
		}
	}
}

// TestBodiesThatNobodyReads are not waited for: the answer comes, and the connection ends.
func TestBodiesThatNobodyReads(t *testing.T) {
	lim := defaultLimits
	lim.read = time.Hour
	for kind, dial := range serveBoth(t, okHandler, lim) {
		for name, head := range map[string]string{"of a known length": "Content-Length: 10\r\n\r\n12", "in chunks": "Transfer-Encoding: chunked\r\n\r\n2\r\n12\r\n"} {
			c := dial()
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: localhost\r\n"+head); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 ") {
				t.Errorf("%s: half a body %s is answered %q, %v; want 200 and the end of the connection", kind, name, got, err)
			}
		}
	}
}

// serveBoth serves without TLS and with it, and returns what makes a connection to each.
func serveBoth(t *testing.T, h http.Handler, lim limits) map[string]func() net.Conn {
	t.Helper()
	plain := listen(t, "127.0.0.1:0")
	serve(t, plain, h, lim)
	authority := admintest.NewAuthority(t, "ca")
	certFile, keyFile := authority.Server(t)
	k, err := loadKeys(&config.TLS{CertFile: certFile, KeyFile: keyFile})
	if err != nil {
		t.Fatal(err)
	}
	encrypted := listen(t, "127.0.0.1:0")
	s := newServer(encrypted, h, zap.NewNop(), lim)
	s.TLS(k.config)
	runUntilEnd(t, s)
	return map[string]func() net.Conn{
		"tcp": func() net.Conn { return dial(t, plain) },
		"tls": func() net.Conn {
			c := tls.Client(dial(t, encrypted), &tls.Config{RootCAs: authority.Pool(), ServerName: "localhost"})
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			return c
		},
	}
}

func TestClientThatReadsNothingIsCutOff(t *testing.T) {
	lim := defaultLimits
	lim.write = 200 * time.Millisecond
	l := listen(t, "127.0.0.1:0")
	wrote := make(chan error, 1)
	serve(t, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var err error
		for b := make([]byte, 1<<20); err == nil; {
			_, err = w.Write(b)
		}
		wrote <- err
	}), lim)
	if _, err := io.WriteString(dial(t, l), get); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writing ends with %v, want a timeout", err)
	}
}

func TestOversized(t *testing.T) {
	doors := serveBoth(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			if n > 64<<10 {
				t.Errorf("the handler was given %d bytes, want at most 64 KiB", n)
			}
			writeProblem(w, http.StatusRequestEntityTooLarge, "")
		} else {
			okHandler.ServeHTTP(w, r)
		}
	}), defaultLimits)
	post := func(header, body string) string {
		return "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + header + "\r\n\r\n" + body
	}
	fits, large := strings.Repeat("x", 64<<10), strings.Repeat("x", 64<<10+1)
	for _, tc := range []struct{ what, text, want string }{
		{"a header of 15 KiB", post("Content-Length: 0\r\nX: "+strings.Repeat("x", 15<<10), ""), "HTTP/1.1 200 "},
		{"a header of 21 KiB", post("Content-Length: 0\r\nX: "+strings.Repeat("x", 21<<10), ""), "HTTP/1.1 431 "},
		{"a body of 64 KiB", post("Content-Length: 65536", fits), "HTTP/1.1 200 "},
		{"a body of a byte more", post("Content-Length: 65537", large), "HTTP/1.1 413 "},
		{"a body that is announced large", post("Content-Length: 1000000000000", ""), "HTTP/1.1 413 "},
		{"a chunked body of 64 KiB", post("Transfer-Encoding: chunked", "10000\r\n"+fits+"\r\n0\r\n\r\n"), "HTTP/1.1 200 "},
		{"a chunked body of a byte more", post("Transfer-Encoding: chunked", "10001\r\n"+large+"\r\n0\r\n\r\n"), "HTTP/1.1 413 "},
	} {
		for kind, dial := range doors {
			c := dial()
			_, _ = io.WriteString(c, tc.text) // the server may close before it has read it all
			line, err := bufio.NewReader(c).ReadString('\n')
			if !strings.HasPrefix(line, tc.want) {
				t.Errorf("%s: %s gives %q, %v; want %s", kind, tc.what, line, err, tc.want)
			}
		}
	}
}

// TestShutdown ends a server with one request under way, once with a handler that finishes and once with one
// that does not.
func TestShutdown(t *testing.T) {
	for _, finishes := range []bool{true, false} {
		lim := defaultLimits
		if !finishes {
			lim.shutdown = 100 * time.Millisecond
		}
		entered, leave := make(chan struct{}), make(chan struct{})
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-leave
			okHandler.ServeHTTP(w, r)
		})
		core, logs := observer.New(zapcore.InfoLevel)
		path := t.TempDir() + "/a.sock"
		l := listen(t, "unix:"+path)
		s := newServer(l, h, zap.New(core), lim)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }() // ends with ctx
		c, idle := dial(t, l), dial(t, l)
		if _, err := io.WriteString(c, get); err != nil {
			t.Fatal(err)
		}
		<-entered
		cancel()
		if finishes {
			_ = idle.Close() // a fresh connection may still bring its first request, so it is waited for
			close(leave)
		}
		if err := <-ended; err != nil {
			t.Errorf("Run returns %v, want nil", err)
		}
		code, err := readAnswer(bufio.NewReader(c))
		if finishes && (code != 200 || logs.Len() != 0) {
			t.Errorf("the request under way gets %d, %v with the log %v; want 200 and no word", code, err, logs.All())
		}
		if !finishes && (err == nil || logs.Len() != 1) {
			t.Errorf("the request that hangs gets %d, %v with the log %v; want a cut and a warning", code, err, logs.All())
		}
		if !finishes {
			close(leave)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Run the socket file gives %v, want it gone", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close after Run returns %v, want nil", err)
		}
	}
}

func TestClose(t *testing.T) {
	path := t.TempDir() + "/a.sock"
	l := listen(t, "unix:"+path)
	s := NewServer(l, okHandler, zap.NewNop())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.Background()) }() // ends by Close
	if got := ask(t, client(t, l), "GET", base+"/"); got.code != 200 {
		t.Fatalf("the server answers %d, want 200", got.code)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close returns %v, want nil", err)
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("Run returns %v, want nil: it was closed", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close the socket file gives %v, want it gone", err)
	}

	s = NewServer(listen(t, "unix:"+path), okHandler, zap.NewNop())
	if err := errors.Join(s.Close(), s.Run(t.Context())); err != nil {
		t.Errorf("Close before Run, then Run: %v, want nil", err)
	}
}

// failingListener cannot accept the first connections.
type failingListener struct {
	net.Listener
	fails []error // Owned by who accepts.
}

func (l *failingListener) Accept() (net.Conn, error) {
	if len(l.fails) > 0 {
		err := l.fails[0]
		l.fails = l.fails[1:]
		return nil, err
	}
	return l.Listener.Accept()
}

// TestFailedAccept has a door go on whatever accept(2) says: that is about one connection, or about this moment.
func TestFailedAccept(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	l := &failingListener{Listener: listen(t, "127.0.0.1:0")}
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EPERM, syscall.EPROTO} {
		l.fails = append(l.fails, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", errno)})
	}
	s := NewServer(l, okHandler, zap.New(core))
	ctx, cancel := context.WithCancel(t.Context())
	ended := running(ctx, s)
	if err := askOn(dial(t, l), get, 10*time.Second); err != nil {
		t.Errorf("behind connections that could not be accepted, a request gets %v, want its answer", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run returns %v, want nil", err)
	}
	if logs.Len() != 1 || !strings.Contains(logs.All()[0].Message, "too many open files") {
		t.Errorf("the log is %v, want one line with the first reason", logs.All())
	}
}

// TestClosedListener is one that somebody else closes.
func TestClosedListener(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	s := NewServer(l, okHandler, zap.NewNop())
	_ = l.Close()
	if err := s.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run returns %v, want what was the end of the listener", err)
	}
}

func TestPanicInHandlerIsLogged(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	l := listen(t, "127.0.0.1:0")
	s := NewServer(l, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oops") }), zap.New(core))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // ends with ctx
	raw(t, l, get)                      // returns when the server closes
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run returns %v, want nil", err)
	}
	if logs.Len() != 1 || !strings.Contains(logs.All()[0].Message, "oops") {
		t.Errorf("the log is %v, want one line with the panic", logs.All())
	}
}
