// Package bench is a load generator for Bolt that trusts nobody: every reply must answer a request that is in
// flight on its own connection, once, with the payload that this request carried.
//
// A closed loop keeps a number of requests in flight on each connection and measures throughput. An open loop
// sends by a schedule, whatever the replies do, and measures latency from the moment a request was due, so
// that a stall is seen by all the requests it delayed. A one-way run only sends.
//
// It is no client library: it does not read payloads, and it knows no retry. Run owns all goroutines: one a
// connection that reads, answers and refills; one that sends by schedule; one a connection, only while its
// socket is full, that writes what is left. All have ended when Run returns.
package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// ErrNothing says that not one of the first connections could be made: nothing was sent.
var ErrNothing = errors.New("nothing to talk to")

// The defaults of Options.
const (
	defaultConnections  = 8
	defaultInFlight     = 64
	defaultOpenInFlight = 10_000
	defaultDuration     = 10 * time.Second
	defaultTimeout      = 3 * time.Second
	defaultGrace        = 500 * time.Millisecond
	defaultService      = "com.relevo.Echo:1.0"
)

const (
	maxFrame      = 64 << 20
	dialTimeout   = 3 * time.Second
	firstDials    = 64 // at once, at the start
	firstBackoff  = 5 * time.Millisecond
	maxBackoff    = 500 * time.Millisecond
	cancelledWait = 3 * time.Second // for what is in flight when the run is cut short
)

// Options say what to send, where, how fast and for how long. A zero value stands for the default named with
// it.
type Options struct {
	Addr        string // host:port, or several with commas between them; connections are spread over them
	Connections int    // 8
	InFlight    int    // requests in flight on each connection: kept at it in a closed loop (64), at most in an open one (10,000)

	Duration time.Duration // of the measurement, without the warm-up; 10 s if Count is 0 too
	Count    uint64        // requests to send in the measurement; 0 for no limit
	Warmup   time.Duration // of load before the measurement, which appears in no number
	Rate     float64       // requests per second over all connections; 0 for a closed loop

	Version bolt.Version
	Codec   byte          // the serialization named in the frame; hessian2
	Class   string        // the request class of SOFARPC
	Service string        // value of the header "service"; com.relevo.Echo:1.0
	Headers []bolt.Pair   // further headers, after service
	Size    int           // bytes of content, from 0 on
	Timeout time.Duration // sent with each request, in milliseconds; 3 s
	Grace   time.Duration // how long after Timeout a request counts as timed out here; 500 ms
	Oneway  bool          // send requests that get no answer

	AnyPayload bool // do not compare payloads: the server is not an echo
	PID        int  // process whose CPU time and memory to report; 0 for none
}

