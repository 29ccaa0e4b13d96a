package upgrade

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// rig is both processes of an upgrade in one, with a clock of its own: the system is made of channels.
type rig struct {
	t     *testing.T
	dir   string
	old   *Generation
	begun time.Time

	// How the new process is to fail: called by its hooks and before its messages; a nil channel of it hangs for ever.
	hang  map[string]bool  // by hook, or kind of message
	fails map[string]error // by hook
	// What the old one's hooks do in addition.
	during map[string]func()
	log    *zap.Logger // of both
	// Closed: what comes to the new process is not understood any more. Nil: it is.
	garbled chan struct{}
	series  int // that the old process has counted

	mu       sync.Mutex
	did      []string // hooks and kills, in order, "old." or "new." in front
	at       map[string]time.Duration
	observed []Report // final
	steps    []string // of those that ran
	moved    []string // transitions of the old process
	newMoved []string // and of the new one
	programs []string // that were checked and started
	heir     *Generation
	killed   chan struct{} // closed by the kill
	once     *sync.Once
	died     chan struct{} // closed when the heir's process has ended
	ready    chan struct{} // closed by its Ready
	pipe     *pipe
	taken    Outcome
	counted  []*handoff.Counters
	heirs    sync.WaitGroup
}

// pipe is the hand-over socket. Like the kernel's, it takes what fits and tells an end behind what was said. To the new process
// nil is a message with a payload that is wrong.
type pipe struct {
	toNew, toOld chan handoff.Message
	oldGone      chan struct{} // closed with the old process
	hungUp       chan struct{} // closed by hangUp
	shut         chan struct{} // closed by the old end's close
	once, end    sync.Once
}

func newRig(t *testing.T) *rig {
	r := &rig{
		t: t, dir: t.TempDir(), begun: time.Now(), hang: map[string]bool{}, fails: map[string]error{},
		during: map[string]func(){}, at: map[string]time.Duration{}, log: zap.NewNop(),
	}
	sys := &system{
		pid: 100, monotonic: func() int64 { return time.Now().UnixNano() }, ticks: func() int64 { return 0 },
		program: "mine", pair: r.pair, upgrade: func(program string) error { r.starts(program); return r.upgrade() }, ready: func() error { return nil },
		awaitParent: func(context.Context) error { return nil },
		kill:        r.kill,
		check: func(_ context.Context, program string, _ []string, _ []byte) error {
			r.starts(program)
			r.note("old.check")
			return r.fails["check"]
		},
		descriptors: func() (int, uint64, error) { return 10, 1000, nil },
		makeRoom:    func(int) {},
		collect:     func() { r.note("old.collect") },
	}
	var err error
	r.old, err = newGeneration(r.options(), sys)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.old.Ready(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) options() Options {
	return Options{
		Log: r.log, Release: "1", RuntimeDir: r.dir, Check: func() ([]string, []byte) { return []string{"check"}, nil }, ReadyTimeout: 30 * time.Second,
		HandoverTimeout: 2 * time.Second, Linger: time.Second, Observe: func(rep Report) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if rep.Outcome.Final() {
				r.observed = append(r.observed, rep)
				return
			}
			r.steps = append(r.steps, rep.Step)
		}, Moved: r.moves(&r.moved),
	}
}

// moves notes transitions.
func (r *rig) moves(list *[]string) func(from, to string) {
	return func(from, to string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		*list = append(*list, from+">"+to)
	}
}

// starts notes which program is checked or started.
func (r *rig) starts(program string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.programs = append(r.programs, program)
}

// note is called by all hooks.
func (r *rig) note(what string) {
	r.mu.Lock()
	r.did = append(r.did, what)
	r.at[what] = time.Since(r.begun)
	r.mu.Unlock()
	if f := r.during[what]; f != nil {
		f()
	}
}

