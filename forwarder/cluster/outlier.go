package cluster

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
)

// OutlierRules say when an endpoint is ejected, and for how long. Times are in nanoseconds.
type OutlierRules struct {
	Failures    int          // in a row that eject; 0: they are not looked at
	SuccessRate *SuccessRate // nil: it is not looked at
	Interval    int64        // at the end of each the success rates are looked at
	Time        int64        // of the first ejection; twice as long for the second, and so on
	MaxTime     int64        // of any; jitter of up to a tenth comes on top
	MaxShare    int          // of the endpoints, in hundredths of a percent, that may be ejected at once; one always may
}

// SuccessRate says when an endpoint's share of successes is too far below that of the others: below the mean by more than
// so many standard deviations.
type SuccessRate struct {
	MinRequests  int // that an endpoint must have ended in the interval to be looked at
	MinEndpoints int // of those that there must be
	Deviations   float64
}

// Why an endpoint is ejected.
const (
	ByFailures    = "consecutive-failures"
	BySuccessRate = "success-rate"
)

// Why an endpoint is not ejected though it should be.
const (
	TooManyEjected = "max-ejection-percent"
	LastUsable     = "last-usable"
)

// Record is what became of the tries at one endpoint. Whoever sees the end of one tells it: Worked and Count of a success,
// Outliers.Failed of a failure.
type Record struct {
	// Static after NewOutliers.
	endpoint *Endpoint

	// Atomic. While nothing fails it is read only, by every success.
	inARow atomic.Int64 // failures

	_ [48]byte

	// Atomic. Of the interval.
	good, bad atomic.Uint64

	_ [48]byte
}

// Worked ends a row of failures.
func (r *Record) Worked() {
	if r.inARow.Load() != 0 {
		r.inARow.Store(0)
	}
}

// Count counts successes, each of which Worked was told before.
func (r *Record) Count(n uint64) { r.good.Add(n) }

// InARow is how many failures there were since the last success, or ejection.
func (r *Record) InARow() int { return int(r.inARow.Load()) }

// Verdict is what is found of an endpoint. That of none says nothing.
type Verdict struct {
	Endpoint *Endpoint // nil: it is no verdict
	Why      string
	Refused  string // why it is not ejected though it should be; empty: it is
	Ejection Ejection

	Failures        int     // in a row, of ByFailures
	Rate, Threshold float64 // of BySuccessRate: its share of successes, and below which one is ejected
	Requests        int     // likewise: of which that is the share
}

// Outliers ejects those of a cluster's endpoints that fail where others do not, and lets them in again.
//
// At most a share of the endpoints is ejected at once, though one always may be, and never the last that is usable. That
// holds whoever finds out at the same time: an endpoint's place among the ejected is taken, by one exchange of a pointer,
// before it is marked, and given back behind that.
type Outliers struct {
	// Static after NewOutliers.
	rules   *OutlierRules // nil: none is ejected any more
	records []*Record
	known   map[*Endpoint]*Record
	shared  *ejections

	looked bool // Owned by whoever calls Look.
}

// ejections is what those share that come one after the other as the configuration changes.
type ejections struct {
	// Atomic.
	ejected atomic.Pointer[[]*Record] // replaced, never changed
	due     atomic.Int64              // when to look next, or sooner

	interval int64 // Owned by whoever calls Look. Its end; 0: none has begun.
}

// NewOutliers watches a cluster's endpoints by rules, nil for none any more. Before, nil for none, is what it takes the place
// of: what is known of endpoints that both have stays, others are let in at the next Look.
func NewOutliers(rules *OutlierRules, endpoints []*Endpoint, before *Outliers) *Outliers {
	o := &Outliers{rules: rules, known: make(map[*Endpoint]*Record, len(endpoints)), shared: &ejections{}}
	o.shared.ejected.Store(new([]*Record))
	if before != nil {
		o.shared = before.shared
	}
	for _, e := range endpoints {
		var r *Record
		if before != nil {
			r = before.known[e]
		}
		if r == nil {
			r = &Record{endpoint: e}
		}
		o.records = append(o.records, r)
		o.known[e] = r
	}
	return o
}

