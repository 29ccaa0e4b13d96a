package forwarder_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// maglev is what the balancer of a spec's first cluster chooses, for endpoints of which some have failed.
func maglev(s *forwarder.Spec, failed ...int) func(key []byte) int {
	var endpoints []*cluster.Endpoint
	var addresses []string
	var weights []int
	for _, e := range s.Clusters[0].Endpoints {
		endpoints = append(endpoints, cluster.NewEndpoint(e.Address, e.Weight))
		addresses, weights = append(addresses, e.Address), append(weights, e.Weight)
	}
	for _, i := range failed {
		endpoints[i].Failed(0)
	}
	b := cluster.NewMaglev(endpoints, cluster.NewMaglevTable(addresses, weights), rand.Uint64)
	return func(key []byte) int { return b.Pick(cluster.Ask{Avoid: -1, Hash: cluster.Hash(key)}) }
}

// ofUser is a request with a header user.
func ofUser(id uint32, user string) bolt.Request {
	r := request(id, user)
	r.Headers = append(r.Headers, bolt.Pair{Key: "user", Value: user})
	return r
}

// TestMaglevByHeader: requests of one user go to one server, which follows from the user's name and the addresses alone; where that
// server is dead, to the next that follows.
func TestMaglevByHeader(t *testing.T) {
	servers := []*server{serveEach(t, echoEach), serveEach(t, echoEach), serveEach(t, echoEach)}
	s := spec(servers[0].address, deadAddress(t), servers[1].address, servers[2].address)
	s.Clusters[0].Balancer, s.Clusters[0].HashHeader = forwarder.BalancerMaglev, "user"
	s.Routes[0].Rules[0].Attempts, s.Routes[0].Rules[0].RetryOn = 2, forwarder.RetryConnectFailure
	servers = []*server{servers[0], nil, servers[1], servers[2]}
	alive := maglev(s, 1)
	p := startProxy(t, s, 512<<20)
	one, other := dial(t, p.address), dial(t, p.address)
	const users, rounds = 40, 3
	want := make([]int64, len(servers))
	for round := range rounds {
		for i := range users {
			user := fmt.Sprint("user-", i)
			c := one
			if (round+i)%2 == 1 {
				c = other
			}
			wantEcho(t, c.call(ofUser(uint32(i), user)), user)
			want[alive([]byte(user))]++
			for k, server := range servers {
				if server != nil && server.frames.Load() != want[k] {
					t.Fatalf("%s, round %d: got %d requests at server %d, want %d", user, round, server.frames.Load(), k, want[k])
				}
			}
		}
	}
}

// TestMaglevOfLargeFrames: what goes out in pieces is hashed as the rest is.
func TestMaglevOfLargeFrames(t *testing.T) {
	servers := []*server{serveEach(t, echoEach), serveEach(t, echoEach), serveEach(t, echoEach)}
	s := spec(servers[0].address, servers[1].address, servers[2].address)
	s.Listeners[0].StreamAbove = 64 << 10
	s.Clusters[0].Balancer, s.Clusters[0].HashHeader = forwarder.BalancerMaglev, "user"
	choice := maglev(s)
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	want := make([]int64, len(servers))
	for i := range 12 {
		user := fmt.Sprint("user-", i)
		r := ofUser(uint32(i), user)
		r.Content = make([]byte, 300<<10)
		if m := c.call(r); m.Status != wire.Success {
			t.Fatalf("%s: got %v, want SUCCESS", user, m.Status)
		}
		want[choice([]byte(user))]++
		for k, server := range servers {
			if server.frames.Load() != want[k] {
				t.Fatalf("%s: got %d requests at server %d, want %d", user, server.frames.Load(), k, want[k])
			}
		}
	}
}

// TestMaglevByClient: all requests of one host go to one server, whatever connection they come on.
func TestMaglevByClient(t *testing.T) {
	servers := []*server{serveEach(t, echoEach), serveEach(t, echoEach), serveEach(t, echoEach)}
	s := spec(servers[0].address, servers[1].address, servers[2].address)
	s.Clusters[0].Balancer = forwarder.BalancerMaglev
	choice := maglev(s)
	p := startProxy(t, s, 512<<20)
	want := make([]int64, len(servers))
	used := map[int]bool{}
	for i := range 10 {
		host := fmt.Sprintf("127.0.1.%d", i+1)
		bytes := netip.MustParseAddr(host).As16()
		k := choice(bytes[:])
		used[k] = true
		for range 2 {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
			conn, err := d.DialContext(t.Context(), "tcp", p.address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			c := &peer{TCPConn: conn.(*net.TCPConn), t: t}
			wantEcho(t, c.call(ofUser(1, host)), host)
			if want[k]++; servers[k].frames.Load() != want[k] {
				t.Fatalf("client %s: got %d requests at server %d, want %d", host, servers[k].frames.Load(), k, want[k])
			}
		}
	}
	if len(used) < 2 {
		t.Errorf("got the requests of ten hosts at %d server, want more: this test would not see it", len(used))
	}
}

// TestMaglevWithoutKey: requests without the header, or with an empty one, go to all servers.
func TestMaglevWithoutKey(t *testing.T) {
	servers := []*server{serveEach(t, echoEach), serveEach(t, echoEach), serveEach(t, echoEach)}
	s := spec(servers[0].address, servers[1].address, servers[2].address)
	s.Clusters[0].Balancer, s.Clusters[0].HashHeader = forwarder.BalancerMaglev, "user"
	p := startProxy(t, s, 512<<20)
	c := dial(t, p.address)
	for i := range uint32(200) {
		if i%2 == 0 {
			wantEcho(t, c.call(request(i, "nobody")), "nobody")
		} else {
			wantEcho(t, c.call(ofUser(i, "")), "")
		}
	}
	for k, server := range servers { // by chance fewer once in 10^9
		if got := server.frames.Load(); got < 20 {
			t.Errorf("got %d of 200 requests at server %d, want about a third", got, k)
		}
	}
}