func (r *rig) pair() (*link, error) {
	p := &pipe{
		toNew: make(chan handoff.Message, 16), toOld: make(chan handoff.Message, 16),
		oldGone: make(chan struct{}), hungUp: make(chan struct{}), shut: make(chan struct{}),
	}
	r.pipe, r.killed, r.once, r.died, r.ready = p, make(chan struct{}), &sync.Once{}, make(chan struct{}), make(chan struct{})
	released := make(chan struct{})
	died := r.died
	return &link{
		send: func(_ time.Time, m handoff.Message, _ ...syscall.RawConn) error {
			select {
			case <-p.hungUp:
				return unix.EPIPE
			default:
			}
			if r.hang["old."+handoff.KindOf(m).String()] {
				return os.ErrDeadlineExceeded
			}
			p.toNew <- m
			return nil
		},
		receive: func() (handoff.Message, []*os.File, error) {
			for {
				end := p.hungUp
				select {
				case <-released:
					end = died
				default:
				}
				select {
				case m := <-p.toOld:
					return m, nil, nil
				default:
				}
				select {
				case m := <-p.toOld:
					return m, nil, nil
				case <-end:
					if len(p.toOld) == 0 {
						return nil, nil, io.EOF
					}
				case <-p.shut:
					return nil, nil, os.ErrClosed
				case <-released:
					if end != died {
						continue
					}
					select {
					case m := <-p.toOld:
						return m, nil, nil
					case <-died:
					case <-p.shut:
						return nil, nil, os.ErrClosed
					}
				}
			}
		},
		hangUp:  func() { p.once.Do(func() { close(p.hungUp) }) },
		release: func() { close(released) },
		close:   func() { p.end.Do(func() { close(p.shut) }) },
	}, nil
}

// upgrade is tableflip's: it runs the heir.
func (r *rig) upgrade() error {
	p, killed, died, ready := r.pipe, r.killed, r.died, r.ready
	var deadline chan struct{}
	var mu sync.Mutex
	sys := &system{
		pid: 101, heir: true, monotonic: func() int64 { return time.Now().UnixNano() },
		makeRoom: func(int) {},
		awaitParent: func(ctx context.Context) error {
			select {
			case <-p.oldGone:
			case <-ctx.Done():
			}
			return ctx.Err()
		},
		inherit: func() (*link, error) {
			closed := make(chan struct{})
			var once sync.Once
			return &link{
				send: func(_ time.Time, m handoff.Message, _ ...syscall.RawConn) error {
					select {
					case <-p.oldGone:
						return unix.EPIPE
					default:
					}
					if r.hang[handoff.KindOf(m).String()] {
						<-killed
						return os.ErrDeadlineExceeded
					}
					p.toOld <- m
					return nil
				},
				receive: func() (handoff.Message, []*os.File, error) {
					mu.Lock()
					deadline := deadline
					mu.Unlock()
					select {
					case m := <-p.toNew:
						if m == nil {
							return nil, nil, &handoff.PayloadError{Kind: handoff.KindCounters, Err: errors.New("garbled")}
						}
						return m, nil, nil
					case <-deadline:
						return nil, nil, os.ErrDeadlineExceeded
					case <-r.garbled:
						return nil, nil, errors.New("it begins with 0x00, not with 0x52")
					case <-killed:
						return nil, nil, os.ErrClosed
					case <-closed:
						return nil, nil, os.ErrClosed
					case <-p.oldGone:
						select {
						case m := <-p.toNew:
							return m, nil, nil
						default:
							return nil, nil, io.EOF
						}
					}
				},
				interrupt: func(at time.Time) {
					mu.Lock()
					defer mu.Unlock()
					if deadline = nil; !at.IsZero() {
						passed := make(chan struct{})
						deadline = passed
						time.AfterFunc(time.Until(at), func() { close(passed) })
					}
				},
				hangUp: func() {}, release: func() {}, close: func() { once.Do(func() { close(closed) }) },
			}, nil
		},
		ready: func() error { close(ready); return nil },
	}
	options := r.options()
	options.Moved = r.moves(&r.newMoved)
	heir, err := newGeneration(options, sys)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.heir = heir
	r.mu.Unlock()
	failed := make(chan struct{})
	r.heirs.Go(func() { // ends with the heir's hooks, which the kill ends
		outcome, err := heir.Take(r.t.Context(), r.taker(killed))
		if err != nil {
			close(failed)
			return
		}
		r.mu.Lock()
		r.taken = outcome
		r.mu.Unlock()
	})
	select {
	case <-ready:
		go func() { // ends with the kill, which every test that gets here makes
			<-killed
			close(died)
		}()
		return nil
	case <-failed:
	case <-killed:
	}
	close(died)
	return errors.New("child exited: exit status 1")
}

func (r *rig) kill(int, int64) error {
	r.note("old.kill")
	r.once.Do(func() { close(r.killed) })
	return nil
}

