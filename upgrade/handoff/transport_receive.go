package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// minIn is the least that is read into, and keepIn the size up to which it is kept for the next message.
	minIn  = 256 << 10
	keepIn = 4 << 20
	// growIn is how much memory a length is believed for that was only announced. Otherwise memory follows what arrives.
	growIn = 1 << 20
)

// descriptor is one that has arrived.
type descriptor struct {
	fd  int
	end uint64 // where in the stream the read ended that brought it: its frame begins before
}

// Receive returns the next message and its descriptors. They do not block (their sockets are shared, and did not before),
// are not inherited by other processes, and belong to the caller.
//
// It is io.EOF when the peer's end is gone and all that it had sent was received, and io.ErrUnexpectedEOF when the stream
// ends within a frame. It is os.ErrDeadlineExceeded at the deadline of SetReadDeadline; nothing is lost then, and the next
// call goes on. After a *PayloadError the next call returns the next message. Any other error is final: the next call returns it
// again. Descriptors that are not returned are closed.
func (c *Conn) Receive() (Message, []*os.File, error) {
	c.receiving.Lock()
	defer c.receiving.Unlock()
	for c.ended == nil {
		need, f, err := c.head()
		if err != nil {
			c.end(err)
			break
		}
		if have := len(c.in) - c.read; have >= need {
			return c.take(f)
		}
		n, err := c.fill(need)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, nil, fmt.Errorf("receiving: %w", err)
		case err != nil:
			c.end(fmt.Errorf("receiving: %w", err))
		case n == 0 && len(c.in) > c.read:
			c.end(fmt.Errorf("receiving: after %d bytes of a frame: %w", len(c.in)-c.read, io.ErrUnexpectedEOF))
		case n == 0:
			c.end(io.EOF)
		}
	}
	return nil, nil, c.ended
}

// end is the last of the stream. The first reason stays.
func (c *Conn) end(err error) {
	if c.ended == nil {
		c.ended = err
	}
	closeAll(c.queue)
	c.queue, c.in, c.read = nil, nil, 0
}

// head looks at the frame that begins at in[read] and returns how many bytes must be there before it can be taken.
func (c *Conn) head() (need int, f frame, err error) {
	if len(c.in)-c.read < headerLen {
		return headerLen, f, nil
	}
	f, err = decodeHeader(c.in[c.read:])
	if err != nil {
		return 0, f, err
	}
	// Descriptors come with the first byte of their frame, in the same read or before its end.
	if len(c.queue) > 0 && c.queue[0].end <= c.at {
		return 0, f, fmt.Errorf("reading %s: more descriptors came with the frame before than it says", f.kind)
	}
	if len(c.queue) < f.files {
		return 0, f, fmt.Errorf("reading %s: %d descriptors came, the frame says %d", f.kind, len(c.queue), f.files)
	}
	return headerLen + f.length, f, nil
}

// take takes a frame that is there.
func (c *Conn) take(f frame) (Message, []*os.File, error) {
	payload := c.in[c.read+headerLen:][:f.length]
	own := c.queue[:f.files]
	m, err := f.decode(payload)
	var files []*os.File
	if _, unknown := m.(*Unknown); err != nil || unknown {
		closeAll(own)
	} else if len(own) > 0 {
		files = open(own)
	}
	c.queue = c.queue[f.files:]
	c.read += headerLen + f.length
	c.at += uint64(headerLen + f.length)
	if c.read == len(c.in) && cap(c.in) > keepIn {
		c.in, c.read = nil, 0
	}
	return m, files, err
}

// openEach is how many descriptors are worth a goroutine.
const openEach = 16

// open makes files of descriptors, on all processors: adding one to the runtime's poller wakes the thread that waits there,
// which costs more than all the rest of it, unless nobody waits because all have work.
func open(queue []descriptor) []*os.File {
	files := make([]*os.File, len(queue))
	each := max((len(queue)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0), openEach)
	var all sync.WaitGroup
	for from := 0; from < len(queue); from += each {
		all.Go(func() { // ends when its part is done
			for i := from; i < min(from+each, len(queue)); i++ {
				files[i] = os.NewFile(uintptr(queue[i].fd), "handed over")
			}
		})
	}
	all.Wait()
	return files
}

// fill reads once, as much as there is room for. It is 0 at the end of the stream.
func (c *Conn) fill(need int) (int, error) {
	c.room(need)
	var n, oobn, flags int
	var err error
	try := func(fd uintptr) bool {
		for {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), c.in[len(c.in):cap(c.in)], c.oob, recvFlags)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	}
	if failed := c.raw.Read(try); errors.Is(failed, os.ErrDeadlineExceeded) {
		// What is there is delivered all the same.
		if closed := c.raw.Control(func(fd uintptr) { try(fd) }); closed != nil {
			return 0, c.explain(closed)
		}
		if err == unix.EAGAIN {
			return 0, failed
		}
	} else if failed != nil {
		return 0, c.explain(failed)
	}
	if err == unix.ECONNRESET {
		return 0, nil // the peer has left something unread; what it had sent is read by now
	}
	if err != nil {
		return 0, os.NewSyscallError("recvmsg", err)
	}
	c.in = c.in[:len(c.in)+n]
	return n, c.enqueue(c.oob[:oobn], flags)
}

// room makes room for the next read, towards need bytes in all; memory grows with what has arrived.
func (c *Conn) room(need int) {
	have := len(c.in) - c.read
	if c.read > 0 {
		copy(c.in, c.in[c.read:])
		c.in, c.read = c.in[:have], 0
	}
	if cap(c.in) > have {
		return
	}
	size := max(min(need, max(2*have, have+growIn)), minIn)
	in := make([]byte, have, size)
	copy(in, c.in)
	c.in = in
}

// enqueue takes in the descriptors of a read. Those that it does not are closed.
func (c *Conn) enqueue(oob []byte, flags int) error {
	var failed error
	if len(oob) > 0 {
		messages, err := unix.ParseSocketControlMessage(oob)
		if err != nil {
			failed = fmt.Errorf("reading descriptors: %w", err)
		}
		for i := range messages {
			if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
				continue
			}
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				failed = fmt.Errorf("reading descriptors: %w", err)
			}
			for _, fd := range fds {
				c.queue = append(c.queue, descriptor{fd, c.at + uint64(len(c.in)-c.read)})
			}
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return errors.New("reading descriptors: the kernel dropped some (MSG_CTRUNC): is the limit of open files reached?")
	}
	return failed
}

func closeAll(queue []descriptor) {
	for _, d := range queue {
		_ = unix.Close(d.fd) // nobody has it
	}
}
