package conn

import (
	"sync"
	"syscall"
	"testing"
	"time"
)

// What a flush of the benchmarks carries.
const (
	benchFrames = 64
	benchSize   = 1 << 10
)

// sink is a socket whose kernel takes everything at once.
type sink struct{}

func (sink) SyscallConn() (syscall.RawConn, error) { return sink{}, nil }
func (sink) SetReadDeadline(time.Time) error       { return nil }
func (sink) SetWriteDeadline(time.Time) error      { return nil }
func (sink) Close() error                          { return nil }
func (sink) Read(func(uintptr) bool) error         { return nil }
func (sink) Control(func(uintptr)) error           { return nil }
func (sink) Write(f func(uintptr) bool) error {
	f(fakeFD)
	return nil
}

func takeEverything(_ uintptr, bufs [][]byte) (n int, _ error) {
	for _, b := range bufs {
		n += len(b)
	}
	return n, nil
}

// BenchmarkAppend is one frame of 1 KiB; every 64 of them the queue is emptied without a system call.
func BenchmarkAppend(b *testing.B) {
	c, err := newConn(sink{}, system{write: takeEverything}, newBuffers(b, 64<<20), roomy)
	if err != nil {
		b.Fatal(err)
	}
	frame := appendFrame(nil, 1, 1, benchSize)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for i := 1; b.Loop(); i++ {
		c.Append(frame)
		if i%benchFrames == 0 {
			c.Flush()
		}
	}
	c.Close("benchmark-end")
	giveBack(b, c)
}

func benchPair(b *testing.B, cfg Config) (near, far *Conn) {
	s, p := tcpPair(b, false)
	if err := p.SetDeadline(time.Time{}); err != nil {
		b.Fatal(err)
	}
	buffers := newBuffers(b, 64<<20)
	return realConn(b, s, buffers, cfg), realConn(b, p.(Socket), buffers, cfg)
}

// echo sends back what comes, a flush for each read, until the connection is closed.
func echo(c *Conn) {
	for {
		p, err := c.Read(1)
		if err != nil {
			return
		}
		c.Append(p)
		c.Advance(len(p))
		c.Flush()
	}
}

func sendBatch(c *Conn, frame []byte) {
	for range benchFrames {
		c.Append(frame)
	}
	c.Flush()
}

func receiveBytes(b *testing.B, c *Conn, n int) {
	for n > 0 {
		p, err := c.Read(1)
		if err != nil {
			b.Fatalf("reading: %v (%s)", err, c.Reason())
		}
		n -= len(p)
		c.Advance(len(p))
	}
}

func perFrame(b *testing.B) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchFrames), "ns/frame")
}

// BenchmarkPingPong is 64 frames of 1 KiB in one flush to a peer over TCP, and the same bytes back.
func BenchmarkPingPong(b *testing.B) {
	near, far := benchPair(b, roomy)
	var echoing sync.WaitGroup
	echoing.Go(func() { echo(far) }) // ends when far is closed
	frame := appendFrame(nil, 1, 1, benchSize)
	b.SetBytes(2 * benchFrames * benchSize)
	b.ReportAllocs()
	for b.Loop() {
		sendBatch(near, frame)
		receiveBytes(b, near, benchFrames*benchSize)
	}
	perFrame(b)
	near.Close("benchmark-end")
	far.Close("benchmark-end")
	echoing.Wait()
	giveBack(b, near)
	giveBack(b, far)
}

// BenchmarkStream is 64 frames of 1 KiB in one flush over TCP in one direction, as fast as the receiver reads.
func BenchmarkStream(b *testing.B) {
	drained := make(chan struct{}, 1) // never closed
	cfg := Config{High: 1 << 20, Low: 256 << 10, MaxQueued: 4 << 20, Class: Requests, Drained: func() { drained <- struct{}{} }}
	near, far := benchPair(b, cfg)
	var receiving sync.WaitGroup
	frame := appendFrame(nil, 1, 1, benchSize)
	b.SetBytes(benchFrames * benchSize)
	b.ReportAllocs()
	var total int
	receiving.Go(func() { // ends at the end of file
		for {
			p, err := far.Read(1)
			if err != nil {
				return
			}
			total += len(p)
			far.Advance(len(p))
		}
	})
	for b.Loop() {
		for range benchFrames {
			near.Append(frame)
		}
		above := near.Queued() > int64(cfg.High)
		near.Flush()
		if above {
			<-drained
		}
	}
	if err := near.Finish("benchmark-end"); err != nil {
		b.Error(err)
	}
	receiving.Wait()
	perFrame(b)
	if total != b.N*benchFrames*benchSize {
		b.Errorf("got %d bytes, want %d", total, b.N*benchFrames*benchSize)
	}
	giveBack(b, near)
	giveBack(b, far)
}