func (r *rig) hook(name string, killed chan struct{}) error {
	r.note(name)
	if r.hang[name] {
		<-killed
		return errors.New("killed")
	}
	return r.fails[name]
}

func (r *rig) giver() Giver {
	step := func(ctx context.Context, name string) error {
		r.note(name)
		if r.hang[name] {
			<-ctx.Done()
			return ctx.Err()
		}
		return r.fails[name]
	}
	return Giver{
		Listeners: func() (handoff.Listeners, []syscall.RawConn, error) {
			return handoff.Listeners{}, nil, step(r.t.Context(), "old.listeners")
		},
		Settle: func(ctx context.Context) error { return step(ctx, "old.settle") },
		Pause:  func(ctx context.Context) error { return step(ctx, "old.pause") },
		Send: func(ctx context.Context, say Say) (handoff.Counts, error) {
			if err := step(ctx, "old.send"); err != nil {
				return handoff.Counts{}, err
			}
			return handoff.Counts{Downstreams: 3}, say(&handoff.Conns{})
		},
		Resume: func() { r.note("old.resume") },
		Pauses: func() []Bucket { return []Bucket{{LE: 2, Count: 5}} },
		Gone:   func() { r.note("old.gone") },
		Counters: func() *handoff.Counters {
			r.note("old.counters")
			return &handoff.Counters{Series: make([]handoff.Series, r.series), Total: 7}
		},
		Left: func() []string { return []string{"a stream"} },
	}
}

func (r *rig) taker(killed chan struct{}) Taker {
	return Taker{
		Build: func(context.Context, *handoff.Listeners, []*os.File, int) error { return r.hook("new.build", killed) },
		Take:  func(handoff.Message, []*os.File) error { return r.hook("new.take", killed) },
		Prepare: func() (handoff.Counts, error) {
			err := r.hook("new.prepare", killed)
			return handoff.Counts{Downstreams: 3}, err
		},
		Forget: func() { r.note("new.forget") },
		Start:  func() { r.note("new.start") },
		Alone:  func() { r.note("new.alone") },
		Counters: func(c *handoff.Counters) {
			r.counted = append(r.counted, c)
			r.note("new.counters")
		},
		Pauses: func() []Bucket { return []Bucket{{LE: 1, Count: 3}} },
		Left:   func() []string { return []string{"a leftover"} },
	}
}

// run asks for one upgrade and waits for the end of Run, or for the end of the upgrade, which it then stops.
func (r *rig) run() Ending {
	defer synctest.Wait()
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	ended := make(chan Ending, 1)
	go func() { ended <- r.old.Run(ctx, r.giver()) }() // ends below
	r.old.Request()
	for {
		select {
		case e := <-ended:
			return e
		default:
		}
		if rep := r.old.Last(); rep.Outcome.Final() && rep.From == 100 {
			cancel()
			return <-ended
		}
		time.Sleep(time.Millisecond) // of the bubble's clock
	}
}

// end ends all there is, so that the bubble can.
func (r *rig) end() {
	if r.once != nil {
		r.once.Do(func() { close(r.killed) })
	}
	r.heirs.Wait()
	if r.heir != nil {
		r.heir.parent.close()
		r.heir.family.Wait()
	}
	r.old.Close()
	synctest.Wait()
}

var wholeUpgrade = []string{
	"old.check", "old.listeners", "new.build", "old.settle", "old.pause", "old.send", "new.take", "new.prepare", "new.start",
	"old.gone", "old.counters", "new.counters",
}

func TestHooksAreCalledInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.during["old.pause"] = func() { time.Sleep(20 * time.Millisecond) }
		r.during["new.prepare"] = func() { time.Sleep(30 * time.Millisecond) }
		if end := r.run(); end.Owner || end.Status != 0 {
			t.Fatalf("Run ended with %+v, want status 0", end)
		}
		synctest.Wait()
		// The old process closes its copies while the new one opens its gates.
		got := slices.DeleteFunc(slices.Clone(r.did), func(s string) bool { return s == "old.gone" || s == "new.start" })
		want := slices.DeleteFunc(slices.Clone(wholeUpgrade), func(s string) bool { return s == "old.gone" || s == "new.start" })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the hooks (-want +got):\n%s", diff)
		}
		if pid, err := ReadPID(r.dir); err != nil || pid != 100 {
			t.Errorf("before Close the pid file says %d, %v; want the old process, 100", pid, err)
		}
		// Nothing but the linger separates the end of the old process from the hand-over.
		if took := time.Since(r.begun); took < time.Second || took > 1100*time.Millisecond {
			t.Errorf("the old process ended after %v, want a second after 50 ms", took)
		}
		r.old.PassOn(t.Context())
		r.old.Close()
		if pid, err := ReadPID(r.dir); err != nil || pid != 101 {
			t.Errorf("behind Close the pid file says %d, %v; want the new process, 101", pid, err)
		}
		rep, err := ReadReport(r.dir)
		if err != nil {
			t.Fatal(err)
		}
		want1 := Report{
			ID: 1, Outcome: Done, Generation: 2, From: 100, To: 101, ReleaseFrom: "1", ReleaseTo: "1", Started: rep.Started,
			Steps: map[string]float64{
				StepPreflight: 0, StepWarm: 0, StepSettle: 0, StepBarrier: 0.02, StepState: 0, StepPrepare: 0.03, StepCommit: 0,
			},
			Pause: 0.05, Pauses: []Bucket{{LE: 1, Count: 3}}, Carried: Carried{Downstreams: 3}, Left: []string{"a stream", "a leftover"},
		}
		if diff := cmp.Diff(want1, rep); diff != "" {
			t.Errorf("the report (-want +got):\n%s", diff)
		}
		if len(r.observed) != 1 || r.observed[0].Outcome != Done {
			t.Errorf("%d upgrades were observed, want one, by the new process: %+v", len(r.observed), r.observed)
		}
		steps := []string{
			StepPreflight, StepWarm, StepSettle, StepBarrier, StepState, StepPrepare, StepCommit, // by the old process
			StepCommit, // by the new one, before its gates open
			StepLinger,
		}
		slices.Sort(steps[len(steps)-2:]) // which of the two is told first is not said
		slices.Sort(r.steps[len(r.steps)-2:])
		if diff := cmp.Diff(steps, r.steps); diff != "" {
			t.Errorf("the steps that were observed (-want +got):\n%s", diff)
		}
		moved := strings.Fields("idle>preflight preflight>starting starting>warming warming>settling settling>pausing pausing>sending " +
			"sending>preparing preparing>committed committed>given given>lingering lingering>exited " +
			"greeting>listening listening>building building>warming warming>taking taking>preparing preparing>answering " +
			"answering>prepared prepared>starting starting>owner")
		if diff := cmp.Diff(moved, append(r.moved, r.newMoved...)); diff != "" {
			t.Errorf("the transitions (-want +got):\n%s", diff)
		}
	})
}

