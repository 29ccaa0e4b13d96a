package forwarder_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// layout is one of the four fixed headers as docs/wire/bolt.md lists them, written down once more, so that a frame's
// bytes are judged by other code than that which forwards them.
type layout struct {
	v2, request        bool
	idAt, codec, after int // offsets; after is the timeout or the status
	fixed              int
}

var (
	v1Request  = layout{request: true, idAt: 5, codec: 9, after: 10, fixed: 22}
	v2Request  = layout{v2: true, request: true, idAt: 6, codec: 10, after: 12, fixed: 24}
	v1Response = layout{idAt: 5, codec: 9, after: 10, fixed: 20}
	v2Response = layout{v2: true, idAt: 6, codec: 10, after: 12, fixed: 22}
)

// parts are what a raw frame is made of.
type parts struct {
	layout
	typ                    byte
	command                uint16
	ver1, ver2             byte
	serial, flags          byte
	id, timeout            uint32
	status                 uint16
	class, header, content []byte
}

func (p *parts) hasCRC() bool { return p.v2 && p.ver1 == 2 && p.flags&1 != 0 }

func (p *parts) frame() []byte {
	be := binary.BigEndian
	var b []byte
	if p.v2 {
		b = append(b, 2, p.ver1, p.typ)
	} else {
		b = append(b, 1, p.typ)
	}
	b = append(be.AppendUint16(b, p.command), p.ver2)
	b = append(be.AppendUint32(b, p.id), p.serial)
	if p.v2 {
		b = append(b, p.flags)
	}
	if p.request {
		b = be.AppendUint32(b, p.timeout)
	} else {
		b = be.AppendUint16(b, p.status)
	}
	b = be.AppendUint16(b, uint16(len(p.class)))
	b = be.AppendUint16(b, uint16(len(p.header)))
	b = be.AppendUint32(b, uint32(len(p.content)))
	b = append(append(append(b, p.class...), p.header...), p.content...)
	if p.hasCRC() {
		b = be.AppendUint32(b, crc32.ChecksumIEEE(b))
	}
	return b
}

// renumbered is the frame with another id (and timeout, of a request), and the CRC that it then has.
func (p *parts) renumbered(id, timeout uint32) []byte {
	q := *p
	q.id, q.timeout = id, timeout
	return q.frame()
}

var aByte = rapid.Byte()

// headerBlock draws any well-formed header block: keys and values may be null, empty, anything, and come twice.
func headerBlock(t *rapid.T) []byte {
	var b []byte
	for range rapid.IntRange(0, 4).Draw(t, "pairs") {
		for range 2 {
			if rapid.IntRange(0, 5).Draw(t, "null") == 0 {
				b = binary.BigEndian.AppendUint32(b, math.MaxUint32)
				continue
			}
			s := rapid.SliceOfN(aByte, 0, 40).Draw(t, "field")
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
		}
	}
	return b
}

// anyRequest draws any valid request; small ones are at most some hundred bytes.
func anyRequest(t *rapid.T, small bool) *parts {
	p := &parts{
		layout: v1Request, typ: byte(rapid.SampledFrom([]int{1, 1, 1, 2}).Draw(t, "type")), command: 1,
		ver2: aByte.Draw(t, "ver2"), serial: aByte.Draw(t, "codec"),
		id:      rapid.OneOf(rapid.SampledFrom([]uint32{0, 1, math.MaxInt32, math.MaxUint32}), rapid.Uint32()).Draw(t, "id"),
		timeout: uint32(rapid.SampledFrom([]int32{-1, 0, 60_000, math.MaxInt32, math.MinInt32}).Draw(t, "timeout")),
		class:   rapid.SliceOfN(aByte, 0, 80).Draw(t, "class"), header: headerBlock(t),
	}
	if rapid.Bool().Draw(t, "v2") {
		p.layout, p.ver1, p.flags = v2Request, rapid.SampledFrom([]byte{1, 2, 2, 7}).Draw(t, "ver1"), aByte.Draw(t, "switch")
	}
	size := rapid.SampledFrom([]int{0, 1, 7, 100}).Draw(t, "size")
	if !small {
		size = rapid.OneOf(rapid.Just(size), rapid.IntRange(0, 4096), rapid.IntRange(60<<10, 70<<10), rapid.IntRange(0, 200<<10)).Draw(t, "size")
	}
	p.content = noise(rapid.Uint64().Draw(t, "seed"), size)
	return p
}

