package upgrade

import (
	"fmt"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// Behind COMMIT nothing is simply undone: the child may own the state, or does.

// committed waits for STARTED. Nothing is undone here: the child may own the state.
func (o *oldSide) committed(e event) []action {
	switch {
	case e.kind == evMessage && e.message == handoff.KindStarted:
		o.busy = true
		return []action{o.become(oldGiven), {kind: doArm, timer: timerArrive}, {kind: doFarewell}}
	case e.kind == evTimer && e.timer == timerStarted:
		return o.judge("the new process did not start within its time")
	case e.kind == evMute:
		return o.judge(because("the new process does not listen", e.reason))
	case e.kind == evMessage:
		return o.judge(because(fmt.Sprintf("the new process said %v out of turn", e.message), e.reason))
	case e.kind == evGone && !e.dead:
		o.started = true
		return o.judge(because("the new process is not understood", e.reason))
	case e.kind == evExited:
		return o.judge(because("the new process ended", e.reason))
	}
	return nil
}

// judge makes sure that the child is dead, and lets what it has said decide who owns the state.
func (o *oldSide) judge(reason string) []action {
	o.step, o.reason = StepCommit, reason
	do := []action{o.become(oldJudging), {kind: doArm, timer: timerReap}}
	if o.child {
		do = append(do, action{kind: doKill})
	}
	return append(do, o.judged()...)
}

func (o *oldSide) judging(e event) []action {
	if e.kind == evMessage && e.message == handoff.KindStarted || e.kind == evGone && !e.dead {
		o.started = true
	}
	if e.kind == evTimer && e.timer == timerReap && !o.gone {
		return []action{{kind: doHangUp}} // what it has said is still to be read
	}
	return o.judged()
}

func (o *oldSide) judged() []action {
	switch {
	case o.child || !o.gone:
		return nil
	case o.started:
		return o.exit(1, Failed, o.step, o.reason)
	}
	o.again = o.again || o.passed // to nobody
	return append([]action{o.become(oldRolling)}, o.rolled()...)
}

// given is behind STARTED. This process owns nothing any more and passes on what is asked of it. What it does not understand
// is no death: it only sees none any more.
func (o *oldSide) given(e event) []action {
	if !o.child || o.dead {
		return o.died(e)
	}
	if e.kind == evMessage && e.message == handoff.KindFollow && e.stop {
		return o.exit(0, Done, "", "") // the owner stops because somebody wants it to: no reason to watch it
	}
	if e.kind == evTimer && e.timer == timerArrive {
		o.ready = true // it owns the state all the same
	}
	if o.busy {
		return nil
	}
	do := o.passOn()
	if o.state == oldGiven && o.ready {
		do = append(do, o.become(oldLingering), action{kind: doArm, timer: timerLinger})
	}
	return do
}

func (o *oldSide) lingering(e event) []action {
	switch {
	case !o.child || o.dead:
		return o.died(e)
	case e.kind == evTimer && e.timer == timerLinger:
		return o.exit(0, Done, "", "")
	case e.kind == evMessage && e.message == handoff.KindFollow && e.stop:
		return o.exit(0, Done, "", "")
	}
	return o.passOn()
}

// passOn tells the owner what was asked of this process.
func (o *oldSide) passOn() (do []action) {
	if o.again || o.stop {
		do = append(do, action{kind: doFollow, again: o.again, stop: o.stop})
	}
	o.again = false
	if o.stop {
		do = append(do, o.exit(0, Done, "", "")...)
	}
	return do
}

// died ends this process because the owner has: whoever watches it starts another one.
func (o *oldSide) died(e event) []action {
	return o.exit(1, Failed, StepLinger, because("the new process died, and all connections with it", e.reason))
}

func (o *oldSide) exit(status int, outcome Outcome, step, reason string) []action {
	do := []action{o.become(oldExited), {kind: doArm, timer: timerNone}}
	if outcome != Done { // what is done is for the new owner to report
		do = append(do, action{kind: doReport, outcome: outcome, step: step, reason: reason})
	}
	return append(do, action{kind: doExit, status: status})
}