// Record is what endpoint i is told of; nil where there are no rules.
func (o *Outliers) Record(i int) *Record {
	if o.rules == nil {
		return nil
	}
	return o.records[i]
}

// Failed counts a failure, and ejects the endpoint if that was the last of too many in a row. Then the next row begins, and
// also where the endpoint cannot be ejected.
func (o *Outliers) Failed(r *Record, now int64) Verdict {
	if o.rules == nil {
		return Verdict{}
	}
	r.bad.Add(1)
	n := r.inARow.Add(1)
	most := int64(o.rules.Failures)
	if most == 0 || n < most || r.endpoint.Ejection().Until != 0 || !r.inARow.CompareAndSwap(n, 0) {
		return Verdict{} // of several that fail at once the last one of the row goes on
	}
	return o.eject(r, now, Verdict{Why: ByFailures, Failures: int(n)})
}

// eject ejects an endpoint, if it may be.
func (o *Outliers) eject(r *Record, now int64, v Verdict) Verdict {
	v.Endpoint = r.endpoint
	for {
		ejected := o.shared.ejected.Load()
		switch {
		case slices.Contains(*ejected, r), r.endpoint.Health().Drained:
			return Verdict{} // somebody was faster, or it gets no requests anyway
		case len(*ejected) >= max(1, len(o.records)*o.rules.MaxShare/10000):
			v.Refused = TooManyEjected
			return v
		case !o.another(r, *ejected):
			v.Refused = LastUsable
			return v
		}
		more := append(slices.Clip(*ejected), r)
		if o.shared.ejected.CompareAndSwap(ejected, &more) {
			break
		}
	}
	v.Ejection = r.endpoint.eject(v.Why, func(number int) int64 { return now + o.time(r.endpoint, number, now) })
	r.inARow.Store(0)
	o.shared.dueBy(v.Ejection.Until)
	return v
}

// another says whether an endpoint but this one is usable, and not about to be ejected.
func (o *Outliers) another(r *Record, ejected []*Record) bool {
	return slices.ContainsFunc(o.records, func(other *Record) bool {
		return other != r && other.endpoint.Usable() && !slices.Contains(ejected, other)
	})
}

// time is how long an endpoint is ejected for this time. How much longer than others follows from its address and now alone.
func (o *Outliers) time(e *Endpoint, number int, now int64) int64 {
	longest := o.rules.longest()
	d := longest
	if int64(number) <= longest/o.rules.Time {
		d = o.rules.Time * int64(number)
	}
	return d + int64(mix(e.salt^uint64(now))%uint64(d/10+1))
}

// longest is the longest time of an ejection, without its jitter.
func (r *OutlierRules) longest() int64 { return max(r.Time, r.MaxTime) }

// dueBy sees to it that the next look is no later than at.
func (s *ejections) dueBy(at int64) {
	for due := s.due.Load(); at < due && !s.due.CompareAndSwap(due, at); due = s.due.Load() {
	}
}

