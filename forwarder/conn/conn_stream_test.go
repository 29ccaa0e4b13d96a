package conn

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// peer is the other end of a real connection.
type peer interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// patience is how long a real socket may take before a test calls it hung.
const patience = time.Minute

// sockets are the kinds of connections that there are. A small one has little room in the kernel, so that it is full often.
var sockets = map[string]func(t testing.TB, small bool) (Socket, peer){"tcp": tcpPair, "unix": unixPair}

func tcpPair(t testing.TB, small bool) (Socket, peer) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listening: %v", err)
	}
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("dialling: %v", err)
	}
	near, err := l.Accept()
	if err != nil {
		t.Fatalf("accepting: %v", err)
	}
	if small {
		// Not so small that the peer waits before it tells how much more it can take.
		if err := near.(*net.TCPConn).SetWriteBuffer(16 << 10); err != nil {
			t.Fatalf("making the kernel's buffer small: %v", err)
		}
	}
	ready(t, far)
	return near.(*net.TCPConn), far
}

func unixPair(t testing.TB, small bool) (Socket, peer) {
	t.Helper()
	near, far := socketPair(t)
	if small {
		for _, fd := range []int{near, far} {
			if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, 4096); err != nil {
				t.Fatalf("making the kernel's buffers small: %v", err)
			}
		}
	}
	p := fileOf(far)
	ready(t, p)
	return fileOf(near), p
}

func fileOf(fd int) *os.File { return os.NewFile(uintptr(fd), "socket") }

func socketPair(t testing.TB) (near, far int) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("making a socket pair: %v", err)
	}
	return fds[0], fds[1]
}

func ready(t testing.TB, p peer) {
	t.Helper()
	if err := p.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatalf("setting the peer's deadline: %v", err)
	}
	t.Cleanup(func() { _ = p.Close() })
}

// realConn returns a connection on a real socket.
func realConn(t testing.TB, s Socket, buffers *Buffers, cfg Config) *Conn {
	t.Helper()
	c, err := New(s, buffers, cfg)
	if err != nil {
		t.Fatalf("connection on a real socket: %v", err)
	}
	return c
}

func onBothSockets(t *testing.T, test func(t *testing.T, pair func(t testing.TB, small bool) (Socket, peer))) {
	for name, pair := range sockets {
		t.Run(name, func(t *testing.T) { test(t, pair) })
	}
}

// randomSize is mostly that of a small frame, now and then that of one that is larger than a read buffer.
func randomSize(r *rand.Rand) int {
	switch r.IntN(200) {
	case 0:
		return 66_000 + r.IntN(150_000)
	case 1, 2, 3, 4:
		return 5_000 + r.IntN(20_000)
	default:
		return frameHead + r.IntN(2_000)
	}
}

// ledger checks a stream of frames: each whole, and those of each appender in order.
type ledger struct {
	buf   []byte
	next  map[int]int // the number of the next frame, by appender
	bytes uint64
}

