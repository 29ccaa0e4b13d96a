package forwarder

import (
	"math"
	"time"

	"go.uber.org/zap"
)

// judged is what the sweeper remembers of the process's overload.
type judged struct {
	due     int64          // when to look next, if there is a reason to be awake
	wakes   int64          // that time, if there is; else never
	called  [numActs]int64 // when usage was last too high for it to end
	tooMuch int64          // bytes that are to be got rid of by not reading; 0: all are read from
}

// How often the process's usage is looked at, and how what is done about it ends. A memory reading lags behind, and what is done
// changes it: so an end takes a usage below the mark by a margin, for some time.
const (
	overloadLook  = int64(250 * time.Millisecond) // while usage is near a mark, or something is done
	overloadRest  = int64(time.Second)            // else
	overloadNear  = 0.75                          // of the first mark
	overloadCalm  = int64(2 * time.Second)
	memoryMargin  = 0.05 // of the limit
	reserveMargin = 4    // one in so many of the reserve
)

// judge looks at what the process uses, when it is time or somebody who accepts or dials wants to know, and begins and ends what is done
// about it. What is known and cheap holds meanwhile: how many may still come.
func (s *sweeper) judge(now int64) {
	o, j := s.f.overload, &s.judged
	if o.usage == nil {
		j.wakes = never
		return
	}
	if asked := o.gate.asked.Swap(false); now < j.due && !asked {
		return
	}
	u := o.look(s.doing(actStopReading))
	near := s.judgeMemory(u, now)
	if s.judgeDescriptors(u, now) {
		near = true
	}
	s.apply()
	j.due = now + overloadRest
	if near {
		j.due = now + overloadLook
	}
	j.wakes = never
	if near || s.f.known() > 0 {
		j.wakes = j.due
	}
}

// doing says whether something is done, or one of those behind it.
func (s *sweeper) doing(act int) bool { return s.f.overload.since[act].Load() != 0 }

// judgeMemory decides what is done about memory. It reports whether to look again soon.
func (s *sweeper) judgeMemory(u Usage, now int64) (near bool) {
	spec := s.f.overload.spec.Load()
	share := 0.0
	if u.MemoryLimit > 0 {
		share = float64(u.Memory) / float64(u.MemoryLimit)
	}
	for act, mark := range [...]float64{
		actStopReading: spec.StopReading, actStopAccepting: spec.StopAccepting, actRefuseLow: spec.RefuseLow, actRefuseNormal: spec.RefuseNormal,
	} {
		known := u.MemoryLimit > 0
		s.decide(act, now, known && share >= mark, known && share >= mark-memoryMargin, func() []zap.Field {
			return []zap.Field{zap.Int64("used", u.Memory), zap.Int64("limit", u.MemoryLimit), zap.Float64("mark", mark)}
		})
		near = near || s.doing(act)
	}
	s.judged.tooMuch = 0
	if s.doing(actStopReading) {
		s.judged.tooMuch = max(u.Memory-int64((spec.StopReading-memoryMargin)*float64(u.MemoryLimit)), 1)
	}
	return near || share >= overloadNear*spec.StopReading
}

// judgeDescriptors decides whether clients may still come, and how many before the next look. It reports whether to look again
// soon.
func (s *sweeper) judgeDescriptors(u Usage, now int64) (near bool) {
	o := s.f.overload
	reserve := o.reserve(u.DescriptorLimit)
	known := u.DescriptorLimit > 0 && reserve >= 0
	places := u.DescriptorLimit - reserve - u.Descriptors
	margin := max(reserve/reserveMargin, 1)
	s.decide(actStopDescriptors, now, known && places <= 0, known && places < margin, func() []zap.Field {
		return []zap.Field{zap.Int("used", u.Descriptors), zap.Int("limit", u.DescriptorLimit), zap.Int("reserve", reserve)}
	})
	dials := places + reserve - reserve/dialReserve
	s.decide(actStopDialling, now, known && dials <= 0, known && dials < margin, func() []zap.Field {
		return []zap.Field{zap.Int("used", u.Descriptors), zap.Int("limit", u.DescriptorLimit), zap.Int("reserve", reserve/dialReserve)}
	})
	switch {
	case !known:
		o.gate.places.Store(math.MaxInt64)
		o.dials.Store(math.MaxInt64)
	case s.doing(actStopDialling):
		o.gate.places.Store(int64(places))
		o.dials.Store(0)
	default:
		o.gate.places.Store(int64(places))
		o.dials.Store(int64(dials))
	}
	return s.doing(actStopDescriptors) || s.doing(actStopDialling) || known && places < margin
}

// decide begins something when usage is above its mark, and ends it when it was not near that for a while.
func (s *sweeper) decide(act int, now int64, above, nearly bool, about func() []zap.Field) {
	o := s.f.overload
	since := o.since[act].Load()
	if above || nearly && since != 0 {
		s.judged.called[act] = now
	}
	name := actNames[act]
	fields := func() []zap.Field {
		return append([]zap.Field{zap.String("action", name.action), zap.String("resource", name.resource)}, about()...)
	}
	switch {
	case since == 0 && above:
		o.since[act].Store(max(now, 1))
		o.began[act].Add(1)
		s.f.log.Warn("overload: it begins", fields()...)
	case since != 0 && now-s.judged.called[act] >= overloadCalm:
		o.since[act].Store(0)
		s.f.log.Info("overload: it is over", append(fields(), zap.Duration("lasted", time.Duration(now-since)))...)
	}
}

// apply has the road do what was decided. Reading is relieve's.
func (s *sweeper) apply() {
	o := s.f.overload
	refuse := PriorityLow
	switch {
	case s.doing(actRefuseNormal):
		refuse = PriorityHigh
	case s.doing(actRefuseLow):
		refuse = PriorityNormal
	}
	o.refuse.Store(int32(refuse))
	if s.judged.tooMuch > 0 || len(s.memory.gated) > 0 {
		s.tickAt = min(s.tickAt, s.lookedAt)
	}
	g := &o.gate
	shut := s.doing(actStopAccepting) || s.doing(actStopDescriptors)
	if g.shut.Swap(shut) != shut {
		at := time.Time{}
		if shut {
			at = past // whoever waits for a client
		}
		for _, l := range s.f.snap.Load().listeners {
			if l.socket != nil {
				l.setDeadline(at)
			}
		}
		s.changes.Store(true) // told by this round
	}
	if o.mayAccept() {
		g.tell()
	}
}
