package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/upgrade"
	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// inherited is a listening socket that came from the process before this one.
type inherited struct {
	handoff.Listener
	Socket net.Listener // nil once somebody has taken it
}

// inherit makes listeners of the descriptors that came with their names. It takes the files over.
func inherit(list []handoff.Listener, files []*os.File) ([]inherited, error) {
	var out []inherited
	var errs []error
	for i, f := range files {
		l, err := net.FileListener(f)
		_ = f.Close() // the listener has a descriptor of its own
		if err != nil {
			errs = append(errs, fmt.Errorf("taking over the socket of %s: %w", list[i].Name, err))
			continue
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		out = append(out, inherited{list[i], l})
	}
	if len(errs) > 0 {
		closeInherited(out)
	}
	return out, errors.Join(errs...)
}

func closeInherited(list []inherited) {
	for i := range list {
		if list[i].Socket != nil {
			_ = list[i].Socket.Close() // a copy; nobody can use its error
		}
	}
}

// claim takes the inherited socket that listens at this address, nil if there is none. Where several have the same one,
// as port 0 has it, it is the one of this name.
func (s *Server) claim(door bool, name, network, address string) (socket net.Listener, kept bool) {
	var found *inherited
	for i := range s.inherited {
		in := &s.inherited[i]
		if in.Socket == nil || in.Door != door || in.Network != network || in.Address != address {
			continue
		}
		if found == nil || in.Name == name {
			found = in
		}
	}
	if found == nil || found.Name != name && strings.HasSuffix(address, ":0") {
		return nil, false
	}
	socket, found.Socket = found.Socket, nil
	return socket, found.Kept
}

// dropInherited closes the sockets that the configuration has no use for, and removes their files.
func (s *Server) dropInherited() {
	for i := range s.inherited {
		in := &s.inherited[i]
		if in.Socket == nil {
			continue
		}
		if a, ok := in.Socket.Addr().(*net.UnixAddr); ok && !in.Kept {
			_ = os.Remove(a.Name) // best effort: the next one that listens there finds that nobody does
		}
		_ = in.Socket.Close()
		in.Socket = nil
		s.dropped = append(s.dropped, placeOf(in.Listener))
		s.log.Info("not listening any more", zap.String("name", in.Name), zap.String("address", in.Address))
	}
}

// giver is how this server's state is handed over.
func (s *Server) giver() upgrade.Giver {
	return upgrade.Giver{
		Hold:      s.live.hold,
		Release:   s.live.release,
		Listeners: s.listeners,
		Settle: func(ctx context.Context) error {
			s.road.Settle(ctx)
			return nil
		},
		Pause: func(ctx context.Context) error {
			garbage.hold()
			if err := s.road.Pause(ctx); err != nil {
				return &upgrade.Stuck{Err: err, Oldest: s.road.Oldest(oldestTold)}
			}
			return nil
		},
		Send: s.give,
		Resume: func() {
			s.road.Resume()
			garbage.release()
		},
		Pauses: func() []upgrade.Bucket { return buckets(s.road.Pauses()) },
		Gone: func() {
			s.unit.leave()
			s.stage.Store(int32(stageGone))
			s.events.End("another process has taken over")
			for _, d := range s.doors {
				d.server.Leave()
			}
			s.road.Abandon()
		},
		Counters: s.counters,
		Left:     func() []string { return s.left },
	}
}

// oldestTold is how many requests are named when the road does not come to rest.
const oldestTold = 10

// listeners are the sockets that go over, with their names and descriptors.
func (s *Server) listeners() (handoff.Listeners, []syscall.RawConn, error) {
	var out handoff.Listeners
	var files []syscall.RawConn
	add := func(l handoff.Listener, c syscall.Conn) error {
		raw, err := c.SyscallConn()
		if err != nil {
			return fmt.Errorf("handing over the socket of %s: %w", l.Name, err)
		}
		out.List = append(out.List, l)
		files = append(files, raw)
		return nil
	}
	sockets := s.road.Sockets()
	for _, l := range s.config().Listeners {
		if socket := sockets[l.Name]; socket != nil {
			network, address := l.Address.Split()
			if err := add(handoff.Listener{Name: l.Name, Network: network, Address: address, Kept: s.live.kept[l.Name]}, socket); err != nil {
				return out, nil, err
			}
		}
	}
	for _, d := range s.doors {
		network, address := d.address.Split()
		if err := add(handoff.Listener{Name: d.name, Network: network, Address: address, Door: true, Kept: d.kept}, d.server); err != nil {
			return out, nil, err
		}
	}
	out.LogLevel, out.Discovery = s.level.export(), s.finder.give()
	var err error
	out.Revisions, err = s.live.store.Export(maxRevisions)
	return out, files, err
}

// maxRevisions bounds the bytes of the revisions that go over: those that are older stay.
const maxRevisions = 32 << 20

// give says the state of the road, which rests.
func (s *Server) give(ctx context.Context, say upgrade.Say) (handoff.Counts, error) {
	h := s.road.Export()
	s.left = nil
	for _, l := range h.Left {
		s.left = append(s.left, fmt.Sprintf("client %s of listener %s: %s", l.Client, l.Listener, l.Reason))
	}
	g := &giver{ctx: ctx, say: say, dictionary: newDictionary()}
	if err := g.all(h); err != nil {
		return handoff.Counts{}, fmt.Errorf("handing over: %w", err)
	}
	return countsOf(h), nil
}

// counters is what this process has counted.
func (s *Server) counters() *handoff.Counters {
	records, total := s.road.Failures()
	out := &handoff.Counters{Total: total}
	for _, m := range s.reg.Export() {
		series := handoff.Series{Name: m.Name, Help: m.Help, Value: m.Value, Buckets: m.Buckets, Sum: m.Sum}
		for _, l := range m.Labels {
			series.Labels = append(series.Labels, l.Name, l.Value)
		}
		out.Series = append(out.Series, series)
	}
	if text, err := json.Marshal(records); err == nil { // records are strings and numbers
		out.Failures = text
	}
	return out
}

// takeCounters adds them to what this process has counted.
func (s *Server) takeCounters(c *handoff.Counters) {
	if !c.More {
		defer s.countedOnce()
	}
	list := make([]stats.Series, 0, len(c.Series))
	for i := range c.Series {
		from := &c.Series[i]
		series := stats.Series{Name: from.Name, Help: from.Help, Value: from.Value, Buckets: from.Buckets, Sum: from.Sum}
		for k := 0; k+1 < len(from.Labels); k += 2 {
			series.Labels = append(series.Labels, stats.Label{Name: from.Labels[k], Value: from.Labels[k+1]})
		}
		list = append(list, series)
	}
	if n := s.reg.Import(list); n > 0 {
		s.log.Warn("counters of the process before this one are lost: this release has others", zap.Int("series", n))
	}
	if len(c.Failures) == 0 {
		return // they came with the first message
	}
	var records []stats.Record
	if err := json.Unmarshal(c.Failures, &records); err != nil {
		s.log.Warn("the failures that the process before this one remembered are lost: this release writes others", zap.Error(err))
	}
	s.road.RestoreFailures(records, c.Total)
}

// buckets is a histogram of pauses, with bounds from 1 ms to 4 s, doubling; the last bucket has what is above.
func buckets(pauses []time.Duration) []upgrade.Bucket {
	if len(pauses) == 0 {
		return nil
	}
	out := make([]upgrade.Bucket, 14)
	for i := range out {
		out[i].LE = (time.Millisecond << i).Seconds()
	}
	for _, p := range pauses {
		i := 0
		for i < len(out)-1 && p.Seconds() > out[i].LE {
			i++
		}
		out[i].Count++
	}
	for len(out) > 1 && out[len(out)-1].Count == 0 {
		out = out[:len(out)-1]
	}
	return out
}

// countsOf is how much there is of everything.
func countsOf(h *forwarder.Handover) handoff.Counts {
	c := handoff.Counts{Downstreams: uint64(len(h.Downstreams)), Upstreams: uint64(len(h.Upstreams))}
	for i := range h.Downstreams {
		d := &h.Downstreams[i]
		c.Bytes += bytesOf(&d.Conn)
		if d.Upload != nil {
			c.Uploads++
		}
	}
	for i := range h.Upstreams {
		c.Bytes += bytesOf(&h.Upstreams[i].Conn)
		c.Streams += uint64(len(h.Upstreams[i].Slots))
	}
	for i := range h.Exchanges {
		if h.Exchanges[i].Held {
			c.Replies++
		} else {
			c.Requests++
		}
	}
	return c
}
