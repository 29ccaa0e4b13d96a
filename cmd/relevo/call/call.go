// Package call makes one Bolt call on a connection of its own and shows what came back: the tool to ask a
// server, or a forwarder, a single question. It is no client library: it keeps no connection and does not
// retry. It starts no goroutine.
package call

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// ErrNothing says that no connection could be made: there is nothing to talk to, and nothing was sent.
var ErrNothing = errors.New("nothing to talk to")

const (
	defaultTimeout = 3 * time.Second
	grace          = 500 * time.Millisecond // for a reply that says that the timeout has passed
	maxReply       = 64 << 20
	requestID      = 1
	firstBuffer    = 16 << 10
)

// Options say whom to call, and with what.
type Options struct {
	Addr    string // host:port, or unix: and a path
	Service string // value of the header "service"; empty for none
	Headers []bolt.Pair
	Version bolt.Version
	Codec   byte   // the serialization named in the frame; 0 for hessian2
	Class   string // empty for SOFARPC's request class
	Content []byte

	Timeout   time.Duration // to connect, and again to answer; sent in milliseconds; 0 for 3 s
	Oneway    bool          // send and do not wait
	Heartbeat bool          // send a heartbeat, without anything of the above but Version, and wait for its ack
}

// Error is a call that came to nothing.
type Error struct {
	Doing string // "connecting", "sending", "waiting for the reply"
	Addr  string
	Sent  bool // whether the server may have got the request, or a part of it
	Err   error
}

// Error says what was being done, and whether anything was sent.
func (e *Error) Error() string {
	sent := "nothing was sent"
	if e.Sent {
		sent = "the request was sent"
	}
	return fmt.Sprintf("call %s: %s: %v (%s)", e.Addr, e.Doing, e.Err, sent)
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Do makes the call. A reply is a Result whatever its status. The error is an *Error, which wraps ErrNothing
// where there was nothing to connect to, or is about Options.
func Do(ctx context.Context, o Options) (*Result, error) {
	frame, err := o.request()
	if err != nil {
		return nil, fmt.Errorf("call: %w", err)
	}
	timeout := o.timeout()
	start := time.Now()
	d := net.Dialer{Timeout: timeout}
	network, address := "tcp", o.Addr
	if path, ok := strings.CutPrefix(o.Addr, "unix:"); ok {
		network, address = "unix", path
	}
	nc, err := d.DialContext(ctx, network, address)
	if err != nil && ctx.Err() != nil {
		return nil, &Error{"connecting", o.Addr, false, context.Cause(ctx)}
	}
	if err != nil {
		return nil, &Error{"connecting", o.Addr, false, fmt.Errorf("%w: %w", ErrNothing, err)}
	}
	defer nc.Close()
	connected := time.Now()
	if err := nc.SetDeadline(connected.Add(timeout + grace)); err != nil {
		return nil, &Error{"connecting", o.Addr, false, err}
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	if n, err := nc.Write(frame); err != nil {
		return nil, &Error{"sending", o.Addr, n > 0, cause(ctx, err)}
	}
	r := &Result{Oneway: o.Oneway, Connect: connected.Sub(start), BytesOut: len(frame)}
	if !o.Oneway {
		if err := r.read(nc); err != nil {
			return nil, &Error{"waiting for the reply", o.Addr, true, cause(ctx, err)}
		}
	}
	r.Total = time.Since(start)
	return r, nil
}

// cause is the context's error where that, and no deadline of ours, ended the call.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the connection was closed")
	}
	return err
}

func (o *Options) timeout() time.Duration {
	if o.Timeout == 0 {
		return defaultTimeout
	}
	return o.Timeout
}

// request is the frame to send.
func (o *Options) request() ([]byte, error) {
	timeout := o.timeout()
	if timeout < 0 || timeout.Milliseconds() > math.MaxInt32 {
		return nil, fmt.Errorf("timeout %v: want more than 0, and milliseconds that fit in 31 bits", timeout)
	}
	if o.Oneway && o.Heartbeat {
		return nil, errors.New("a heartbeat cannot be one-way")
	}
	r := bolt.Request{
		Version: o.Version, Oneway: o.Oneway, Codec: o.Codec, ID: requestID, Timeout: int32(timeout.Milliseconds()),
		Class: o.Class, Content: o.Content,
	}
	if r.Codec == 0 {
		r.Codec = bolt.CodecHessian2
	}
	if r.Class == "" {
		r.Class = bolt.ClassRequest
	}
	if o.Oneway {
		r.Timeout = -1 // as Java clients send it
	}
	if o.Service != "" {
		r.Headers = append(r.Headers, bolt.Pair{Key: "service", Value: o.Service})
	}
	r.Headers = append(r.Headers, o.Headers...)
	if o.Heartbeat {
		r.Heartbeat, r.Class, r.Headers, r.Content = true, "", nil, nil
	}
	return r.Append(nil)
}

// read fills r with the reply to the request. Frames that are not it, such as a server's heartbeat, are
// passed over.
func (r *Result) read(nc net.Conn) error {
	var (
		m     wire.Message
		codec = bolt.Codec{VerifyCRC: true}
		buf   = make([]byte, firstBuffer)
		end   int
	)
	for {
		n, err := codec.Decode(&m, buf[:end], wire.Limits{MaxFrame: maxReply})
		switch {
		case err != nil:
			return err
		case n <= end && (m.Kind == wire.Reply || m.Kind == wire.Ack) && m.ID == requestID:
			return r.take(&m)
		case n <= end:
			end = copy(buf, buf[n:end])
			continue
		case n > len(buf):
			buf = append(buf[:end], make([]byte, n-end)...)
		}
		got, err := nc.Read(buf[end:])
		if got == 0 && err != nil {
			return err
		}
		end += got
	}
}

// take copies the reply into r.
func (r *Result) take(m *wire.Message) error {
	at := 10
	r.Version = bolt.VersionOf(m)
	if r.Version != bolt.V1 {
		at = 12
	}
	r.Code = binary.BigEndian.Uint16(m.Frame[at:])
	r.Ack = m.Kind == wire.Ack
	r.Status, r.Codec, r.Class = m.Status, bolt.CodecOf(m), string(m.Class())
	r.Body = append([]byte(nil), m.Content()...)
	r.Bytes = len(m.Frame)
	for h, err := range bolt.WalkHeaders(m) {
		if err != nil {
			return err
		}
		r.Headers = append(r.Headers, bolt.Pair{Key: string(h.Key), Value: string(h.Value)})
	}
	return nil
}