// receive reads at the pace of somebody who is busy otherwise, until the end of file or an error.
func (l *ledger) receive(p peer, r *rand.Rand) error {
	l.next = map[int]int{}
	piece := make([]byte, 16<<10)
	for {
		if r.IntN(10) == 0 {
			for range r.IntN(100) {
				runtime.Gosched()
			}
		}
		n, err := p.Read(piece[:1+r.IntN(len(piece))])
		l.bytes += uint64(n)
		l.buf = append(l.buf, piece[:n]...)
		at := 0
		for {
			who, serial, size, err := checkFrame(l.buf[at:])
			if err != nil {
				return err
			}
			if size == 0 {
				break
			}
			if serial != l.next[who] {
				return errors.New("a frame was lost, doubled, or overtook another of its appender")
			}
			l.next[who]++
			at += size
		}
		l.buf = append(l.buf[:0], l.buf[at:]...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// TestManyAppenders has many goroutines append to one connection, to a peer that reads slowly. Whoever is refused because
// too much is queued waits until Drained tells.
func TestManyAppenders(t *testing.T) {
	onBothSockets(t, func(t *testing.T, pair func(testing.TB, bool) (Socket, peer)) {
		const appenders, each = 8, 400
		buffers := newBuffers(t, 64<<20)
		s, p := pair(t, true)
		var mu sync.Mutex
		drained := sync.NewCond(&mu)
		times := 0 // that Drained was called; guarded by mu
		tell := func() {
			mu.Lock()
			times++
			mu.Unlock()
			drained.Broadcast()
		}
		c := realConn(t, s, buffers, Config{High: 100 << 10, Low: 50 << 10, MaxQueued: 200 << 10, Class: Requests, Drained: tell})
		var got ledger
		var received error
		var receiving, appending sync.WaitGroup
		receiving.Go(func() { // ends at the end of file
			if received = got.receive(p, rand.New(rand.NewPCG(1, 1))); received != nil {
				c.Close("test")
				tell()
			}
		})
		var appended atomic.Uint64
		for who := range appenders {
			appending.Go(func() { // ends when all is appended
				r := rand.New(rand.NewPCG(2, uint64(who)))
				var frame []byte
				owed := false
				for serial := 0; serial < each; {
					size := randomSize(r)
					frame = appendFrame(frame[:0], who, serial, size)
					mu.Lock()
					seen := times
					mu.Unlock()
					var v Verdict
					if r.IntN(4) == 0 {
						own := append(buffers.Get(size)[:0], frame...)
						if v = c.AppendOwned(own); v == Full || v == Refused {
							buffers.Put(own)
						}
					} else {
						v = c.Append(frame)
					}
					switch v {
					case First:
						owed = true
						fallthrough
					case Appended:
						serial++
						appended.Add(uint64(size))
					case Full:
					default:
						t.Errorf("got verdict %d (closed for %q), want the frame taken", v, c.Reason())
						return
					}
					if owed && (v == Full || r.IntN(8) == 0) {
						owed = false
						c.Flush()
					}
					if v == Full {
						mu.Lock()
						for times == seen {
							drained.Wait()
						}
						mu.Unlock()
					}
				}
				if owed {
					c.Flush()
				}
			})
		}
		appending.Wait()
		if err := c.Finish("done"); err != nil {
			t.Errorf("got %v from Finish, want nil", err)
		}
		receiving.Wait()
		giveBack(t, c)
		if received != nil {
			t.Fatalf("the peer, after %d bytes: %v", got.bytes, received)
		}
		for who := range appenders {
			if got.next[who] != each {
				t.Errorf("got %d frames of appender %d, want %d", got.next[who], who, each)
			}
		}
		if _, tx := c.Bytes(); tx != appended.Load() || got.bytes != tx || len(got.buf) != 0 {
			t.Errorf("got %d bytes written and %d received, %d of them no whole frame, want the %d appended",
				tx, got.bytes, len(got.buf), appended.Load())
		}
	})
}

// TestUnsentOnRealSockets closes a connection under its appender: what the peer has and what is unsent are the stream.
func TestUnsentOnRealSockets(t *testing.T) {
	onBothSockets(t, func(t *testing.T, pair func(testing.TB, bool) (Socket, peer)) {
		for round := range 20 {
			r := rand.New(rand.NewPCG(3, uint64(round)))
			buffers := newBuffers(t, 64<<20)
			s, p := pair(t, true)
			cfg := roomy
			cfg.MaxQueued = 500 << 10
			c := realConn(t, s, buffers, cfg)
			stop := 1 + r.IntN(600<<10)
			var stream, got, rest []byte
			var appending sync.WaitGroup
			appending.Go(func() { // ends when the connection is closed
				for serial := 0; ; {
					size := randomSize(r)
					frame := appendFrame(nil, 1, serial, size)
					switch c.Append(frame) {
					case Refused:
						return
					case First:
						c.Flush()
						fallthrough
					case Appended:
						stream = append(stream, frame...)
						serial++
					case Full:
						runtime.Gosched()
					}
				}
			})
			piece := make([]byte, 10_000)
			for len(got) < stop {
				n, err := p.Read(piece)
				if err != nil {
					t.Fatalf("the peer reads after %d bytes: %v", len(got), err)
				}
				got = append(got, piece[:n]...)
			}
			c.Close("test")
			appending.Wait()
			c.Unsent(func(frames []byte, sent int) {
				if _, _, size, err := checkFrame(frames); err != nil || size == 0 {
					t.Errorf("a chunk begins with a frame of %d bytes, %v, want a whole one", size, err)
				}
				rest = append(rest, frames[sent:]...)
			})
			giveBack(t, c)
			behind, err := io.ReadAll(p)
			if err != nil {
				t.Fatalf("the peer reads what was sent before the close: %v", err)
			}
			got = append(got, behind...)
			if _, tx := c.Bytes(); int(tx) != len(got) {
				t.Errorf("got %d bytes counted as written, want the %d that the peer has", tx, len(got))
			}
			if string(got)+string(rest) != string(stream) {
				t.Errorf("got %d bytes sent and %d unsent, want them to be the %d appended, in order", len(got), len(rest), len(stream))
			}
		}
	})
}

// duplicate is what the kernel does with a descriptor that goes to another process.
func duplicate(t *testing.T, c *Conn) Socket {
	t.Helper()
	var dup int
	var err error
	if cerr := c.raw.Control(func(fd uintptr) { dup, err = syscall.Dup(int(fd)) }); cerr != nil || err != nil {
		t.Fatalf("duplicating a descriptor: %v, %v", cerr, err)
	}
	syscall.CloseOnExec(dup)
	return fileOf(dup)
}

// TestTrafficAcrossPauses interrupts a connection that carries traffic in both directions, again and again, in whatever
// byte it happens to be, and goes on: with itself, as after a hand-over that failed, or with an heir.
func TestTrafficAcrossPauses(t *testing.T) {
	for name, handOver := range map[string]bool{"resume": false, "adopt": true} {
		t.Run(name, func(t *testing.T) {
			onBothSockets(t, func(t *testing.T, pair func(testing.TB, bool) (Socket, peer)) {
				s, p := pair(t, true)
				acrossPauses(t, s, p, handOver)
			})
		})
	}
}

// Who appends frames below.
const (
	fromPeer = iota
	fromLoop // the read loop answers each frame of the peer with one of the same size
	fromSide // another goroutine has something to say now and then
)

func acrossPauses(t *testing.T, s Socket, p peer, handOver bool) {
	const frames = 3000
	buffers := newBuffers(t, 64<<20)
	cfg := Config{High: 64 << 10, Low: 16 << 10, MaxQueued: 64 << 20, Class: Requests}

	var line sync.RWMutex // held by whoever appends from the side; for writing, while the connection moves
	c := realConn(t, s, buffers, cfg)
	moved := make(chan struct{})   // a piece was sent by the peer or read by the loop; never closed
	said := make(chan struct{})    // something for the side to answer; never closed
	ended := make(chan error)      // the read loop's end, nil when it has read all; never closed
	stopped := make(chan struct{}) // closed when the last frame was read

	var sent uint64
	var got ledger
	var received, sending error
	var peers, side sync.WaitGroup
	peers.Go(func() { // ends at the end of file
		if received = got.receive(p, rand.New(rand.NewPCG(4, 1))); received != nil {
			_ = p.Close()
		}
	})
	peers.Go(func() { // ends when all is sent
		r := rand.New(rand.NewPCG(4, 2))
		var out []byte
		for serial := 0; serial < frames || len(out) > 0; {
			for len(out) < 4000 && serial < frames {
				out = appendFrame(out, fromPeer, serial, randomSize(r))
				serial++
			}
			n, err := p.Write(out[:min(len(out), 1+r.IntN(4000))])
			sent += uint64(n)
			if err != nil {
				sending = err
				return
			}
			out = out[n:]
			select {
			case moved <- struct{}{}:
			default:
			}
		}
	})
	asides := 0
	side.Go(func() { // ends with stopped
		r := rand.New(rand.NewPCG(4, 3))
		var frame []byte
		for {
			select {
			case <-said:
			case <-stopped:
				return
			}
			frame = appendFrame(frame[:0], fromSide, asides, randomSize(r))
			line.RLock()
			on := c
			v := on.Append(frame)
			line.RUnlock()
			if v == First {
				on.Flush() // by now it may have moved; then the heir's first flush took ours along
			}
			if v == First || v == Appended {
				asides++
			}
		}
	})

	next, need := 0, 1
	loop := func() {
		for {
			data, err := c.Read(need)
			if err != nil {
				ended <- err
				return
			}
			need = 1
			used, owed := 0, false
			for used < len(data) {
				_, serial, size, err := checkFrame(data[used:])
				if err == nil && size > 0 && serial != next {
					err = errors.New("a frame was lost, doubled or overtook another")
				}
				if err != nil {
					t.Errorf("reading frame %d: %v", next, err)
					c.Close("test")
					break
				}
				if size == 0 {
					need = frameHead
					if rest := data[used:]; len(rest) >= frameHead {
						need = int(rest[0])<<24 | int(rest[1])<<16 | int(rest[2])<<8 | int(rest[3])
					}
					break
				}
				used += size
				next++
				var v Verdict
				if own := c.Own(size); own != nil {
					appendFrame(own[:0], fromLoop, serial, size)
					v = c.AppendOwned(own)
					data, used = nil, 0
				} else {
					v = c.Append(appendFrame(nil, fromLoop, serial, size))
				}
				owed = owed || v == First
				select {
				case said <- struct{}{}:
				default:
				}
			}
			c.Advance(used)
			if owed {
				c.Flush()
			}
			select {
			case moved <- struct{}{}:
			default:
			}
			if next == frames {
				ended <- nil
				return
			}
		}
	}

	pauses, midRead, midWrite := 0, 0, 0
	r := rand.New(rand.NewPCG(4, 4))
	for done := false; !done; {
		go loop() // ends at the pause or at the last frame; waited for on ended
		for range r.IntN(4) {
			select {
			case <-moved:
			case err := <-ended:
				if err != nil {
					t.Errorf("got %v (%s) from the read loop, want it to read all", err, c.Reason())
				}
				done = true
			}
			if done {
				break
			}
		}
		if done {
			break
		}
		c.Pause()
		if err := <-ended; err == nil {
			done = true // it had read all before it could see the pause
		} else if !errors.Is(err, ErrPaused) {
			t.Errorf("got %v (%s) from the read loop, want ErrPaused", err, c.Reason())
			done = true
		}
		pauses++
		if handOver {
			line.Lock()
		}
		d, ok := c.Detach()
		if !ok {
			t.Errorf("the connection was closed for %q, want it detached", c.Reason())
			if handOver {
				line.Unlock()
			}
			break
		}
		if len(d.Unread) > 0 {
			midRead++
		}
		if len(d.Unsent) > 0 && d.Unsent[0].Sent > 0 {
			midWrite++
		}
		if !handOver {
			c.Resume()
			continue
		}
		d.Socket = duplicate(t, c)
		heir, err := Adopt(d, buffers, cfg)
		if err != nil {
			t.Fatalf("adopting: %v", err)
		}
		c.Close("handed-over")
		giveBack(t, c)
		c = heir
		c.Flush()
		line.Unlock()
	}
	close(stopped)
	side.Wait()
	if err := c.Finish("done"); err != nil {
		t.Errorf("got %v from Finish, want nil", err)
	}
	peers.Wait()
	giveBack(t, c)
	t.Logf("%d pauses, %d with unread bytes, %d in the middle of a chunk that was being written", pauses, midRead, midWrite)

	if sending != nil || received != nil {
		t.Fatalf("the peer, after %d bytes sent and %d received: %v, %v", sent, got.bytes, sending, received)
	}
	if pauses == 0 || midRead+midWrite == 0 {
		t.Errorf("got %d pauses, none of them inside a frame, want some: nothing was tested", pauses)
	}
	if next != frames || got.next[fromLoop] != frames || got.next[fromSide] != asides || len(got.buf) != 0 {
		t.Errorf("got %d frames read, %d answers and %d asides received, %d bytes of no whole frame, want %d, %d, %d, 0",
			next, got.next[fromLoop], got.next[fromSide], len(got.buf), frames, frames, asides)
	}
	if rx, tx := c.Bytes(); rx != sent || tx != got.bytes {
		t.Errorf("got %d bytes counted as read and %d as written, want the %d and %d of the peer", rx, tx, sent, got.bytes)
	}
}

// Close from another goroutine ends a read and a writer that wait for a real kernel.
func TestCloseWakesOnRealSockets(t *testing.T) {
	onBothSockets(t, func(t *testing.T, pair func(testing.TB, bool) (Socket, peer)) {
		s, _ := pair(t, true)
		c := realConn(t, s, newBuffers(t, 64<<20), roomy)
		ended := make(chan error) // never closed
		go func() {               // ends when the connection is closed
			_, err := c.Read(1)
			ended <- err
		}()
		c.Append(make([]byte, 16<<20))
		c.Flush()
		c.Close("test")
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v from Read, want ErrClosed", err)
		}
		giveBack(t, c) // waits for the writer
	})
}

// A reply written last reaches a peer that has sent what nobody reads: closing at once would make the kernel throw it away.
func TestFinishDeliversTheLastReply(t *testing.T) {
	onBothSockets(t, func(t *testing.T, pair func(testing.TB, bool) (Socket, peer)) {
		s, p := pair(t, false)
		c := realConn(t, s, newBuffers(t, 64<<20), roomy)
		if _, err := p.Write(make([]byte, 50_000)); err != nil {
			t.Fatalf("the peer writes: %v", err)
		}
		want := appendFrame(nil, 1, 1, 100_000)
		c.Append(want)
		ended := make(chan error) // never closed
		go func() { ended <- c.Finish("done") }()
		got, err := io.ReadAll(p)
		if err != nil || string(got) != string(want) {
			t.Errorf("got %d bytes, %v, want the whole reply of %d", len(got), err, len(want))
		}
		_ = p.Close()
		if err := <-ended; err != nil {
			t.Errorf("got %v from Finish, want nil", err)
		}
		giveBack(t, c)
	})
}