// normalized is o with its defaults filled in, or says all that is wrong with it.
func (o Options) normalized() (Options, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(addresses(o.Addr)) == 0 {
		bad("no address")
	}
	if o.Connections < 0 || o.InFlight < 0 || o.Size < 0 || o.Duration < 0 || o.Warmup < 0 || o.Timeout < 0 || o.Grace < 0 {
		bad("connections, in-flight, size, duration, warm-up, timeout and grace: want none below 0")
	}
	if o.Size > maxFrame-1<<17 {
		bad("size %d: want at most %d", o.Size, maxFrame-1<<17)
	}
	if !(o.Rate >= 0 && o.Rate <= 1e8) {
		bad("rate %v: want 0 to 1e8", o.Rate)
	}
	if o.Timeout.Milliseconds() > math.MaxInt32 {
		bad("timeout %v: does not fit in 31 bits of milliseconds", o.Timeout)
	}
	setDefault(&o.Connections, defaultConnections)
	if o.Rate > 0 {
		setDefault(&o.InFlight, defaultOpenInFlight)
	}
	setDefault(&o.InFlight, defaultInFlight)
	if o.Count == 0 {
		setDefault(&o.Duration, defaultDuration)
	}
	setDefault(&o.Codec, bolt.CodecHessian2)
	setDefault(&o.Class, bolt.ClassRequest)
	setDefault(&o.Service, defaultService)
	setDefault(&o.Timeout, defaultTimeout)
	setDefault(&o.Grace, defaultGrace)
	return o, errors.Join(errs...)
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func addresses(s string) (list []string) {
	for a := range strings.SplitSeq(s, ",") {
		if a = strings.TrimSpace(a); a != "" {
			list = append(list, a)
		}
	}
	return list
}

// run is one run of the load. Times in it are nanoseconds since start.
type run struct {
	// Static once the clients run.
	opts    Options
	frame   []byte // the request that all others are made of
	idAt    int    // where in frame the id stands
	content int    // where in frame the content stands
	payload []byte // the content; its first stampLen bytes are stamped anew in every request
	link0   uint64 // random: the stamps of one run differ from those of another
	start   time.Time
	from    int64 // when the measurement begins
	limit   int64 // requests that the open loop's schedule has, the warm-up's included
	clients []*client
	tallies []*tally

	spent   chan struct{} // closed when Count requests were sent
	spendMu sync.Once

	// Atomic.
	until                         atomic.Int64 // nothing is sent from then on
	budget                        atomic.Int64 // what is left of Count
	links                         atomic.Uint64
	dials, dialErrors, reconnects atomic.Uint64
}

// now is the time since the run began.
func (r *run) now() int64 { return int64(time.Since(r.start)) }

// stopped says whether the time to send is over.
func (r *run) stopped() bool { return r.now() >= r.until.Load() }

// reserve takes up to n requests from what may still be sent at now.
func (r *run) reserve(n int, now int64) int {
	if now >= r.until.Load() {
		return 0
	}
	if r.opts.Count == 0 || now < r.from {
		return n
	}
	left := r.budget.Add(-int64(n))
	if left <= 0 {
		r.spendMu.Do(func() { close(r.spent) })
		return max(0, n+int(max(left, -int64(n))))
	}
	return n
}

// Run makes the connections, generates the load and returns what came of it. It ends after the duration or the
// count, or when ctx does; then it waits for what is in flight: until it timed out, or for 3 s when ctx ended.
//
// The error is about Options, wraps ErrNothing when no connection could be made, or is about PID; a failed
// request is no error: see Report.Failed.
func Run(ctx context.Context, o Options) (*Report, error) {
	o, err := o.normalized()
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	r, err := newRun(o)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	if o.PID != 0 {
		if _, err := readUsage(o.PID); err != nil {
			return nil, fmt.Errorf("bench: %w", err)
		}
	}
	if err := r.firstConnections(ctx); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	return r.generate(ctx), nil
}

func newRun(o Options) (*run, error) {
	r := &run{opts: o, spent: make(chan struct{}), link0: rand.Uint64() << 32, from: int64(o.Warmup)}
	r.payload = make([]byte, o.Size)
	for i := range r.payload {
		r.payload[i] = byte(i*7 + i>>8*13)
	}
	clear(r.payload[:min(o.Size, stampLen)])
	request := bolt.Request{
		Version: o.Version, Oneway: o.Oneway, Codec: o.Codec, Timeout: int32(o.Timeout.Milliseconds()),
		Class: o.Class, Headers: append([]bolt.Pair{{Key: "service", Value: o.Service}}, o.Headers...), Content: r.payload,
	}
	if o.Oneway {
		request.Timeout = -1 // as Java clients send it
	}
	var err error
	if r.frame, err = request.Append(nil); err != nil {
		return nil, err
	}
	var m wire.Message
	if n, err := (bolt.Codec{}).Decode(&m, r.frame, wire.Limits{}); err != nil || n != len(r.frame) {
		return nil, fmt.Errorf("the request cannot be read back: %d of %d bytes, %w", n, len(r.frame), err)
	}
	r.content = int(m.ContentAt)
	r.idAt = 5
	if o.Version != bolt.V1 {
		r.idAt = 6
	}
	r.budget.Store(int64(min(o.Count, math.MaxInt64)))
	r.until.Store(math.MaxInt64)
	if o.Duration > 0 {
		r.until.Store(r.from + int64(o.Duration))
	}
	r.limit = r.scheduled(r.until.Load())
	if o.Count > 0 && o.Rate > 0 {
		r.limit = min(r.limit, r.scheduled(r.from)+int64(min(o.Count, math.MaxInt64/2)))
	}
	for range min(o.Connections, 4*runtime.GOMAXPROCS(0)) {
		r.tallies = append(r.tallies, newTally(r.from))
	}
	addrs := addresses(o.Addr)
	for i := range o.Connections {
		r.clients = append(r.clients, newClient(r, i, addrs[i%len(addrs)]))
	}
	return r, nil
}

// firstConnections dials for all clients. It succeeds if one of them does: the others go on trying.
func (r *run) firstConnections(ctx context.Context) error {
	r.start = time.Now()
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, firstDials) // never closed
		errs  = make([]error, len(r.clients))
	)
	for i, c := range r.clients {
		slots <- struct{}{}
		wg.Go(func() { // ends within dialTimeout
			defer func() { <-slots }()
			c.first, errs[i] = c.dial(ctx)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err == nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", ErrNothing, errs[0])
}

// generate runs the clients and the schedule, measures, and waits for the end of all.
func (r *run) generate(ctx context.Context) *Report {
	stopCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	r.start = time.Now()
	var wg sync.WaitGroup
	for _, c := range r.clients {
		wg.Go(func() { c.run(stopCtx) }) // ends after stop, when its connection is closed
	}
	var schedule sync.WaitGroup
	scheduleCtx, stopSchedule := context.WithCancel(stopCtx)
	if r.opts.Rate > 0 {
		schedule.Go(func() { r.schedule(scheduleCtx) }) // ends with the schedule, or after stopSchedule
	}
	m := r.measure(ctx, func() {
		stopSchedule()
		schedule.Wait()
	})
	stop()
	for _, c := range r.clients {
		c.end()
	}
	wg.Wait()
	return r.report(m)
}

// measurement is when and on what the measured part ran.
type measurement struct {
	end           int64 // when sending ended
	interrupted   bool
	before, after usage         // of PID
	pidErr        error         // why there is no such usage
	self          time.Duration // CPU time of this process
}

// measure waits for the phases of the run, ends what timed out meanwhile, and returns when nothing is in
// flight any more, or patience has ended. settle is called once sending is over.
func (r *run) measure(ctx context.Context, settle func()) (m measurement) {
	sweep := time.NewTicker(min(max(r.opts.Timeout/10, 5*time.Millisecond), 100*time.Millisecond))
	defer sweep.Stop()
	warm := time.NewTimer(time.Duration(r.from))
	defer warm.Stop()
	end := time.NewTimer(time.Duration(r.until.Load()))
	defer end.Stop()
	begin := func() {
		m.self = selfTime()
		m.before, m.pidErr = r.usage()
	}
	begin()
	for sending := true; sending; {
		select {
		case <-sweep.C:
			r.sweep()
		case <-warm.C:
			if r.from > 0 {
				begin()
			}
		case <-ctx.Done():
			m.interrupted = true
			sending = false
		case <-end.C:
			sending = false
		case <-r.spent:
			sending = false
		}
	}
	m.end = min(r.now(), r.until.Load())
	r.until.Store(m.end)
	settle()
	r.drain(m.interrupted)
	m.self = selfTime() - m.self
	if m.pidErr == nil {
		m.after, m.pidErr = r.usage()
	}
	return m
}

// drain waits until nothing is in flight. After an interruption its patience may end before.
func (r *run) drain(interrupted bool) {
	patience := r.opts.Timeout + r.opts.Grace + time.Second
	if interrupted {
		patience = min(patience, cancelledWait)
	}
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for r.busy() && time.Now().Before(deadline) {
		<-tick.C
		r.sweep()
	}
}

func (r *run) busy() bool {
	for _, c := range r.clients {
		if c.busy() {
			return true
		}
	}
	return false
}

func (r *run) sweep() {
	before := r.now() - int64(r.opts.Timeout+r.opts.Grace)
	for _, c := range r.clients {
		c.expire(before)
	}
}

func (r *run) usage() (usage, error) {
	if r.opts.PID == 0 {
		return usage{}, nil
	}
	return readUsage(r.opts.PID)
}

func selfTime() time.Duration {
	u, _ := readUsage(os.Getpid())
	if u.exact != 0 {
		return u.exact
	}
	return u.ticks
}

// dial makes one connection.
func (c *client) dial(ctx context.Context) (*net.TCPConn, error) {
	c.r.dials.Add(1)
	d := net.Dialer{Timeout: dialTimeout}
	nc, err := d.DialContext(ctx, "tcp", c.addr)
	if err != nil {
		c.r.dialErrors.Add(1)
		return nil, err
	}
	return nc.(*net.TCPConn), nil
}
