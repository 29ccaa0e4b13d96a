package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
)

// inherit makes a listener from the descriptor of s, as another process does that was given it.
func inherit(t *testing.T, s *Server) net.Listener {
	t.Helper()
	rc, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	var dupErr error
	if err := rc.Control(func(from uintptr) { fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || dupErr != nil {
		t.Fatalf("duplicating the descriptor: %v, %v", err, dupErr)
	}
	f := os.NewFile(uintptr(fd), "inherited")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	// The flag is in what both processes share: a blocking accept in one could not be woken.
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("after the hand-over the socket has the flags %#x, %v; want it non-blocking", flags, err)
	}
	return l
}

// running runs s and returns where its end is told.
func running(ctx context.Context, s *Server) <-chan error {
	ended := make(chan error, 1)        // never closed
	go func() { ended <- s.Run(ctx) }() // ends with ctx, or by Leave or Close
	return ended
}

// says is a handler that answers with a name.
func says(name string) http.Handler {
	return serveText(func(*http.Request) (int, string) { return 200, name })
}

// visitors make one request after the other, each on a connection of its own.
type visitors struct {
	wg   sync.WaitGroup
	stop chan struct{} // closed by end
	end  func()        // once, the test's end at the latest

	// Atomic.
	answers sync.Map // of the body: *atomic.Int64
}

func visit(t *testing.T, l net.Listener, n int) *visitors {
	v := &visitors{stop: make(chan struct{})}
	v.end = sync.OnceFunc(func() {
		close(v.stop)
		v.wg.Wait()
	})
	t.Cleanup(v.end)
	for range n {
		c := client(t, l)
		v.wg.Go(func() { // ends with end, or the first request that fails
			for {
				select {
				case <-v.stop:
					return
				default:
				}
				resp, err := c.Get(base + "/")
				if err != nil {
					t.Errorf("a client is not served: %v", err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil {
					t.Errorf("a client gets half an answer: %v", err)
					return
				}
				count, _ := v.answers.LoadOrStore(string(body), new(atomic.Int64))
				count.(*atomic.Int64).Add(1)
			}
		})
	}
	return v
}

// of is how many answers have this body.
func (v *visitors) of(body string) int64 {
	count, ok := v.answers.Load(body)
	if !ok {
		return 0
	}
	return count.(*atomic.Int64).Load()
}

// await waits until there are n more answers with this body.
func (v *visitors) await(t *testing.T, body string, n int64) {
	t.Helper()
	until := v.of(body) + n
	for deadline := time.Now().Add(10 * time.Second); v.of(body) < until; {
		if t.Failed() || time.Now().After(deadline) {
			t.Fatalf("%q has answered %d times, want %d", body, v.of(body), until)
		}
		time.Sleep(time.Millisecond) // the sockets are real
	}
}

// TestDoorChangesHands has the second process take over from the first, and the third from the second.
func TestDoorChangesHands(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		path := t.TempDir() + "/a.sock"
		address := map[string]string{"unix": "unix:" + path, "tcp": "127.0.0.1:0"}[network]
		there := func(when string, want bool) {
			t.Helper()
			if _, err := os.Lstat(path); network == "unix" && (err == nil) != want {
				t.Errorf("%s the socket file gives %v, want it there: %v", when, err, want)
			}
		}
		log := zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))
		now := NewServer(listen(t, address), says("0"), log)
		ctx, cancel := context.WithCancel(t.Context())
		ended := running(ctx, now)
		const clients = 4
		v := visit(t, now.socket, clients)
		v.await(t, "0", 20)
		for i := 1; i <= 2; i++ {
			next := NewServer(inherit(t, now), says(fmt.Sprint(i)), log)
			nextEnded := running(ctx, next)
			v.await(t, fmt.Sprint(i), 1) // both serve
			now.Leave()
			now.Leave()
			if err := <-ended; err != nil {
				t.Errorf("%s: Run returns %v after Leave, want nil", network, err)
			}
			if err := now.Close(); err != nil {
				t.Errorf("%s: Close after Leave returns %v, want nil", network, err)
			}
			there("after Leave", true)
			last := v.of(fmt.Sprint(i - 1))
			v.await(t, fmt.Sprint(i), 20)
			if n := v.of(fmt.Sprint(i - 1)); n > last+clients { // an answer may have been on its way to each
				t.Errorf("%s: who has left answers on: %d times, want %d", network, n, last)
			}
			now, ended = next, nextEnded
		}
		v.end()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: Run returns %v, want nil", network, err)
		}
		there("after the last has stopped", false)
	}
}

