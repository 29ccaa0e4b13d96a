package handoff

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A stream that ends within a frame is no end of file, and what came with the frame is closed.
func TestStreamCutAnywhere(t *testing.T) {
	p := framed(t, conns(2))
	for i := 1; i < len(p); i++ {
		a, b := pair(t)
		canary := newCanary(t)
		put(t, a, p[:i], canary.raws(2)...)
		a.Close()
		for range 2 {
			if _, _, err := b.Receive(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v from a stream cut after %d of %d bytes, want io.ErrUnexpectedEOF", err, i, len(p))
			}
		}
		canary.checkGone(t, b)
	}
}

func TestStreamsThatAreRefused(t *testing.T) {
	with := func(p []byte, at int, bytes ...byte) []byte {
		copy(p[at:], bytes)
		return p
	}
	for _, test := range []struct {
		name  string
		put   []byte
		files int
		want  string
	}{
		{"no frame", []byte("HTTP/1.1 400 Bad Request"), 0, "begins with 0x48"},
		{"too long", with(framed(t, &Started{}), 4, 1, 0, 0, 0x40), 0, "1073741825 bytes"},
		{"more descriptors than the kernel takes", with(framed(t, &Started{}), 2, 254), 0, "254 descriptors"},
		{"descriptors missing", framed(t, conns(3)), 2, "2 descriptors came, the frame says 3"},
		{"no descriptors at all", framed(t, conns(3)), 0, "0 descriptors came, the frame says 3"},
		{"descriptors too many", append(framed(t, &Started{}), framed(t, &Commit{})...), 1, "more descriptors came"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := pair(t)
			canary := newCanary(t)
			put(t, a, test.put, canary.raws(test.files)...)
			if test.name == "descriptors too many" {
				// It shows when the next frame begins behind the read that brought them: with this one or the one after.
				put(t, a, framed(t, &Commit{}))
				for {
					if m, _, err := b.Receive(); err != nil {
						break
					} else if KindOf(m) != KindStarted && KindOf(m) != KindCommit {
						t.Fatalf("got %v", m)
					}
				}
			}
			for range 2 {
				if _, _, err := b.Receive(); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want an error with %q, again and again", err, test.want)
				}
			}
			canary.checkGone(t, a, b)
		})
	}
}

// What is wrong with a payload costs the message, not the stream.
func TestPayloadsThatAreRefused(t *testing.T) {
	frame := func(kind Kind, files byte, payload string) []byte {
		return append([]byte{headerMagic, byte(kind), files, 0, byte(len(payload)), 0, 0, 0}, payload...)
	}
	for _, test := range []struct {
		name  string
		put   []byte
		files int
		want  string
	}{
		{"nothing", frame(KindCommit, 0, ""), 0, "decoding COMMIT"},
		{"no map", frame(KindCommit, 0, "\x01"), 0, "decoding COMMIT"},
		{"cut", frame(KindCommit, 0, "\xa1\x01"), 0, "decoding COMMIT"},
		{"bytes behind it", frame(KindCommit, 0, "\xa0\xa0"), 0, "decoding COMMIT"},
		{"a key twice", frame(KindCommit, 0, "\xa2\x01\xf5\x01\xf4"), 0, "duplicate"},
		{"an unknown key twice", frame(KindCommit, 0, "\xa2\x18\x63\xf5\x18\x63\xf4"), 0, "duplicate"},
		{"another type", frame(KindCommit, 0, "\xa1\x01\x61x"), 0, "decoding COMMIT"},
		{"without a length", frame(KindCommit, 0, "\xbf\xff"), 0, "indefinite"},
		{"too deep", frame(KindCommit, 0, "\xa1\x09"+strings.Repeat("\x81", 20)+"\x01"), 0, "nested"},
		{"an array too long", frame(KindListeners, 0, "\xa1\x01\x9a\x7f\xff\xff\xff"), 0, "decoding LISTENERS"},
		{"descriptors that it does not name", frame(KindListeners, 2, "\xa1\x01\x81\xa0"), 2, "2 descriptors came with a message that names 1"},
		{"descriptors that it does not take", frame(KindCommit, 1, "\xa0"), 1, "1 descriptors came with a message that names 0"},
		{"fewer descriptors than it names", frame(KindListeners, 0, "\xa1\x01\x81\xa0"), 0, "0 descriptors came with a message that names 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := pair(t)
			canary := newCanary(t)
			put(t, a, test.put, canary.raws(test.files)...)
			put(t, a, framed(t, &Abort{Reason: "after all"}))
			if m, _, err := b.Receive(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, %v, want an error with %q", m, err, test.want)
			}
			if m, _, err := b.Receive(); err != nil || KindOf(m) != KindAbort {
				t.Errorf("got %v, %v behind it, want the next message", m, err)
			}
			canary.checkGone(t, a, b)
		})
	}
}

func TestUnknownKindIsPassedOver(t *testing.T) {
	a, b := pair(t)
	canary := newCanary(t)
	put(t, a, append([]byte{headerMagic, 200, 2, 0, 3, 0, 0, 0}, "???"...), canary.raws(2)...)
	if err := a.Send(soon(), &Started{}); err != nil {
		t.Fatal(err)
	}
	m, files, err := b.Receive()
	if u, ok := m.(*Unknown); err != nil || !ok || u.Kind != 200 || files != nil {
		t.Errorf("got %#v and %d descriptors, %v, want a message of the unknown kind 200 and none", m, len(files), err)
	}
	if m, _, err := b.Receive(); err != nil || KindOf(m) != KindStarted {
		t.Errorf("got %v, %v behind it, want STARTED", m, err)
	}
	canary.checkGone(t, a, b)
}

