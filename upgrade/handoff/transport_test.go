package handoff

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestMessagesArriveInOrderAndThenTheEnd(t *testing.T) {
	a, b := pair(t)
	sent := []Message{&Offer{Min: 1, Max: 2, Release: "1.2.3"}, &Commit{Again: true}, &Started{}, &Abort{Reason: "no"}}
	for _, m := range sent {
		if err := a.Send(soon(), m); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	for _, want := range sent {
		got, _, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("a message has changed on its way (-sent +received):\n%s", diff)
		}
	}
	for range 2 {
		if _, _, err := b.Receive(); err != io.EOF { //nolint:errorlint // exactly this one
			t.Errorf("got %v behind the last message, want io.EOF", err)
		}
	}
}

// A message far larger than the socket takes at once goes in many pieces, its descriptors with the first.
func TestLargeMessageAndItsDescriptors(t *testing.T) {
	a, b := pair(t)
	canary := newCanary(t)
	m := conns(MaxFiles)
	m.Downstreams[7].Bytes.Unread = bytes.Repeat([]byte("unread."), 5<<20/7)
	m.Downstreams[8].Bytes.Unsent = []Run{{Frames: bytes.Repeat([]byte{9}, 3<<20), Sent: 5}}
	want := framed(t, m)
	var wg sync.WaitGroup
	wg.Go(func() { // ends when all is sent
		for range 3 {
			if err := a.Send(soon(), m, canary.raws(MaxFiles)...); err != nil {
				t.Error(err)
			}
		}
	})
	defer wg.Wait()
	for range 3 {
		got, files, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != MaxFiles {
			t.Errorf("got %d descriptors, want %d", len(files), MaxFiles)
		}
		closeFiles(files)
		if !bytes.Equal(framed(t, got), want) {
			t.Errorf("the message has changed on its way: its frame had %d bytes and has %d", len(want), len(framed(t, got)))
		}
	}
	wg.Wait()
	if size := cap(b.in); size > keepIn {
		t.Errorf("the receiver keeps %d bytes for the next message, want at most %d", size, keepIn)
	}
	if size := a.out.Cap(); size > keepOut {
		t.Errorf("the sender keeps %d bytes for the next message, want at most %d", size, keepOut)
	}
	canary.checkGone(t, a, b)
}

// However the bytes are cut, each frame gets its own descriptors.
func TestDescriptorsFindTheirFrame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := pair(t)
		counts := rapid.SliceOfN(rapid.SampledFrom([]int{0, 0, 1, 2, 5}), 1, 8).Draw(t, "descriptors of each frame")
		var canaries []*canary
		got := 0
		receive := func() {
			m, files, err := b.Receive()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err != nil {
				t.Fatalf("receiving frame %d: %v", got, err)
			}
			if n := filesOf(m); n != counts[got] || len(files) != n {
				t.Fatalf("frame %d has %d descriptors and names %d, want %d", got, len(files), n, counts[got])
			}
			for i, f := range files {
				// What is written into it comes out of the canary that was sent at this place.
				if _, err := f.Write([]byte{byte(i)}); err != nil {
					t.Fatalf("writing to descriptor %d of frame %d: %v", i, got, err)
				}
				var p [1]byte
				if n, err := unix.Read(canaries[0].read, p[:]); n != 1 || int(p[0]) != i {
					t.Fatalf("descriptor %d of frame %d is another's: read %d bytes, %v", i, got, n, err)
				}
				canaries = canaries[1:]
			}
			closeFiles(files)
			got++
		}
		if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatalf("%v", err)
		}
		for _, n := range counts {
			p := framed(t, conns(n))
			if n == 0 {
				p = framed(t, &Offer{Release: "1.2.3"})
			}
			var raws []syscall.RawConn
			for range n {
				c := newCanary(t)
				canaries, raws = append(canaries, c), append(raws, c.raw())
			}
			for len(p) > 0 {
				k := rapid.IntRange(1, len(p)).Draw(t, "bytes")
				put(t, a, p[:k], raws...)
				p, raws = p[k:], nil
				for range rapid.IntRange(0, 2).Draw(t, "reads") {
					if got < len(counts) {
						receive()
					}
				}
			}
		}
		for i := 0; got < len(counts); i++ {
			if i > len(counts) {
				t.Fatalf("got %d frames, want %d", got, len(counts))
			}
			receive()
		}
	})
}

// A deadline in the past delivers what is there. Without that, the last words of a process that was killed are lost.
func TestReceiveDrainsWithoutWaiting(t *testing.T) {
	a, b := pair(t)
	if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v from an empty socket, want os.ErrDeadlineExceeded", err)
	}
	for range 3 {
		if err := a.Send(soon(), &Started{}); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	for i := range 3 {
		if m, _, err := b.Receive(); err != nil || KindOf(m) != KindStarted {
			t.Errorf("got %v, %v for message %d behind the deadline, want STARTED: it was there", m, err, i)
		}
	}
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v behind the last message, want io.EOF", err)
	}
}

