package forwarder

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// Copies are closed a few at a time; but however many there are, the process that has the connections does not wait for long for what
// this one has counted.
func TestAbandonIsGentleForAWhile(t *testing.T) {
	for _, c := range []struct {
		connections int
		want        time.Duration
	}{{abandonAtOnce - 1, 0}, {10 * abandonAtOnce, 10 * abandonPause}, {30000, abandonGently}} {
		synctest.Test(t, func(t *testing.T) {
			f, err := New(stageSpec(1), 256<<20, stats.NewRegistry(), zap.NewNop())
			if err != nil {
				t.Fatal(err)
			}
			socket, err := os.OpenFile(os.DevNull, os.O_RDWR, 0) // for all of them, as descriptors are few
			if err != nil {
				t.Fatal(err)
			}
			l := f.snap.Load().listeners[0]
			for range c.connections {
				with, err := conn.New(socket, f.buffers, l.config.Load().conn)
				if err != nil {
					t.Fatal(err)
				}
				l.open[newDownstream(l, l.config.Load(), with, nil)] = struct{}{}
			}
			began := time.Now() // on a clock that only sleeping moves
			f.Abandon()
			if took := time.Since(began); took != c.want {
				t.Errorf("%d connections: it took %v, want %v", c.connections, took, c.want)
			}
		})
	}
}
