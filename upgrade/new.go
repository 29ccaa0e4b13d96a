package upgrade

import (
	"fmt"
	"slices"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// newState is where the process that takes is.
type newState uint8

const (
	newGreeting  newState = iota // it waits for OFFER
	newListening                 // it waits for the listeners
	newBuilding                  // it builds from the configuration and the listeners
	newWarming                   // WARM goes out
	newTaking                    // WARM is said; the state comes in
	newPreparing                 // END has come: it does all that can fail
	newAnswering                 // PREPARED goes out
	newPrepared                  // PREPARED is said: COMMIT gives the state, and so does the old process's death
	newStarting                  // STARTED goes out; no gate is open yet
	newOwner                     // it owns the state
	newLeft                      // it owns nothing and ends
)

var newNames = [...]string{
	"greeting", "listening", "building", "warming", "taking", "preparing", "answering", "prepared", "starting", "owner",
	"left",
}

func (s newState) String() string { return newNames[s] }

// awaited says whether connections may wait for the end of the state, or for the gates, which the owner opens.
func (s newState) awaited() bool { return s >= newTaking && s <= newOwner }

// newMoves are the legal transitions. All but the last two states may end in newLeft.
var newMoves = map[newState][]newState{
	newGreeting:  {newListening, newLeft},
	newListening: {newBuilding, newLeft},
	newBuilding:  {newWarming, newLeft},
	newWarming:   {newTaking, newOwner, newLeft},
	newTaking:    {newPreparing, newOwner, newLeft},
	newPreparing: {newAnswering, newLeft},
	newAnswering: {newPrepared, newOwner, newLeft},
	newPrepared:  {newStarting, newOwner, newLeft},
	newStarting:  {newOwner, newLeft},
}

var newSteps = map[newState]string{
	newGreeting: "offer", newListening: "listeners", newBuilding: "build", newWarming: StepWarm, newTaking: StepState,
	newPreparing: StepPrepare, newAnswering: StepPrepare, newPrepared: StepCommit, newStarting: StepCommit,
}

// newSide is the machine of the process that takes. Its zero value waits for OFFER. It is comparable, so that a test can
// remember where it has been.
type newSide struct {
	state  newState
	stop   bool           // told to stop when it was too late to leave: the owner stops as it does without upgrades
	counts handoff.Counts // of END
}

// become is the one place that assigns state. What it returns tells of the transition: it is the caller's to return, too.
func (n *newSide) become(next newState) action {
	before := n.state
	if !slices.Contains(newMoves[before], next) {
		panic(fmt.Sprintf("upgrade: the new side went from %v to %v", before, next))
	}
	n.state = next
	return action{kind: doMoved, from: uint8(before), to: uint8(next)}
}

// Step takes one event and says what to do, in this order.
func (n *newSide) Step(e event) []action {
	if e.kind == evMessage && e.message == handoff.KindAbort {
		return n.aborted(e)
	}
	if e.kind == evStop {
		return n.toldToStop()
	}
	switch n.state {
	case newGreeting, newListening:
		return n.greeted(e)
	case newBuilding, newWarming, newTaking, newPreparing:
		return n.built(e)
	case newAnswering, newPrepared, newStarting:
		return n.decided(e)
	case newOwner, newLeft:
	}
	return nil
}

// aborted leaves, quietly: the old process goes on.
func (n *newSide) aborted(e event) []action {
	if n.state >= newStarting { // behind COMMIT there is none
		return nil
	}
	return n.leave(0, because("the old process takes it back", e.reason))
}

// toldToStop leaves as long as the old process can do without this one. Behind PREPARED its death may have made this one
// the owner, and an owner stops in order.
func (n *newSide) toldToStop() []action {
	if n.state >= newAnswering {
		n.stop = true
		return nil
	}
	return n.fail(reasonStop)
}

func (n *newSide) greeted(e event) []action {
	switch {
	case e.kind == evGone && e.dead:
		return n.leave(1, because("the old process died before it gave anything", e.reason))
	case e.kind == evGone:
		return n.fail(because("the old process is not understood", e.reason))
	case e.kind != evMessage:
		return nil
	case n.state == newGreeting && e.message == handoff.KindOffer && e.reason == "":
		return []action{n.become(newListening)}
	case n.state == newGreeting && e.message == handoff.KindOffer:
		return n.fail(e.reason)
	case n.state == newListening && e.message == handoff.KindListeners:
		return []action{n.become(newBuilding), {kind: doBuild}}
	}
	return n.fail(outOfTurn(e.message))
}

// built has listeners, which are enough to be a proxy: if the old process dies here, its connections have died with it, and
// this one starts without them.
func (n *newSide) built(e event) []action {
	switch {
	case e.kind == evDone && e.reason != "":
		return n.fail(e.reason)
	case e.kind == evDone && n.state == newBuilding:
		return []action{n.become(newWarming), {kind: doWarm}}
	case e.kind == evDone && n.state == newWarming:
		return []action{n.become(newTaking)}
	case e.kind == evDone && n.state == newPreparing && e.counts != n.counts:
		return n.fail(fmt.Sprintf("%+v were sent, and %+v rebuilt", n.counts, e.counts))
	case e.kind == evDone && n.state == newPreparing:
		return []action{n.become(newAnswering), {kind: doPrepared, counts: e.counts}}
	case e.kind == evMute && e.dead, e.kind == evGone && e.dead:
		return []action{n.become(newOwner), {kind: doForget}, {kind: doOwn, outcome: Orphaned, step: StepState, reason: reasonOrphaned}}
	case e.kind == evMute:
		return n.leave(1, because("the old process does not listen", e.reason))
	case e.kind == evGone:
		return n.fail(because("the old process is not understood", e.reason))
	case e.kind == evMessage && n.state == newTaking:
		return n.took(e)
	case e.kind == evMessage:
		return n.fail(outOfTurn(e.message))
	}
	return nil
}

const (
	reasonOrphaned = "the old process died before its state was whole: listeners are all that is left of it"
	reasonWidowed  = "the old process died when its state was whole: nothing was lost"
)

func (n *newSide) took(e event) []action {
	switch e.message {
	case handoff.KindConns, handoff.KindExchanges:
		return []action{{kind: doTake}}
	case handoff.KindEnd:
		n.counts = e.counts
		return []action{n.become(newPreparing), {kind: doPrepare}}
	default:
		return n.fail(outOfTurn(e.message))
	}
}

// decided has the whole state. The old process's death gives it away as COMMIT does.
func (n *newSide) decided(e event) []action {
	switch {
	case e.kind == evGone && e.dead, e.kind == evMute && e.dead:
		return []action{n.become(newOwner), {kind: doOwn, outcome: Done, reason: reasonWidowed}}
	case e.kind == evMute: // nobody has heard it, so nobody gives anything away
		return n.leave(1, because("the old process does not listen", e.reason))
	case e.kind == evGone:
		return n.fail(because("the old process is not understood", e.reason))
	case e.kind == evDone && n.state == newAnswering:
		return []action{n.become(newPrepared)}
	case e.kind == evDone && n.state == newStarting:
		return []action{n.become(newOwner), {kind: doOwn, outcome: Done}}
	case e.kind == evMessage && n.state == newPrepared && e.message == handoff.KindCommit:
		return []action{n.become(newStarting), {kind: doStarted}}
	case e.kind == evMessage:
		return n.fail(outOfTurn(e.message))
	}
	return nil
}

// fail tells the old process why there is no upgrade, and ends.
func (n *newSide) fail(reason string) []action {
	do := action{kind: doFail, step: newSteps[n.state], reason: reason}
	return append([]action{do}, n.leave(1, reason)...)
}

func (n *newSide) leave(status int, reason string) []action {
	return []action{n.become(newLeft), {kind: doExit, status: status, reason: reason}}
}

func outOfTurn(k handoff.Kind) string {
	return fmt.Sprintf("the old process said %v out of turn", k)
}
