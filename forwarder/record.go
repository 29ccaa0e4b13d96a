package forwarder

import (
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// kept is what is kept of an exchange beside its slot, for those of which something is: the access log wants a record, or its
// request may be sent again. It is a pooled object; it goes where the exchange goes and belongs to the exchange's holder.
type kept struct {
	logged bool // the access log wants the record
	record
	spare
}

// kept is what is kept of the batch's exchange.
func (b *batch) kept() *kept {
	if b.x.kept == nil {
		b.x.kept = b.f.kept.Get().(*kept)
	}
	return b.x.kept
}

// logged says whether the access log wants to know of the exchange.
func (x *exchange) logged() bool { return x.kept != nil && x.kept.logged }

// record is what the access log wants to know of an exchange and what is gone when it ends.
type record struct {
	method, service string
	trace, rpc      string
	request         int   // bytes of the frame
	sent            int64 // when the request was sent last; 0: never
}

// The header keys under which clients name what a record tells.
var (
	traceKey = []byte("rpc_trace_context.sofaTraceId")
	rpcKey   = []byte("rpc_trace_context.sofaRpcId")
)

// told are the header keys that a record asks for; each is looked up in the frame.
var told = [][]byte{[]byte(route.ServiceKey), []byte(route.MethodKey), traceKey, rpcKey}

// record makes the record of the exchange that begins.
func (b *batch) record() {
	k := b.kept()
	k.logged, k.request = true, b.frameSize()
	b.fill(&k.record)
}

// fill reads into a record what the request's frame says. A malformed header block says nothing.
func (b *batch) fill(r *record) {
	var values [4][]byte
	if b.x.down.codec.Headers(&b.msg, told, values[:]) != nil {
		return
	}
	text := func(v []byte) string { return string(v[:min(len(v), maxLabelText)]) }
	r.service, r.method, r.trace, r.rpc = text(values[0]), text(values[1]), text(values[2]), text(values[3])
}

// frameSize is the size of the frame under way, the part that is still to come included.
func (b *batch) frameSize() int { return max(len(b.frame.bytes), b.whole) }

// atHand says whether the frame under way is the request's.
func (b *batch) atHand() bool {
	return len(b.frame.bytes) > 0 && (b.msg.Kind == wire.Request || b.msg.Kind == wire.Oneway || b.msg.Kind == wire.Unknown)
}

// requestHeader is the value of a header of the request, "" where its frame is not at hand.
func (b *batch) requestHeader(key string) string {
	if !b.atHand() {
		return ""
	}
	var value [1][]byte
	if b.x.down.codec.Headers(&b.msg, [][]byte{[]byte(key)}, value[:]) != nil {
		return ""
	}
	return string(value[0])
}

// tell gives the record of the exchange, which ends, to those who want it: the access log if it sampled it, the ring if
// it failed or was answered here. The status is that of the reply, the reason why it was not the endpoint's.
func (b *batch) tell(status, reason string, replySize int) {
	x := &b.x
	var r record
	switch {
	case x.logged():
		r = x.kept.record
	case b.atHand():
		r.request = b.frameSize()
		b.fill(&r)
	case x.label != nil:
		r.service, r.method = x.label.service, x.label.method
	}
	rec := stats.Record{
		Time: b.f.started.Add(time.Duration(x.start)), Listener: x.down.listener.name, Client: x.down.name(),
		Protocol: x.down.codec.Name(), Kind: "request", Service: r.service, Method: r.method, Trace: r.trace, RPC: r.rpc,
		ID: x.id, Upstream: b.upstreamID, Attempts: int(x.attempts), Status: status, Reason: reason,
		Request: r.request, Reply: replySize, Total: time.Duration(b.now - x.start),
	}
	if x.kind == wire.Oneway {
		rec.Kind, rec.Status = "oneway", ""
	}
	if t := x.target; t != nil {
		rec.Route, rec.Cluster = t.name, t.clusterName()
		if x.endpoint != nil {
			rec.Endpoint = x.endpoint.address
		}
	}
	rec.Wait = rec.Total
	if r.sent > 0 {
		rec.Wait, rec.Server = time.Duration(r.sent-x.start), time.Duration(b.now-r.sent)
	}
	if rec.Failed() {
		b.f.failures.Add(rec)
	}
	if x.logged() {
		b.f.access.Log(rec)
	}
}

// failuresKept is the number of exchanges that failed or were answered here which are remembered.
const failuresKept = 256

// Failures are the newest exchanges that failed or were answered here, oldest first, at most 256, and how many there
// have been in all.
func (f *Forwarder) Failures() (records []stats.Record, total uint64) { return f.failures.Records() }

// RestoreFailures puts those of the process before this one in front, and their number to the number of all.
func (f *Forwarder) RestoreFailures(records []stats.Record, total uint64) {
	f.failures.Restore(records, total)
}

// label is what an exchange asks for, as its client names it. Equal ones are mostly one object. Never changed.
type label struct{ service, method string }

// labels are the labels in use, as far as they are remembered.
type labels struct {
	mu    sync.RWMutex
	known map[label]*label
}

// The bounds of labels: how many are remembered before all are forgotten, and the length of one name in bytes.
const (
	maxLabels    = 4096
	maxLabelText = 256
)

// labelled is the label of the exchange under way. Neighbouring requests mostly have the same one.
func (b *batch) labelled(service, method []byte) *label {
	service, method = service[:min(len(service), maxLabelText)], method[:min(len(method), maxLabelText)]
	if l := b.label; l != nil && string(service) == l.service && string(method) == l.method {
		return l
	}
	b.label = b.f.labels.get(service, method)
	return b.label
}

func (s *labels) get(service, method []byte) *label {
	s.mu.RLock()
	l := s.known[label{string(service), string(method)}]
	s.mu.RUnlock()
	if l != nil {
		return l
	}
	l = &label{string(service), string(method)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.known[*l]; known != nil {
		return known
	}
	if s.known == nil || len(s.known) >= maxLabels {
		s.known = make(map[label]*label)
	}
	s.known[*l] = l
	return l
}
