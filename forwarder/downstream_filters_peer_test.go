package forwarder_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder/filter"
)

// scramble changes a stream so that nobody can read it who does not know how: each byte is mixed with a key that depends
// on its place, and behind every seven there is one more. One object serves one direction.
type scramble struct {
	seed byte
	n    int // bytes in scrambled form so far
}

func key(seed byte, n int) byte { return seed + byte(n*n*31+n) }

// seal makes the scrambled form, in memory of its own.
func (s *scramble) seal(p []byte) []byte {
	out := make([]byte, len(p)+len(p)/7+1)
	n, at, seed := s.n, 0, s.seed
	for _, b := range p {
		if n%8 == 7 {
			out[at] = key(seed, n)
			n++
			at++
		}
		out[at] = b ^ key(seed, n)
		n++
		at++
	}
	s.n = n
	return out[:at]
}

// open undoes seal, in place.
func (s *scramble) open(p []byte) []byte {
	n, at, seed := s.n, 0, s.seed
	for _, b := range p {
		if n%8 != 7 {
			p[at] = b ^ key(seed, n)
			at++
		}
		n++
	}
	s.n = n
	return p[:at]
}

func TestScramble(t *testing.T) {
	in, out := &scramble{seed: 3}, &scramble{seed: 3}
	var got []byte
	text := bytes.Repeat([]byte("a stream that is cut anywhere; "), 50)
	sealed := in.seal(bytes.Clone(text))
	if len(sealed) < len(text)*8/7 || bytes.Contains(sealed, []byte("stream")) {
		t.Fatalf("got %d bytes sealed of %d, want more of them and not readable", len(sealed), len(text))
	}
	for i := 0; i < len(sealed); i += 13 {
		got = append(got, out.open(sealed[i:min(i+13, len(sealed))])...)
	}
	if !bytes.Equal(got, text) {
		t.Errorf("got %d bytes opened, want the %d that were sealed", len(got), len(text))
	}
}

// scrambler is a connection filter whose clients scramble what they say, and hear it so. It stops at every so manieth
// call; somebody else resumes it.
type scrambler struct {
	seed  byte
	every int // 0: never
	group *sync.WaitGroup
	stops atomic.Int64
}

func (*scrambler) Name() string { return "scramble" }

func (f *scrambler) New(c *filter.Connection) any {
	return &scrambled{filter: f, connection: c, in: scramble{seed: f.seed}, out: scramble{seed: f.seed}}
}

type scrambled struct {
	filter     *scrambler
	connection *filter.Connection
	in, out    scramble
	inCalls    int
	outCalls   int
}

func (s *scrambled) OnNew() filter.Next { return s.next(0) }

func (s *scrambled) OnRead(p []byte) ([]byte, filter.Next) {
	s.inCalls++
	return s.in.open(p), s.next(s.inCalls)
}

func (s *scrambled) OnWrite(p []byte) ([]byte, filter.Next) {
	s.outCalls++
	return s.out.seal(p), s.next(s.outCalls)
}

// next stops when it is time for it, and sees to it that the stop ends: early, late, or twice.
func (s *scrambled) next(call int) filter.Next {
	f := s.filter
	if f.every == 0 || call%f.every != 0 {
		return filter.Pass
	}
	hold := s.connection.Hold()
	switch f.stops.Add(1) % 4 {
	case 0:
		hold.Resume()
	case 1:
		f.group.Go(hold.Resume) // ends at once
	case 2:
		f.group.Go(func() { // ends soon
			for range 100 {
				runtime.Gosched()
			}
			hold.Resume()
			hold.Resume()
		})
	default:
		f.group.Go(hold.Resume) // ends at once
		f.group.Go(hold.Resume) // ends at once
	}
	return filter.Wait(hold)
}

// tunnel listens for clients who know nothing of scrambling, and scrambles for them, with these seeds, the outermost
// first. It returns its address.
func tunnel(t *testing.T, to string, seeds ...byte) string {
	s := serve(t, func(client *peer) {
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Error(err)
			return
		}
		proxy := c.(*net.TCPConn)
		var group sync.WaitGroup
		group.Go(func() { // ends when the client, or the script, closes
			layers := make([]scramble, len(seeds))
			relay(proxy, client.TCPConn, func(p []byte) []byte {
				for i := len(seeds) - 1; i >= 0; i-- {
					layers[i].seed = seeds[i]
					p = layers[i].seal(p)
				}
				return p
			})
		})
		layers := make([]scramble, len(seeds))
		relay(client.TCPConn, proxy, func(p []byte) []byte {
			for i := range seeds {
				layers[i].seed = seeds[i]
				p = layers[i].open(p)
			}
			return p
		})
		client.Close()
		proxy.Close()
		group.Wait()
	})
	return s.address
}

// relay copies what it has changed until there is no more.
func relay(to, from *net.TCPConn, change func([]byte) []byte) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(change(buf[:n])); err != nil {
				_, _ = io.Copy(io.Discard, from)
				return
			}
		}
		if err != nil {
			_ = to.CloseWrite()
			return
		}
	}
}

// script is a connection filter that does what a test tells it to, the same at each connection.
type script struct {
	onNew         func(*filter.Connection) filter.Next
	onRead, onOut func(*filter.Connection, []byte) ([]byte, filter.Next)
}

func (*script) Name() string                   { return "script" }
func (s *script) New(c *filter.Connection) any { return &scripted{s, c} }

type scripted struct {
	script     *script
	connection *filter.Connection
}

func (s *scripted) OnNew() filter.Next {
	if s.script.onNew == nil {
		return filter.Pass
	}
	return s.script.onNew(s.connection)
}

func (s *scripted) OnRead(p []byte) ([]byte, filter.Next) {
	if s.script.onRead == nil {
		return p, filter.Pass
	}
	return s.script.onRead(s.connection, p)
}

func (s *scripted) OnWrite(p []byte) ([]byte, filter.Next) {
	if s.script.onOut == nil {
		return p, filter.Pass
	}
	return s.script.onOut(s.connection, p)
}

// ways are a filter's three ways, each with a script that says the same there.
var ways = map[string]func(func(*filter.Connection) filter.Next) *script{
	"new": func(say func(*filter.Connection) filter.Next) *script { return &script{onNew: say} },
	"in": func(say func(*filter.Connection) filter.Next) *script {
		return &script{onRead: func(c *filter.Connection, p []byte) ([]byte, filter.Next) { return p, say(c) }}
	},
	"out": func(say func(*filter.Connection) filter.Next) *script {
		return &script{onOut: func(c *filter.Connection, p []byte) ([]byte, filter.Next) { return p, say(c) }}
	},
}