func TestDescriptorsThatTheKernelDrops(t *testing.T) {
	a, b := pair(t)
	canary := newCanary(t)
	b.oob = make([]byte, unix.CmsgSpace(4*2))
	if err := a.Send(soon(), conns(5), canary.raws(5)...); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Receive(); err == nil || !strings.Contains(err.Error(), "MSG_CTRUNC") {
		t.Errorf("got %v where the kernel dropped descriptors, want an error that says so", err)
	}
	canary.checkGone(t, a, b)
}

func TestCloseClosesWhatNobodyTook(t *testing.T) {
	for _, read := range []bool{false, true} {
		a, b := pair(t)
		canary := newCanary(t)
		p := framed(t, conns(3))
		put(t, a, p[:len(p)-1], canary.raws(3)...)
		if read {
			if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := b.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("got %v from half a frame, want os.ErrDeadlineExceeded", err)
			}
		}
		canary.checkGone(t, b, a)
	}
}

// A length is not believed before its bytes have come.
func TestAnnouncedLengthTakesNoMemory(t *testing.T) {
	a, b := pair(t)
	put(t, a, []byte{headerMagic, byte(KindAbort), 0, 0, 0, 0, 0, 0x40, 0xa1, 0x01})
	if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, _, err := b.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v, want os.ErrDeadlineExceeded", err)
		}
	}
	if size := cap(b.in); size > growIn {
		t.Errorf("10 bytes of a message that says it has 1 GiB take %d, want at most %d", size, growIn)
	}
}

func TestMessagesThatAreNotSent(t *testing.T) {
	a, b := pair(t)
	canary := newCanary(t)
	closed := newCanary(t)
	closed.write.Close()
	for _, test := range []struct {
		name  string
		m     Message
		files []syscall.RawConn
		want  string
	}{
		{"more descriptors than it names", conns(1), canary.raws(2), "2 descriptors for a message that names 1"},
		{"fewer", conns(2), canary.raws(1), "1 descriptors for a message that names 2"},
		{"some where it takes none", &Commit{}, canary.raws(1), "1 descriptors for a message that names 0"},
		{"more than the kernel takes", conns(254), canary.raws(254), "the kernel takes 253"},
		{"a kind that we do not know", &Unknown{Kind: 99}, nil, "not a kind of this release"},
		{"a connection that was closed", conns(3), append(canary.raws(2), closed.raw()), "descriptor 2"},
	} {
		if err := a.Send(soon(), test.m, test.files...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.name, err, test.want)
		}
	}
	if err := a.Send(time.Unix(1, 0), &Commit{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v behind the deadline, want os.ErrDeadlineExceeded", err)
	}
	// None of them has left anything in the stream.
	if err := a.Send(soon(), conns(253), canary.raws(253)...); err != nil {
		t.Fatal(err)
	}
	m, files, err := b.Receive()
	if err != nil || KindOf(m) != KindConns || len(files) != 253 {
		t.Errorf("got %T and %d descriptors, %v, want the message behind those that were refused", m, len(files), err)
	}
	closeFiles(files)
	canary.checkGone(t, a, b)
}

func TestNothingIsSentBehindHalfAMessage(t *testing.T) {
	a, b := pair(t)
	big := &Abort{Reason: string(make([]byte, 8<<20))}
	began := full(a)
	done := make(chan error)
	go func() { done <- a.Send(soon(), big) }() // ends at the deadline
	<-began
	if err := a.file.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v from a Send that nobody reads, want os.ErrDeadlineExceeded", err)
	}
	if err := a.Send(soon(), &Started{}); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("got %v behind half a message, want an error", err)
	}
	a.Close()
	if _, _, err := b.Receive(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want io.ErrUnexpectedEOF", err)
	}
}

// The kernel counts the descriptors on their way for each user, and takes more when some have arrived.
func TestTooManyDescriptorsOnTheirWay(t *testing.T) {
	a, b := pair(t)
	canary := newCanary(t)
	sendmsg := a.sendmsg
	var tries int
	a.sendmsg = func(fd int, p, oob []byte) (int, error) {
		if tries++; tries < 4 {
			return 0, unix.ETOOMANYREFS
		}
		return sendmsg(fd, p, oob)
	}
	if err := a.Send(soon(), conns(1), canary.raw()); err != nil {
		t.Fatal(err)
	}
	if tries != 4 {
		t.Errorf("got %d tries, want 4", tries)
	}
	_, files, err := b.Receive()
	if err != nil {
		t.Fatal(err)
	}
	closeFiles(files)

	began := make(chan struct{}, 1)
	a.sendmsg = func(int, []byte, []byte) (int, error) {
		select {
		case began <- struct{}{}:
		default:
		}
		return 0, unix.ETOOMANYREFS
	}
	if err := a.Send(time.Now().Add(5*time.Millisecond), conns(1), canary.raw()); !errors.Is(err, unix.ETOOMANYREFS) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v at the deadline, want ETOOMANYREFS", err)
	}
	select { // it may have come too late to try
	case <-began:
	default:
	}
	done := make(chan error)
	go func() { done <- a.Send(soon(), conns(1), canary.raw()) }() // ends with Close
	<-began
	a.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v from a Send that waits when the connection is closed, want os.ErrClosed", err)
	}
	canary.checkGone(t, a, b)
}
