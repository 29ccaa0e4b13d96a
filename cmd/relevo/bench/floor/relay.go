package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

const (
	readSize = 256 << 10
	slots    = 1 << 16 // requests in flight at most; a power of two
)

// Bolt v1: the type is the second byte, the id the sixth and on; a frame's lengths of class, header block and content follow
// its fixed part.
const (
	typeAt, idAt             = 1, 5
	requestFixed, replyFixed = 22, 20
	replyType                = 0
)

var errNotBolt = errors.New("not Bolt v1")

// frame returns the length of the frame that b begins with, 0 if it is not whole.
func frame(b []byte) (int, error) {
	if len(b) < requestFixed {
		return 0, nil // a reply without content is shorter: the server of the benchmark sends none
	}
	if b[0] != 1 {
		return 0, errNotBolt
	}
	fixed := requestFixed
	if b[typeAt] == replyType {
		fixed = replyFixed
	}
	lengths := binary.BigEndian.Uint64(b[fixed-8:])
	n := fixed + int(lengths>>48) + int(lengths>>32&0xffff) + int(uint32(lengths))
	if n > len(b) {
		n = 0
	}
	return n, nil
}

// frames reads from a connection and calls each for every frame, then flush after those of one read. It ends with the
// connection.
func frames(c io.Reader, each func([]byte), flush func()) error {
	in := make([]byte, readSize)
	have := 0
	for {
		n, err := c.Read(in[have:])
		if err != nil {
			return err
		}
		have += n
		done := 0
		for {
			n, err := frame(in[done:have])
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			each(in[done : done+n])
			done += n
		}
		flush()
		have = copy(in, in[done:have])
		if have == len(in) {
			in = append(in, make([]byte, len(in))...) // a frame that is larger
		}
	}
}

// peer is one side's connection and what is still to be written to it.
type peer struct {
	// Static.
	conn *socket

	// Owned by the server's read loop.
	owed bool // a client that gets a flush at the end of this read

	// Guarded by mu.
	mu      sync.Mutex
	out     []byte
	spare   []byte
	writing bool // by somebody who looks again before they leave
}

// append takes a copy of a frame under another id.
func (p *peer) append(frame []byte, id uint32) {
	p.mu.Lock()
	at := len(p.out) + idAt
	p.out = append(p.out, frame...)
	binary.BigEndian.PutUint32(p.out[at:], id)
	p.mu.Unlock()
}

// flush writes what was appended, by whomever, in one write.
func (p *peer) flush() {
	p.mu.Lock()
	if p.writing {
		p.mu.Unlock()
		return
	}
	p.writing = true
	for len(p.out) > 0 {
		out := p.out
		p.out = p.spare[:0]
		p.mu.Unlock()
		_, _ = p.conn.Write(out) // a connection that is gone tells its reader
		p.mu.Lock()
		p.spare = out
	}
	p.writing = false
	p.mu.Unlock()
}

// relay is the server's connection and who waits for a reply on it.
type relay struct {
	server *peer

	// Guarded by mu.
	mu    sync.Mutex
	last  uint32
	calls [slots]call // by id modulo slots
}

// call is a request in flight.
type call struct {
	client *peer // nil: the slot is free
	id     uint32
	theirs uint32 // the id that the client gave it
}

func newRelay(server net.Conn) (*relay, error) {
	s, err := newSocket(server)
	return &relay{server: &peer{conn: s}}, err
}

// insert stores a call and returns its id on the server's connection. There have to be fewer calls than slots.
func (r *relay) insert(c call) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	for r.calls[r.last%slots].client != nil {
		r.last++
	}
	c.id = r.last
	r.calls[c.id%slots] = c
	return c.id
}

// take removes a call.
func (r *relay) take(id uint32) (c call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at := &r.calls[id%slots]; at.client != nil && at.id == id {
		c, *at = *at, call{}
	}
	return c
}

// down carries a client's requests.
func (r *relay) down(conn net.Conn) {
	defer conn.Close()
	s, err := newSocket(conn)
	if err != nil {
		return
	}
	client := &peer{conn: s}
	_ = frames(s, func(f []byte) { // the client is gone: how says nothing
		theirs := binary.BigEndian.Uint32(f[idAt:])
		r.server.append(f, r.insert(call{client: client, theirs: theirs}))
	}, r.server.flush)
}

// up carries the server's replies.
func (r *relay) up() error {
	var owed []*peer // clients to flush
	return frames(r.server.conn, func(f []byte) {
		c := r.take(binary.BigEndian.Uint32(f[idAt:]))
		if c.client == nil {
			return
		}
		c.client.append(f, c.theirs)
		if !c.client.owed {
			c.client.owed = true
			owed = append(owed, c.client)
		}
	}, func() {
		for _, p := range owed {
			p.owed = false
			p.flush()
		}
		owed = owed[:0]
	})
}
