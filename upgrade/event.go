package upgrade

import "github.com/relevo-proxy/relevo/upgrade/handoff"

// The machines of both sides are pure: events go in, actions come out, both are values. Drivers turn what happens into
// events and do what the actions say. Nothing here knows a clock, a process or a socket.

// eventKind says what has happened.
type eventKind uint8

const (
	// Of both sides.
	evStop    eventKind = iota + 1 // somebody wants this process to stop
	evMessage                      // the other side has said message
	evGone                         // nothing more comes from the other side; dead, if its end is closed, else it is not understood
	evMute                         // what was to be said could not be said; dead, if the other side's end is closed
	evDone                         // what was being done (the errand) has ended: with reason, if it did not succeed; dead, as for evMute

	// Of the old side.
	evAsked  // somebody wants an upgrade
	evExited // the child has ended and is reaped, or never was
	evReady  // tableflip says that the child is ready
	evTimer  // timer has fired
)

// event is something that has happened. Which fields are set depends on the kind.
type event struct {
	kind    eventKind
	message handoff.Kind
	timer   timer
	counts  handoff.Counts // of END and PREPARED, and of an errand that counts
	again   bool           // of COMMIT and FOLLOW
	stop    bool           // of FOLLOW
	dead    bool
	reason  string
	pid     int    // of WARM; for the driver, as release is
	release string // of WARM
}

// timer is what there is a limit for. One at a time runs.
type timer uint8

const (
	timerNone     timer = iota
	timerReady          // from the start of the child to WARM
	timerHandover       // from the beginning of the barrier to COMMIT
	timerStarted        // from COMMIT to STARTED
	timerReap           // from SIGKILL to the child's end
	timerArrive         // from STARTED to tableflip's ready
	timerLinger         // from there to the end of the old process
)

// actionKind says what is to be done.
type actionKind uint8

const (
	// Of both sides.
	doAbort  actionKind = iota + 1 // old: try to say ABORT with reason, behind doKill
	doFail                         // new: try to say FAILED with step and reason
	doExit                         // end, with status
	doFollow                       // say what again and stop ask for: FOLLOW
	doMoved                        // tell of a transition, from one state to another

	// Of the old side. Errands run beside the loop, one at a time, and end with evDone.
	doReport    // begin the report of an upgrade, or end it with outcome, step and reason
	doPreflight // errand: check that the upgrade can succeed
	doStart     // errand: start the child, say OFFER and LISTENERS; evExited or evReady follow in any case
	doSettle    // errand: wait for little to be buffered
	doPause     // errand: the barrier
	doSend      // errand: say the state
	doFarewell  // errand: close all copies, say COUNTERS
	doCancel    // the errand is to end soon
	doEnd       // say END with counts
	doCommit    // say COMMIT
	doKill      // SIGKILL
	doHangUp    // end the socket, behind all that the child has said
	doResume    // open the gates again
	doArm       // start timer in place of the one that runs; timerNone: stop it
	doLetStop   // the owner, this process, stops as it does without upgrades

	// Of the new side. All up to doStarted end with evDone or evMute, but for doTake: that is an evDone where it fails, else nothing.
	doBuild    // build from the configuration and the listeners
	doWarm     // say WARM
	doTake     // take what the message carries
	doPrepare  // do all that can fail
	doPrepared // say PREPARED with counts
	doStarted  // say STARTED
	doForget   // let go of what was taken: there are listeners and nothing else
	doOwn      // open the gates, tell tableflip, report the outcome
)

// action is something to be done. Which fields are set depends on the kind.
type action struct {
	kind     actionKind
	from, to uint8 // states of the side
	timer    timer
	counts   handoff.Counts
	again    bool
	stop     bool
	status   int
	step     string
	outcome  Outcome
	reason   string
}