// Each failure is undone in time: the gates are open at once when it is known, and only when the new process is dead.
func TestFailuresOpenTheGatesInTime(t *testing.T) {
	hang := func(what string) func(*rig) { return func(r *rig) { r.hang[what] = true } }
	fail := func(what string) func(*rig) { return func(r *rig) { r.fails[what] = errors.New("no") } }
	for _, test := range []struct {
		name   string
		set    func(*rig)
		step   string
		reason string
		when   time.Duration // the gates open, or would
	}{
		{"a new process that does not build", hang("new.build"), StepWarm, "ready_timeout", 30 * time.Second},
		{"a new process that cannot build", fail("new.build"), StepWarm, "gave up: build: no", 0},
		{"listeners that are closed", fail("old.listeners"), StepWarm, "no", 0},
		{"a barrier that does not rest", hang("old.pause"), StepBarrier, "", 2 * time.Second},
		{"a barrier that fails", fail("old.pause"), StepBarrier, "no", 0},
		{"a state that cannot be sent", fail("old.send"), StepState, "no", 0},
		{"a state that is sent for too long", hang("old.send"), StepState, "", 2 * time.Second},
		{"an END that nobody takes", hang("old.END"), StepPrepare, "does not listen", 0},
		{"a state that is not taken", fail("new.take"), "", "gave up: state: no", 0},
		{"a state that is not rebuilt in time", hang("new.prepare"), StepPrepare, "handover_timeout", 2 * time.Second},
		{"a state that cannot be rebuilt", fail("new.prepare"), StepPrepare, "gave up: prepare: no", 0},
		{"a COMMIT that nobody takes", hang("old.COMMIT"), StepCommit, "does not listen", 0},
		{"a new process that does not start", hang("STARTED"), StepCommit, "did not start", 500 * time.Millisecond},
		{"settling that takes too long is none", hang("old.settle"), "", "", 5 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				defer r.end()
				test.set(r)
				end := r.run()
				if r.hang["old.settle"] {
					if end.Owner || end.Status != 0 || r.at["old.pause"] != settleTimeout {
						t.Errorf("Run ended with %+v, the barrier began after %v; want status 0 and %v", end, r.at["old.pause"], settleTimeout)
					}
					return
				}
				rep := r.old.Last()
				if !end.Owner || rep.Outcome != RolledBack || test.step != "" && rep.Step != test.step || !strings.Contains(rep.Reason, test.reason) {
					t.Errorf("the owner ended with %+v, and the report is %s at %s because %q; want the owner, rolled back at %s because %q",
						end, rep.Outcome, rep.Step, rep.Reason, test.step, test.reason)
				}
				paused, resumed := slices.Index(r.did, "old.pause"), slices.Index(r.did, "old.resume")
				if (paused >= 0) != (resumed >= 0) {
					t.Errorf("the gates do not open exactly if they were shut: %v", r.did)
				}
				if len(rep.Pauses) > 0 != (resumed >= 0) {
					t.Errorf("the report does not say exactly if there was a pause how long it was: %v", rep.Pauses)
				}
				if when := r.at["old.resume"]; resumed >= 0 && (when < test.when || when > test.when+100*time.Millisecond) {
					t.Errorf("the gates opened after %v, want %v", when, test.when)
				}
				if killed := slices.Index(r.did, "old.kill"); resumed >= 0 && killed > resumed {
					t.Errorf("the new process was killed after the gates were open: %v", r.did)
				}
				if slices.Contains(r.did, "new.start") {
					t.Errorf("the new process opened its gates: %v", r.did)
				}
				if len(r.observed) != 1 {
					t.Errorf("%d upgrades were observed, want 1", len(r.observed))
				}
			})
		})
	}
}

// What the new process loads stays the same from before it is checked, until this process knows that it goes on.
func TestWhatIsLoadedIsHeld(t *testing.T) {
	no := errors.New("no")
	for _, test := range []struct {
		name, fails string
		outcome     Outcome
	}{
		{"done", "", Done},
		{"not to be held", "hold", Refused},
		{"refused", "check", Refused},
		{"rolled back", "new.prepare", RolledBack},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			defer r.end()
			r.fails[test.fails] = no
			g := r.giver()
			g.Hold = func(context.Context) error {
				r.note("hold")
				return r.fails["hold"]
			}
			g.Release = func() { r.note("release") }
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan Ending, 1)
			go func() { ended <- r.old.Run(ctx, g) }() // ends with ctx, or with the hand-over
			r.old.Request()
			time.Sleep(time.Minute)
			rep := r.old.Last()
			cancel()
			end := <-ended
			if end.Owner != (test.outcome != Done) || end.Owner && rep.Outcome != test.outcome {
				t.Fatalf("%s: Run ended with %+v, and the report is %s because %q", test.name, end, rep.Outcome, rep.Reason)
			}
			r.mu.Lock() // the new process may go on
			did := slices.Clone(r.did)
			r.mu.Unlock()
			held, released := slices.Index(did, "hold"), slices.Index(did, "release")
			if first := slices.Index(did, "old.listeners"); held != 0 || first >= 0 && first < held {
				t.Errorf("%s: %v; want the hold first", test.name, did)
			}
			if (released >= 0) != end.Owner || released >= 0 && slices.Contains(did[released:], "old.resume") {
				t.Errorf("%s: %v; want the release last, if this process goes on", test.name, did)
			}
		})
	}
}

