package forwarder_test

import (
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder"
)

// TestStreams: the oldest requests in flight are told, with where they are and whose they are.
func TestStreams(t *testing.T) {
	h := serveHeld(t)
	p := startProxy(t, spec(h.address), 64<<20)
	c := dial(t, p.address)
	const n = 7
	for id := range uint32(n) {
		c.send(encode(t, traced(id, "held")))
		h.got(t, int64(id)+1)
	}
	client, server := p.one(forwarder.ConnectionFilter{Side: forwarder.ClientSide}), p.one(forwarder.ConnectionFilter{Side: forwarder.ServerSide})
	list, total := p.Streams(forwarder.StreamFilter{Limit: 3})
	if len(list) != 3 || total != n {
		t.Fatalf("got %d of %d streams, want 3 of %d", len(list), total, n)
	}
	for i, s := range list {
		if s.ID != uint32(i) || s.Method != "method"+string('0'+rune(i)) || s.Service != service || s.Phase != forwarder.StreamSent || s.Listener != "in" ||
			s.Client != c.LocalAddr().String() || s.Route != "rpc/echo" || s.Cluster != "echo" || s.Endpoint != h.address || s.Attempts != 1 || s.Oneway ||
			s.ClientConnection != client.ID || s.ServerConnection != server.ID || s.ServerID == 0 || s.Age <= 0 || s.Left <= 0 || s.Left > 3*time.Second {
			t.Errorf("got %+v, want request %d", s, i)
		}
		if i > 0 && s.Age > list[i-1].Age {
			t.Errorf("got an age of %v behind one of %v, want the oldest first", s.Age, list[i-1].Age)
		}
	}
	for _, tc := range []struct {
		of   forwarder.StreamFilter
		want int
	}{
		{forwarder.StreamFilter{Listener: "in", Cluster: "echo", Endpoint: h.address, Service: service}, n},
		{forwarder.StreamFilter{Listener: "other"}, 0},
		{forwarder.StreamFilter{Cluster: "other"}, 0},
		{forwarder.StreamFilter{Endpoint: "other"}, 0},
		{forwarder.StreamFilter{Service: "other"}, 0},
	} {
		tc.of.Limit = 100
		if list, total := p.Streams(tc.of); len(list) != tc.want || total != tc.want {
			t.Errorf("got %d of %d streams of %+v, want %d", len(list), total, tc.of, tc.want)
		}
	}
	h.release()
	c.receiveByID(n)
	if list, total := p.Streams(forwarder.StreamFilter{Limit: 10}); len(list) != 0 || total != 0 {
		t.Errorf("got %d of %d streams behind the replies, want none", len(list), total)
	}
}

// TestStreamsThatWait for a connection, for a worker, or in a filter.
func TestStreamsThatWait(t *testing.T) {
	t.Run("for a connection", func(t *testing.T) {
		s := spec(blackhole(t))
		s.Clusters[0].ConnectTimeout = time.Minute
		p := startProxy(t, s, 64<<20)
		c := dial(t, p.address)
		for id := range uint32(3) {
			c.send(frameOf(t, id, "waits"))
		}
		p.wantCount(3, "relevo_cluster_pending")
		list, total := p.Streams(forwarder.StreamFilter{Limit: 2, Cluster: "echo"})
		if len(list) != 2 || total != 3 || list[0].Phase != forwarder.StreamWaiting || list[0].ServerConnection != 0 || list[0].ID != 0 {
			t.Errorf("got %+v of %d, want the first two of three that wait for a connection", list, total)
		}
		if n := p.Status().Clusters[0].Endpoints[0].Waiting; n != 3 {
			t.Errorf("got %d requests that wait for the endpoint, want 3", n)
		}
	})
	t.Run("for a worker", func(t *testing.T) {
		filters, entered, let := holding("before", "")
		s := spec(serveEach(t, echoEach).address)
		s.Workers = forwarder.WorkersSpec{Max: 1, Queue: 10}
		s.Listeners[0].Filters = filters
		p := startProxy(t, s, 64<<20)
		c := dial(t, p.address)
		for id := range uint32(3) {
			c.send(frameOf(t, id, "waits"))
		}
		<-entered
		p.wantCount(2, "relevo_worker_queue")
		list, total := p.Streams(forwarder.StreamFilter{Limit: 10})
		if len(list) != 2 || total != 2 || list[0].Phase != forwarder.StreamQueued || list[0].Route != "" || p.InFilters() != 1 {
			t.Errorf("got %+v of %d, and %d in filters, want two that wait for a worker and one in a filter", list, total, p.InFilters())
		}
		close(let)
		c.receiveByID(3)
	})
}

// TestStreamsUnderLoad: looking disturbs nobody, and what is seen makes sense.
func TestStreamsUnderLoad(t *testing.T) {
	p := startProxy(t, spec(serveEach(t, echoEach).address), 512<<20)
	load := startLoad(t, p.address)
	seen := 0
	for seen < 100 && !t.Failed() {
		list, total := p.Streams(forwarder.StreamFilter{Limit: 5})
		if len(list) > 5 || len(list) > total {
			t.Fatalf("got %d of %d streams, want at most 5", len(list), total)
		}
		for _, s := range list {
			seen++
			if s.Listener != "in" || s.Cluster != "echo" || s.Service != service {
				t.Errorf("got %+v, want a request of the load", s)
			}
		}
		p.open(forwarder.ConnectionFilter{})
	}
	load.stop()
}
