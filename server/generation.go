package server

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/upgrade"
	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// Generation is this process in a chain of upgrades, and what it will serve.
type Generation struct {
	*upgrade.Generation

	// Static after NewGeneration.
	options Options
	reg     *stats.Registry
	unit    *unit

	// Static after Serve.
	server  *Server
	counted func() // says that no more counters come from the process before this one; nil: there was none
}

// stdin is how the configuration's file is called that cannot be read again.
const stdin = "-"

// NewGeneration prepares upgrades for a process that runs the configuration of this file. A process makes one, before it
// changes its folder.
//
// The new program checks the file, or the revision that it would apply instead.
func NewGeneration(o Options, file string) (*Generation, error) {
	g := &Generation{options: o, reg: stats.NewRegistry(), unit: newUnit(o.Log)}
	u := &o.Config.Upgrade
	options := upgrade.Options{
		Log: o.Log, Release: o.Build.Version, RuntimeDir: o.Config.RuntimeFolder(os.Getenv(config.RuntimeVariable)),
		Check:        func() ([]string, []byte) { return o.Origin.check(file) },
		ReadyTimeout: u.ReadyTimeout.D(), HandoverTimeout: u.HandoverTimeout.D(), Observe: g.observe, Moved: g.moved, Tap: o.Tap,
		Linger: elsewhere,
	}
	if file == stdin {
		options.Disabled = "the configuration came from standard input, where no other process can read it"
	}
	if g.unit.notify.Enabled() {
		options.Linger = underSystemd
	}
	var err error
	if g.Generation, err = upgrade.New(options); err != nil {
		return nil, err
	}
	g.unit.readWatchdog()
	if err = g.unit.readFile(g.Heir()); err != nil {
		return nil, err
	}
	return g, nil
}

// How long a process stays that has handed over.
const (
	// systemd looks at the pid file when the reload is over, and must not find the new process there as long as that is not its own
	// child.
	underSystemd = time.Second
	// A new process that dies of what it has taken over does so at once, and this one ends with status 1 then.
	elsewhere = 50 * time.Millisecond
)

// Serve returns the server, which has started: a new one, or what the process before this one has handed over. Run must
// follow. The error is that of New, or why the state could not be taken over; it is upgrade.ErrAborted if it was taken back.
func (g *Generation) Serve(ctx context.Context) (*Server, error) {
	g.options.reg = g.reg
	if !g.Heir() {
		g.options.Origin.say(g.options.Log)
		g.options.inherited = g.unit.sockets(g.options.Config)
		s, err := New(g.options)
		if err != nil {
			return nil, err
		}
		s.generation, s.unit, g.server = g.Generation, g.unit, s
		if err := g.Ready(); err != nil {
			s.closeUnused()
			return nil, err
		}
		g.export()
		s.Start()
		g.unit.ready(s)
		return s, nil
	}
	h := &heir{generation: g, options: g.options, unit: g.unit, state: taker{dictionary: newDictionary()}}
	if _, err := g.Take(ctx, h.taker()); err != nil {
		if h.server != nil {
			h.server.closeUnused()
		}
		return nil, err
	}
	g.export()
	g.unit.ready(h.server)
	return h.server, nil
}

// The metrics of upgrades.
const (
	upgradesTotal  = "relevo_upgrades_total"
	upgradesHelp   = "Upgrades, by outcome and by the step at which those that failed did."
	movesTotal     = "relevo_upgrade_transitions_total"
	movesHelp      = "Transitions of upgrades from one state to another, of both processes."
	upgradeSeconds = "relevo_upgrade_pause_seconds"
	pauseHelp      = "Time in which an upgrade kept connections waiting."
)

// export makes the generation a metric.
func (g *Generation) export() {
	g.reg.GaugeFunc("relevo_generation", "The number of this process in its chain of upgrades, counted from 1.",
		func() float64 { return float64(g.Number()) })
	g.reg.FlagFunc("relevo_upgrade_running", "1 while an upgrade is under way.", func() bool { return g.Last().Outcome == upgrade.Running })
	g.reg.Histogram(upgradeSeconds, pauseHelp)
}

// observe tells of each step of an upgrade, and counts one that has ended. In an heir the first one is that which made it: what
// the process before it has counted has come by then, or it died and nothing comes.
func (g *Generation) observe(r upgrade.Report) {
	g.server.tellUpgrade(&r)
	if !r.Outcome.Final() {
		return
	}
	g.unit.poke()
	if g.counted != nil {
		g.counted()
	}
	step := ""
	if r.Outcome != upgrade.Done {
		step = r.Step
	}
	g.reg.Counter(upgradesTotal, upgradesHelp,
		stats.Label{Name: "outcome", Value: string(r.Outcome)}, stats.Label{Name: "step", Value: step}).Add(1)
	if r.Pause > 0 {
		g.reg.Histogram(upgradeSeconds, pauseHelp).Observe(time.Duration(r.Pause * float64(time.Second)))
	}
}

// moved counts a transition.
func (g *Generation) moved(from, to string) {
	g.reg.Counter(movesTotal, movesHelp, stats.Label{Name: "from", Value: from}, stats.Label{Name: "to", Value: to}).Add(1)
}

// heir makes a server of what the process before this one hands over.
type heir struct {
	// Static.
	generation *Generation
	options    Options
	unit       *unit

	// Owned by whoever calls the hooks, one at a time.
	server *Server
	state  taker
}

// taker is how the state is taken over.
func (h *heir) taker() upgrade.Taker {
	// Not at once behind Start: all clients wait for an answer then, and the old process closes its copies first.
	collect := sync.OnceFunc(garbage.release)
	return upgrade.Taker{
		Build: func(_ context.Context, sockets *handoff.Listeners, files []*os.File, descriptors int) (err error) {
			o := h.options
			o.heir, o.generation, o.askedLevel, o.found = true, h.generation.Number(), sockets.LogLevel, sockets.Discovery
			if o.inherited, err = inherit(sockets.List, files); err != nil {
				return err
			}
			if err := o.inherit(sockets.Revisions); err != nil {
				closeInherited(o.inherited)
				return err
			}
			o.Origin.say(o.Log)
			if h.server, err = New(o); err != nil {
				return err
			}
			h.server.limitMemory() // which holds although the collector rests
			garbage.hold()
			makeRoom(descriptors)
			h.server.generation, h.server.unit, h.generation.server = h.generation.Generation, h.unit, h.server
			counted := make(chan struct{})
			h.server.counted, h.server.countedOnce = counted, sync.OnceFunc(func() { close(counted) })
			h.generation.counted = h.server.countedOnce
			return nil
		},
		Take: h.state.take,
		Prepare: func() (handoff.Counts, error) {
			if err := h.state.whole(); err != nil {
				return handoff.Counts{}, err
			}
			if err := h.server.road.Adopt(&h.state.h); err != nil {
				return handoff.Counts{}, err
			}
			return countsOf(&h.state.h), nil
		},
		Forget: h.state.forget, // Start follows
		Start: func() {
			h.server.Start()
			h.state = taker{} // the road has it
		},
		Counters: func(c *handoff.Counters) {
			collect()
			h.server.takeCounters(c)
		},
		Alone: func() { h.server.ReopenAccessLog() }, // the file may have been renamed, and the old process have got the SIGUSR1
		Pauses: func() []upgrade.Bucket {
			collect() // where no counters came
			return buckets(h.server.road.Pauses())
		},
	}
}
