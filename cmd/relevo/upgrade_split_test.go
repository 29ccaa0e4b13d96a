//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// split is a request, or a reply, of which some bytes are sent before an upgrade and the others behind it.
type split struct {
	kind  kind
	reply bool // the reply is cut, not the request
	at    int  // bytes of the frame that are sent before

	caller *caller
}

// splits cuts requests and replies of all layouts at every byte, and large ones here and there. All bytes before may mean
// none and all.
func splits() (list []split) {
	for _, v := range []bolt.Version{bolt.V1, bolt.V2, bolt.V2CRC} {
		for _, reply := range []bool{false, true} {
			small := kind{name: fmt.Sprintf("%v, reply %v", v, reply), listener: "client", service: "echo", size: stampSize, versions: []bolt.Version{v}}
			large := small
			large.name += ", large"
			large.size = 200 << 10
			if reply {
				small.service, large.service = "apart", "apart"
				large.size, large.reply = stampSize, large.size
			}
			for at := range frameLen(small, reply) + 1 {
				list = append(list, split{kind: small, reply: reply, at: at})
			}
			for at := 1; at < frameLen(large, reply); at += 9973 {
				list = append(list, split{kind: large, reply: reply, at: at})
			}
			list = append(list, split{kind: large, reply: reply, at: frameLen(large, reply) - 1}) // within the checksum
		}
	}
	return list
}

// frameLen is the length of the frame of a request of this kind, or of its reply.
func frameLen(k kind, reply bool) int {
	var frame []byte
	var err error
	if reply {
		r := bolt.Response{Version: k.versions[0], Class: bolt.ClassResponse, Content: make([]byte, stamp{reply: uint32(k.reply)}.replySize(k.size))}
		frame, err = r.Append(nil)
	} else {
		c := caller{kind: k, version: k.versions[0], open: map[uint32]asked{}}
		frame = c.next()
	}
	if err != nil || len(frame) == 0 {
		panic("a frame of this test cannot be written")
	}
	return len(frame)
}

// Whatever of a frame one process has read or written, the next one goes on behind it: no byte is lost, none comes twice.
func TestFramesAreSplitByAnUpgrade(t *testing.T) {
	t.Run("no upgrade", func(t *testing.T) { testSplit(t, func(*chain) {}) })
	t.Run("upgrade", func(t *testing.T) {
		if !canUpgrade {
			t.Skip("this program cannot be upgraded yet")
		}
		testSplit(t, func(p *chain) { p.upgrade(t) })
	})
	t.Run("two upgrades", func(t *testing.T) {
		if !canUpgrade {
			t.Skip("this program cannot be upgraded yet")
		}
		testSplit(t, func(p *chain) {
			p.upgrade(t)
			p.upgrade(t)
		})
	})
}

