package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

const (
	requestSize  = 1 << 10 // bytes of content
	pipelined    = 4       // requests in flight on each connection while all are busy
	callTimeout  = time.Minute
	dialsAtOnce  = 64
	replyFixed   = 20 // bytes of a reply before what its lengths, the last 8 of them, count
	dialPatience = 10 * time.Second

	// dialEvery spreads the connections over a minute and more. Their keep-alive probes come as they were made, rounded to
	// seconds by the kernel; thousands of them at once overflow the backlog of the loopback interface (net.core.netdev_max_backlog,
	// 1000), again and again, until the kernel takes the connections for dead.
	dialEvery = 5 * time.Millisecond
)

// clients are connections that are kept.
type clients struct {
	conns []net.Conn
	frame []byte // the request that all of them send
}

// dial makes n connections.
func dial(ctx context.Context, address string, n int) (*clients, error) {
	c := &clients{conns: make([]net.Conn, n)}
	var err error
	c.frame, err = (&bolt.Request{
		Version: bolt.V1, ID: 1, Codec: bolt.CodecHessian2, Timeout: int32(callTimeout.Milliseconds()), Class: bolt.ClassRequest,
		Headers: []bolt.Pair{{Key: "service", Value: "com.relevo.Echo:1.0"}}, Content: make([]byte, requestSize),
	}).Append(nil)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialPatience, KeepAlive: -1}
	pace := time.NewTicker(dialEvery)
	defer pace.Stop()
	err = c.each(dialsAtOnce, func(i int) (err error) {
		<-pace.C
		c.conns[i], err = dialer.DialContext(ctx, "tcp", address)
		return err
	})
	if err != nil {
		c.close()
	}
	return c, err
}

// each calls f with each number of a connection, so many at once, and returns what went wrong first.
func (c *clients) each(atOnce int, f func(int) error) error {
	var group sync.WaitGroup
	var once sync.Once
	var first error
	next := make(chan int) // closed when all numbers are taken
	for range min(atOnce, len(c.conns)) {
		group.Go(func() { // ends when next is closed
			for i := range next {
				if err := f(i); err != nil {
					once.Do(func() { first = fmt.Errorf("connection %d: %w", i, err) })
				}
			}
		})
	}
	for i := range c.conns {
		next <- i
	}
	close(next)
	group.Wait()
	return first
}

// call sends n requests on each connection and reads the replies.
func (c *clients) call(n int) error {
	return c.each(dialsAtOnce, func(i int) error { return c.exchange(c.conns[i], n, make([]byte, 2*len(c.frame))) })
}

// busy keeps requests in flight on all connections at once for a time.
func (c *clients) busy(length time.Duration) error {
	until := time.Now().Add(length)
	return c.each(len(c.conns), func(i int) error {
		in := make([]byte, 2*len(c.frame))
		for {
			if err := c.exchange(c.conns[i], pipelined, in); err != nil || !time.Now().Before(until) {
				return err
			}
		}
	})
}

// exchange sends n requests at once and reads their replies, whose ids are all the same.
func (c *clients) exchange(conn net.Conn, n int, in []byte) error {
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	var out []byte
	for range n {
		out = append(out, c.frame...)
	}
	if _, err := conn.Write(out); err != nil {
		return err
	}
	for range n {
		if _, err := io.ReadFull(conn, in[:replyFixed]); err != nil {
			return err
		}
		lengths := binary.BigEndian.Uint64(in[replyFixed-8:])
		size := int(lengths>>48) + int(lengths>>32&0xffff) + int(uint32(lengths))
		if status := binary.BigEndian.Uint16(in[10:]); status != 0 || size < requestSize || size > len(in) {
			return fmt.Errorf("a reply of status %d and %d bytes, to a request of %d", status, size, requestSize)
		}
		if _, err := io.ReadFull(conn, in[:size]); err != nil {
			return err
		}
	}
	return nil
}

// close closes all that are open.
func (c *clients) close() {
	for i, conn := range c.conns {
		if conn != nil {
			if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				fmt.Println("closing a connection:", err)
			}
			c.conns[i] = nil
		}
	}
}
