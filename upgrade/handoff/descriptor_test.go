package handoff

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A live connection is sent while its owner waits in Read: nothing changes for it, and the one that arrives works as it does.
func TestLiveConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	options := func(raw syscall.RawConn) (s string) {
		err := raw.Control(func(fd uintptr) {
			flags, err1 := unix.FcntlInt(fd, unix.F_GETFL, 0)
			nodelay, err2 := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
			alive, err3 := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			every, err4 := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)
			s = fmt.Sprint(flags, flags&unix.O_NONBLOCK != 0, nodelay, alive, every, err1, err2, err3, err4)
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := options(raw)

	var wg sync.WaitGroup
	wg.Go(func() { // ends at the deadline
		if n, err := server.Read(make([]byte, 1)); err == nil {
			t.Errorf("the owner has read %d bytes that were for its heir", n)
		}
	})
	a, b := pair(t)
	if err := a.Send(soon(), conns(1), raw); err != nil {
		t.Fatal(err)
	}
	_, files, err := b.Receive()
	if err != nil {
		t.Fatal(err)
	}
	heir := files[0]
	heirRaw, err := heir.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string]syscall.RawConn{"its owner's": raw, "its heir's": heirRaw} {
		if got := options(raw); got != before {
			t.Errorf("the options of %s connection are %s, and were %s", name, got, before)
		}
	}
	if err := server.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()

	if err := heir.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Errorf("the received connection has no deadlines: %v", err)
	}
	if err := heir.SetReadDeadline(soon()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(client, "ping"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(heir, got); err != nil || string(got) != "ping" {
		t.Errorf("got %q, %v through the received connection, want ping", got, err)
	}
	// The owner's copy goes; the client sees nothing of it.
	server.Close()
	if _, err := io.WriteString(heir, "pong"); err != nil {
		t.Fatal(err)
	}
	if err := client.SetReadDeadline(soon()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "pong" {
		t.Errorf("got %q, %v after the owner has closed its copy, want pong", got, err)
	}
	heir.Close()
	if _, err := client.Read(got); err != io.EOF { //nolint:errorlint // exactly this one
		t.Errorf("got %v after the last copy was closed, want io.EOF", err)
	}
}

// many is about as many connections as one process has.
const many = 10_000

// Ten thousand descriptors stream over: at no time are many on their way, and none is left.
func TestTenThousandDescriptors(t *testing.T) {
	a, b := pair(t)
	canary := newCanary(t)
	before, err := openFiles()
	if err != nil {
		t.Fatal(err)
	}
	m, raws := conns(MaxFiles), canary.raws(MaxFiles)
	var wg sync.WaitGroup
	wg.Go(func() { // ends when all is sent
		for range many / MaxFiles {
			if err := a.Send(soon(), m, raws...); err != nil {
				t.Error(err)
				return
			}
		}
		a.Close()
	})
	got, most := 0, 0
	for {
		_, files, err := b.Receive()
		if err == io.EOF { //nolint:errorlint // exactly this one
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got += len(files)
		open, err := openFiles()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, open-before)
		closeFiles(files)
	}
	wg.Wait()
	if got != many {
		t.Errorf("got %d descriptors, want %d", got, many)
	}
	if most > 4*MaxFiles {
		t.Errorf("got up to %d descriptors open at a time, want about one message's", most)
	}
	canary.checkGone(t, a, b)
}

func BenchmarkDescriptors(b *testing.B) {
	x, y := pair(b)
	null, err := os.Open(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	raw, err := null.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	m, raws := conns(MaxFiles), make([]syscall.RawConn, MaxFiles)
	for i := range raws {
		raws[i] = raw
	}
	b.ReportAllocs()
	var wg sync.WaitGroup
	defer wg.Wait()
	n := b.N
	wg.Go(func() { // ends when all is sent
		for range n {
			if err := x.Send(time.Time{}, m, raws...); err != nil {
				b.Error(err)
				return
			}
		}
	})
	for range n {
		_, files, err := y.Receive()
		if err != nil {
			b.Fatal(err)
		}
		closeFiles(files)
	}
	b.ReportMetric(float64(n*MaxFiles)/b.Elapsed().Seconds(), "descriptors/s")
}

func BenchmarkSlots(b *testing.B) {
	var p []byte
	b.ReportAllocs()
	for b.Loop() {
		p = p[:0]
		for i := range 100_000 {
			p = AppendSlot(p, &Slot{ID: uint32(i), Deadline: 1e15, Start: 1e15})
		}
		seq, err := Slots(p)
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for s := range seq {
			n += int(s.ID & 1)
		}
		if n != 50_000 {
			b.Fatalf("got %d odd ids, want 50,000", n)
		}
	}
}
