package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
)

// zone is a server's answers, as zone files have records, by NAME TYPE. A name that has none of any type does not exist.
type zone map[string][]string

// server is a DNS server of a test.
type server struct {
	zone    atomic.Pointer[zone]
	fail    atomic.Pointer[map[string]int] // RCODE by NAME TYPE
	noEDNS  atomic.Bool
	asked   atomic.Int64
	overTCP atomic.Int64
	extra   atomic.Bool // the addresses of targets come along
	at      netip.AddrPort
}

func startServer(t *testing.T, z zone) *server {
	t.Helper()
	s := &server{}
	s.zone.Store(&z)
	s.fail.Store(&map[string]int{})
	udp, tcp := bind(t)
	s.at = udp.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, d := range []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
		done := make(chan error, 1)
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		go func() { done <- d.ActivateAndServe() }() // ends with Shutdown
		<-started
		t.Cleanup(func() {
			if err := errors.Join(d.Shutdown(), <-done); err != nil {
				t.Error(err)
			}
		})
	}
	return s
}

// bind takes one port for both protocols.
func bind(t *testing.T) (*net.UDPConn, net.Listener) {
	t.Helper()
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(tcp.Addr().(*net.TCPAddr).AddrPort()))
		if err == nil {
			return udp, tcp
		}
		_ = tcp.Close()
	}
	t.Fatal("no port is free for both protocols")
	return nil, nil
}

// ServeDNS implements dns.Handler.
func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.asked.Add(1)
	m := new(dns.Msg)
	m.SetReply(q)
	if s.noEDNS.Load() && q.IsEdns0() != nil {
		m.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(m) // the client would notice
		return
	}
	z, name := *s.zone.Load(), strings.ToLower(q.Question[0].Name)
	typ := dns.TypeToString[q.Question[0].Qtype]
	if rcode, ok := (*s.fail.Load())[name+" "+typ]; ok {
		m.Rcode = rcode
		_ = w.WriteMsg(m)
		return
	}
	m.Answer = z.records(name, typ)
	for range maxAliases {
		aliases := z.records(name, "CNAME")
		if len(aliases) == 0 {
			break
		}
		name = aliases[0].(*dns.CNAME).Target
		m.Answer = append(append(m.Answer, aliases...), z.records(name, typ)...)
	}
	if !z.knows(name) {
		m.Rcode = dns.RcodeNameError
	}
	if s.extra.Load() {
		for _, rr := range m.Answer {
			if r, ok := rr.(*dns.SRV); ok {
				m.Extra = append(m.Extra, append(z.records(r.Target, "A"), z.records(r.Target, "AAAA")...)...)
			}
		}
	}
	if w.RemoteAddr().Network() == "tcp" {
		s.overTCP.Add(1)
	} else if opt := q.IsEdns0(); opt != nil {
		m.Truncate(int(opt.UDPSize()))
	} else {
		m.Truncate(dns.MinMsgSize)
	}
	_ = w.WriteMsg(m)
}

func (z zone) records(name, typ string) (out []dns.RR) {
	for _, data := range z[name+" "+typ] {
		ttl := "30"
		if before, rest, ok := strings.Cut(data, " ttl "); ok {
			data, ttl = before, rest
		}
		rr, err := dns.NewRR(name + " " + ttl + " IN " + typ + " " + data)
		if err != nil {
			panic(err)
		}
		out = append(out, rr)
	}
	return out
}

func (z zone) knows(name string) bool {
	for key := range z {
		if strings.HasPrefix(key, name+" ") {
			return true
		}
	}
	return false
}

// resolveOnce asks servers for a name.
func resolveOnce(t *testing.T, name string, servers ...*server) ([]string, time.Duration, error) {
	t.Helper()
	o := Options{Name: name, MinTTL: time.Second, MaxTTL: time.Hour}
	for _, s := range servers {
		o.Servers = append(o.Servers, s.at)
	}
	return resolveWith(t, o)
}

func resolveWith(t *testing.T, o Options) ([]string, time.Duration, error) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.resolve(t.Context())
	return texts(f.set), f.ttl, err
}

