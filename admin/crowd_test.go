//go:build linux

package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/admin/admintest"
	"github.com/relevo-proxy/relevo/server/config"
)

const (
	crowd      = 10000 // clients that say nothing
	leastCrowd = 3000  // what the test is worth having with
	spareFiles = 1000  // for the doors, their 256 connections, and the test
	connectors = 8     // that connect at once
)

// insist connects, however long the queue of a unix socket is full: connecting does not wait there, but fails.
func insist(ctx context.Context, to net.Addr) (net.Conn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, to.Network(), to.String())
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		time.Sleep(10 * time.Millisecond) // the sockets are real
	}
}

// TestIdleCrowd has thousands of clients connect that say nothing, and one that asks: it is answered while they come, and when
// they are there.
func TestIdleCrowd(t *testing.T) {
	size := crowd
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil { // Go has raised it as far as it may be
		t.Fatal(err)
	}
	if most := int(min(limit.Cur, 1<<20)) - spareFiles; most < size {
		size = most
	}
	if size < leastCrowd {
		t.Skipf("%d files may be open, want %d at least", limit.Cur, leastCrowd+spareFiles)
	}
	authority := admintest.NewAuthority(t, "ca")
	certFile, keyFile := authority.Server(t)
	k, err := loadKeys(&config.TLS{CertFile: certFile, KeyFile: keyFile})
	if err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{"unix": "unix:" + t.TempDir() + "/a.sock", "tls": "127.0.0.1:0"} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, address)
			s := NewServer(l, okHandler, zap.NewNop())
			url := "http://localhost/"
			c := client(t, l) // a connection for each request
			c.Timeout = time.Minute
			c.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return insist(ctx, l.Addr()) }
			if name == "tls" {
				s.TLS(k.config)
				url = "https://localhost/"
				c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: authority.Pool()}
			}
			runUntilEnd(t, s)

			var wg sync.WaitGroup
			var there atomic.Int64
			all := make(chan struct{}) // closed when the crowd is there
			for range connectors {
				wg.Go(func() { // ends when its part of the crowd is there
					for range size / connectors {
						conn, err := insist(t.Context(), l.Addr())
						if err != nil {
							t.Errorf("an idle client cannot connect: %v", err)
							return
						}
						t.Cleanup(func() { _ = conn.Close() })
						there.Add(1)
					}
				})
			}
			wg.Go(func() { // ends a moment after the others
				for there.Load() < int64(size/connectors*connectors) && !t.Failed() {
					time.Sleep(10 * time.Millisecond) // the sockets are real
				}
				close(all)
			})
			asked := 0
			for waiting := true; waiting || asked < 20; asked++ {
				select {
				case <-all:
					waiting = false
				default:
				}
				resp, err := c.Get(url)
				if err != nil {
					t.Errorf("with %d idle clients there, the client that asks gets %v", there.Load(), err)
					break
				}
				resp.Body.Close()
			}
			wg.Wait()
			t.Logf("%d requests were answered beside %d idle clients", asked, there.Load())
		})
	}
}
