package forwarder

import (
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// goOn starts what Adopt has rebuilt.
func (f *Forwarder) goOn() {
	a := f.adopted
	f.adopted = nil
	if a == nil {
		return
	}
	ups, downs := f.snap.Load().all(), f.snap.Load().downstreams() // now: further ones start by themselves
	for _, u := range ups {
		u.conn.Flush()
		u.settle()
		a.opens()
		f.reading.Go(u.run) // ends when the connection is closed, or with the shift
	}
	b := f.batch()
	for i := range a.waiting {
		a.begin(b, &a.waiting[i])
		if b.frames++; b.frames%maxBatch == 0 {
			b.done()
			b = f.batch()
		}
	}
	b.done()
	for _, d := range downs { // behind what they have sent before: it was first
		d.conn.Flush()
		a.opens()
		f.reading.Go(d.run) // ends when the connection is closed, or with the shift
	}
}

// opens notes that the gate of a connection opens now.
func (a *adopter) opens() {
	a.f.opens(a.h.Paused)
}

// begin goes on with an exchange.
func (a *adopter) begin(b *batch, w *adopted) {
	defer b.rescue()
	b.x, b.frame, b.upstreamID = w.x, frame{bytes: w.frame, owned: true}, w.id
	b.reason = ReasonNoEndpoint // if there is none for a further try
	if n, err := w.x.down.codec.Decode(&b.msg, w.frame, wire.Limits{}); err != nil || n != len(w.frame) {
		b.msg = wire.Message{Kind: w.x.kind, Tag: w.x.tag, ID: w.x.id} // it was decoded when it came, so this is a defect
		b.hijack(wire.UnknownStatus, ReasonPanic)
	} else if w.x.holds&retried != 0 && w.x.down.conn.Closed() {
		b.hijack(wire.ErrorComm, ReasonDownstreamGone) // as in again
	}
	b.run()
	b.putBack()
}
