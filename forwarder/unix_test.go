package forwarder_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// TestUnixListenerAfterAKill: the socket that a killed process left behind is no obstacle; anything else is.
func TestUnixListenerAfterAKill(t *testing.T) {
	for name, tc := range map[string]struct {
		leave func(t *testing.T, path string)
		want  error
	}{
		"nothing there": {func(*testing.T, string) {}, nil},
		"left behind": {func(t *testing.T, path string) {
			l := listenUnix(t, path)
			l.SetUnlinkOnClose(false)
			l.Close()
		}, nil},
		"somebody listens": {func(t *testing.T, path string) {
			l := listenUnix(t, path)
			t.Cleanup(func() { l.Close() })
		}, syscall.EADDRINUSE},
		"a file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, syscall.EADDRINUSE},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			tc.leave(t, path)
			s := spec("127.0.0.1:1")
			s.Listeners[0].Network, s.Listeners[0].Address = "unix", path
			f, err := forwarder.New(s, 64<<20, stats.NewRegistry(), zaptest.NewLogger(t))
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err != nil {
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("what was in the way is gone: %v", err)
				}
				return
			}
			f.Close()
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is still there behind Close: %v", err)
			}
		})
	}
}

func listenUnix(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}
