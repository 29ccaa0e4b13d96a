package echo

import (
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func delayHeader(value string) []bolt.Pair {
	return []bolt.Pair{{Key: "service", Value: "s"}, {Key: DelayHeader, Value: value}}
}

func TestDelayOf(t *testing.T) {
	const usual = 7 * time.Millisecond
	for _, tc := range []struct {
		headers []bolt.Pair
		want    time.Duration
	}{
		{nil, usual},
		{[]bolt.Pair{{Key: "service", Value: "s"}}, usual},
		{delayHeader("5s"), 5 * time.Second},
		{delayHeader("1ms"), time.Millisecond},
		{delayHeader("0s"), 0},
		{delayHeader("1m"), time.Minute},
		{delayHeader("61s"), time.Minute},
		{delayHeader("100000h"), time.Minute},
		{delayHeader("-5s"), usual},
		{delayHeader("5"), usual},
		{delayHeader(""), usual},
		{delayHeader("99999999999999999999h"), usual},
		{[]bolt.Pair{{Key: "service", Value: DelayHeader}}, usual},
		{[]bolt.Pair{{Key: DelayHeader + "s", Value: "5s"}}, usual},
	} {
		var m wire.Message
		b := frame(t, bolt.Request{Class: bolt.ClassRequest, Headers: tc.headers})
		if _, err := (bolt.Codec{}).Decode(&m, b, limits); err != nil {
			t.Fatal(err)
		}
		if got := delayOf(&m, usual); got != tc.want {
			t.Errorf("headers %v: the delay is %v, want %v", tc.headers, got, tc.want)
		}
		for cut := range len(m.HeaderBlock()) { // a block that ends too early
			short := m
			short.ContentAt -= uint32(cut)
			if got := delayOf(&short, usual); got != tc.want && got != usual {
				t.Errorf("headers %v, the last %d bytes missing: the delay is %v", tc.headers, cut, got)
			}
		}
	}
}

// Replies come when they are due, whatever the order of their requests; heartbeats are answered at once.
func TestDelayByHeader(t *testing.T) {
	for _, usual := range []time.Duration{0, 150 * time.Millisecond} {
		_, nc := start(t, Options{Delay: usual})
		begin := time.Now()
		var all []byte
		for id, delay := range []string{"600ms", "300ms", "300ms", "0s", "", ""} {
			r := bolt.Request{ID: uint32(id)}
			if delay != "" {
				r.Headers = delayHeader(delay)
			}
			all = append(all, frame(t, r)...)
		}
		all = append(all, frame(t, bolt.Request{ID: 6, Heartbeat: true})...)
		send(t, nc, all)
		r := &reader{nc: nc}
		want := []uint32{3, 4, 5, 6, 1, 2, 0}
		if usual > 0 {
			want = []uint32{3, 6, 4, 5, 1, 2, 0}
		}
		for _, id := range want {
			m := r.mustNext(t)
			took := time.Since(begin)
			if m.ID != id {
				t.Fatalf("delay %v: got the reply to %d, want that to %d of %v", usual, m.ID, id, want)
			}
			least := map[uint32]time.Duration{0: 600 * time.Millisecond, 1: 300 * time.Millisecond, 2: 300 * time.Millisecond, 4: usual, 5: usual}[id]
			if took < least {
				t.Errorf("delay %v: the reply to %d takes %v, want at least %v", usual, id, took, least)
			}
		}
	}
}

// A reply that is due sooner overtakes one that waits already, which the line is asleep for.
func TestSoonerReplyWakesTheLine(t *testing.T) {
	_, nc := start(t, Options{})
	send(t, nc, frame(t, bolt.Request{ID: 1, Headers: delayHeader("1m")}))
	send(t, nc, frame(t, bolt.Request{ID: 2, Heartbeat: true}))
	r := &reader{nc: nc}
	if m := r.mustNext(t); m.ID != 2 { // so the first one waits
		t.Fatalf("got the reply to %d, want that to the heartbeat", m.ID)
	}
	send(t, nc, frame(t, bolt.Request{ID: 3, Headers: delayHeader("20ms")}))
	if m := r.mustNext(t); m.ID != 3 {
		t.Errorf("got the reply to %d, want that to 3", m.ID)
	}
}

// Heartbeats get their answers while replies wait for an hour.
func TestHeartbeatsAreNotDelayed(t *testing.T) {
	s, nc := start(t, Options{Delay: time.Hour})
	r := &reader{nc: nc}
	for id := range uint32(20) {
		send(t, nc, append(frame(t, bolt.Request{ID: 100}), frame(t, bolt.Request{ID: id, Heartbeat: true})...))
		if m := r.mustNext(t); m.Kind != wire.Ack || m.ID != id {
			t.Fatalf("got a %v with id %d, want the ack of heartbeat %d", m.Kind, m.ID, id)
		}
	}
	if got := s.Stats().Requests; got != 20 {
		t.Errorf("counted %d requests, want 20", got)
	}
}