// texts are endpoints as address*weight, in order.
func texts(set []discovery.Endpoint) (out []string) {
	for _, e := range discovery.Normal(slices.Clone(set)) {
		out = append(out, fmt.Sprintf("%s*%d", e.Address, e.Weight))
	}
	return out
}

func TestResolves(t *testing.T) {
	z := zone{
		"both. A": {"10.0.0.1", "10.0.0.2 ttl 20"}, "both. AAAA": {"fd00::1 ttl 40"},
		"four. A": {"10.0.0.1"}, "alias. CNAME": {"other. ttl 7"}, "other. CNAME": {"both."},
		"loop. CNAME": {"loop."}, "text. TXT": {"hello"}, "no. A": {"0.0.0.0"},
		"_rpc._tcp.all. SRV":   {"0 10 1 both.", "0 20 2 four.", "1 10 3 four."},
		"_rpc._tcp.zero. SRV":  {"5 0 1 four.", "5 10 2 four.", "5 5 3 four."},
		"_rpc._tcp.zeros. SRV": {"5 0 1 four.", "5 0 2 four."},
		"_rpc._tcp.large. SRV": {"0 60000 1 four.", "0 30000 2 four.", "0 1 3 four."},
		"_rpc._tcp.left. SRV":  {"0 1 1 four. ttl 50", "0 1 2 gone."},
		"_rpc._tcp.gone. SRV":  {"0 1 1 gone."},
		"_rpc._tcp.none. SRV":  {"0 0 0 ."},
		"_rpc._tcp.via. CNAME": {"_rpc._tcp.left."},
	}
	for _, tc := range []struct {
		name string
		want []string
		ttl  int
		err  string
	}{
		{"both:12200", []string{"10.0.0.1:12200*100", "10.0.0.2:12200*100", "[fd00::1]:12200*100"}, 20, ""},
		{"BOTH.:1", []string{"10.0.0.1:1*100", "10.0.0.2:1*100", "[fd00::1]:1*100"}, 20, ""},
		{"four:1", []string{"10.0.0.1:1*100"}, 30, ""},
		{"alias:1", []string{"10.0.0.1:1*100", "10.0.0.2:1*100", "[fd00::1]:1*100"}, 7, ""},
		{"loop:1", nil, 0, "loop.: there is no such record"},
		{"text:1", nil, 0, "text.: there is no such record"},
		{"no:1", nil, 0, "no.: there is no such record"},
		{"nobody:1", nil, 0, "nobody. AAAA: there is no such name, says "},
		{"_rpc._tcp.all", []string{"10.0.0.1:1*10", "10.0.0.1:2*20", "10.0.0.2:1*10", "[fd00::1]:1*10"}, 20, ""},
		{"_rpc._tcp.zero", []string{"10.0.0.1:1*1", "10.0.0.1:2*1000", "10.0.0.1:3*500"}, 30, ""},
		{"_rpc._tcp.zeros", []string{"10.0.0.1:1*100", "10.0.0.1:2*100"}, 30, ""},
		{"_rpc._tcp.large", []string{"10.0.0.1:1*1000", "10.0.0.1:2*500", "10.0.0.1:3*1"}, 30, ""},
		{"_rpc._tcp.left", []string{"10.0.0.1:1*1"}, 30, ""},
		{"_rpc._tcp.via", []string{"10.0.0.1:1*1"}, 30, ""},
		{"_rpc._tcp.gone", nil, 0, "gone. AAAA: there is no such name, says "},
		{"_rpc._tcp.none", nil, 0, "_rpc._tcp.none. SRV: there is no such record"},
		{"_rpc._tcp.nobody", nil, 0, "_rpc._tcp.nobody. SRV: there is no such name, says "},
	} {
		for _, extra := range []bool{false, true} {
			s := startServer(t, z)
			s.extra.Store(extra)
			got, ttl, err := resolveOnce(t, tc.name, s)
			if tc.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tc.err) {
					t.Errorf("%s gives %v, %v; want %q", tc.name, got, err, tc.err)
				}
				continue
			}
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" || ttl != time.Duration(tc.ttl)*time.Second {
				t.Errorf("%s, targets' addresses come along: %v: it gives a TTL of %v, want %d s, and %v; (-want +got):\n%s", tc.name, extra, ttl, tc.ttl, err, diff)
			}
			if extra && tc.name == "_rpc._tcp.zeros" && s.asked.Load() > 3 {
				t.Errorf("with addresses that came along it asked %d times, want SRV, and AAAA twice, which did not", s.asked.Load())
			}
		}
	}
}

