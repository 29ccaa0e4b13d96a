package upgrade

import (
	"fmt"
	"slices"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// oldState is where the process that gives is.
type oldState uint8

const (
	oldIdle      oldState = iota // it owns the state, and no upgrade is under way
	oldPreflight                 // it looks whether an upgrade can succeed; nothing has happened yet
	oldStarting                  // the child starts, OFFER and LISTENERS go out
	oldWarming                   // it waits for WARM
	oldSettling                  // the child is warm; it waits for little to be buffered
	oldPausing                   // the barrier: from here it changes nothing
	oldSending                   // the state goes out
	oldPreparing                 // END is said, it waits for PREPARED
	oldCommitted                 // COMMIT is said, it waits for STARTED: who owns the state is not known here
	oldJudging                   // STARTED did not come: the child is killed, then what it has said decides
	oldRolling                   // the child is killed; once it is reaped and nothing runs, the gates open again
	oldGiven                     // STARTED has come: the child owns the state; copies are closed, counters go out
	oldLingering                 // all is said; it stays for the sake of who watches it
	oldStopped                   // it owns the state and stops as it does without upgrades
	oldExited                    // it owns nothing and ends
)

var oldNames = [...]string{
	"idle", "preflight", "starting", "warming", "settling", "pausing", "sending", "preparing", "committed", "judging",
	"rolling-back", "given", "lingering", "stopped", "exited",
}

func (s oldState) String() string { return oldNames[s] }

// awaited says whether somebody may wait for the end of the state: connections, or the child for copies to be closed.
func (s oldState) awaited() bool { return s >= oldPausing && s <= oldGiven }

// oldMoves are the legal transitions.
var oldMoves = map[oldState][]oldState{
	oldIdle:      {oldPreflight, oldStopped},
	oldPreflight: {oldIdle, oldStarting, oldStopped},
	oldStarting:  {oldWarming, oldSettling, oldRolling},
	oldWarming:   {oldSettling, oldRolling},
	oldSettling:  {oldPausing, oldRolling},
	oldPausing:   {oldSending, oldRolling},
	oldSending:   {oldPreparing, oldRolling},
	oldPreparing: {oldCommitted, oldRolling},
	oldCommitted: {oldGiven, oldJudging},
	oldJudging:   {oldRolling, oldExited},
	oldRolling:   {oldIdle, oldStopped},
	oldGiven:     {oldLingering, oldExited},
	oldLingering: {oldExited},
}

// The steps of an upgrade, as the report names them.
const (
	StepPreflight = "preflight" // the new binary checks the configuration, the descriptors suffice
	StepWarm      = "warm"      // the new process starts, builds and binds
	StepSettle    = "settle"    // little is buffered
	StepBarrier   = "barrier"   // the old process comes to rest
	StepState     = "state"     // the state travels
	StepPrepare   = "prepare"   // the new process rebuilds it
	StepCommit    = "commit"    // it is given away and taken
	StepLinger    = "linger"    // the old process stays for a while
)

var oldSteps = map[oldState]string{
	oldPreflight: StepPreflight, oldStarting: StepWarm, oldWarming: StepWarm, oldSettling: StepSettle,
	oldPausing: StepBarrier, oldSending: StepState, oldPreparing: StepPrepare, oldCommitted: StepCommit,
	oldJudging: StepCommit, oldGiven: StepLinger, oldLingering: StepLinger,
}

// oldSide is the machine of the process that gives. Its zero value is idle. It is comparable, so that a test can remember
// where it has been.
type oldSide struct {
	state   oldState
	again   bool // another upgrade was asked for meanwhile
	passed  bool // COMMIT has said so, and the new process has not started yet
	stop    bool // told to stop meanwhile
	busy    bool // an errand is under way
	paused  bool // the barrier has begun: gates must be opened again
	child   bool // it may be alive
	warm    bool // WARM has come
	ready   bool // tableflip says ready, so the child's end is seen as the end of the socket and nowhere else
	gone    bool // nothing more comes from the child: its end is closed, or it is not understood
	dead    bool // its end is closed
	started bool // STARTED has come, too late; or something that is not understood, which may have been that
	mute    bool // something could not be said because the child has ended: why it did is the better reason
	counts  handoff.Counts
	step    string // where it went wrong, while it is judged or rolled back
	reason  string
}

// become is the one place that assigns state. What it returns tells of the transition: it is the caller's to return, too.
func (o *oldSide) become(next oldState) action {
	before := o.state
	if !slices.Contains(oldMoves[before], next) {
		panic(fmt.Sprintf("upgrade: the old side went from %v to %v", before, next))
	}
	o.state = next
	return action{kind: doMoved, from: uint8(before), to: uint8(next)}
}

// Step takes one event and says what to do, in this order. Events that mean nothing in a state are passed over.
func (o *oldSide) Step(e event) []action {
	o.note(e)
	switch o.state {
	case oldIdle:
		return o.idle(e)
	case oldPreflight:
		return o.preflight(e)
	case oldStarting, oldWarming, oldSettling, oldPausing, oldSending, oldPreparing:
		return o.undoable(e)
	case oldCommitted:
		return o.committed(e)
	case oldJudging:
		return o.judging(e)
	case oldRolling:
		return o.rolling(e)
	case oldGiven:
		return o.given(e)
	case oldLingering:
		return o.lingering(e)
	case oldStopped, oldExited:
	}
	return nil
}

// note keeps what has happened, for whatever state asks.
func (o *oldSide) note(e event) {
	switch e.kind {
	case evStop:
		o.stop = true
	case evAsked:
		o.again = o.again || o.state != oldIdle && o.state != oldStopped && o.state != oldExited
	case evDone:
		o.busy = false
	case evExited:
		o.child = false
	case evReady:
		o.ready = true
	case evGone:
		o.gone, o.dead = true, e.dead
	case evTimer:
		if e.timer == timerReap { // killed, and yet it does not end: it will not run another instruction
			o.child = false
		}
	default:
	}
	if o.ready && o.dead {
		o.child = false
	}
}

func (o *oldSide) idle(e event) []action {
	switch e.kind {
	case evStop:
		return []action{o.become(oldStopped), {kind: doLetStop}}
	case evAsked:
		*o = oldSide{state: oldIdle, busy: true}
		return []action{{kind: doReport, outcome: Running}, o.become(oldPreflight), {kind: doPreflight}}
	default:
		return nil
	}
}

func (o *oldSide) preflight(e event) []action {
	switch {
	case e.kind == evStop && o.busy:
		return []action{{kind: doCancel}}
	case e.kind != evDone:
		return nil
	case e.reason != "" || o.stop:
		reason := e.reason
		if o.stop {
			reason = reasonStop
		}
		return o.rest(action{kind: doReport, outcome: Refused, step: StepPreflight, reason: reason})
	}
	o.busy, o.child = true, true
	return []action{o.become(oldStarting), {kind: doArm, timer: timerReady}, {kind: doStart}}
}

const reasonStop = "the process was told to stop"

// undoable is every state from the start of the child to COMMIT: whatever goes wrong is undone.
func (o *oldSide) undoable(e event) []action {
	switch e.kind {
	case evStop:
		return o.rollBack(reasonStop)
	case evExited:
		return o.rollBack(because("the new process ended", e.reason))
	case evGone:
		if e.dead {
			return nil // its death follows, with a better reason
		}
		return o.rollBack(because("the new process is not understood", e.reason))
	case evMute:
		o.mute = e.dead
		return o.rollBack(because("the new process does not listen", e.reason))
	case evReady:
		return o.rollBack("the new process says that it is ready, and owns nothing")
	case evTimer:
		return o.overdue(e.timer)
	case evDone:
		return o.errandDone(e)
	case evMessage:
		return o.heard(e)
	case evAsked: // noted
	}
	return nil
}

func (o *oldSide) overdue(t timer) []action {
	switch {
	case t == timerReady && (o.state == oldStarting || o.state == oldWarming):
		return o.rollBack("the new process was not warm within ready_timeout")
	case t == timerHandover && o.state == oldPausing:
		return o.rollBack("the barrier took longer than handover_timeout")
	case t == timerHandover && o.state >= oldSending:
		return o.rollBack("the hand-over took longer than handover_timeout")
	}
	return nil
}

func (o *oldSide) errandDone(e event) []action {
	if e.reason != "" && o.state != oldSettling { // where too much is buffered, it takes longer: no reason to stay
		o.mute = e.dead
		return o.rollBack(e.reason)
	}
	switch o.state {
	case oldStarting:
		if o.warm {
			return o.settle()
		}
		return []action{o.become(oldWarming)}
	case oldSettling:
		o.busy, o.paused = true, true
		return []action{o.become(oldPausing), {kind: doArm, timer: timerHandover}, {kind: doPause}}
	case oldPausing:
		o.busy = true
		return []action{o.become(oldSending), {kind: doSend}}
	case oldSending:
		o.counts = e.counts
		return []action{o.become(oldPreparing), {kind: doEnd, counts: e.counts}}
	default:
	}
	return nil
}

func (o *oldSide) settle() []action {
	o.busy = true
	return []action{o.become(oldSettling), {kind: doArm, timer: timerNone}, {kind: doSettle}}
}

func (o *oldSide) heard(e event) []action {
	switch {
	case e.message == handoff.KindFailed:
		return o.rollBack(because("the new process gave up", e.reason))
	case e.message == handoff.KindWarm && o.state == oldStarting && !o.warm:
		o.warm = true
	case e.message == handoff.KindWarm && o.state == oldWarming:
		return o.settle()
	case e.message == handoff.KindPrepared && o.state == oldPreparing && e.counts != o.counts:
		return o.rollBack(fmt.Sprintf("the new process has rebuilt %+v of %+v", e.counts, o.counts))
	case e.message == handoff.KindPrepared && o.state == oldPreparing:
		o.passed, o.again = o.again, false
		return []action{o.become(oldCommitted), {kind: doArm, timer: timerStarted}, {kind: doCommit, again: o.passed}}
	default:
		return o.rollBack(fmt.Sprintf("the new process said %v out of turn", e.message))
	}
	return nil
}

// rollBack undoes the upgrade. The order is the law: SIGKILL, reap, and only then the gates. ABORT is for a child that SIGKILL
// does not reach, so it comes behind it: before, a child with the whole state would leave although this process may die in between.
func (o *oldSide) rollBack(reason string) []action {
	o.step, o.reason = oldSteps[o.state], reason
	// An errand that is in the middle of a message leaves no room for another one.
	room := !o.busy || o.state != oldStarting && o.state != oldSending
	do := []action{o.become(oldRolling)}
	if o.busy {
		do = append(do, action{kind: doCancel})
	}
	if o.child {
		do = append(do, action{kind: doKill})
		if room {
			do = append(do, action{kind: doAbort, reason: reason})
		}
		do = append(do, action{kind: doArm, timer: timerReap})
	} else {
		do = append(do, action{kind: doArm, timer: timerNone})
	}
	return append(do, o.rolled()...)
}

// rolling waits for the end of the child and of what runs.
func (o *oldSide) rolling(e event) []action {
	switch {
	case !o.mute:
	case e.kind == evMessage && e.message == handoff.KindFailed:
		o.reason, o.mute = because("the new process gave up", e.reason), false
	case e.kind == evExited:
		o.reason, o.mute = because("the new process ended", e.reason), false
	}
	return o.rolled()
}

// rolled ends a rollback once the child is reaped and nothing runs.
func (o *oldSide) rolled() []action {
	if o.child || o.busy {
		return nil
	}
	var do []action
	if o.paused {
		do = append(do, action{kind: doResume})
	}
	do = append(do, action{kind: doArm, timer: timerNone})
	return append(do, o.rest(action{kind: doReport, outcome: RolledBack, step: o.step, reason: o.reason})...)
}

// rest ends an upgrade that came to nothing, and goes on with what was asked for meanwhile.
func (o *oldSide) rest(report action) []action {
	if o.stop {
		return []action{o.become(oldStopped), report, {kind: doLetStop}}
	}
	do, again := []action{o.become(oldIdle), report}, o.again
	*o = oldSide{}
	if again {
		do = append(do, o.Step(event{kind: evAsked})...)
	}
	return do
}

// because joins what went wrong and why, where that is known.
func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}
