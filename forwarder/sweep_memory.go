package forwarder

import (
	"cmp"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/conn"
)

// memory is what the sweeper remembers of the pressure on buffers.
type memory struct {
	pressed  bool         // there is something to look at again soon
	gated    []*conn.Conn // not read from, between frames
	reply    turn
	closedAt int64 // when connections were last looked at to close one for memory
}

// turn is for how long a large read has been the next to get memory, without those who have it getting on.
type turn struct {
	read   uint64 // its number; 0 when none waits
	waited int64
	moved  uint64 // bytes that they moved meanwhile
	at     int64  // when it was last looked at
}

// wait returns for how long it has been this read's turn, at this time, since those who have the memory last made progress;
// so many bytes they have moved since the last look. A look that comes late counts as one in time: then the machine was
// busy, and nobody had a chance.
func (t *turn) wait(read, moved uint64, now int64) int64 {
	since := min(now-t.at, lateLook)
	t.at = now
	if read != t.read || read == 0 {
		t.read, t.waited, t.moved = read, 0, 0
		return 0
	}
	t.waited += since
	if t.moved += moved; t.moved >= progress {
		t.waited, t.moved = 0, 0
	}
	return t.waited
}

// How long memory may be short before connections are closed for it. A large reply that waits holds up all replies behind
// it, so its patience is short; but it follows progress: as long as large frames get on, memory comes back, and however
// slowly all of them do on a busy machine, closing one would only undo work. A request may be in the middle of a large
// frame for some time when others wait for theirs. Then one connection is closed at a time, and its memory is given the time
// to come back.
const (
	pressureLook    = int64(10 * time.Millisecond)
	lateLook        = 5 * pressureLook
	replyPatience   = int64(time.Second)
	progress        = 1 << 20 // bytes in replyPatience, by all who have large frames: less is none
	requestPatience = int64(10 * time.Second)
	closePause      = int64(250 * time.Millisecond)
)

// relieve acts when buffers hold too much. Above the high mark the largest holders among the clients are not
// read from between frames, below it all are read again. At the limit, or when a large frame waits for memory
// for too long, connections are closed.
func (s *sweeper) relieve(snap *snapshot, now int64) {
	m := &s.memory
	buffers := s.f.buffers
	used, high := buffers.Used(), buffers.High()
	reply := m.reply.wait(buffers.Next(conn.Replies), s.moved(snap), now)
	requestWaits := buffers.Next(conn.Requests) != 0
	pressed, tooMuch := used > high, s.judged.tooMuch
	switch {
	case pressed:
		buffers.Trim(true)
		m.giveTurns()
		s.gate(snap, max(used-high+high/8, tooMuch))
		s.warnPressure()
	case tooMuch > 0: // not of buffers, but their clients are who can be told to wait
		buffers.Trim(true)
		m.giveTurns()
		s.gate(snap, tooMuch)
	default:
		for _, c := range m.gated {
			c.GateMemory(false)
		}
		clear(m.gated)
		m.gated = m.gated[:0]
	}
	switch {
	case used >= buffers.Max():
		s.closeWorst(snap, used-buffers.Max()+1-closing(snap), (*conn.Conn).Held)
	case now-m.closedAt < closePause:
	case reply >= replyPatience:
		// Of those who have the memory, the one that has been still for longest.
		m.closedAt = now
		s.closeWorst(snap, 1, func(c *conn.Conn) int64 {
			if c.Held() >= largeFrame {
				return 1 + c.Still(now)
			}
			return 0
		})
	case requestWaits:
		// Whoever has been at one large frame for long keeps the others from theirs.
		m.closedAt = now
		s.closeWorst(snap, 1, func(c *conn.Conn) int64 {
			if stuck := c.Stuck(now); stuck >= requestPatience && c.Held() >= largeFrame {
				return stuck
			}
			return 0
		})
	}
	m.pressed = pressed || m.reply.read != 0 || requestWaits || tooMuch == 0 && len(m.gated) > 0
}