// What does not fit into a datagram is asked for over TCP, with or without EDNS0.
func TestLargeAnswersComeOverTCP(t *testing.T) {
	z := zone{"many. A": nil, "some. A": nil}
	for i := range 400 {
		z["many. A"] = append(z["many. A"], fmt.Sprintf("10.0.%d.%d", i/250, i%250))
	}
	z["some. A"] = z["many. A"][:50] // 860 bytes
	s := startServer(t, z)
	for _, tc := range []struct {
		name   string
		noEDNS bool
		want   int
		tcp    int64
	}{{"some:1", false, 50, 0}, {"many:1", false, 400, 1}, {"some:1", true, 50, 1}} {
		s.overTCP.Store(0)
		s.noEDNS.Store(tc.noEDNS)
		got, _, err := resolveOnce(t, tc.name, s)
		if err != nil || len(got) != tc.want || s.overTCP.Load() != tc.tcp {
			t.Errorf("%s, without EDNS0 %v: it gives %d endpoints and %v, %d answers over TCP; want %d and %d",
				tc.name, tc.noEDNS, len(got), err, s.overTCP.Load(), tc.want, tc.tcp)
		}
	}
}

func TestBoundsEndpoints(t *testing.T) {
	z := zone{}
	for i := range 2000 {
		z["a. A"] = append(z["a. A"], fmt.Sprintf("10.0.%d.%d", i/250, i%250))
	}
	for i := range 3 {
		z["_s._tcp.a. SRV"] = append(z["_s._tcp.a. SRV"], fmt.Sprintf("0 1 %d a.", i+1))
	}
	_, _, err := resolveOnce(t, "_s._tcp.a", startServer(t, z))
	if err == nil || !strings.Contains(err.Error(), "has 6000 endpoints; there may be 4096") {
		t.Errorf("6000 endpoints give %v", err)
	}
}

// Servers are asked one after the other, and one that knows ends it: also with the answer that there is no such name.
func TestAsksTheNextServer(t *testing.T) {
	dead, silent := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")), startServer(t, zone{})
	udp, err := net.ListenUDP("udp", dead)
	if err != nil {
		t.Fatal(err)
	}
	closed := udp.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := udp.Close(); err != nil {
		t.Fatal(err)
	}
	silent.fail.Store(&map[string]int{"a. A": dns.RcodeServerFailure, "a. AAAA": dns.RcodeRefused})
	good := startServer(t, zone{"a. A": {"10.0.0.1"}})
	o := Options{Name: "a:1", Servers: []netip.AddrPort{closed, silent.at, good.at}}
	if got, _, err := resolveWith(t, o); err != nil || len(got) != 1 {
		t.Errorf("the last of three servers gives %v, %v; want its endpoint", got, err)
	}
	if o.Servers = o.Servers[:2]; true {
		_, _, err := resolveWith(t, o)
		want := fmt.Sprintf("no answer: %s: connection refused; %s: REFUSED", closed, silent.at)
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("two servers of which none answers give %v, want %q", err, want)
		}
		if n := silent.asked.Load(); n < 2*rounds {
			t.Errorf("it was asked %d times, want each question in %d rounds", n, rounds)
		}
	}
}

// The servers are those of resolv.conf, as it is when they are asked.
func TestReadsResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	a := &asker{resolvConf: path}
	if _, err := a.known(); err == nil || !strings.Contains(err.Error(), "whom to ask: open ") {
		t.Errorf("without the file it is %v", err)
	}
	for content, want := range map[string][]string{
		"nameserver 127.0.0.9\nnameserver ::1\nsearch x\n": {"127.0.0.9:53", "[::1]:53"},
		"nameserver fe80::1%lo\nnameserver what\n":         {"[fe80::1%lo]:53"},
		strings.Repeat("nameserver 127.0.0.9\n", 20):       slices.Repeat([]string{"127.0.0.9:53"}, maxServers),
		"search x\n": nil,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		servers, err := a.known()
		var got []string
		for _, s := range servers {
			got = append(got, s.String())
		}
		if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (want != nil) {
			t.Errorf("%q gives %v and (-want +got):\n%s", content, err, diff)
		}
	}
}

