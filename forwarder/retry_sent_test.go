package forwarder

import (
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// twoEndpoints is the road of the tests to two endpoints.
func twoEndpoints() *Spec { return stageSpec(2) }

// TestBusyIsTriedElsewhere: the client sees the second server's reply only, and nothing is sent before the back-off is over.
func TestBusyIsTriedElsewhere(t *testing.T) {
	onStage(t, twoEndpoints, func(t *testing.T, s *stage) {
		id := s.ask(5000)
		first, m := s.one()
		s.reply(first, m, wire.Busy)
		if got := s.got(s.far); len(got) != 0 {
			t.Fatalf("got %s at the client behind the first reply, want nothing", inWords(got))
		}
		if n := s.c.retryWaits.Used(); n != 1 {
			t.Errorf("got %d requests that wait to be tried again, want one", n)
		}
		if list, _ := s.f.Streams(StreamFilter{Limit: 10}); len(list) != 1 || list[0].Phase != StreamLater || list[0].Attempts != 1 || list[0].Cluster != "c" {
			t.Errorf("got the streams %+v, want the one that waits", list)
		}
		s.wait(101 * time.Millisecond)
		second, again := s.one()
		if second.at == first.at {
			t.Errorf("got the second try at endpoint %d, which was busy, want the other one", second.at)
		}
		if string(again.Content()) != string(m.Content()) || again.ID == 0 {
			t.Errorf("got %q with the id %d at the second server, want %q as the first", again.Content(), again.ID, m.Content())
		}
		s.reply(second, again, wire.Success)
		s.answered(id, wire.Success)
		s.idle()
		if n := s.value("relevo_cluster_retries_total", ReasonUpstreamBusy); n != 1 {
			t.Errorf("got %v retries counted, want 1", n)
		}
		if n := s.value("relevo_route_replies_total", ""); n != 1 {
			t.Errorf("got %v replies counted of the rule, want the one that the client got", n)
		}
	})
}

// TestBusyToTheEnd: with the tries used up the client gets the last server's own reply.
func TestBusyToTheEnd(t *testing.T) {
	onStage(t, twoEndpoints, func(t *testing.T, s *stage) {
		id := s.ask(5000)
		for range 3 {
			e, m := s.one()
			s.reply(e, m, wire.Busy)
			s.wait(300 * time.Millisecond)
		}
		s.none()
		if m := s.answered(id, wire.Busy); string(m.Content()) != "request 1" {
			t.Errorf("got a reply with the content %q, want the server's", m.Content())
		}
		s.idle()
		if n := s.value("relevo_route_local_replies_total", ""); n != 0 {
			t.Errorf("got %v local replies counted, want none: the reply is the server's", n)
		}
	})
}

// TestOtherRepliesAreFinal: what a server says of a request that it has run, or refused for good, is never asked again.
func TestOtherRepliesAreFinal(t *testing.T) {
	onStage(t, twoEndpoints, func(t *testing.T, s *stage) {
		for status := range wire.NumStatus {
			if status == wire.Busy || status == wire.Other {
				continue
			}
			id := s.ask(5000)
			e, m := s.one()
			s.reply(e, m, status)
			s.answered(id, status)
			s.wait(time.Second)
			s.none()
		}
		s.idle()
	})
}

// TestResetIsTriedElsewhere: the connection ends with the request in flight.
func TestResetIsTriedElsewhere(t *testing.T) {
	onStage(t, twoEndpoints, func(t *testing.T, s *stage) {
		id := s.ask(5000)
		first, _ := s.one()
		s.breaks(first)
		s.wait(101 * time.Millisecond)
		second, m := s.one()
		if second.at == first.at {
			t.Errorf("got the second try at endpoint %d, whose connection ended, want the other one", second.at)
		}
		s.reply(second, m, wire.Success)
		s.answered(id, wire.Success)
		s.idle()

		id = s.ask(5000)
		for range 3 {
			e, _ := s.one()
			s.breaks(e)
			s.wait(300 * time.Millisecond)
		}
		s.none()
		s.answered(id, wire.ErrorComm)
		if n := s.value("relevo_route_local_replies_total", ReasonUpstreamClosed); n != 1 {
			t.Errorf("got %v local replies with the reason of the last try, want 1", n)
		}
		s.idle()
	})
}

// TestTimeoutIsTriedElsewhere: a try has its time, the frame says how much that is, and the last one has what is left. A reply that
// comes late is nobody's.
func TestTimeoutIsTriedElsewhere(t *testing.T) {
	onStage(t, twoEndpoints, func(t *testing.T, s *stage) {
		id := s.ask(5000)
		first, m := s.one()
		if m.Timeout != 1000 {
			t.Errorf("got a timeout of %d ms in the first try's frame, want the 1000 of a try", m.Timeout)
		}
		s.wait(999 * time.Millisecond)
		s.none()
		s.wait(150 * time.Millisecond) // the sweeper's grain and the back-off
		second, again := s.one()
		if second.at == first.at {
			t.Errorf("got the second try at endpoint %d, which was slow, want the other one", second.at)
		}
		s.reply(first, m, wire.Success)
		if got := s.got(s.far); len(got) != 0 {
			t.Fatalf("got %s at the client for the reply that came late, want nothing", inWords(got))
		}
		if again.Timeout != 1000 {
			t.Errorf("got a timeout of %d ms in the second try's frame, want 1000", again.Timeout)
		}
		s.wait(1300 * time.Millisecond)
		third, last := s.one()
		if last.Timeout < 2690 || last.Timeout > 3000 {
			t.Errorf("got a timeout of %d ms in the last try's frame, want what is left of 5000", last.Timeout)
		}
		s.wait(2 * time.Second) // longer than a try, and yet nobody cuts it short
		s.reply(third, last, wire.Success)
		s.answered(id, wire.Success)
		s.idle()
		if n := s.value("relevo_cluster_retries_total", ReasonTryTimeout); n != 2 {
			t.Errorf("got %v retries counted, want 2", n)
		}

		id = s.ask(1500) // behind the deadline nothing is tried
		s.one()
		s.wait(1200 * time.Millisecond)
		s.one()
		s.wait(time.Second)
		s.none()
		s.answered(id, wire.Timeout)
		if n := s.value("relevo_route_local_replies_total", ReasonTimeout); n != 1 {
			t.Errorf("got %v local replies because of the deadline, want 1", n)
		}
		s.idle()
	})
}

// TestDeadlineBeforeBackOff: when the deadline is earlier than the next try would be, the client gets at once what the last one has
// brought.
func TestDeadlineBeforeBackOff(t *testing.T) {
	slow := func() *Spec {
		s := twoEndpoints()
		s.Routes[0].Rules[0].BackOffBase, s.Routes[0].Rules[0].BackOffMax = time.Hour, time.Hour
		return s
	}
	onStage(t, slow, func(t *testing.T, s *stage) {
		id := s.ask(1) // a back-off of less than 1 ms is one in 3,600,000
		e, m := s.one()
		s.reply(e, m, wire.Busy)
		s.answered(id, wire.Busy)
		s.idle()
	})
}

// TestNothingIsTriedForNobody: the client has left, before the try has failed or while its request waits.
func TestNothingIsTriedForNobody(t *testing.T) {
	onStage(t, twoEndpoints, func(t *testing.T, s *stage) {
		s.ask(5000)
		e, m := s.one()
		s.reply(e, m, wire.Busy)
		s.hangUp()
		s.wait(time.Second)
		s.none()
		s.idle()
		s.client()
		s.ask(5000)
		e, m = s.one()
		s.hangUp()
		s.reply(e, m, wire.Busy)
		s.idle() // it did not even begin to wait
		s.wait(time.Second)
		s.none()
		s.idle()
		s.client()
	})
}

// TestClosedWhileItWaits: who waits to be tried again when the road ends is answered.
func TestClosedWhileItWaits(t *testing.T) {
	onStage(t, twoEndpoints, func(t *testing.T, s *stage) {
		s.ask(5000)
		e, m := s.one()
		s.reply(e, m, wire.Busy)
	})
}

// TestCopies: no more are kept than there may be, and what has none is not sent again.
func TestCopies(t *testing.T) {
	narrow := func() *Spec {
		s := twoEndpoints()
		s.Clusters[0].MaxRetryBytes = 8 << 10
		return s
	}
	onStage(t, narrow, func(t *testing.T, s *stage) {
		for range 3 {
			s.ask(5000)
		}
		if n := s.c.retryBytes.Used(); n != 8<<10 {
			t.Errorf("got %d bytes of copies, want the 8 KiB that there may be", n)
		}
		if n := s.value("relevo_cluster_retry_refusals_total", ReasonMaxRetryBytes); n != 1 {
			t.Errorf("got %v requests of which no copy was kept, want the third", n)
		}
		answered := 0
		for _, e := range s.ups {
			for _, m := range s.got(e) {
				s.reply(e, m, wire.Busy)
			}
		}
		for _, m := range s.got(s.far) {
			answered++
			if m.ID != 3 || m.Status != wire.Busy {
				t.Errorf("got request %d answered with %v, want request 3 to be busy", m.ID, m.Status)
			}
		}
		if answered != 1 {
			t.Errorf("got %d requests answered at once, want the one that has no copy", answered)
		}
		s.wait(300 * time.Millisecond)
		for _, e := range s.ups {
			for _, m := range s.got(e) {
				s.reply(e, m, wire.Success)
			}
		}
		if got := s.got(s.far); len(got) != 2 {
			t.Errorf("got %s at the client, want two replies", inWords(got))
		}
		s.idle()
	})
}

// TestEditsAreMadeFromTheOriginal on each try, and the copy is of that.
func TestEditsAreMadeFromTheOriginal(t *testing.T) {
	edited := func() *Spec {
		s := twoEndpoints()
		s.Routes[0].Rules[0].Headers = []wire.Edit{
			{Op: wire.RemoveHeader, Key: []byte("service")}, {Op: wire.AddHeader, Key: []byte("via"), Value: []byte("relevo")},
		}
		return s
	}
	onStage(t, edited, func(t *testing.T, s *stage) {
		id := s.ask(5000)
		e, m := s.one()
		s.f.later.each(func(*exchange) { t.Error("something waits to be tried again, want nothing yet") })
		s.reply(e, m, wire.Busy)
		s.f.later.each(func(x *exchange) {
			var kept wire.Message
			if _, err := x.down.codec.Decode(&kept, x.kept.frame, wire.Limits{}); err != nil {
				t.Fatal(err)
			}
			var values [2][]byte
			if err := x.down.codec.Headers(&kept, [][]byte{[]byte("service"), []byte("via")}, values[:]); err != nil || values[0] == nil || values[1] != nil {
				t.Errorf("got the copy with service %q and via %q (%v), want the request as it came", values[0], values[1], err)
			}
		})
		s.wait(101 * time.Millisecond)
		e, again := s.one()
		if string(again.HeaderBlock()) != string(m.HeaderBlock()) {
			t.Errorf("got the headers %q in the second try, want %q as in the first", again.HeaderBlock(), m.HeaderBlock())
		}
		s.reply(e, again, wire.Success)
		s.answered(id, wire.Success)
	})
}

// TestOnlyIdempotentRulesMayAskForIt: the road refuses what the configuration has refused already.
func TestOnlyIdempotentRulesMayAskForIt(t *testing.T) {
	for _, on := range []RetryOn{RetryReset, RetryBusy, RetryTimeout} {
		s := twoEndpoints()
		s.Routes[0].Rules[0].RetryOn, s.Routes[0].Rules[0].Idempotent = on, false
		if f, err := New(s, 64<<20, stats.NewRegistry(), zap.NewNop()); err == nil {
			f.Close()
			t.Errorf("got a road that sends again what is not idempotent on %b, want an error", on)
		}
	}
}

// TestResetIncludesTheOneBeforeTheSend, in which even less can have happened.
func TestResetIncludesTheOneBeforeTheSend(t *testing.T) {
	only := func() *Spec {
		s := twoEndpoints()
		s.Routes[0].Rules[0].RetryOn = RetryReset
		return s
	}
	onStage(t, only, func(t *testing.T, s *stage) {
		id := s.ask(5000)
		first, _ := s.one()
		var x exchange
		if !first.u.table.Take(1, &x) {
			t.Fatal("the request is not in the table")
		}
		b := s.f.batch() // as the end of a connection that the kernel has not taken its frame on
		b.x, b.frame = x, frame{bytes: append([]byte(nil), x.kept.frame...)}
		if n, err := x.down.codec.Decode(&b.msg, b.frame.bytes, wire.Limits{}); err != nil || n == 0 {
			t.Fatal(n, err)
		}
		b.fail(ReasonResetBeforeSend)
		b.resume()
		b.done()
		s.wait(time.Millisecond)
		second, m := s.one()
		if second.at == first.at {
			t.Errorf("got the second try at endpoint %d, whose connection broke, want the other one", second.at)
		}
		if n := s.c.limits.Retries.Used(); n != 0 {
			t.Errorf("got %d retries that count, want none of what never left", n)
		}
		s.reply(second, m, wire.Success)
		s.answered(id, wire.Success)
		s.idle()
	})
}
