package server

import (
	"context"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// TestRetriesOverTheWire: what is kept of requests that may be sent again comes as it was given, and a release that knows nothing of
// it gets the rest.
func TestRetriesOverTheWire(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	defer near.Close()
	defer far.Close()
	exchange := func(id uint32, retry bool) forwarder.ExchangeState {
		return forwarder.ExchangeState{Listener: "in", ID: id, Start: 5, Deadline: 1000, Attempts: 1, Route: "rpc/all", Cluster: "c", Retry: retry}
	}
	waits := exchange(9, true)
	waits.Frame = []byte("waits")
	given := &forwarder.Handover{
		Upstreams: []forwarder.UpstreamState{{
			Ref: 1, Cluster: "c", Endpoint: "a:1", Codec: "bolt", LastID: 30, Conn: conn.Detached{Socket: near},
			Slots: []forwarder.SlotState{
				{ID: 10, Exchange: exchange(1, false)},
				{ID: 20, Exchange: exchange(2, false), Copy: []byte("may be sent again"), Until: 500},
				{ID: 30, Exchange: exchange(3, true)},
			},
		}},
		Exchanges: []forwarder.ExchangeState{waits},
	}
	for _, knows := range []bool{true, false} {
		taken := taker{dictionary: newDictionary()}
		g := &giver{ctx: context.Background(), dictionary: newDictionary()}
		g.say = func(m handoff.Message, files ...syscall.RawConn) error {
			if c, ok := m.(*handoff.Conns); ok && !knows {
				for i := range c.Upstreams {
					c.Upstreams[i].Kept = nil
				}
			}
			return taken.take(m, make([]*os.File, len(files)))
		}
		if err := g.all(given); err != nil {
			t.Fatal(err)
		}
		if err := taken.whole(); err != nil {
			t.Fatal(err)
		}
		want := append([]forwarder.SlotState(nil), given.Upstreams[0].Slots...)
		if !knows {
			want[1].Copy, want[1].Until, want[2].Exchange.Retry = nil, 0, false
		}
		if diff := cmp.Diff(want, taken.h.Upstreams[0].Slots); diff != "" {
			t.Errorf("the slots differ (-given +taken), and what is kept is known: %v\n%s", knows, diff)
		}
		if diff := cmp.Diff(given.Exchanges, taken.h.Exchanges); diff != "" {
			t.Errorf("what waits differs (-given +taken):\n%s", diff)
		}
	}
}