// Look lets in again whose time is over, looks at the success rates when an interval has ended, and says when to look next.
// One goroutine calls it, also behind a change of the configuration. Returned are those that were let in.
func (o *Outliers) Look(now int64) (verdicts []Verdict, returned []*Endpoint, next int64) {
	if due := o.shared.due.Load(); o.looked && now < due {
		return nil, nil, due
	}
	o.looked = true
	o.shared.due.Store(math.MaxInt64) // before the look: who is ejected meanwhile brings it forward
	next = math.MaxInt64
	over := make(map[*Record]bool)
	for _, r := range *o.shared.ejected.Load() {
		e := r.endpoint
		until := e.Ejection().Until
		switch {
		case until == 0: // its mark comes in a moment
			next = now
			continue
		case now < until && o.rules != nil && o.known[e] == r:
			next = min(next, until)
			continue
		}
		r.inARow.Store(0)
		r.good.Store(0)
		r.bad.Store(0)
		e.readmit(now)
		over[r] = true
		returned = append(returned, e)
	}
	o.shared.free(over)
	if o.rules == nil {
		for _, r := range o.records {
			r.endpoint.forget()
		}
		o.shared.interval = 0
	} else {
		if end := o.shared.interval; end == 0 || end > now+o.rules.Interval {
			o.shared.interval = now + o.rules.Interval
		} else if now >= end {
			o.shared.interval = now + o.rules.Interval
			verdicts = o.rates(now)
			for _, r := range o.records {
				r.endpoint.forgive(now, o.rules.Interval)
			}
		}
		next = min(next, o.shared.interval)
	}
	o.shared.dueBy(next)
	return verdicts, returned, o.shared.due.Load()
}

// free gives up places among the ejected, all together: there may be thousands.
func (s *ejections) free(over map[*Record]bool) {
	for len(over) > 0 {
		ejected := s.ejected.Load()
		fewer := slices.DeleteFunc(slices.Clone(*ejected), func(r *Record) bool { return over[r] })
		if s.ejected.CompareAndSwap(ejected, &fewer) {
			return
		}
	}
}

// floatError is less than any difference of success rates that means something.
const floatError = 1e-9

// rates ends an interval: it ejects those whose success rate is too far below the mean, the worst first.
func (o *Outliers) rates(now int64) (verdicts []Verdict) {
	type rated struct {
		r    *Record
		rate float64
		n    int
	}
	var all []rated
	var sum float64
	for _, r := range o.records {
		good, bad := r.good.Swap(0), r.bad.Swap(0)
		rule := o.rules.SuccessRate
		if rule == nil || good+bad < uint64(max(1, rule.MinRequests)) || r.endpoint.Ejection().Until != 0 {
			continue
		}
		rate := float64(good) / float64(good+bad)
		all = append(all, rated{r, rate, int(good + bad)})
		sum += rate
	}
	if len(all) == 0 || len(all) < o.rules.SuccessRate.MinEndpoints {
		return nil
	}
	mean := sum / float64(len(all))
	var squares float64
	for _, x := range all {
		squares += (x.rate - mean) * (x.rate - mean)
	}
	threshold := mean - o.rules.SuccessRate.Deviations*math.Sqrt(squares/float64(len(all)))
	slices.SortStableFunc(all, func(a, b rated) int { return cmp.Compare(a.rate, b.rate) })
	for _, x := range all {
		if x.rate >= threshold-floatError {
			break
		}
		v := o.eject(x.r, now, Verdict{Why: BySuccessRate, Rate: x.rate, Threshold: threshold, Requests: x.n})
		if v.Endpoint != nil {
			verdicts = append(verdicts, v)
		}
	}
	return verdicts
}

// Restore makes what another process has known of an endpoint what is known of it, whatever the bounds are. An ejection ends
// within the longest time that there is here.
func (o *Outliers) Restore(r *Record, known Ejection, inARow int, now int64) {
	if o.rules == nil {
		return
	}
	r.inARow.Store(int64(max(inARow, 0)))
	known.Number = max(known.Number, 0)
	if known.Until != 0 {
		longest := o.rules.longest()
		known.Until = min(max(known.Until, 1), now+longest+longest/10)
		known.Number = max(known.Number, 1)
		for {
			ejected := o.shared.ejected.Load()
			more := append(slices.Clip(*ejected), r)
			if slices.Contains(*ejected, r) || o.shared.ejected.CompareAndSwap(ejected, &more) {
				break
			}
		}
		o.shared.dueBy(known.Until)
	}
	r.endpoint.restoreEjection(known)
}