func TestUpgradesAreRefused(t *testing.T) {
	for reason, set := range map[string]func(*rig){
		"standard input":   func(r *rig) { r.old.opts.Disabled = "the configuration came from standard input" },
		"PID 1":            func(r *rig) { r.old.sys.pid = 1 },
		"tini, PID 1":      func(r *rig) { r.old.sys.init = endsWith(1, "tini") },
		"listeners[0]: no": func(r *rig) { r.fails["check"] = errors.New("listeners[0]: no") },
		"10 descriptors":   func(r *rig) { r.old.sys.descriptors = func() (int, uint64, error) { return 10, 41, nil } },
		"has not ended yet": func(r *rig) {
			r.old.sys.awaitParent = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		},
		"cannot be written: no such file": func(r *rig) { r.old.opts.RuntimeDir += "/gone" },
		"counting descriptors:": func(r *rig) {
			r.old.sys.descriptors = func() (int, uint64, error) { return 0, 0, errors.New("no proc") }
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			defer r.end()
			set(r)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan Ending, 1)
			go func() { ended <- r.old.Run(ctx, r.giver()) }() // ends with ctx
			r.old.Request()
			time.Sleep(time.Minute)
			rep := r.old.Last()
			cancel()
			if end := <-ended; !end.Owner || rep.ID != 1 || rep.Outcome != Refused || !strings.Contains(rep.Reason, reason) {
				t.Errorf("%+v, and the report is %s because %q; want the owner, refused because of %q", end, rep.Outcome, rep.Reason, reason)
			}
			if slices.Contains(r.did, "old.listeners") {
				t.Errorf("%s: a new process was started: %v", reason, r.did)
			}
		})
	}
}

// A process that is told to stop undoes the upgrade and stops as it does without one, wherever the upgrade is.
func TestStopUndoesAnUpgrade(t *testing.T) {
	for _, where := range []string{"old.listeners", "new.build", "old.settle", "old.pause", "old.send", "new.take", "new.prepare"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			defer r.end()
			ctx, cancel := context.WithCancel(t.Context())
			r.during[where] = func() { cancel(); time.Sleep(time.Millisecond) }
			r.hang[where] = where != "old.listeners"
			ended := make(chan Ending, 1)
			go func() { ended <- r.old.Run(ctx, r.giver()) }() // ends with ctx
			r.old.Request()
			end := <-ended
			rep := r.old.Last()
			if !end.Owner || rep.Outcome != RolledBack || rep.Reason != reasonStop {
				t.Errorf("stop during %s: %+v, and the report is %s because %q; want the owner, rolled back", where, end, rep.Outcome, rep.Reason)
			}
			if took := time.Since(r.begun); took > 100*time.Millisecond {
				t.Errorf("stop during %s: it took %v", where, took)
			}
		})
	}
}

// What is asked of a process that hands over is asked of the new one, to the end of the old one: to be upgraded, and, once the
// new one has the state, to stop.
func TestRequestsAreNotLost(t *testing.T) {
	const behindRun, inClose = "the end of Run", "the end of Close"
	for _, where := range []string{
		"old.pause", "new.prepare", "old.gone", "old.counters", "new.counters", "linger", behindRun, "PassOn", inClose,
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			defer r.end()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stops := where != "old.pause" && where != "new.prepare" // else that undoes the upgrade
			ask := func() {
				r.old.Request()
				if stops {
					cancel()
				}
			}
			at := func(place string) {
				if place == where {
					ask()
				}
			}
			r.during[where] = func() { ask(); time.Sleep(time.Millisecond) }
			ended := make(chan Ending, 1)
			go func() { ended <- r.old.Run(ctx, r.giver()) }() // ends with the hand-over
			r.old.Request()
			if where == "linger" { // of a second: the timer and what is asked come at once
				time.AfterFunc(time.Second-time.Since(r.begun), ask)
			}
			if end := <-ended; end.Owner || end.Status != 0 {
				t.Fatalf("%s: Run ended with %+v, want that it has handed over", where, end)
			}
			at(behindRun)
			r.old.PassOn(ctx)
			synctest.Wait()
			at("PassOn")
			time.Sleep(time.Millisecond) // so does the hook
			if synctest.Wait(); where != inClose && stops && !told(r.heir) {
				t.Errorf("a stop during %s does not reach the new process before the old one has ended", where)
			}
			if where == inClose { // when the file names the new process
				time.AfterFunc(lateSignals-1, ask)
			}
			r.old.Close()
			synctest.Wait()
			select {
			case <-r.heir.asked:
			default:
				t.Errorf("a request during %s does not reach the new process", where)
			}
			if told(r.heir) != stops {
				t.Errorf("a stop during %s: it has reached the new process is %t, want %t", where, told(r.heir), stops)
			}
		})
	}
}

