package server

import (
	"encoding/json"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// What the process before this one has counted may come in several messages: a scrape waits for the last one, and the failures are in the
// first.
func TestCountersInSeveralMessages(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	s := newTestServer(t, zap.New(core))
	defer s.closeUnused()
	counted := make(chan struct{})
	s.countedOnce = sync.OnceFunc(func() { close(counted) })
	failures, err := json.Marshal([]stats.Record{{ID: 7}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []handoff.Counters{{Failures: failures, Total: 3, More: true}, {More: true}, {}} {
		select {
		case <-counted:
			t.Error("a scrape waits no longer, and there is more to come")
		default:
		}
		m.Series = []handoff.Series{{Name: "test_total", Help: "T.", Value: 1}}
		s.takeCounters(&m)
	}
	<-counted
	if n := s.reg.Counter("test_total", "T.").Value(); n != 3 {
		t.Errorf("the counter has %d, want 3, one of each message", n)
	}
	if records, total := s.Failures(); len(records) != 1 || total != 3 {
		t.Errorf("got %d failures of %d, want one of 3", len(records), total)
	}
	for _, l := range logs.FilterLevelExact(zap.WarnLevel).All() {
		t.Errorf("the log has a warning: %s", l.Message)
	}
}