// A family that has had addresses must answer; one that never had need not.
func TestOneFamilyFails(t *testing.T) {
	s := startServer(t, zone{"a. A": {"10.0.0.1"}, "a. AAAA": {"fd00::1"}})
	refuse := map[string]int{"a. AAAA": dns.RcodeServerFailure}
	s.fail.Store(&refuse)
	source, err := New(Options{Name: "a:1", Servers: []netip.AddrPort{s.at}, MinTTL: time.Second, MaxTTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	updates := make(chan discovery.Update)
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		source.Run(ctx, func(u discovery.Update) {
			select {
			case updates <- u:
			case <-ctx.Done():
			}
		})
	}()
	want := func(n int) {
		t.Helper()
		if u := <-updates; len(u.Endpoints) != n || (u.Err != nil) != (n == 0) {
			t.Errorf("it tells %v, want %d endpoints", u, n)
		}
	}
	want(1)
	s.fail.Store(&map[string]int{})
	want(2)
	s.fail.Store(&refuse)
	want(0)
	cancel()
	<-done
}

// A server that says nothing does not hold up who ends.
func TestEndsWhileItAsks(t *testing.T) {
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	s, err := New(Options{Name: "a:1", Servers: []netip.AddrPort{udp.LocalAddr().(*net.UDPAddr).AddrPort()}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { // ends with ctx
		_, err := s.resolve(ctx)
		done <- err
	}()
	if _, _, err := udp.ReadFrom(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	cancel()
	if err := <-done; err == nil {
		t.Error("a look that was broken off has no error")
	}
	if took := time.Since(began); took > tryTimeout {
		t.Errorf("it ended %v after it was told to", took)
	}
}

// A server that says nothing is waited for once in a look, however many questions that takes, and the error names it in its place.
func TestWaitsForASilentServerOnce(t *testing.T) {
	silent, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	z := zone{}
	for i := range 3 * targetsAtOnce {
		host := fmt.Sprintf("h%d.", i)
		z["_s._tcp.a. SRV"], z[host+" A"] = append(z["_s._tcp.a. SRV"], "0 1 1 "+host), []string{fmt.Sprintf("10.0.0.%d", i+1)}
	}
	good := startServer(t, z)
	o := Options{Name: "_s._tcp.a", Servers: []netip.AddrPort{silent.LocalAddr().(*net.UDPAddr).AddrPort(), good.at}}
	began := time.Now()
	if got, _, err := resolveWith(t, o); err != nil || len(got) != 3*targetsAtOnce {
		t.Errorf("it gives %d endpoints and %v", len(got), err)
	}
	if took := time.Since(began); took > tryTimeout+tryTimeout/2 {
		t.Errorf("the look took %v, want hardly more than one wait of %v", took, tryTimeout)
	}
	good.fail.Store(&map[string]int{"_s._tcp.a. SRV": dns.RcodeServerFailure})
	_, _, err = resolveWith(t, o)
	if want := fmt.Sprintf("no answer: %s: timeout; %s: SERVFAIL", o.Servers[0], good.at); err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("it gives %v, want %q", err, want)
	}
}

// Servers turn records round; an error is the same all the same.
func TestErrorsHaveNoOrder(t *testing.T) {
	records := []string{"0 1 1 x.", "0 1 1 y.", "0 1 1 z."}
	s := startServer(t, zone{})
	texts := map[string]bool{}
	for range records {
		records = append(records[1:], records[0])
		s.zone.Store(&zone{"_s._tcp.a. SRV": records})
		_, _, err := resolveOnce(t, "_s._tcp.a", s)
		texts[fmt.Sprint(err)] = true
	}
	if len(texts) != 1 {
		t.Errorf("the errors differ: %v", texts)
	}
}