func noise(seed uint64, size int) []byte {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// replyTo is the reply that the recording server gives to a request, a function of what travels untouched: a frame of
// any status, class, header block and content, in the request's version.
func replyTo(frame []byte) *parts {
	l := v1Request
	p := &parts{layout: v1Response, command: 2, ver2: frame[4]}
	if frame[0] == 2 {
		l = v2Request
		p.layout, p.ver1, p.ver2, p.flags = v2Response, frame[1], frame[5], frame[11]
	}
	p.serial, p.id = frame[l.codec], binary.BigEndian.Uint32(frame[l.idAt:])
	body := frame[l.fixed:]
	if p.hasCRC() {
		body = body[:len(body)-4]
	}
	r := rand.New(rand.NewPCG(uint64(crc32.ChecksumIEEE(body)), uint64(len(body))))
	p.status = uint16(r.UintN(20)) // those that Bolt does not define travel too
	p.class = noise(r.Uint64(), r.IntN(60))
	p.content = noise(r.Uint64(), []int{0, r.IntN(3000), r.IntN(200 << 10)}[r.IntN(3)])
	return p
}

// recorder answers with replyTo and keeps all that it gets.
type recorder struct {
	*server
	mu  sync.Mutex
	got [][]byte
}

func startRecorder(t *testing.T) *recorder {
	r := &recorder{}
	r.server = serve(t, func(p *peer) {
		for {
			m, err := p.next()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.got = append(r.got, m.Frame)
			r.mu.Unlock()
			if isOneway(m.Frame) {
				continue
			}
			if _, err := p.Write(replyTo(m.Frame).frame()); err != nil {
				return
			}
		}
	})
	return r
}

func isOneway(frame []byte) bool {
	return frame[0] == 1 && frame[1] == 2 || frame[0] == 2 && frame[2] == 2
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func (r *recorder) take() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return got
}

// startDifferential is a proxy that sends everything to a recorder.
func startDifferential(t *testing.T) (*proxy, *recorder) {
	r := startRecorder(t)
	s := spec(r.address)
	s.Routes[0].Rules[0].Match = route.Match{}
	s.Routes[0].Rules[0].Timeout = patience
	return startProxy(t, s, 512<<20), r
}

// reporter is what *testing.T and *rapid.T have in common.
type reporter interface {
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// checkForwarded compares what was sent with what arrived: the same but for id, timeout and CRC. The order is free: what
// waited for the connection may be overtaken.
func checkForwarded(t reporter, sent []*parts, got [][]byte) {
	if len(got) != len(sent) {
		t.Fatalf("got %d frames at the server, want the %d that were sent", len(got), len(sent))
	}
	left := slices.Clone(sent)
	for _, frame := range got {
		i := slices.IndexFunc(left, func(q *parts) bool { return bytes.Equal(frame, q.forwardedAs(frame)) })
		if i < 0 {
			t.Fatalf("%s", difference("request", frame, left[0].forwardedAs(frame)))
		}
		checkPatched(t, left[i], frame)
		left = slices.Delete(left, i, i+1)
	}
}

// forwardedAs is what the frame must look like with the id and the timeout that it came with.
func (p *parts) forwardedAs(got []byte) []byte {
	if len(got) < p.fixed {
		return p.frame()
	}
	be := binary.BigEndian
	return p.renumbered(be.Uint32(got[p.idAt:]), be.Uint32(got[p.after:]))
}

func checkPatched(t reporter, sent *parts, got []byte) {
	id := binary.BigEndian.Uint32(got[sent.idAt:])
	if id == 0 || id > math.MaxInt32 {
		t.Errorf("got the id %d upstream, want 1 to 2^31-1: peers read it as signed", id)
	}
	before, left := int32(sent.timeout), int32(binary.BigEndian.Uint32(got[sent.after:]))
	switch most := int32(patience.Milliseconds()); {
	case sent.typ == 2 && left != before:
		t.Errorf("got a one-way request with timeout %d, want the %d that was sent: nothing waits for it", left, before)
	case sent.typ == 1 && (left < 1 || left > most || before > 0 && left > before):
		t.Errorf("got a timeout of %d ms upstream, want what is left of min(%d, the route's %d), at least 1", left, before, most)
	}
}

func difference(what string, got, want []byte) string {
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Sprintf("got a %s of %d bytes that differs at offset %d, want %d bytes, the same but for id, timeout and CRC\ngot  ...%x\nwant ...%x",
		what, len(got), at, len(want), got[at:min(len(got), at+24)], want[at:min(len(want), at+24)])
}

// checkReplies reads the replies to the requests that want one, and compares them.
func checkReplies(t reporter, c *peer, sent []*parts) {
	left := slices.DeleteFunc(slices.Clone(sent), func(p *parts) bool { return p.typ == 2 })
	for len(left) > 0 {
		m, err := c.next()
		if err != nil {
			t.Fatalf("got %v, want %d more replies", err, len(left))
		}
		i := slices.IndexFunc(left, func(p *parts) bool { return bytes.Equal(m.Frame, replyTo(p.frame()).renumbered(p.id, 0)) })
		if i < 0 {
			t.Fatalf("%s", difference("reply", m.Frame, replyTo(left[0].frame()).renumbered(left[0].id, 0)))
		}
		left = slices.Delete(left, i, i+1)
	}
}

// TestBytesOutEqualBytesIn forwards any mix of valid frames on one connection, written in any pieces.
func TestBytesOutEqualBytesIn(t *testing.T) {
	p, r := startDifferential(t)
	rapid.Check(t, func(rt *rapid.T) {
		c, sent := dial(t, p.address), []*parts{}
		defer c.Close()
		var stream []byte
		for range rapid.IntRange(1, 6).Draw(rt, "frames") {
			q := anyRequest(rt, false)
			sent, stream = append(sent, q), append(stream, q.frame()...)
		}
		go func() { // ends with the last piece, or with the connection
			for len(stream) > 0 {
				n := len(stream)
				if len(sent) > 1 || n < 4096 {
					n = 1 + int(uint64(crc32.ChecksumIEEE(stream))*uint64(n)>>32)
				}
				if _, err := c.Write(stream[:n]); err != nil {
					return
				}
				stream = stream[n:]
			}
		}()
		checkReplies(rt, c, sent)
		eventually(t, func() bool { return r.count() >= len(sent) }, say("%d frames at the server", len(sent)))
		checkForwarded(rt, sent, r.take())
	})
}

// TestSplitAtEveryByte writes a frame in two pieces, of which the first has been read before the second is written, for
// every place at which it can be cut; the frame before and half of the one behind travel along.
func TestSplitAtEveryByte(t *testing.T) {
	p, r := startDifferential(t)
	c := dial(t, p.address)
	total := 0
	header := append(binary.BigEndian.AppendUint32(nil, 1), 'k', 0xff, 0xff, 0xff, 0xff)
	for _, q := range []*parts{
		{layout: v1Request, typ: 1, command: 1, serial: 1, id: 0, class: []byte("c"), header: header, content: []byte("some content")},
		{layout: v2Request, typ: 1, command: 1, ver1: 1, flags: 1, id: math.MaxInt32, header: header},
		{layout: v2Request, typ: 1, command: 1, ver1: 2, flags: 1, id: math.MaxUint32, content: []byte("checked")},
		{layout: v1Request, typ: 2, command: 1, serial: 12, id: 7, timeout: math.MaxUint32, content: []byte("one-way")},
	} {
		frame := q.frame()
		for cut := range len(frame) {
			c.send(frame, frame[:cut])
			total += len(frame) + cut
			p.reading(total)
			c.send(frame[cut:])
			total += len(frame) - cut
			checkReplies(t, c, []*parts{q, q})
			eventually(t, func() bool { return r.count() == 2 }, say("2 frames at the server, cut at %d", cut))
			checkForwarded(t, []*parts{q, q}, r.take())
		}
	}
}

// TestCollidingIDs has clients that all use the same few ids at once.
func TestCollidingIDs(t *testing.T) {
	s := serveEach(t, echoEach)
	p := startProxy(t, spec(s.address), 512<<20)
	ids := []uint32{0, 1, 2, math.MaxInt32 - 1, math.MaxInt32, math.MaxUint32}
	var group sync.WaitGroup
	for client := range 8 {
		c := dial(t, p.address)
		var stream []byte
		for round := range 20 {
			for _, id := range ids {
				q := request(id, fmt.Sprintf("client %d round %d id %d", client, round, id))
				q.Version = bolt.Version((client + round) % 3)
				stream = append(stream, encode(t, q)...)
			}
		}
		group.Go(func() { // ends when all replies are there
			go func() { _, _ = c.Write(stream) }() // ends with the last byte, or the connection
			want := make(map[string]uint32)
			for round := range 20 {
				for _, id := range ids {
					want[fmt.Sprintf("client %d round %d id %d", client, round, id)] = id
				}
			}
			for len(want) > 0 {
				m, err := c.next()
				if err != nil {
					t.Errorf("client %d: got %v, want %d more replies", client, err, len(want))
					return
				}
				content := string(m.Content())
				if id, mine := want[content]; !mine || id != m.ID {
					t.Errorf("client %d got the reply %q with id %d, want its own, once, with its id", client, content, m.ID)
					return
				}
				delete(want, content)
			}
		})
	}
	group.Wait()
}
