//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// What one process has half written, the next one goes on with: at every byte of a small frame, in both directions.
//
// How many bytes a socket takes whose other end reads nothing depends on the kernel, and is nearly always the same. So one of many
// small frames behind a large one, the filler, is cut where the filler's size says, and the table of sockets says whether it was.

// holding keeps what is to be read from being read.
type holding struct {
	until chan struct{} // closed by release
	once  sync.Once
}

func (h *holding) release() { h.once.Do(func() { close(h.until) }) }

// reader reads from a connection, when it may. A nil holding holds nothing.
func (h *holding) reader(from net.Conn) io.Reader {
	if h == nil {
		return from
	}
	return &heldReader{from, h.until}
}

type heldReader struct {
	io.Reader
	until chan struct{}
}

func (r *heldReader) Read(b []byte) (int, error) {
	<-r.until
	return r.Reader.Read(b)
}

// narrow has a socket, and the other end's, take little.
func narrow(_, _ string, raw syscall.RawConn) error {
	var set error
	err := raw.Control(func(fd uintptr) {
		set = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2<<10),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536),
		)
	})
	return errors.Join(err, set)
}

// halves are frames of one kind, each behind a filler on a connection of its own, cut one at each byte.
type halves struct {
	// Static.
	kind  kind
	reply bool     // the replies are cut, not the requests
	size  int      // of a frame
	peers []string // where requests are cut, the endpoints that read nothing, one a connection

	callers []*caller
	silent  []string // who reads nothing, by connection: its address
	starts  []int    // of the first small frame, by connection
	room    int      // what the sockets of a connection took last
	missing []int    // bytes at which none is cut
}

// allHalves are frames of all layouts in both directions. Endpoints are on this port.
func allHalves(held *holding, port string) (list []*halves) {
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		for _, reply := range []bool{false, true} {
			h := &halves{reply: reply, kind: kind{
				name: fmt.Sprintf("%v, reply %v", v, reply), listener: "client", service: "echo", size: stampSize, versions: []bolt.Version{v},
			}}
			if reply {
				h.kind.held = held
			} else {
				h.kind.service = peerService(0)
			}
			h.size = frameLen(h.kind, reply)
			for n := 0; !reply && n < 2*h.size; n++ {
				h.peers = append(h.peers, fmt.Sprintf("127.1.%d.%d:%s", len(list), 1+n, port))
			}
			list = append(list, h)
		}
	}
	return list
}

// before is how many small frames are to be whole before the one that is cut; as many follow it.
const before = 20

// peerService is the service that is routed to an endpoint, by its number.
func peerService(n int) string { return fmt.Sprintf("peer-%03d", n) }

// dial makes another connection, on which a frame is to be cut at this byte.
func (h *halves) dial(t *testing.T, w *crew, first, at int) {
	t.Helper()
	small := h.kind
	if !h.reply {
		if len(h.callers) == len(h.peers) {
			t.Fatalf("%s: %d connections are not enough: there is no cut at %d", h.kind.name, len(h.peers), h.missing)
		}
		small.service = peerService(first + len(h.callers))
	}
	c := w.dial(small)
	if c == nil {
		t.Fatal("a connection cannot be made")
	}
	start := max(h.room-at-before*h.size, 2*h.size)
	filler := small
	if content := start - (h.size - stampSize); h.reply {
		filler.reply = content
		h.silent = append(h.silent, c.nc.LocalAddr().String())
	} else {
		filler.size = content
		h.silent = append(h.silent, h.peers[len(h.callers)])
	}
	h.callers, h.starts = append(h.callers, c), append(h.starts, start)
	frames := slices.Clone(c.nextLike(&filler))
	for range 2 * before {
		frames = append(frames, c.nextLike(&small)...)
	}
	if err := c.write(frames); err != nil {
		c.fail(failClosed, err)
	}
}

// look sees what is cut where, and returns what each connection's sockets have taken.
func (h *halves) look(taken map[string]int) (rooms []int) {
	cut := map[int]bool{}
	for i, peer := range h.silent {
		h.room = taken[socketOf(peer)]
		rooms = append(rooms, h.room)
		if n := h.room - h.starts[i]; n >= 0 && n <= 2*before*h.size {
			cut[n%h.size] = true
		}
	}
	h.missing = nil
	for at := range h.size {
		if !cut[at] {
			h.missing = append(h.missing, at)
		}
	}
	return rooms
}

