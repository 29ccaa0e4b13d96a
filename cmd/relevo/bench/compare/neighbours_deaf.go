package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

const (
	deafSize    = 4 << 10         // bytes of content of each request, and of each reply that piles up
	deafReceive = 16 << 10        // asked of the kernel for the replies
	gateWait    = 5 * time.Second // from the first request until Relevo reads no more of them
)

// deaf is a client that sends requests for as long as somebody reads them, and never reads a reply.
type deaf struct {
	conn  net.Conn
	group sync.WaitGroup
}

// deafen connects one and waits until Relevo has shut its read gate. Whoever calls it calls close.
func (n *neighbourhood) deafen(ctx context.Context, called string) (*deaf, error) {
	dialer := net.Dialer{Timeout: gateWait}
	conn, err := dialer.DialContext(ctx, "tcp", n.address)
	if err != nil {
		return nil, err
	}
	d := &deaf{conn: conn}
	if tcp, ok := conn.(*net.TCPConn); ok {
		err = tcp.SetReadBuffer(deafReceive)
	}
	if err == nil {
		d.group.Go(func() { d.send(called) }) // ends when the connection is closed
		err = n.untilGated(ctx)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// send writes requests until the connection is closed, by whomever: that it is open still is looked at elsewhere.
func (d *deaf) send(called string) {
	request := bolt.Request{
		Codec: bolt.CodecHessian2, Timeout: int32(smallTimeout.Milliseconds()), Class: bolt.ClassRequest,
		Headers: []bolt.Pair{{Key: "service", Value: called}}, Content: make([]byte, deafSize),
	}
	var frame []byte
	for {
		request.ID++
		var err error
		if frame, err = request.Append(frame[:0]); err != nil {
			return
		}
		if _, err := d.conn.Write(frame); err != nil {
			return
		}
	}
}

func (d *deaf) close() {
	_ = d.conn.Close() // wakes send
	d.group.Wait()
}

// untilGated waits until Relevo reads no more from one connection.
func (n *neighbourhood) untilGated(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gateWait)
	defer cancel()
	next := time.NewTicker(lookEvery)
	defer next.Stop()
	for {
		now, err := n.look(ctx)
		if err != nil {
			return err
		}
		if now.Gated == 1 {
			return nil
		}
		select {
		case <-next.C:
		case <-ctx.Done():
			return fmt.Errorf("the client that never reads is still read from: %w", ctx.Err())
		}
	}
}

// stillGated says so when the client that never reads was let go during the run.
func (n *neighbourhood) stillGated(ctx context.Context) error {
	now, err := n.look(ctx)
	if err == nil && now.Gated != 1 {
		err = errors.New("the client that never reads was not there to the end")
	}
	return err
}