// moved is how many bytes those who hold large frames have moved since the last look; 0 when no reply waits for memory.
func (s *sweeper) moved(snap *snapshot) (n uint64) {
	if s.f.buffers.Next(conn.Replies) == 0 {
		return 0
	}
	each(snap, func(c *conn.Conn) {
		if c.Held() >= largeFrame {
			n += c.Moved()
		}
	})
	return n
}

// closing is how many bytes come back as soon as the read loops of connections that are closed already have ended: where one is
// busy, or waits for something of its own, that takes a while.
func closing(snap *snapshot) (n int64) {
	each(snap, func(c *conn.Conn) {
		if c.Closed() {
			n += c.Held()
		}
	})
	return n
}

// each calls fn for every connection.
func each(snap *snapshot, fn func(*conn.Conn)) {
	for _, l := range snap.listeners {
		l.each(func(d *downstream) { fn(d.conn) })
	}
	for _, c := range snap.clusters {
		c.connections(func(u *upstream) { fn(u.conn) })
	}
}

// giveTurns opens the gates of those that have been shut out for longest and hold nothing, an eighth of all at a look:
// what fills the buffers may be others', who cannot be stopped in the middle of a frame, and may stay for long.
func (m *memory) giveTurns() {
	turns := 1 + len(m.gated)/8
	m.gated = slices.DeleteFunc(m.gated, func(c *conn.Conn) bool {
		if turns > 0 && c.Held() == 0 {
			turns--
			c.GateMemory(false)
			return true
		}
		return c.Closed()
	})
}

// gate shuts the gates of the clients that hold most, until they hold excess together.
func (s *sweeper) gate(snap *snapshot, excess int64) {
	var clients []*conn.Conn
	for _, l := range snap.listeners {
		l.each(func(d *downstream) { clients = append(clients, d.conn) })
	}
	slices.SortFunc(clients, func(a, b *conn.Conn) int { return cmp.Compare(b.Held(), a.Held()) })
	for _, c := range clients {
		if excess <= 0 || c.Held() == 0 {
			break
		}
		excess -= c.Held()
		if !c.Gated() {
			c.GateMemory(true)
			s.memory.gated = append(s.memory.gated, c)
		}
	}
}

func (s *sweeper) warnPressure() {
	if n, ok := s.f.warn("buffers", ReasonBufferPressure); ok {
		s.f.log.Warn("buffers are nearly full: the largest holders are not read from",
			zap.String("reason", ReasonBufferPressure), zap.String("check", advice[ReasonBufferPressure]),
			zap.Int64("used", s.f.buffers.Used()), zap.Int64("max_buffered", s.f.buffers.Max()),
			zap.Int("gated", len(s.memory.gated)), zap.Uint64("suppressed", n))
	}
}

// closeWorst closes the connections with the highest ranks above 0, until they held enough together; of those with the same rank
// the one from which nothing whole was read for longest goes first: a read that is under way holds as much as half a frame that
// its peer does not end.
func (s *sweeper) closeWorst(snap *snapshot, enough int64, rank func(*conn.Conn) int64) {
	type ranked struct {
		conn *conn.Conn
		rank int64
	}
	var all []ranked
	each(snap, func(c *conn.Conn) {
		if n := rank(c); n > 0 && !c.Closed() {
			all = append(all, ranked{c, n})
		}
	})
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(a.conn.LastRead(), b.conn.LastRead()))
	})
	closed, held := 0, int64(0)
	for _, r := range all {
		if held >= enough {
			break
		}
		held += r.conn.Held()
		r.conn.Close(ReasonBufferPressure)
		closed++
	}
	if closed == 0 {
		return
	}
	if n, ok := s.f.warn("buffers", "closed"); ok {
		s.f.log.Warn("closed connections to make room in the buffers",
			zap.String("reason", ReasonBufferPressure), zap.String("check", advice[ReasonBufferPressure]), zap.Int("connections", closed),
			zap.Int64("held", held), zap.Int64("used", s.f.buffers.Used()),
			zap.Int64("max_buffered", s.f.buffers.Max()), zap.Uint64("suppressed", n))
	}
}