// TestHeirThatGivesUp closes a server on an inherited socket before it has run: the file is not its own yet.
func TestHeirThatGivesUp(t *testing.T) {
	path := t.TempDir() + "/a.sock"
	first := NewServer(listen(t, "unix:"+path), okHandler, zap.NewNop())
	second := NewServer(inherit(t, first), okHandler, zap.NewNop())
	second.Leave()
	if err := second.Close(); err != nil {
		t.Errorf("Close returns %v, want nil", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := running(ctx, first)
	if got := ask(t, client(t, first.socket), "GET", base+"/"); got.code != 200 {
		t.Errorf("the first answers %d, want 200", got.code)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run returns %v, want nil", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after a stop the socket file gives %v, want it gone", err)
	}
}

// TestLeaveBeforeRun has Run end at once, and nobody's connection with it.
func TestLeaveBeforeRun(t *testing.T) {
	path := t.TempDir() + "/a.sock"
	first := NewServer(listen(t, "unix:"+path), says("first"), zap.NewNop())
	heir := inherit(t, first)
	early := dial(t, heir) // waits in the queue
	first.Leave()
	if err := first.Run(t.Context()); err != nil {
		t.Errorf("Run returns %v, want nil", err)
	}
	if _, err := first.SyscallConn(); err != nil {
		t.Errorf("SyscallConn of a closed server gives %v, want what says so itself", err)
	}
	serve(t, heir, says("second"), defaultLimits)
	if _, err := io.WriteString(early, strings.Replace(get, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(early); err != nil || !strings.HasSuffix(string(answer), "second") {
		t.Errorf("who waited in the queue gets %q, %v; want the second's answer", answer, err)
	}
}

// TestLeaveLetsRequestsFinish has one request under way that ends in time and one that does not.
func TestLeaveLetsRequestsFinish(t *testing.T) {
	lim := defaultLimits
	lim.shutdown = 100 * time.Millisecond
	for _, finishes := range []bool{true, false} {
		entered, goOn := make(chan struct{}), make(chan struct{})
		s := newServer(listen(t, "127.0.0.1:0"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-goOn
			okHandler.ServeHTTP(w, r)
		}), zap.NewNop(), lim)
		ended := running(t.Context(), s)
		c := dial(t, s.socket)
		if _, err := io.WriteString(c, get); err != nil {
			t.Fatal(err)
		}
		<-entered
		s.Leave()
		if finishes {
			close(goOn)
		}
		if err := <-ended; err != nil {
			t.Errorf("Run returns %v, want nil", err)
		}
		answer, err := io.ReadAll(c)
		if got := strings.HasSuffix(string(answer), "ok\n"); got != finishes {
			t.Errorf("a request that finishes in time (%v) gets %q, %v", finishes, answer, err)
		}
		if !finishes {
			close(goOn)
		}
	}
}

func TestSyscallConnWithoutDescriptor(t *testing.T) {
	s := NewServer(&failingListener{Listener: listen(t, "127.0.0.1:0")}, okHandler, zap.NewNop())
	defer s.Close()
	if _, err := s.SyscallConn(); err == nil {
		t.Error("a listener that has no descriptor gives none, and no error; want one")
	}
}

// TestScrapesWaitForWhatIsToCome counts the time in which a page is answered while counters are on their way.
func TestScrapesWaitForWhatIsToCome(t *testing.T) {
	for _, tc := range []struct {
		what    string
		counted time.Duration // when they arrive; 0: there are none to come
		gone    time.Duration // when the client goes; 0: it waits
		want    time.Duration
	}{
		{"nothing to come", 0, 0, 0},
		{"soon", 300 * time.Millisecond, 0, 300 * time.Millisecond},
		{"late", time.Minute, 0, time.Second},
		{"the client goes", time.Minute, 200 * time.Millisecond, 200 * time.Millisecond},
	} {
		for path, waits := range map[string]bool{"/metrics": true, "/readyz": false, "/healthz": false, "/v1/status": false} {
			synctest.Test(t, func(t *testing.T) {
				state := &fakeState{}
				if tc.counted > 0 {
					state.counted = make(chan struct{})
					defer time.AfterFunc(tc.counted, func() { close(state.counted) }).Stop()
				}
				ctx := t.Context()
				if tc.gone > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.gone)
					defer cancel()
				}
				h := Admin(testRegistry(), state, nil, testBuild, nil)
				w := httptest.NewRecorder()
				start := time.Now()
				h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", base+path, nil))
				want := tc.want
				if !waits {
					want = 0
				}
				if took := time.Since(start); took != want {
					t.Errorf("%s, %s: the answer takes %v, want %v", tc.what, path, took, want)
				}
				if empty := w.Body.Len() == 0; empty != (waits && tc.gone > 0) {
					t.Errorf("%s, %s: the answer is %d with %d bytes", tc.what, path, w.Code, w.Body.Len())
				}
				if tc.counted > 0 && tc.counted < time.Second { // afterwards nobody waits
					start = time.Now()
					h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", base+"/metrics", nil))
					if took := time.Since(start); took != 0 && path == "/metrics" {
						t.Errorf("%s: once all has arrived the answer takes %v, want no time", tc.what, took)
					}
				}
			})
		}
	}
}
