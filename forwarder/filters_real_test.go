package forwarder_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/filter/fault"
	"github.com/relevo-proxy/relevo/forwarder/filter/header"
	"github.com/relevo-proxy/relevo/forwarder/filter/ratelimit"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// orFail is for the constructors of filters.
func orFail(t *testing.T) func(filter.Filter, error) []filter.Filter {
	return func(f filter.Filter, err error) []filter.Filter {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return []filter.Filter{f}
	}
}

func setHeader(key, value string) wire.Edit {
	return wire.Edit{Op: wire.SetHeader, Key: []byte(key), Value: []byte(value)}
}

// headersOf are the headers of a message, as key=value.
func headersOf(t *testing.T, m *wire.Message) string {
	t.Helper()
	var list []string
	for f, err := range bolt.WalkHeaders(m) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(f.Key)+"="+string(f.Value))
	}
	return strings.Join(list, " ")
}

// echoHeaders answers with the content, and with the request's headers in one of its own.
func echoHeaders(t *testing.T) *server {
	return serveEach(t, func(p *peer, m wire.Message) error {
		if m.Kind != wire.Request {
			return echoEach(p, m)
		}
		b, err := (&bolt.Response{
			Version: bolt.VersionOf(&m), ID: m.ID, Content: m.Content(),
			Headers: []bolt.Pair{{Key: "got", Value: headersOf(t, &m)}, {Key: "secret", Value: "1"}},
		}).Append(nil)
		if err == nil {
			_, err = p.Write(b)
		}
		return err
	})
}

// TestHeaderFilter: the rule matches what the listener's filter has set, the server sees what both filters have made, and
// the client what both have made of the reply; whatever the size, and however many come at once.
func TestHeaderFilter(t *testing.T) {
	for _, v := range []bolt.Version{bolt.V1, bolt.V2CRC} {
		t.Run(v.String(), func(t *testing.T) {
			s := spec(echoHeaders(t).address)
			s.Listeners[0].StreamAbove = 256 << 10
			s.Listeners[0].Filters = orFail(t)(header.New(header.Config{
				Request: []wire.Edit{setHeader("service", service), setHeader("first", "listener")},
				Reply:   []wire.Edit{setHeader("via", "relevo"), {Op: wire.RemoveHeader, Key: []byte("secret")}},
			}, filter.AtListener))
			s.Routes[0].Rules[0].Filters = orFail(t)(header.New(header.Config{
				Request: []wire.Edit{setHeader("first", "rule"), {Op: wire.AddHeader, Key: []byte("service"), Value: []byte("lost")}},
				Reply:   []wire.Edit{setHeader("via", "rule")}, // the listener's acts last
			}, filter.AtRule))
			s.Routes[0].Rules[0].Headers = []wire.Edit{setHeader("sent", "1")}
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			content := map[uint32]string{}
			var stream []byte
			for id := range uint32(40) {
				size := []int{0, 100, 5000, 100_000, 300_000}[id%5]
				content[id] = fmt.Sprint(id, strings.Repeat("x", size))
				r := request(id, content[id])
				r.Version, r.Headers = v, []bolt.Pair{{Key: "service", Value: "another"}, {Key: "id", Value: fmt.Sprint(id)}}
				stream = append(stream, encode(t, r)...)
			}
			go func() { _, _ = c.Write(stream) }() // ends with the last byte, or the connection
			for id, m := range c.receiveByID(len(content)) {
				wantEcho(t, m, content[id])
				want := fmt.Sprintf("got=service=%s id=%d first=rule sent=1 via=relevo", service, id)
				if got := headersOf(t, &m); got != want {
					t.Errorf("request %d: got the headers %q, want %q", id, got, want)
				}
			}
		})
	}
}

// TestHeaderFilterCannot: what cannot be edited is answered, and the connection goes on.
func TestHeaderFilterCannot(t *testing.T) {
	edits := []wire.Edit{setHeader("k", strings.Repeat("v", 300))}
	for _, c := range []struct {
		name   string
		config header.Config
		frames int64 // of each request at the server
	}{
		{"request", header.Config{Request: edits}, 0},
		{"reply", header.Config{Reply: edits}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := echoHeaders(t)
			s := spec(server.address)
			s.Listeners[0].Limits.MaxHeader = 300
			s.Routes[0].Rules[0].Filters = orFail(t)(header.New(c.config, filter.AtRule))
			p := startProxy(t, s, 512<<20)
			peer := dial(t, p.address)
			for i := range 3 {
				p.wantLocal(peer.call(request(uint32(i), "content")), wire.CodecException, wire.ReasonHeadersTooLarge, float64(i+1))
			}
			if got := server.frames.Load(); got != 3*c.frames {
				t.Errorf("got %d frames at the server, want %d", got, 3*c.frames)
			}
		})
	}
}

