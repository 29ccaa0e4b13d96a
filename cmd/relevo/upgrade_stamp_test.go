//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// stamp says whose a request is and which, and what its server is to do. The content of a request and of its reply is made
// of it, so that whoever gets one knows every byte that must be in it.
type stamp struct {
	caller, number uint32
	wait           time.Duration // before the reply, in whole milliseconds
	reply          uint32        // its size, 0 for that of the request
}

const (
	stampSize  = 20 // bytes; the least that a content has
	stampBlock = 1 << 10
)

// noise is what stands between stamps.
var noise = func() (b [stampBlock]byte) {
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}()

// block is the i-th block of the content.
func (s stamp) block(b *[stampBlock]byte, i int) {
	*b = noise
	for at, n := range []uint32{s.caller, s.number, uint32(s.wait / time.Millisecond), s.reply, uint32(i)} {
		binary.BigEndian.PutUint32(b[4*at:], n)
	}
}

// content appends size bytes, at least stampSize.
func (s stamp) content(dst []byte, size int) []byte {
	var b [stampBlock]byte
	for i := 0; size > 0; i++ {
		s.block(&b, i)
		n := min(size, stampBlock)
		dst = append(dst, b[:n]...)
		size -= n
	}
	return dst
}

// replySize is the size of the reply to a request of this size.
func (s stamp) replySize(request int) int {
	if s.reply == 0 {
		return request
	}
	return int(s.reply)
}

// matches says whether this is the stamp's content, whole and unharmed.
func (s stamp) matches(content []byte) bool {
	if len(content) < stampSize {
		return false
	}
	var b [stampBlock]byte
	for i := 0; len(content) > 0; i++ {
		s.block(&b, i)
		n := min(len(content), stampBlock)
		if !bytes.Equal(content[:n], b[:n]) {
			return false
		}
		content = content[n:]
	}
	return true
}

// readStamp is the stamp of a content, if it is whole and unharmed.
func readStamp(content []byte) (s stamp, ok bool) {
	if len(content) < stampSize {
		return s, false
	}
	n := func(i int) uint32 { return binary.BigEndian.Uint32(content[4*i:]) }
	s = stamp{n(0), n(1), time.Duration(n(2)) * time.Millisecond, n(3)}
	return s, s.matches(content)
}

// inbox cuts what a connection brings into frames.
type inbox struct {
	from       io.Reader
	empty      func() error // before each read that may wait; nil for nothing
	buf        []byte
	start, end int
	m          wire.Message
}

// next is the next frame, valid until the next call. Its checksum, if it has one, is right.
func (in *inbox) next() (*wire.Message, error) {
	need := 512 // most connections here are idle, and there are thousands
	for {
		if in.start < in.end {
			n, err := bolt.Codec{VerifyCRC: true}.Decode(&in.m, in.buf[in.start:in.end], wire.Limits{})
			if err != nil {
				return nil, err
			}
			if n <= in.end-in.start {
				in.start += n
				return &in.m, nil
			}
			need = max(need, n)
		}
		if in.start > 0 || need > len(in.buf) {
			rest := in.buf[in.start:in.end]
			if need > len(in.buf) {
				in.buf = make([]byte, max(need, 2*len(in.buf)))
			}
			in.start, in.end = 0, copy(in.buf, rest)
		}
		if in.empty != nil {
			if err := in.empty(); err != nil {
				return nil, err
			}
		}
		n, err := in.from.Read(in.buf[in.end:])
		in.end += n
		if n == 0 && err != nil {
			return nil, err
		}
	}
}

// ledger is which requests of each caller have been seen, and which of them more than once.
type ledger struct {
	mu   sync.Mutex
	rows map[uint32]*row // Guarded by mu. By caller.
}

type row struct {
	numbers []uint64 // a bit each
	count   uint32
	again   []uint32
}

func newLedger() *ledger { return &ledger{rows: map[uint32]*row{}} }

func (l *ledger) see(caller, number uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.rows[caller]
	if s == nil {
		s = &row{}
		l.rows[caller] = s
	}
	if s.has(number) {
		s.again = append(s.again, number)
		return
	}
	for len(s.numbers) <= int(number/64) {
		s.numbers = append(s.numbers, 0)
	}
	s.numbers[number/64] |= 1 << (number % 64)
	s.count++
}

// has says whether a request has been seen.
func (l *ledger) has(caller, number uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.rows[caller]
	return s != nil && s.has(number)
}

func (s *row) has(number uint32) bool {
	return int(number/64) < len(s.numbers) && s.numbers[number/64]&(1<<(number%64)) != 0
}

// check says what is wrong unless the caller's requests 0 to n-1 have been seen, each once, and no others.
func (l *ledger) check(caller, n uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.rows[caller]
	if s == nil {
		s = &row{}
	}
	if len(s.again) > 0 {
		return fmt.Errorf("the servers saw %d requests more than once, number %d the first", len(s.again), s.again[0])
	}
	for i := range n {
		if !s.has(i) {
			return fmt.Errorf("the servers saw %d of %d requests, number %d is missing", s.count, n, i)
		}
	}
	if s.count != n {
		return fmt.Errorf("the servers saw %d requests, and %d were sent", s.count, n)
	}
	return nil
}
