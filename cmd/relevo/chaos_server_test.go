//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// A fleet's server: unlike the echo server it has a pool of workers, so that it has a capacity, and it does at any moment
// what its board says.

// asServer makes the test binary a server of a fleet: fleetOrder, as printed by String.
const asServer = "RELEVO_TEST_AS_SERVER"

// mode is how a server behaves.
type mode uint32

const (
	fine    mode = iota // it executes, which takes its delay, and answers
	busy                // it executes nothing, and answers that it is busy
	garbage             // it executes, and answers with another protocol
)

// serverOrder is all that a server must know when it starts.
type serverOrder struct {
	number  int
	address string
	workers int
	queue   int // requests that wait for a worker; what exceeds it is answered busy
	file    string
	size    boardSize
}

const orderFormat = "%d %s %d %d %s %d %d %d %d"

func (o serverOrder) String() string {
	return fmt.Sprintf(orderFormat, o.number, o.address, o.workers, o.queue, o.file, o.size.servers, o.size.lanes, o.size.links, o.size.numbers)
}

func readOrder(text string) (o serverOrder, err error) {
	_, err = fmt.Sscanf(text, orderFormat, &o.number, &o.address, &o.workers, &o.queue, &o.file, &o.size.servers, &o.size.lanes, &o.size.links, &o.size.numbers)
	return o, err
}

// serveFleet is the life of a server, if this process is to be one. It ends with the process.
func serveFleet() {
	text := os.Getenv(asServer)
	if text == "" {
		return
	}
	err := func() error {
		o, err := readOrder(text)
		if err != nil {
			return fmt.Errorf("%s=%s: %w", asServer, text, err)
		}
		b, err := openBoard(o.file, o.size)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", o.address)
		if err != nil {
			return err
		}
		s := &fleetServer{board: b, number: o.number, jobs: make(chan job, o.queue)}
		for range o.workers {
			go s.work() // ends with the process
		}
		fmt.Fprintf(os.Stdout, "server %d: listening at %s\n", o.number, l.Addr())
		for {
			nc, err := l.Accept()
			if err != nil {
				return err
			}
			go s.serve(nc) // ends with the connection
		}
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// fleetServer is a server of a fleet, in its process.
type fleetServer struct {
	board  *board
	number int
	jobs   chan job // requests that wait for a worker, never closed
}

// job is a request that is to be executed, with the reply to it.
type job struct {
	to           net.Conn
	lane         lane
	link, number uint64
	reply        []byte
}

// notBolt is what garbage is made of.
const notBolt = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"

// work executes one request after the other. Writes of several workers to a connection do not mix: net.Conn sees to it.
func (s *fleetServer) work() {
	for j := range s.jobs {
		s.board.execute(s.number, j.lane, j.link, j.number)
		time.Sleep(time.Duration(s.board.get(s.number, wordDelay)) * time.Millisecond)
		if mode(s.board.get(s.number, wordMode)) == garbage {
			j.reply = []byte(notBolt)
		}
		_, _ = j.to.Write(j.reply) // else its connection has ended, and so has the request
	}
}

// serve takes what a connection brings.
func (s *fleetServer) serve(nc net.Conn) {
	defer nc.Close()
	in := inbox{from: nc}
	for {
		m, err := in.next()
		if err != nil {
			return
		}
		answer := s.take(nc, m)
		if len(answer) == 0 {
			continue
		}
		if _, err := nc.Write(answer); err != nil {
			return
		}
	}
}

// take leaves a request to the workers, or says what is answered at once.
func (s *fleetServer) take(nc net.Conn, m *wire.Message) []byte {
	now := mode(s.board.get(s.number, wordMode))
	switch {
	case m.Kind == wire.Heartbeat && now == garbage:
		return []byte(notBolt)
	case m.Kind == wire.Heartbeat:
		return bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Success)
	case m.Kind != wire.Request:
		return nil
	case now == busy:
		atomic.AddUint32(s.board.word(s.number, wordRefused), 1)
		return bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Busy)
	}
	j := job{to: nc, lane: laneOf(m)}
	content := m.Content()
	if len(content) < benchStamp {
		atomic.AddUint32(s.board.word(s.number, wordStray), 1)
	} else {
		j.number, j.link = binary.LittleEndian.Uint64(content), binary.LittleEndian.Uint64(content[8:])&(1<<32-1)
	}
	r := bolt.Response{Version: bolt.VersionOf(m), Codec: bolt.CodecOf(m), ID: m.ID, Class: bolt.ClassResponse, Content: content}
	var err error
	if j.reply, err = r.Append(nil); err != nil {
		atomic.AddUint32(s.board.word(s.number, wordStray), 1)
		return nil
	}
	select {
	case s.jobs <- j:
		return nil
	default:
		atomic.AddUint32(s.board.word(s.number, wordOverflow), 1)
		return bolt.Codec{}.AppendReply(nil, m.Tag, m.ID, wire.Busy)
	}
}

// benchStamp is the length of the stamp that begins what `relevo bench` sends: the request's number on its connection,
// then the connection's, whose low half counts those of the run.
const benchStamp = 16

var serviceKey = [][]byte{[]byte("service")}

// service is the service of a lane's requests, whose name a rule can match by its prefix.
func (l lane) service(name string) string {
	if l == unnoted {
		return name
	}
	return fmt.Sprintf("%s:%d", name, l)
}

func laneOf(m *wire.Message) lane {
	var values [1][]byte
	if err := (bolt.Codec{}).Headers(m, serviceKey, values[:]); err != nil {
		return unnoted
	}
	_, after, found := strings.Cut(string(values[0]), ":")
	l := unnoted
	if _, err := fmt.Sscan(after, &l); !found || err != nil {
		return unnoted
	}
	return l
}