// What the new process does not understand when it has the state costs that message: it hears the next one, and does not close the
// socket, which would be its death to the old process.
func TestAPayloadThatIsWrongEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.during["old.counters"] = func() { r.pipe.toNew <- nil }
		if end := r.run(); end.Owner || end.Status != 0 {
			t.Fatalf("Run ended with %+v, want that it has handed over", end)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r.old.PassOn(ctx)
		synctest.Wait()
		select {
		case <-r.heir.alone:
			t.Error("the new process has closed the socket, and the old one lives")
		default:
		}
		if slices.Contains(r.did, "new.alone") {
			t.Error("the new process is told that it is alone, and the old one lives")
		}
		if !told(r.heir) || !slices.Contains(r.did, "new.counters") {
			t.Errorf("a stop reaches the new process: %t; hooks: %v; want it to hear what follows", told(r.heir), r.did)
		}
	})
}

// Not even behind something after which nothing is understood any more does the new process close the socket: it waits for the old
// one's end.
func TestAHeaderThatIsWrongIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		garbled := make(chan struct{})
		r.during["new.start"] = func() { r.garbled = garbled }
		r.during["old.gone"] = func() { close(garbled) }
		if end := r.run(); end.Owner || end.Status != 0 {
			t.Fatalf("Run ended with %+v, want that it has handed over", end)
		}
		select {
		case <-r.heir.alone:
			t.Error("the new process has closed the socket, and the old one lives")
		default:
		}
		if rep := r.heir.Last(); rep.Outcome != Done {
			t.Errorf("the report is %+v, want done", rep)
		}
		close(r.pipe.oldGone)
		<-r.heir.alone
		if !slices.Contains(r.did, "new.alone") {
			t.Errorf("the new process is alone, and has not been told: %v", r.did)
		}
		if pid, err := ReadPID(r.dir); err != nil || pid != 101 {
			t.Errorf("behind the old process's end the pid file says %d, %v; want the new process, 101", pid, err)
		}
	})
}

// What was counted goes in as many messages as it takes, all that is no series in the first one; only behind the last one the report
// is final.
func TestManySeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.series = 2*seriesAMessage + 1
		r.during["new.counters"] = func() {
			if r.heir.Last().Outcome.Final() {
				t.Error("the report is final before all has come")
			}
			time.Sleep(sayTimeout * 3 / 2) // all of them take longer than one is waited for
		}
		if end := r.run(); end.Owner || end.Status != 0 {
			t.Fatalf("Run ended with %+v, want that it has handed over", end)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		series, total := 0, uint64(0)
		for i, c := range r.counted {
			series, total = series+len(c.Series), total+c.Total
			if (len(c.Report) > 0) != (i == 0) || c.More != (i < 2) {
				t.Errorf("message %d of %d has a report of %d bytes, and says %t of more", i+1, len(r.counted), len(c.Report), c.More)
			}
		}
		if len(r.counted) != 3 || series != r.series || total != 7 {
			t.Errorf("got %d series and a total of %d in %d messages, want %d and 7 in 3", series, total, len(r.counted), r.series)
		}
		if rep := r.heir.Last(); rep.Outcome != Done || rep.Steps[StepPrepare] != 0 || len(rep.Left) != 2 {
			t.Errorf("the report is %+v, want one with the old process's part", rep)
		}
	})
}

// stuckLog takes nothing any more from a moment on.
type stuckLog struct{ full, free chan struct{} }

func (l *stuckLog) Write(p []byte) (int, error) {
	select {
	case <-l.full:
		<-l.free
	default:
	}
	return len(p), nil
}

func (*stuckLog) Sync() error { return nil }

// Connections do not wait for a log that nobody reads, whether the upgrade succeeds or not.
func TestALogThatNobodyReadsHoldsNoGate(t *testing.T) {
	for last, fails := range map[string]error{"new.start": nil, "old.gone": nil, "old.resume": errors.New("no")} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			defer r.end()
			l := &stuckLog{make(chan struct{}), make(chan struct{})}
			r.log = zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), l, zap.InfoLevel))
			r.old.log = r.log
			r.during["old.pause"] = func() { close(l.full) }
			r.fails["new.prepare"] = fails
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan Ending, 1)
			go func() { ended <- r.old.Run(ctx, r.giver()) }() // ends with ctx, or when it has handed over
			r.old.Request()
			time.Sleep(time.Second)
			r.mu.Lock()
			did := slices.Clone(r.did)
			r.mu.Unlock()
			if !slices.Contains(did, last) {
				t.Errorf("a second behind a barrier of no time %s has not been called: %v", last, did)
			}
			close(l.free)
			synctest.Wait()
			cancel()
			<-ended
		})
	}
}