// Two upgrades: one process hands on what it has half written, the next one what it was handed so.
func TestFramesAreHalfWrittenAtAnUpgrade(t *testing.T) {
	held := &holding{until: make(chan struct{})}
	defer held.release() // clean-ups wait for those who read
	requests, oneways := newLedger(), newLedger()
	server := newKeeper(t, "127.0.0.1:0", requests, oneways, nil)
	silent := (&keeper{requests: requests, oneways: oneways, held: held}).open(t, "0.0.0.0:0")
	_, port, _ := net.SplitHostPort(silent.address())
	list := allHalves(held, port)
	var rules, clusters strings.Builder
	first := map[*halves]int{} // of its endpoints
	n := 0
	for _, h := range list {
		first[h] = n
		for _, peer := range h.peers {
			fmt.Fprintf(&rules, "  - {match: {service: %s}, cluster: %[1]s, timeout: 5m}\n", peerService(n))
			fmt.Fprintf(&clusters, "- {name: %s, protocol: bolt, heartbeat_interval: none, connect_timeout: 1m, read_timeout: 5m, write_timeout: 5m, endpoints: [{address: %q}]}\n", peerService(n), peer)
			n++
		}
	}
	address := steadyAddress(t)
	p := newChain(t, os.Args[0], patientUpgrades, fmt.Sprintf(`
listeners: [{name: client, address: %q, protocol: bolt, read_timeout: 5m, write_timeout: 5m}]
routes:
- name: rpc
  rules:
%s  - {match: {service: echo}, cluster: echo, timeout: 5m}
clusters:
%s- {name: echo, protocol: bolt, endpoints: [{address: %q}]}
`, address, &rules, &clusters, server.address()))

	// The first connection of each kind says how much its sockets take, the next ones cut there, and a few are for what that missed.
	w := newCrew(t, map[string]string{"client": address})
	for _, h := range list {
		h.room = 200 << 10 // more than they take
		h.missing = []int{0}
	}
	for range 10 { // it takes two or three
		for _, h := range list {
			for _, at := range h.missing {
				h.dial(t, w, first[h], at)
			}
		}
		missing := settle(t, list)
		t.Logf("%d bytes at which no frame is cut", missing)
		if missing == 0 {
			break
		}
	}
	for _, h := range list {
		if len(h.missing) > 0 {
			t.Errorf("%s: no frame is cut at the bytes %d", h.kind.name, h.missing)
		}
	}
	p.upgrade(t)
	p.upgrade(t)
	held.release()
	w.end()

	// And each connection goes on as if nothing had been.
	for _, c := range w.all() {
		c.send()
	}
	w.end()
	if err := w.check(requests, oneways); err != nil {
		t.Error(err)
	}
	if bad, gone := server.bad.Load()+silent.bad.Load(), server.gone.Load()+silent.gone.Load(); bad > 0 || gone > 0 {
		t.Errorf("the servers got %d frames that were not as sent, and %d connections ended; want none", bad, gone)
	}
	w.close()
	p.stop(t)
}

// settle looks at all when nothing has changed for a while.
func settle(t *testing.T, list []*halves) (missing int) {
	t.Helper()
	var before []int
	since := time.Now()
	calm(t, func() (bool, string) {
		var now []int
		missing = 0
		taken := takenBy(t)
		for _, h := range list {
			now = append(now, h.look(taken)...)
			missing += len(h.missing)
		}
		if !slices.Equal(now, before) {
			before, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond, "sockets that take something"
	})
	return missing
}

// socketOf is an address as /proc/net/tcp has it.
func socketOf(address string) string {
	a, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return err.Error()
	}
	ip := a.IP.To4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], a.Port)
}

// takenBy is how many bytes the kernel has taken for each end of a connection that has not read any.
func takenBy(t *testing.T) map[string]int {
	t.Helper()
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]int{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		var tx, rx int
		if len(f) > 4 {
			_, _ = fmt.Sscanf(f[4], "%X:%X", &tx, &rx) // or it is the heading
			taken[f[1]] += rx
			taken[f[2]] += tx
		}
	}
	return taken
}
