package conn

// What a read loop needs that does not hand on the bytes as they were read, because filters stand between: they keep
// bytes of their own, so they say with InFrame when a frame has begun, and have their memory counted here.

// Limit bounds what one system call of a Read of one byte brings, for a read loop that wants to end with a frame; 0 takes
// the bound away. Only the read loop calls it.
func (c *Conn) Limit(n int) { c.limit = n }

// Await waits until the read gate is open, without reading. It returns what Read would. Only the read loop calls it.
func (c *Conn) Await() error {
	if c.shut() == 0 {
		return nil
	}
	return c.awaitGate()
}

// GateFilter shuts or opens the read gate because a filter stopped the way in, and GateHeld because too much waits for
// one that stopped the way out. They wait for nobody.
func (c *Conn) GateFilter(shut bool) { c.change(gateFilter, shut) }

// GateHeld is explained at GateFilter.
func (c *Conn) GateHeld(shut bool) { c.change(gateHeld, shut) }

func (c *Conn) change(g gate, shut bool) {
	if (gate(c.gates.Load())&g != 0) == shut {
		return
	}
	c.mu.Lock()
	c.setGate(g, shut)
	c.mu.Unlock()
}

// Reserve returns a buffer of at least n bytes that counts as held by the connection. One above 64 KiB it waits for, in
// order of arrival, like a large frame; it returns nil when the connection was closed or paused meanwhile. Only the read
// loop calls it, with nothing unread.
func (c *Conn) Reserve(n int) []byte {
	if n <= readSize {
		return c.get(n)
	}
	return c.reserve(n)
}

// Get is Buffers.Get for a buffer that counts as held by the connection until Put or Disown. Any goroutine may call the
// three, in Put and Disown for what came from Get or Reserve of this connection.
func (c *Conn) Get(n int) []byte { return c.get(n) }

// Put gives a buffer back; nil is nothing.
func (c *Conn) Put(buf []byte) {
	if buf != nil {
		c.put(buf)
	}
}

// Disown makes a buffer the caller's alone: it does not count as held by the connection any more.
func (c *Conn) Disown(buf []byte) { c.held.Add(-int64(cap(buf))) }

// Claim undoes Disown, or makes a buffer from elsewhere count.
func (c *Conn) Claim(buf []byte) { c.held.Add(int64(cap(buf))) }