func told(g *Generation) bool {
	select {
	case <-g.told:
		return true
	default:
		return false
	}
}

// A new process that has stopped by the time that it gets the pid file leaves none behind.
func TestStoppedHeirLeavesNoPIDFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.run()
		r.old.PassOn(t.Context())
		r.pipe.once.Do(func() { close(r.pipe.hungUp) }) // its socket is closed before it looks at the file
		r.old.Close()
		if pid, err := ReadPID(r.dir); err != nil || pid != 0 {
			t.Errorf("the pid file says %d, %v; want none", pid, err)
		}
	})
}

// After a rollback it is asked of the old one again.
func TestRequestsSurviveARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.fails["new.build"] = errors.New("no")
		r.during["new.build"] = func() {
			if r.old.Last().ID == 1 {
				r.old.Request()
				time.Sleep(time.Millisecond)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan Ending, 1)
		go func() { ended <- r.old.Run(ctx, r.giver()) }() // ends with ctx
		r.old.Request()
		time.Sleep(time.Second)
		cancel()
		<-ended
		if rep := r.old.Last(); rep.ID != 2 || len(r.observed) != 2 {
			t.Errorf("the last report is %d and %d were observed, want two upgrades", rep.ID, len(r.observed))
		}
	})
}

// The owner's death during the linger is an end with status 1, at once; its stop is one with status 0.
func TestLingerWatchesTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.during["new.counters"] = func() {
			go func() { // ends by itself
				time.Sleep(10 * time.Millisecond) // the report is final by then
				r.once.Do(func() { close(r.killed) })
			}()
		}
		if end := r.run(); end.Owner || end.Status != 1 || time.Since(r.begun) > 100*time.Millisecond {
			t.Errorf("Run ended after %v with %+v, want at once and status 1", time.Since(r.begun), end)
		}
		if rep, err := ReadReport(r.dir); err != nil || rep.Outcome != Failed {
			t.Errorf("the report is %+v, %v; want failed", rep, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		go func() { // ends when the new process has taken the state
			for r.heirTaken() == "" {
				time.Sleep(time.Millisecond)
			}
			r.heir.tellParent()
		}()
		if end := r.run(); end.Owner || end.Status != 0 || time.Since(r.begun) > 100*time.Millisecond {
			t.Errorf("Run ended after %v with %+v, want at once and status 0", time.Since(r.begun), end)
		}
	})
}

func (r *rig) heirTaken() Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
}

// The old process is dead: what the new one does depends on how much it has.
func TestHeirOfADeadProcess(t *testing.T) {
	for where, want := range map[string]Outcome{"new.build": Orphaned, "old.send": Orphaned, "new.prepare": Done} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			r.during[where] = func() {
				close(r.pipe.oldGone)
				time.Sleep(time.Millisecond)
			}
			r.hang["old.send"] = where == "old.send"
			// Nothing of the old process's is looked at from here; it has a Run only to be ended.
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan Ending, 1)
			go func() { ended <- r.old.Run(ctx, r.giver()) }() // ends with ctx
			r.old.Request()
			time.Sleep(time.Second)
			if got := r.heirTaken(); got != want {
				t.Errorf("the old process dies during %s: the outcome is %q, want %q", where, got, want)
			}
			forgot := slices.Contains(r.did, "new.forget")
			if !slices.Contains(r.did, "new.start") || forgot != (want == Orphaned) {
				t.Errorf("the old process dies during %s: %v", where, r.did)
			}
			if rep := r.heir.Last(); rep.Outcome != want {
				t.Errorf("the old process dies during %s: the report is %+v", where, rep)
			}
			cancel()
			<-ended
			r.end()
		})
	}
}

// A folder that cannot be written any more costs the files and nothing else.
func TestUpgradesDoWithoutFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.during["old.listeners"] = func() { _ = os.RemoveAll(r.dir) }
		if end := r.run(); end.Owner || end.Status != 0 {
			t.Errorf("Run ended with %+v, want status 0", end)
		}
		synctest.Wait()
		if rep := r.heir.Last(); rep.Outcome != Done {
			t.Errorf("the report in memory is %+v, want done", rep)
		}
	})
}