func testSplit(t *testing.T, upgrade func(*chain)) {
	list := splits()
	requests, oneways := newLedger(), newLedger()
	whole := newKeeper(t, "127.0.0.1:0", requests, oneways, nil)

	// A server sends the first bytes of a reply, and the rest when it is told to. Each such reply has a connection of its
	// own, because each has an endpoint of its own, all of them one server.
	rest := make(chan struct{})
	cuts := map[uint32]int{} // by caller; complete before the first request
	apart := newKeeper(t, "0.0.0.0:0", requests, oneways, func(c *kept, m *wire.Message, reply []byte) bool {
		s, _ := readStamp(m.Content())
		at, ok := cuts[s.caller]
		if !ok || s.number > 0 {
			return false
		}
		if c.held {
			t.Errorf("two replies that are cut come over one connection, which proves less than each alone")
		}
		c.held = true
		requests.see(s.caller, s.number)
		_ = c.write(reply[:at]) // else the reply is lost, which its client notices
		c.keeper.wg.Go(func() { // ends with rest, which is closed whatever happens
			<-rest
			_ = c.write(reply[at:])
		})
		return true
	})
	release := sync.OnceFunc(func() { close(rest) })
	t.Cleanup(release)

	_, port, _ := strings.Cut(apart.address(), "]:")
	if port == "" {
		_, port, _ = strings.Cut(apart.address(), ":")
	}
	var endpoints []string
	for _, s := range list {
		if s.reply {
			n := len(endpoints)
			endpoints = append(endpoints, fmt.Sprintf("{address: %q}", fmt.Sprintf("127.0.%d.%d:%s", 1+n/200, 1+n%200, port)))
		}
	}
	address := steadyAddress(t)
	p := newChain(t, os.Args[0], patientUpgrades, fmt.Sprintf(`
listeners: [{name: client, address: %q, protocol: bolt, stream_above: 64KiB, read_timeout: 5m, verify_crc: true}]
routes:
- name: rpc
  rules:
  - {match: {service: apart}, cluster: apart, timeout: 5m}
  - {match: {service: echo}, cluster: echo, timeout: 5m}
clusters:
- {name: echo, protocol: bolt, verify_crc: true, max_uploads: 100, read_timeout: 5m, endpoints: [{address: %q}]}
- {name: apart, protocol: bolt, verify_crc: true, balancer: round-robin, heartbeat_interval: none, read_timeout: 5m, endpoints: [%s]}
`, address, whole.address(), strings.Join(endpoints, ", ")))

	w := newCrew(t, map[string]string{"client": address})
	for i := range list {
		s := &list[i]
		if s.caller = w.dial(s.kind); s.caller == nil {
			t.Fatal(w.check(requests, oneways))
		}
		if s.reply {
			cuts[s.caller.number] = s.at
		}
	}
	write := func(s *split, part []byte) {
		if _, err := s.caller.nc.Write(part); err != nil {
			s.caller.fail(failClosed, err)
		}
	}
	left := make([][]byte, len(list))
	for i := range list {
		s := &list[i]
		frame := s.caller.next()
		at := len(frame)
		if !s.reply {
			at = s.at
		}
		write(s, frame[:at])
		left[i] = frame[at:]
	}

	replies := int64(len(endpoints))
	calm(t, func() (bool, string) {
		n := apart.accepted.Load()
		return n == replies, fmt.Sprintf("%d connections to the server whose replies are cut, want %d", n, replies)
	})
	_, listener, _ := strings.Cut(address, ":")
	calm(t, func() (bool, string) {
		rows := onTheWay(t, listener, port)
		return len(rows) == 0, fmt.Sprintf("connections with bytes that have not been read:\n%s", strings.Join(rows, "\n"))
	})
	upgrade(p)
	for i := range list {
		write(&list[i], left[i])
	}
	release()
	w.end()

	// And each connection goes on as if nothing had been.
	for i := range list {
		list[i].caller.send()
	}
	w.end()
	if err := w.check(requests, oneways); err != nil {
		t.Error(err)
	}
	if bad := whole.bad.Load() + apart.bad.Load(); bad > 0 {
		t.Errorf("the servers got %d frames that were not as sent", bad)
	}
	if n, gone := apart.accepted.Load(), apart.gone.Load()+whole.gone.Load(); n != replies || gone > 0 {
		t.Errorf("%d connections to %d endpoints were made, and %d ended; want one each, and none", n, replies, gone)
	}
	w.close()
	p.stop(t)
}

// calm waits for a while until something is so.
func calm(t *testing.T, so func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		is, what := so()
		if is {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v there are still %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// onTheWay are the connections of these ports, as the kernel lists them, that hold bytes which are not acknowledged or
// not read.
func onTheWay(t *testing.T, ports ...string) (rows []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	var ends []string
	for _, p := range ports {
		var n int
		_, _ = fmt.Sscan(p, &n)
		ends = append(ends, fmt.Sprintf(":%04X", n))
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 || f[4] == "00000000:00000000" {
			continue
		}
		if slices.ContainsFunc(ends, func(end string) bool { return strings.HasSuffix(f[1], end) || strings.HasSuffix(f[2], end) }) {
			rows = append(rows, strings.TrimSpace(line))
		}
	}
	return rows
}
