//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// board is memory that a test and the servers of its fleet share: how each server is to behave, what it has done, and
// which requests were executed. It is a mapped file, so that what a server has noted outlives its SIGKILL, and that
// one which is stopped can be told something.
type board struct {
	file string
	size boardSize
	mem  []byte
	// Parts of mem, all accessed atomically.
	servers []uint32 // serverWords for each server
	cells   []uint32 // how often each request was executed, by lane, connection and number
}

// boardSize says what there is room for.
type boardSize struct{ servers, lanes, links, numbers int }

// What the board has of each server.
const (
	wordMode     = iota // what it is to do
	wordDelay           // milliseconds of work for a request
	wordStarted         // requests whose execution has begun
	wordRefused         // requests answered busy because it was told to
	wordOverflow        // requests answered busy because its queue was full
	wordStray           // requests with a stamp for which there is no room
	serverWords
)

// lane names the requests of one load: its service is "NAME:LANE", and what the servers execute of it is noted. The
// stamps are those of `relevo bench`, of which two runs may not share a lane.
type lane int

// unnoted is for loads whose requests are counted, and not told apart.
const unnoted lane = -1

func (s boardSize) words() int { return s.servers*serverWords + s.lanes*s.links*s.numbers }

// newBoard makes a board. The pages that nobody touches cost nothing.
func newBoard(t testing.TB, s boardSize) *board {
	t.Helper()
	name := filepath.Join(t.TempDir(), "board")
	f, err := os.Create(name)
	if err == nil {
		err = errors.Join(f.Truncate(int64(4*s.words())), f.Close())
	}
	var b *board
	if err == nil {
		b, err = openBoard(name, s)
	}
	if err != nil {
		t.Fatalf("making the board of a fleet: %v", err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b.mem) })
	return b
}

// openBoard maps the file.
func openBoard(name string, s boardSize) (*board, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, 4*s.words(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", name, err)
	}
	words := unsafe.Slice((*uint32)(unsafe.Pointer(&mem[0])), s.words())
	own := s.servers * serverWords
	return &board{file: name, size: s, mem: mem, servers: words[:own], cells: words[own:]}, nil
}

// word is one of a server's words.
func (b *board) word(server, which int) *uint32 { return &b.servers[server*serverWords+which] }

func (b *board) get(server, which int) uint32 { return atomic.LoadUint32(b.word(server, which)) }

// sum adds up a word of all servers.
func (b *board) sum(which int) (n uint64) {
	for i := range b.size.servers {
		n += uint64(b.get(i, which))
	}
	return n
}

// tell has a server behave so from its next request on.
func (b *board) tell(server int, mode mode, delay time.Duration) {
	atomic.StoreUint32(b.word(server, wordDelay), uint32(delay/time.Millisecond))
	atomic.StoreUint32(b.word(server, wordMode), uint32(mode))
}

// execute notes that a server executes a request.
func (b *board) execute(server int, l lane, link, number uint64) {
	atomic.AddUint32(b.word(server, wordStarted), 1)
	if l == unnoted {
		return
	}
	if int(l) >= b.size.lanes || link >= uint64(b.size.links) || number >= uint64(b.size.numbers) {
		atomic.AddUint32(b.word(server, wordStray), 1)
		return
	}
	atomic.AddUint32(&b.cells[(int(l)*b.size.links+int(link))*b.size.numbers+int(number)], 1)
}

// executed is what has become of a lane's requests.
type executed struct {
	distinct, times uint64 // requests executed at least once, and executions
	again           uint64 // requests executed more than once
	example         string // the first of those
}

func (b *board) executed(l lane) (e executed) {
	first := int(l) * b.size.links * b.size.numbers
	for i := range b.size.links * b.size.numbers {
		n := atomic.LoadUint32(&b.cells[first+i])
		if n == 0 {
			continue
		}
		e.distinct++
		e.times += uint64(n)
		if n > 1 {
			if e.again++; e.again == 1 {
				e.example = fmt.Sprintf("request %d of connection %d, %d times", i%b.size.numbers, i/b.size.numbers, n)
			}
		}
	}
	return e
}

// once says what is wrong unless nothing of the lane was executed twice, and everything was that somebody was told so.
func (b *board) once(l lane, ok uint64) error {
	e := b.executed(l)
	var errs []error
	if e.again > 0 {
		errs = append(errs, fmt.Errorf("%d requests that are not idempotent were executed more than once: %s", e.again, e.example))
	}
	return errors.Join(append(errs, b.atLeast(l, ok))...)
}

// atLeast says what is wrong unless as many requests of the lane were executed as clients were told.
func (b *board) atLeast(l lane, ok uint64) error {
	var errs []error
	if e := b.executed(l); e.distinct < ok {
		errs = append(errs, fmt.Errorf("clients were told of %d requests that they succeeded, and the servers have executed %d", ok, e.distinct))
	}
	if n := b.sum(wordStray); n > 0 {
		errs = append(errs, fmt.Errorf("%d requests have stamps for which the board has no room", n))
	}
	return errors.Join(errs...)
}

// The board tells a duplicate, a reply to what was never executed, and what it cannot note; or the tests prove nothing.
func TestBoard(t *testing.T) {
	b := newBoard(t, boardSize{servers: 2, lanes: 2, links: 2, numbers: 3})
	other, err := openBoard(b.file, b.size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(other.mem) }()
	b.tell(1, busy, 7*time.Millisecond)
	if got := mode(other.get(1, wordMode)); got != busy || other.get(1, wordDelay) != 7 || mode(other.get(0, wordMode)) != fine {
		t.Errorf("the second server is told %v, %d ms, and the first %v; want %v, 7 and %v", got, other.get(1, wordDelay), mode(other.get(0, wordMode)), busy, fine)
	}
	other.execute(0, 1, 1, 2)
	other.execute(1, 0, 1, 2)
	other.execute(1, unnoted, 0, 0)
	if err := errors.Join(b.once(0, 1), b.once(1, 1)); err != nil {
		t.Errorf("each was executed once, and yet: %v", err)
	}
	if b.once(1, 2) == nil {
		t.Error("a success of what was never executed goes unnoticed")
	}
	other.execute(1, 1, 1, 2)
	want := executed{distinct: 1, times: 2, again: 1, example: "request 2 of connection 1, 2 times"}
	if got := b.executed(1); got != want || b.once(1, 1) == nil {
		t.Errorf("executed is %+v, and %v; want %+v and that it is wrong", got, b.once(1, 1), want)
	}
	if err := b.once(0, 1); err != nil {
		t.Errorf("the other lane has no duplicate, and yet: %v", err)
	}
	other.execute(0, 0, 2, 0)
	if b.atLeast(0, 1) == nil {
		t.Error("a stamp without room goes unnoticed")
	}
	if n := b.sum(wordStarted); n != 5 {
		t.Errorf("%d executions are counted, want 5", n)
	}
}
