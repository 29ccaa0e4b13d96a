package forwarder

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/forwarder/health"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// checks asks the endpoints of clusters that want it whether they work, beside their requests. The asking is package health's;
// here is who is asked what, and what follows. It has a goroutine once there is somebody to ask, one for all.
type checks struct {
	// Static after newChecks.
	f       *Forwarder
	checker *health.Checker
	rest    rest

	// Guarded by mu.
	mu    sync.Mutex
	begun bool // it has its goroutine, but for pauses
}

func newChecks(f *Forwarder) *checks {
	return &checks{f: f, checker: health.New(health.AtOnce(), f.now)}
}

// checked is what checks have found of an endpoint. Never changed.
type checked struct {
	at             int64  // when the last one ended; 0: there was none yet
	reason, detail string // health.Passed, or why it was not passed
	inARow         int    // results like it, those before it included
}

func (k *checked) passed() bool { return k.reason == health.Passed }

// contrary is how many results in a row speak against an endpoint being unhealthy, or not.
func (k *checked) contrary(unhealthy bool) int {
	if k.at == 0 || k.passed() != unhealthy {
		return 0
	}
	return k.inARow
}

// configure has those endpoints checked, and no others, whose clusters want it as they are configured now.
func (c *checks) configure(snap *snapshot) {
	var targets []*health.Target
	for _, k := range snap.clusters {
		if k.spec.Check == nil || k.gone.Load() > 0 {
			continue
		}
		ask := k.question()
		for _, e := range k.endpoints {
			if known := e.check.Load(); known != nil {
				targets = append(targets, &health.Target{
					Endpoint: e.policy, Network: e.network, Address: e.address, Ask: ask,
					Interval: k.spec.Check.Interval, Timeout: k.spec.Check.Timeout, Last: known.at, Told: e.checked,
				})
			}
		}
	}
	c.checker.Set(targets)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(targets) > 0 && !c.begun {
		c.begun = true
		c.f.checking.Go(c.run) // ends with the shift
	}
}

// run checks. It ends with the shift.
func (c *checks) run() {
	for {
		c.loop()
		if c.f.ctx.Err() != nil || c.rest.begin(c.f) {
			return
		}
	}
}

// checkAgain is how long nothing is checked where nothing can be.
const checkAgain = time.Second

// loop checks until the shift ends.
func (c *checks) loop() {
	ctx := c.f.shiftCtx()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		err := c.checker.Run(ctx)
		if err == nil {
			return
		}
		if n, ok := c.f.warn("health checks", health.ReasonPostponed); ok {
			c.f.log.Warn("endpoints cannot be checked", zap.Error(err), zap.Uint64("suppressed", n))
		}
		timer.Reset(checkAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// heartbeatID is the id of the heartbeat that a check sends. Nothing else is on its connection.
const heartbeatID = 1

// answerLimits bound a frame that comes in the place of the answer to a check's heartbeat.
var answerLimits = wire.Limits{MaxFrame: 64 << 10, MaxHeader: 32767}

// question is what the cluster's endpoints are asked; nil: that they can be connected is enough.
func (c *upCluster) question() *health.Ask {
	if !c.spec.Check.Heartbeat {
		return nil
	}
	codec := c.codec
	return &health.Ask{
		Question: codec.AppendHeartbeat(nil, heartbeatID),
		Answered: func(got []byte) (bool, error) {
			var m wire.Message
			for {
				n, err := codec.Decode(&m, got, answerLimits)
				switch {
				case err != nil:
					return false, err
				case n > len(got):
					return false, nil
				case m.Kind == wire.Ack && m.ID == heartbeatID:
					return true, nil
				}
				got = got[n:]
			}
		},
	}
}

// takeCheck notes whether the endpoint is checked from now on.
func (e *upEndpoint) takeCheck(spec *CheckSpec) {
	switch {
	case spec == nil:
		e.uncheck()
	case e.check.Load() == nil:
		e.check.Store(&checked{})
	}
}

// uncheck forgets what checks have found. What a check finds that ends meanwhile is forgotten, too.
func (e *upEndpoint) uncheck() {
	if e.check.Swap(nil) != nil && e.policy.Unchecked() {
		e.cluster().f.sweep.change()
	}
}

// checked takes the result of a check.
func (e *upEndpoint) checked(r health.Result) {
	c, old := e.cluster(), e.check.Load()
	if old == nil || c.spec.Check == nil {
		return // it has left
	}
	c.stats.checks.add(r.Reason, 1)
	passed, ok := r.Verdict()
	if !ok {
		if n, ok := c.f.warn("health checks", r.Reason); ok {
			c.f.log.Warn("an endpoint cannot be checked, which is not its fault", zap.String("check", advice[r.Reason]),
				zap.String("cluster", c.spec.Name), zap.String("endpoint", e.address), zap.String("error", r.Detail), zap.Uint64("suppressed", n))
		}
		return
	}
	next := &checked{at: r.At, reason: r.Reason, detail: r.Detail, inARow: 1}
	if old.at != 0 && old.passed() == passed {
		next.inARow += old.inARow
	}
	if !passed {
		e.note(r.At, r.Reason, r.Detail)
	}
	changed := e.policy.Checked(passed, cluster.Thresholds{Unhealthy: c.spec.Check.Unhealthy, Healthy: c.spec.Check.Healthy})
	e.check.CompareAndSwap(old, next)
	if e.check.Load() == nil {
		e.policy.Unchecked() // it has left meanwhile
		return
	}
	if !changed {
		return
	}
	c.f.sweep.change()
	if passed {
		c.f.log.Info("an endpoint that was unhealthy passes its checks again", zap.String("cluster", c.spec.Name),
			zap.String("endpoint", e.address), zap.Int("in_a_row", next.inARow))
		return
	}
	c.f.log.Warn("an endpoint is unhealthy: it does not pass its checks", zap.String("check", advice[r.Reason]), zap.String("cluster", c.spec.Name),
		zap.String("endpoint", e.address), zap.String("reason", r.Reason), zap.String("error", r.Detail), zap.Int("in_a_row", next.inARow))
}

// CheckStatus is what checks have found of an endpoint.
type CheckStatus struct {
	At             time.Time // when the last one ended; zero: there was none yet
	Passed         bool
	Reason, Detail string // health.Passed, or why it was not passed; Detail may be empty
	InARow         int    // results like it, those before it included
}

// checkStatus is nil for an endpoint that is not checked.
func (e *upEndpoint) checkStatus(at func(ns int64) time.Time) *CheckStatus {
	k := e.check.Load()
	if k == nil {
		return nil
	}
	return &CheckStatus{at(k.at), k.passed(), k.reason, k.detail, k.inARow}
}

// exportChecks exports how much there is to check.
func (f *Forwarder) exportChecks() {
	f.reg.GaugeFunc("relevo_health_checks_under_way", "Health checks under way.",
		func() float64 { return float64(f.checks.checker.Stats().UnderWay) })
	f.reg.GaugeFunc("relevo_health_checks_waiting", "Endpoints whose health check is due and waits for its turn.",
		func() float64 { return float64(f.checks.checker.Stats().Waiting) })
	f.reg.GaugeFunc("relevo_health_check_late_seconds", "For how long the first of those has waited.",
		func() float64 { return f.checks.checker.Stats().Late.Seconds() })
}