// TestFaultAborts those that match, and no others.
func TestFaultAborts(t *testing.T) {
	for at, place := range []string{"listener", "rule"} {
		t.Run(place, func(t *testing.T) {
			server := serveEach(t, echoEach)
			s := spec(server.address)
			f := orFail(t)(fault.New(fault.Config{
				Match: route.Match{Headers: []route.Header{{Key: "gray", Text: route.Exactly("1")}}},
				Abort: fault.Abort{Status: wire.ErrorComm, Percent: 100},
			}, filter.Place(at)))
			if place == "rule" {
				s.Routes[0].Rules[0].Filters = f
			} else {
				s.Listeners[0].Filters = f
			}
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			for i := range uint32(3) {
				r := request(i, "gray")
				r.Headers = append(r.Headers, bolt.Pair{Key: "gray", Value: "1"})
				p.wantLocal(c.call(r), wire.ErrorComm, fault.ReasonFault, float64(i+1))
				wantEcho(t, c.call(request(10+i, "others")), "others")
				r.Oneway = true
				c.send(encode(t, r))
			}
			p.wantCount(3, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
			if got := server.frames.Load(); got != 3 {
				t.Errorf("got %d frames at the server, want 3", got)
			}
		})
	}
}

// slow delays by so much what has the header slow.
func slow(t *testing.T, d time.Duration, at filter.Place) []filter.Filter {
	return orFail(t)(fault.New(fault.Config{
		Match: route.Match{Headers: []route.Header{{Key: "slow", Text: route.Exactly("1")}}},
		Delay: fault.Delay{Time: d, Percent: 100},
	}, at))
}

func slowRequest(id uint32, content string) bolt.Request {
	r := request(id, content)
	r.Headers = append(r.Headers, bolt.Pair{Key: "slow", Value: "1"})
	return r
}

// TestFaultDelays: a delayed request holds nobody, not even those behind it on its own connection, and is forwarded
// when its time has come.
func TestFaultDelays(t *testing.T) {
	const delay = 300 * time.Millisecond
	for at, place := range []string{"listener", "rule"} {
		t.Run(place, func(t *testing.T) {
			s := spec(serveEach(t, echoEach).address)
			if place == "rule" {
				s.Routes[0].Rules[0].Filters = slow(t, delay, filter.Place(at))
			} else {
				s.Listeners[0].Filters = slow(t, delay, filter.Place(at))
			}
			p := startProxy(t, s, 512<<20)
			c := dial(t, p.address)
			const held, others = 50, 100
			begin := time.Now()
			for i := range uint32(held) {
				c.send(encode(t, slowRequest(i, "held")))
			}
			for i := range uint32(others) {
				c.send(frameOf(t, 1000+i, "not held"))
			}
			early := 0
			for range held + others {
				m := c.receive()
				if m.ID >= 1000 {
					wantEcho(t, m, "not held")
					if time.Since(begin) < delay {
						early++
					}
					continue
				}
				wantEcho(t, m, "held")
				if since := time.Since(begin); since < delay {
					t.Errorf("got the reply of a delayed request after %v, want it after %v", since, delay)
				}
			}
			if early == 0 {
				t.Errorf("got no other reply within %v, want that a delay holds nobody else", delay)
			}
		})
	}
}

// TestFaultDelayKeepsOthersInline: only what passes the filter that may block is on workers.
func TestFaultDelayKeepsOthersInline(t *testing.T) {
	if mode == forwarder.ForwardWorker {
		t.Skip("all exchanges are on workers")
	}
	s := spec(serveEach(t, echoEach).address)
	slowly := s.Routes[0].Rules[0]
	slowly.Name, slowly.Match = "slow", route.Match{Headers: []route.Header{{Key: "slow", Text: route.Exactly("1")}}}
	slowly.Filters = slow(t, time.Millisecond, filter.AtRule)
	s.Routes[0].Rules = append([]forwarder.RuleSpec{slowly}, s.Routes[0].Rules...)
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	for i := range uint32(100) {
		wantEcho(t, c.call(request(i, "inline")), "inline")
	}
	if got := p.value("relevo_workers"); got != 0 {
		t.Errorf("got %v workers, want none as long as nothing may block: %v", got, p.series("relevo_workers"))
	}
	wantEcho(t, c.call(slowRequest(1000, "held")), "held")
	p.wantSome("relevo_workers")
}

// TestFaultDelayBeyondTheDeadline: the road answers in time, for whole frames and for those that come in pieces.
func TestFaultDelayBeyondTheDeadline(t *testing.T) {
	for at, place := range []string{"listener", "rule"} {
		for _, size := range []int{10, 100_000, 400_000} {
			t.Run(fmt.Sprintf("%s/size=%d", place, size), func(t *testing.T) {
				server := serveEach(t, echoEach)
				s := spec(server.address)
				s.Listeners[0].StreamAbove = 256 << 10
				if place == "rule" {
					s.Routes[0].Rules[0].Filters = slow(t, time.Hour, filter.Place(at))
				} else {
					s.Listeners[0].Filters = slow(t, time.Hour, filter.Place(at))
				}
				p := startProxy(t, s, 512<<20)
				c := dial(t, p.address)
				r := slowRequest(1, strings.Repeat("x", size))
				r.Timeout = 100
				p.wantLocal(c.call(r), wire.Timeout, forwarder.ReasonFilterTimeout, 1)
				wantEcho(t, c.call(request(2, "behind it")), "behind it")
				if got := server.frames.Load(); got != 1 {
					t.Errorf("got %d frames at the server, want 1", got)
				}
			})
		}
	}
}

// TestRateLimit: each tenant has its own tokens, one-way requests take some too, and what is refused is answered.
func TestRateLimit(t *testing.T) {
	server := serveEach(t, echoEach)
	s := spec(server.address)
	s.Listeners[0].Filters = orFail(t)(ratelimit.New(ratelimit.Config{
		Rate: ratelimit.MinRate, Burst: 3, By: ratelimit.ByHeader, Header: "tenant", MaxBuckets: 1000,
	}, filter.AtListener))
	p := startProxy(t, s, 512<<20)
	refused := 0.0
	for _, tenant := range []string{"a", "b", ""} {
		of := func(r bolt.Request) bolt.Request {
			if tenant != "" {
				r.Headers = append(r.Headers, bolt.Pair{Key: "tenant", Value: tenant})
			}
			return r
		}
		c := dial(t, p.address) // buckets are not the connection's
		c.send(encode(t, of(oneway(1, "one-way"))))
		wantEcho(t, c.call(of(request(2, "second"))), "second")
		c = dial(t, p.address)
		wantEcho(t, c.call(of(request(3, "third"))), "third")
		for i := range uint32(3) {
			refused++
			p.wantLocal(c.call(of(request(4+i, "no more"))), wire.Busy, ratelimit.ReasonLimited, refused)
		}
		c.send(encode(t, of(oneway(10, "no more"))))
	}
	p.wantCount(3, "relevo_listener_dropped_total", "reason="+forwarder.ReasonOneway)
	server.got(t, 9)
	if got := server.frames.Load(); got != 9 {
		t.Errorf("got %d frames at the server, want three of each tenant", got)
	}
}

// TestRateLimitOfARule limits that rule's requests, from all listeners together.
func TestRateLimitOfARule(t *testing.T) {
	s := spec(serveEach(t, echoEach).address)
	limited := s.Routes[0].Rules[0]
	limited.Name, limited.Match = "limited", route.Match{Service: route.Exactly(service), Headers: []route.Header{{Key: "slow", Text: route.Exactly("1")}}}
	limited.Filters = orFail(t)(ratelimit.New(ratelimit.Config{Rate: ratelimit.MinRate, Burst: 2, By: ratelimit.ByRoute, MaxBuckets: 1}, filter.AtRule))
	s.Routes[0].Rules = append([]forwarder.RuleSpec{limited}, s.Routes[0].Rules...)
	other := s.Listeners[0]
	other.Name = "other"
	s.Listeners = append(s.Listeners, other)
	p := startProxy(t, s, 512<<20)
	c, d := dial(t, p.address), dial(t, p.Addresses()["other"].String())
	wantEcho(t, c.call(slowRequest(1, "first")), "first")
	wantEcho(t, d.call(slowRequest(2, "second")), "second")
	p.wantLocal(c.call(slowRequest(3, "third")), wire.Busy, ratelimit.ReasonLimited, 1)
	p.wantLocal(d.call(slowRequest(4, "fourth")), wire.Busy, ratelimit.ReasonLimited, 2)
	wantEcho(t, c.call(request(5, "another rule's")), "another rule's")
}
