package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// The bounds of one question.
const (
	tryTimeout = 2 * time.Second
	rounds     = 2 // in each of them each server is asked once
	maxServers = 8
	udpSize    = 1232 // bytes, which no path breaks up
)

// asker asks questions, of several servers one after the other.
type asker struct {
	// Static.
	servers    []netip.AddrPort
	resolvConf string // for when there are none

	mu sync.Mutex
	// Guarded by mu.
	silent map[netip.AddrPort]bool // those that a question of this look has waited for in vain
}

// begin is called before each look.
func (a *asker) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = make(map[netip.AddrPort]bool)
}

// order puts those that are silent last: a look asks many questions, and is to wait for a dead server once.
func (a *asker) order(servers []netip.AddrPort) []netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out, last []netip.AddrPort
	for _, server := range servers {
		if a.silent[server] {
			last = append(last, server)
		} else {
			out = append(out, server)
		}
	}
	return append(out, last...)
}

// note says whether a server has let a question wait in vain.
func (a *asker) note(server netip.AddrPort, silent bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent[server] = silent
}

// errNoName is the answer that a name does not exist, and errNoData that it has no records of the type.
var (
	errNoName = errors.New("there is no such name")
	errNoData = errors.New("there is no such record")
)

// ask returns an answer to one question. The error is errNoName or errNoData where a server has said so, wrapped; any other
// means that none has answered.
func (a *asker) ask(ctx context.Context, name string, typ uint16) (*dns.Msg, error) {
	servers, err := a.known()
	if err != nil {
		return nil, err
	}
	said := make(map[netip.AddrPort]string)
	for range rounds {
		clear(said)
		for _, server := range a.order(servers) {
			m, err := try(ctx, server.String(), name, typ)
			if err == nil {
				a.note(server, false)
				return m, nil
			}
			if errors.Is(err, errNoName) {
				a.note(server, false)
				return nil, fmt.Errorf("%s %s: %w, says %s", name, dns.TypeToString[typ], err, server)
			}
			said[server] = reason(err)
			a.note(server, said[server] == timeout)
			if ctx.Err() != nil {
				break
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	var all []string
	for _, server := range servers {
		if why, ok := said[server]; ok {
			all = append(all, server.String()+": "+why)
		}
	}
	return nil, fmt.Errorf("%s %s: no answer: %s", name, dns.TypeToString[typ], strings.Join(all, "; "))
}

// known are the servers.
func (a *asker) known() ([]netip.AddrPort, error) {
	if len(a.servers) > 0 {
		return a.servers, nil
	}
	c, err := dns.ClientConfigFromFile(a.resolvConf)
	if err != nil {
		return nil, fmt.Errorf("whom to ask: %w", err)
	}
	var out []netip.AddrPort
	for _, text := range c.Servers {
		at, err := netip.ParseAddrPort(net.JoinHostPort(text, c.Port))
		if err == nil && len(out) < maxServers {
			out = append(out, at)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("whom to ask: %s names no server", a.resolvConf)
	}
	return out, nil
}

// try asks one server once: over UDP, and over TCP what does not fit.
func try(ctx context.Context, server, name string, typ uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	q := new(dns.Msg)
	q.SetQuestion(name, typ)
	q.SetEdns0(udpSize, false)
	m, err := exchange(ctx, "udp", q, server)
	if err == nil && m.Rcode == dns.RcodeFormatError { // it does not know EDNS0
		q.Extra = nil
		m, err = exchange(ctx, "udp", q, server)
	}
	if err == nil && m.Truncated {
		m, err = exchange(ctx, "tcp", q, server)
	}
	switch {
	case err != nil:
		return nil, err
	case m.Rcode == dns.RcodeNameError:
		return nil, errNoName
	case m.Rcode != dns.RcodeSuccess:
		return nil, rcodeError(m.Rcode)
	case m.Truncated:
		return nil, errors.New("the answer is cut off")
	}
	return m, nil
}

// exchange sends a question and takes the answer to it. What answers another one is none, and is as good as silence.
func exchange(ctx context.Context, network string, q *dns.Msg, server string) (*dns.Msg, error) {
	c := dns.Client{Net: network, Timeout: tryTimeout, UDPSize: udpSize}
	conn, err := c.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // the library minds the deadline, and not that ctx ends
	m, _, err := c.ExchangeWithConnContext(ctx, q, conn)
	if err != nil {
		return nil, err
	}
	if !m.Response || len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) ||
		m.Question[0].Qtype != q.Question[0].Qtype || m.Question[0].Qclass != q.Question[0].Qclass {
		if m.Rcode == dns.RcodeFormatError && len(m.Question) == 0 {
			return m, nil // it may leave out what it did not understand
		}
		return nil, errors.New("it answers another question")
	}
	return m, nil
}

// rcodeError is a server's refusal.
type rcodeError int

func (e rcodeError) Error() string {
	if word, ok := dns.RcodeToString[int(e)]; ok {
		return word
	}
	return fmt.Sprintf("RCODE %d", int(e))
}

// timeout is the reason where there is no answer.
const timeout = "timeout"

// reason is an error without what differs from one try to the next, such as the port that was asked from.
func reason(err error) string {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return timeout
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if errors.Is(err, net.ErrClosed) {
		return timeout // see exchange
	}
	return err.Error()
}