func TestReceiveGoesOnBehindADeadline(t *testing.T) {
	a, b := pair(t)
	canary := newCanary(t)
	p := framed(t, conns(2))
	for i := range p {
		var files []syscall.RawConn
		if i == 0 {
			files = canary.raws(2)
		}
		put(t, a, p[i:i+1], files...)
		if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		m, files2, err := b.Receive()
		if i < len(p)-1 {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("got %v, %v after %d of %d bytes, want os.ErrDeadlineExceeded", m, err, i+1, len(p))
			}
			continue
		}
		if err != nil || len(files2) != 2 {
			t.Fatalf("got %v and %d descriptors, %v with the last byte, want the message and 2", m, len(files2), err)
		}
		closeFiles(files2)
	}
	canary.checkGone(t, a, b)
}

func TestSetReadDeadlineWakesReceive(t *testing.T) {
	_, b := pair(t)
	done := make(chan error)
	go func() { // ends with Receive
		_, _, err := b.Receive()
		done <- err
	}()
	if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v from a Receive whose deadline came, want os.ErrDeadlineExceeded", err)
	}
}

func TestCloseWakesReceiveAndSend(t *testing.T) {
	a, _ := pair(t)
	big := &Abort{Reason: string(make([]byte, 8<<20))}
	var wg sync.WaitGroup
	wg.Go(func() { // ends with Close
		if _, _, err := a.Receive(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v from a Receive when the connection was closed, want os.ErrClosed", err)
		}
	})
	began := full(a)
	wg.Go(func() { // ends with Close
		if err := a.Send(time.Time{}, big); !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v from a Send when the connection was closed, want os.ErrClosed", err)
		}
	})
	<-began
	for range 2 {
		if err := a.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	}
	wg.Wait()
	if _, _, err := a.Receive(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v from a closed connection, want os.ErrClosed", err)
	}
	if err := a.Send(soon(), &Started{}); err == nil {
		t.Error("a closed connection sends, want an error")
	}
}

// The kernel says ECONNRESET when the peer dies with something unread. To us that is the end, behind all that it had sent.
func TestPeerThatDiesWithSomethingUnread(t *testing.T) {
	for _, first := range []string{"receive", "send"} {
		t.Run(first+" first", func(t *testing.T) {
			a, b := pair(t)
			if err := a.Send(soon(), &Prepared{}); err != nil {
				t.Fatal(err)
			}
			if err := b.Send(soon(), &Commit{}); err != nil {
				t.Fatal(err)
			}
			b.Close()
			send := func() {
				if err := a.Send(soon(), &Abort{}); !errors.Is(err, unix.EPIPE) {
					t.Errorf("got %v from a Send to nobody, want EPIPE", err)
				}
			}
			if first == "send" {
				send()
			}
			if m, _, err := a.Receive(); err != nil || KindOf(m) != KindCommit {
				t.Errorf("got %v, %v, want the COMMIT that the peer sent before it died", m, err)
			}
			if _, _, err := a.Receive(); !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want io.EOF", err)
			}
			send()
		})
	}
}

func TestOpenRefusesWhatIsNoStreamSocket(t *testing.T) {
	for _, path := range []string{os.DevNull, t.TempDir()} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(f); err == nil {
			t.Errorf("Open takes %s for a hand-over socket, want an error", path)
		}
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Open has left %s open, want it closed whatever it returns", path)
		}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[1]) })
	if _, err := Open(os.NewFile(uintptr(fds[0]), "datagrams")); !errors.Is(err, unix.EPROTOTYPE) {
		t.Errorf("got %v for a socket of datagrams, want EPROTOTYPE", err)
	}
}

// Both ends, and what is received, are invisible to a process that is started meanwhile.
func TestNothingIsInherited(t *testing.T) {
	a, b := pair(t)
	canary := newCanary(t)
	if err := a.Send(soon(), conns(1), canary.raw()); err != nil {
		t.Fatal(err)
	}
	_, files, err := b.Receive()
	if err != nil {
		t.Fatal(err)
	}
	received, err := files[0].SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string]syscall.RawConn{"our end": a.raw, "the opened end": b.raw, "a received descriptor": received} {
		err := raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s would be inherited: flags %#x, %v", name, flags, err)
			}
			if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("%s blocks: flags %#x, %v", name, flags, err)
			}
		})
		if err != nil {
			t.Error(err)
		}
	}
	closeFiles(files)
}
