package stats

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Record is what is told of one exchange: by the access log of those that it samples, by the ring of those that failed
// or were answered here. What is not known is zero: of a request that was sent and whose reply never came the trace is
// known only if the access log had asked for it before.
type Record struct {
	Time     time.Time // when the read ended that brought the request
	Listener string
	Client   string // address, or "unix socket"
	Protocol string
	Kind     string // request or oneway
	Service  string
	Method   string
	Trace    string // rpc_trace_context.sofaTraceId
	RPC      string // rpc_trace_context.sofaRpcId
	ID       uint32 // as the client gave it
	Upstream uint32 // as the last connection to an endpoint gave it, 0 if it was never sent
	Route    string // table/rule
	Cluster  string
	Endpoint string // of the last try
	Attempts int
	Status   string // of the reply, by name; "" of a request that got none
	Reason   string // why it was answered here or dropped, "" if the endpoint answered
	Request  int    // bytes of the request's frame
	Reply    int    // bytes of the reply's frame

	// The times by phase. Wait is from Time until the request was sent last: filters, worker and connection awaited. Server
	// is from there to its reply, Total from Time to the end.
	Wait, Server, Total time.Duration
}

// succeeded is the status of a reply that is no failure, by the name that package wire gives it.
const succeeded = "SUCCESS"

// Failed says whether the exchange failed or was answered here. A one-way request that was passed on has no status and
// is none of these.
func (r *Record) Failed() bool {
	return r.Reason != "" || r.Status != succeeded && (r.Status != "" || r.Kind != "oneway")
}

// MaxText bounds what a kept record holds of each text that a client chose, in bytes.
const MaxText = 256

// Clip shortens what the client chose to MaxText bytes each. What it cuts is no longer held.
func (r *Record) Clip() {
	for _, s := range [...]*string{&r.Service, &r.Method, &r.Trace, &r.RPC} {
		if len(*s) > MaxText {
			*s = strings.Clone((*s)[:MaxText])
		}
	}
}

// Ring keeps the newest records, as many as it has places. The zero Ring is not usable.
type Ring struct {
	// Guarded by mu.
	mu      sync.Mutex
	records []Record
	next    int
	total   uint64
}

// NewRing returns a ring with this many places, of which it has one at least.
func NewRing(places int) *Ring { return &Ring{records: make([]Record, 0, max(places, 1))} }

// Add keeps a record, clipped, in the place of the oldest where the ring is full.
func (r *Ring) Add(rec Record) {
	rec.Clip()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total++
	if len(r.records) < cap(r.records) {
		r.records = append(r.records, rec)
		return
	}
	r.records[r.next] = rec
	r.next = (r.next + 1) % len(r.records)
}

// Records are the kept records, oldest first, and how many there have been in all.
func (r *Ring) Records() (records []Record, total uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	records = append(records, r.records[r.next:]...)
	return append(records, r.records[:r.next]...), r.total
}

// Restore puts records, oldest first, in front of those that are kept, as if they had been added before, and total of
// them to the number of all. There is room for the newest only.
func (r *Ring) Restore(records []Record, total uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total += max(total, uint64(len(records)))
	room := cap(r.records) - len(r.records)
	records = slices.Clone(records[max(0, len(records)-room):])
	for i := range records {
		records[i].Clip()
	}
	// Where there is no room the ring may have wrapped, and stays as it is; else its oldest record is the first.
	r.records = slices.Insert(r.records, 0, records...)
}
