package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
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
	var said []string
	for range rounds {
		said = said[:0]
		for _, server := range servers {
			m, err := try(ctx, server.String(), name, typ)
			if err == nil {
				return m, nil
			}
			if errors.Is(err, errNoName) {
				return nil, fmt.Errorf("%s %s: %w, says %s", name, dns.TypeToString[typ], err, server)
			}
			said = append(said, server.String()+": "+reason(err))
			if ctx.Err() != nil {
				break
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%s %s: no answer: %s", name, dns.TypeToString[typ], strings.Join(said, "; "))
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

// reason is an error without what differs from one try to the next, such as the port that was asked from.
func reason(err error) string {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "timeout"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if errors.Is(err, net.ErrClosed) {
		return "timeout" // see exchange
	}
	return err.Error()
}
