//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// The environment of a bad server: what is wrong with it, and where it listens.
const (
	badServer  = "RELEVO_TEST_BAD_SERVER"
	badAddress = "RELEVO_TEST_BAD_ADDRESS"
)

// What can be wrong with a server.
const (
	answersGarbage   = "garbage"   // answers with another protocol
	answersHalf      = "half"      // answers with half a frame, then with silence
	answersTwice     = "twice"     // answers each request under an id never given, then rightly, then again
	closesAtAccept   = "closes"    // closes each connection at once
	closesAtRequests = "closes-at" // closes each connection at its first bytes
)

// badServers is what each of them does with a connection, which is closed behind it.
var badServers = map[string]func(net.Conn){
	answersGarbage: func(c net.Conn) {
		var b [1]byte
		if _, err := c.Read(b[:]); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
		}
	},
	answersHalf: func(c net.Conn) {
		frames(c, func(m *wire.Message) bool {
			reply := bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Success)
			_, _ = c.Write(reply[:len(reply)/2])
			return false
		})
		_, _ = io.Copy(io.Discard, c)
	},
	answersTwice: func(c net.Conn) {
		frames(c, func(m *wire.Message) bool {
			if m.Kind == wire.Heartbeat {
				_, err := c.Write(bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Success))
				return err == nil
			}
			var out []byte
			for _, id := range []uint32{m.ID + neverGiven, m.ID, m.ID} {
				r := bolt.Response{
					Version: bolt.VersionOf(m), Codec: bolt.CodecOf(m), ID: id, Status: wire.Success,
					Class: bolt.ClassResponse, Content: m.Content(),
				}
				var err error
				if out, err = r.Append(out); err != nil {
					return false
				}
			}
			_, err := c.Write(out)
			return err == nil
		})
	},
	closesAtAccept: func(net.Conn) {},
	closesAtRequests: func(c net.Conn) {
		var b [1]byte
		_, _ = c.Read(b[:])
	},
}

// neverGiven is added to an id to make one that no test gets to: ids count from 1 on each connection.
const neverGiven = 1 << 24

// frames hands on what comes, until the connection or each ends it.
func frames(c net.Conn, each func(*wire.Message) bool) {
	var m wire.Message
	in, end := make([]byte, 64<<10), 0
	for {
		n, err := c.Read(in[end:])
		if err != nil {
			return
		}
		end += n
		at := 0
		for at < end {
			size, err := bolt.Codec{}.Decode(&m, in[at:end], wire.Limits{})
			if err != nil {
				return
			}
			if size > end-at {
				break
			}
			if !each(&m) {
				return
			}
			at += size
		}
		end = copy(in, in[at:end])
	}
}

// TestBadServer is a bad server, in a process that other tests start and kill.
func TestBadServer(t *testing.T) {
	serve := badServers[os.Getenv(badServer)]
	if serve == nil {
		t.Skip("other tests start this as a process of its own")
	}
	l, err := net.Listen("tcp", os.Getenv(badAddress))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fmt.Fprintf(os.Stdout, "bad: listening at %s\n", l.Addr())
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { // ends with the connection, or with the process
			defer c.Close()
			serve(c)
		})
	}
}
