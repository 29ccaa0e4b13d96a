package conn

import (
	"strings"
	"testing"
	"testing/synctest"
)

// sizes reads until nothing is there any more, and returns what each read brought.
func sizes(c *Conn, k *kernel) (out []int) {
	for k.unread() > 0 {
		r := startRead(c, 1)
		if !r.settled() {
			return out
		}
		out = append(out, len(r.value.bytes))
	}
	return out
}

// wantSizes fails the test unless reads bring these numbers of bytes.
func wantSizes(t *testing.T, c *Conn, k *kernel, want ...int) {
	t.Helper()
	got := sizes(c, k)
	if len(got) != len(want) {
		t.Fatalf("got reads of %v bytes, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got reads of %v bytes, want %v", got, want)
		}
	}
}

// A peer that sends more than a read takes is read in larger pieces, until it sends little again.
func TestReadsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		c := k.conn(t, newBuffers(t, 64<<20), roomy)
		defer release(t, c)
		much := []byte(strings.Repeat("x", readSize+2*aheadSize))
		k.send(much)
		wantSizes(t, c, k, readSize, aheadSize, aheadSize)
		startRead(c, 1)
		synctest.Wait()
		if held := c.Held(); held != 0 {
			t.Errorf("got %d bytes held while the read waits, want 0", held)
		}
		k.send([]byte("little"))
		synctest.Wait()
		next := startRead(c, 1)
		synctest.Wait()
		k.send(much[:aheadSize])
		if next.settled(); len(next.value.bytes) != readSize {
			t.Fatalf("got %d bytes read behind a little one, want %d", len(next.value.bytes), readSize)
		}
		wantSizes(t, c, k, aheadSize-readSize)
	})
}

// Nobody reads ahead while others need the memory, nor where a read is bounded, nor within a frame that is taken in pieces.
func TestDoesNotReadAhead(t *testing.T) {
	for name, arrange := range map[string]func(*testing.T, *Conn){
		"memory is used": func(t *testing.T, c *Conn) {
			buf := c.buffers.Get(1 << 20)
			t.Cleanup(func() { c.buffers.Put(buf) })
		},
		"a read is bounded": func(_ *testing.T, c *Conn) { c.Limit(readSize) },
		"within a frame":    func(_ *testing.T, c *Conn) { c.InFrame(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(1 << 20)
				c := k.conn(t, newBuffers(t, 2<<20), roomy)
				defer release(t, c)
				arrange(t, c)
				k.send([]byte(strings.Repeat("x", 3*readSize)))
				wantSizes(t, c, k, readSize, readSize, readSize)
			})
		})
	}
}

// A large frame of which much was read ahead waits for memory like others, and has a buffer to itself then.
func TestLargeFrameThatWasReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 30)
		c := k.conn(t, newBuffers(t, 64<<20), roomy)
		defer release(t, c)
		k.send([]byte(strings.Repeat("x", readSize)))
		wantSizes(t, c, k, readSize)
		frame := appendFrame(nil, 1, 0, large)
		k.send(frame[:aheadSize])
		p, err := c.Read(1)
		if err != nil || len(p) != aheadSize {
			t.Fatalf("got %d bytes read with %v, want %d", len(p), err, aheadSize)
		}
		var all string
		r := start(func() error {
			p, err := c.Read(large)
			all = string(p)
			return err
		})
		r.settled()
		if got := c.buffers.large.Load(); got != large {
			t.Errorf("got %d bytes of large buffers in use behind the begin of the frame, want %d", got, large)
		}
		k.send(frame[aheadSize:])
		if !r.settled() || r.value != nil || all != string(frame) {
			t.Fatalf("got %d bytes with %v, want the frame of %d", len(all), r.value, large)
		}
		own := c.Own(large)
		if own == nil {
			t.Fatal("got no buffer to own, want that of the frame")
		}
		c.buffers.Put(own)
	})
}

// What is unread in a buffer that is lent stays the connection's, however much it is.
func TestLendsWhatWasReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		c := k.conn(t, newBuffers(t, 64<<20), roomy)
		defer release(t, c)
		k.send([]byte(strings.Repeat("x", readSize)))
		wantSizes(t, c, k, readSize)
		k.send([]byte(strings.Repeat("y", aheadSize-1) + "z"))
		if p, err := c.Read(1); err != nil || len(p) != aheadSize {
			t.Fatalf("got %d bytes read with %v, want %d", len(p), err, aheadSize)
		}
		c.Advance(1000)
		lent := c.Lend()
		if len(lent) != aheadSize {
			t.Errorf("got %d bytes lent, want %d", len(lent), aheadSize)
		}
		rest, err := c.Read(1)
		if want := strings.Repeat("y", aheadSize-1001) + "z"; err != nil || string(rest) != want {
			t.Errorf("got %d unread bytes with %v behind the loan, want %d", len(rest), err, len(want))
		}
		if large := c.buffers.large.Load(); large != 0 {
			t.Errorf("got %d bytes of large buffers in use, want 0: there is no large frame", large)
		}
		c.Advance(len(rest))
		c.buffers.Put(lent)
	})
}

// What was read ahead in another process is many frames, and none that has its memory already: it takes its turn like others, and
// goes on with a small buffer where little is left.
func TestAdoptsWhatWasReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		buffers := newBuffers(t, 64<<20)
		unread := strings.Repeat("x", aheadSize-1000)
		c, err := adopt(Detached{Socket: k, Unread: []byte(unread)}, k.system(), buffers, roomy)
		if err != nil {
			t.Fatal(err)
		}
		defer release(t, c)
		if large := buffers.large.Load(); large != 0 {
			t.Errorf("got %d bytes of large buffers in use, want 0: there is no large frame", large)
		}
		p, err := c.Read(1)
		if err != nil || string(p) != unread {
			t.Fatalf("got %d bytes read with %v, want the %d that were unread", len(p), err, len(unread))
		}
		c.Advance(len(p) - 10)
		r := startRead(c, 100)
		synctest.Wait()
		if held := c.Held(); held != size4K {
			t.Errorf("got %d bytes held while the read waits with 10 bytes of a frame, want %d", held, size4K)
		}
		k.send([]byte(strings.Repeat("y", 90)))
		if !r.settled() || len(r.value.bytes) != 100 {
			t.Fatalf("got %d bytes with %v, want 100", len(r.value.bytes), r.value.err)
		}
	})
}

// A gate that shuts behind a read keeps no large buffer for a few bytes.
func TestGatedBehindAReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(1 << 20)
		c := k.conn(t, newBuffers(t, 64<<20), roomy)
		defer release(t, c)
		k.send([]byte(strings.Repeat("x", readSize)))
		wantSizes(t, c, k, readSize)
		k.send([]byte(strings.Repeat("y", aheadSize)))
		p, err := c.Read(1)
		if err != nil || len(p) != aheadSize {
			t.Fatalf("got %d bytes read with %v, want %d", len(p), err, aheadSize)
		}
		c.Advance(len(p) - 10)
		c.GateHeld(true)
		r := startRead(c, 1)
		synctest.Wait()
		if held := c.Held(); held != size4K {
			t.Errorf("got %d bytes held behind the gate with 10 unread, want %d", held, size4K)
		}
		c.GateHeld(false)
		if !r.settled() || r.value.bytes != "yyyyyyyyyy" {
			t.Fatalf("got %q with %v, want what was unread", r.value.bytes, r.value.err)
		}
	})
}
