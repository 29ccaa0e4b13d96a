package forwarder

import (
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
)

// TestBreaker: it is open at the bound, and for a second behind a refusal; the log has a line when it begins to refuse and one
// when it has not for a while, however often it does between.
func TestBreaker(t *testing.T) {
	for _, low := range []bool{false, true} {
		core, logs := observer.New(zap.InfoLevel)
		f := &Forwarder{log: zap.New(core)}
		limit := cluster.NewLimit(10)
		b := &breaker{limit: limit, low: low}
		bound, take := 10, func() int { return limit.TryAcquire(1) }
		if low {
			bound, take = 8, limit.TryAcquireLow
		}
		now := int64(time.Hour)
		look := func() bool { return b.look(f, now, func() []zap.Field { return nil }) }
		want := func(what string, used int, open bool, lines int) {
			t.Helper()
			if got := b.status(now); got != (Use{used, bound, open}) || logs.Len() != lines {
				t.Errorf("low %v: %s: got %+v and %d lines in the log, want %d used of %d, open %v and %d", low, what, got, logs.Len(), used, bound, open, lines)
			}
		}
		want("at first", 0, false, 0)
		for range bound - 1 {
			take()
		}
		want("below the bound", bound-1, false, 0)
		take()
		if look() {
			t.Error("it looks again though nothing was refused")
		}
		want("at the bound", bound, true, 0)
		limit.Release(1)
		want("below the bound again", bound-1, false, 0)
		for range 3 {
			take()
		}
		limit.Release(1)
		want("when something was refused, before the sweeper looks", bound-1, true, 0)
		if !look() {
			t.Error("it does not look again though something was refused")
		}
		want("when the sweeper has looked", bound-1, true, 1)
		for range 100 { // at its bound every now and then
			now += int64(900 * time.Millisecond)
			look()
			take()
			take()
			limit.Release(1)
			want("while more is refused", bound-1, true, 1)
		}
		look()
		now += breakerMemory
		look()
		want("a second later", bound-1, false, 1)
		now += breakerQuiet
		if look() {
			t.Error("it looks again though it was quiet")
		}
		want("when it was quiet", bound-1, false, 2)
		if got := logs.All()[1].ContextMap()["refused"]; got != uint64(102) {
			t.Errorf("the log says that %v were refused, want 102", got)
		}
	}
}
