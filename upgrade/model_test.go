package upgrade

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// The model joins both machines by two processes, a socket and tableflip, and is explored breadth first: every order of
// messages, errands, timers, signals and deaths. A choice is a transition; whatever may happen at some time may happen at
// any time. The world is a value, so a set remembers where the search has been.

// process is what has become of the new process.
type process uint8

const (
	unborn process = iota
	alive
	doomed // SIGKILL is sent; it may still do something
	stuck  // SIGKILL is sent, it does nothing any more, and it does not end either
	dead   // reaped
)

// flip is where tableflip's Upgrade is.
type flip uint8

const (
	flipIdle flip = iota
	flipWaiting
	flipHungUp   // the child has ended: the socket is shut down, and what it has said is being read
	flipReturned // it has said ready, or that the child has ended
)

// world is one state of everything.
type world struct {
	old      oldSide
	oldAlive bool
	gates    bool // of the old process are open
	errand   actionKind
	canceled bool
	armed    timer
	muted    muted // something could not be said: an event that is due
	spent    bool  // a killed process did not end in time: no more upgrades
	heardEnd bool  // the reader has seen the end of the socket, or what it does not understand
	doubt    bool  // that came behind COMMIT: it may have been STARTED

	next     newSide
	process  process
	flip     flip
	ready    bool // tableflip's Ready was called
	pending  pendingEvent
	nextOpen bool // its gates
	owned    bool // it has opened them, ever
	said     bool // STARTED, ever
	stopping bool // the owner stops in order
	hurt     bool // somebody was killed, or told to stop

	toNew, toOld string // messages under way, a byte each

	asks, stops, crashes, slips, garbles int // how many more of them there will be
}

// muted is what the old side has to hear of what it could not say.
type muted uint8

const (
	notMuted  muted = iota
	mutedNext       // before anything else
	mutedOnce       // END, some time
)

// pendingEvent is what the new side has to hear of what it did.
type pendingEvent uint8

const (
	nothingPending pendingEvent = iota
	donePending                 // well or not, as it turns out
	saidPending
	mutePending
	gonePending // it could not be said, because the old process is dead
)

// The bytes of messages.
const (
	byteOffer, byteListeners, byteWarm, byteConns, byteEnd = 'O', 'L', 'W', 'c', 'E'
	bytePrepared, byteWrong, byteCommit, byteStarted       = 'P', 'p', 'C', 'S'
	byteAbort, byteFailed, byteCounters                    = 'A', 'X', 'n'
	byteStop, byteAgain                                    = 'f', 'a'
)

var modelCounts = handoff.Counts{Downstreams: 1}

func messageOf(b byte) event {
	e := event{kind: evMessage}
	switch b {
	case byteOffer:
		e.message = handoff.KindOffer
	case byteListeners:
		e.message = handoff.KindListeners
	case byteWarm:
		e.message = handoff.KindWarm
	case byteConns:
		e.message = handoff.KindConns
	case byteEnd:
		e.message, e.counts = handoff.KindEnd, modelCounts
	case bytePrepared:
		e.message, e.counts = handoff.KindPrepared, modelCounts
	case byteWrong:
		e.message = handoff.KindPrepared
	case byteCommit:
		e.message = handoff.KindCommit
	case byteStarted:
		e.message = handoff.KindStarted
	case byteAbort:
		e.message = handoff.KindAbort
	case byteFailed:
		e.message = handoff.KindFailed
	case byteCounters:
		e.message = handoff.KindCounters
	case byteStop:
		e.message, e.stop = handoff.KindFollow, true
	case byteAgain:
		e.message, e.again = handoff.KindFollow, true
	}
	return e
}

// edge is a transition: what happened, and every world that may follow.
type edge struct {
	name string
	to   []world
	free bool // nobody can count on it: a signal, a crash
}

// edges are all transitions of a world.
func (w world) edges() (list []edge) {
	add := func(name string, free bool, to ...world) { list = append(list, edge{name, to, free}) }
	w.oldEdges(add)
	w.tableflipEdges(add)
	w.newEdges(add)
	return list
}

func (w world) oldRuns() bool {
	return w.oldAlive && w.old.state != oldStopped && w.old.state != oldExited
}

// hungUp says that the old process sees the end of the socket.
func (w world) hungUp() bool {
	return w.flip == flipHungUp || w.flip == flipReturned && w.process == dead
}

func (w world) oldEdges(add func(string, bool, ...world)) {
	if !w.oldAlive {
		return
	}
	if w.crashes > 0 && w.old.state != oldExited {
		add("the old process is killed", true, w.killOld())
	}
	if !w.oldRuns() {
		return
	}
	if w.muted != notMuted {
		x := w
		x.muted = notMuted
		add("the old side could not say something in time", false, x.oldStep(event{kind: evMute, reason: "timeout"})...)
		if w.hungUp() {
			add("the old side had nobody to say something to", false, x.oldStep(event{kind: evMute, dead: true, reason: "EPIPE"})...)
		}
		if w.muted == mutedNext {
			return
		}
	}
	if w.asks > 0 {
		x := w
		x.asks--
		add("an upgrade is asked for", true, x.oldStep(event{kind: evAsked})...)
	}
	if w.stops > 0 && !w.old.stop {
		x := w
		x.stops, x.hurt = x.stops-1, true
		add("the old process is told to stop", true, x.oldStep(event{kind: evStop})...)
	}
	if w.errand != 0 {
		w.errandEdges(add)
	}
	// The timer of a reap is far longer than a killed process can do anything.
	if w.armed != timerNone && (w.armed != timerReap || w.process == stuck || w.process == dead) {
		x := w
		x.armed = timerNone
		x.spent = w.spent || w.armed == timerReap
		add(fmt.Sprintf("timer %d fires", w.armed), false, x.oldStep(event{kind: evTimer, timer: w.armed})...)
	}
	if w.heardEnd {
		return
	}
	if w.toOld != "" {
		x := w
		x.toOld = w.toOld[1:]
		add("the old side hears "+w.toOld[:1], false, x.oldStep(messageOf(w.toOld[0]))...)
	} else if w.hungUp() {
		x := w
		x.heardEnd = true
		add("the old side hears the end", false, x.oldStep(event{kind: evGone, dead: true, reason: "EOF"})...)
	}
	if w.garbles > 0 && w.flip != flipIdle { // in front of all that is under way, or in its place: nothing more is read
		x := w
		x.garbles, x.heardEnd = x.garbles-1, true
		x.doubt = w.old.state == oldCommitted || w.old.state == oldJudging
		add("the old side does not understand what it hears", true, x.oldStep(event{kind: evGone, reason: "no frame"})...)
	}
}

func (w world) killOld() world {
	w.crashes, w.oldAlive, w.gates, w.errand, w.armed, w.hurt = w.crashes-1, false, false, 0, timerNone, true
	return w
}

func (w world) errandEdges(add func(string, bool, ...world)) {
	done := w
	done.errand, done.canceled = 0, false
	good, bad := event{kind: evDone}, event{kind: evDone, dead: w.hungUp(), reason: "it failed"}
	reaches := w.process != unborn
	switch w.errand {
	case doStart:
		half := done
		half.toNew += string(rune(byteOffer))
		add("LISTENERS cannot be said", false, half.oldStep(bad)...)
		if reaches {
			done.toNew += string([]rune{byteOffer, byteListeners})
		}
		add("the start is said", false, done.oldStep(good)...)
		return
	case doSend:
		half := done
		half.toNew += string(rune(byteConns))
		add("the state is sent by half", false, half.oldStep(bad)...)
		done.toNew += string(rune(byteConns))
		good.counts = modelCounts
	case doFarewell:
		done.toNew += string(rune(byteCounters))
		add("the farewell is said", false, done.oldStep(good)...)
		return
	default:
	}
	if w.errand != doPreflight || !w.spent {
		add(fmt.Sprintf("errand %d succeeds", w.errand), false, done.oldStep(good)...)
	}
	add(fmt.Sprintf("errand %d fails", w.errand), false, done.oldStep(bad)...)
}

// tableflipEdges are what happens to the child, and how the old process learns of it.
func (w world) tableflipEdges(add func(string, bool, ...world)) {
	if w.process == doomed {
		x := w
		x.die()
		add("the killed process ends", false, x)
		x = w
		x.process = stuck
		add("the killed process is stuck", true, x)
	}
	if !w.oldRuns() || w.flip == flipIdle || w.flip == flipReturned {
		return
	}
	if w.flip == flipWaiting && w.ready {
		x := w
		x.flip = flipReturned
		x.spent = true
		add("tableflip says ready", false, x.oldStep(event{kind: evReady})...)
	}
	if w.flip == flipWaiting && w.process == dead {
		x := w
		x.flip = flipHungUp
		add("tableflip sees the child's end", false, x)
	}
	if w.flip == flipHungUp && w.heardEnd {
		x := w
		x.flip = flipReturned
		add("tableflip says the child's end", false, x.oldStep(event{kind: evExited, reason: "exit status"})...)
	}
}

func (w *world) die() {
	w.process, w.nextOpen, w.pending = dead, false, nothingPending
}

func (w world) newEdges(add func(string, bool, ...world)) {
	if w.process != alive && w.process != doomed {
		return
	}
	if w.crashes > 0 {
		x := w
		x.crashes, x.hurt = x.crashes-1, true
		x.die()
		add("the new process is killed", true, x)
	}
	if w.next.state == newLeft || w.stopping {
		x := w
		x.die()
		add("the new process ends", false, x)
		return
	}
	if w.slips > 0 && !w.ready {
		x := w
		x.slips, x.ready = x.slips-1, true
		add("the new process calls ready out of turn", true, x)
	}
	switch w.pending {
	case nothingPending:
		w.listenEdges(add)
	case donePending:
		x := w
		x.pending = nothingPending
		add("the new side succeeds", false, x.newStep(event{kind: evDone, counts: modelCounts})...)
		add("the new side fails", false, x.newStep(event{kind: evDone, reason: "it failed"})...)
		if w.next.state == newPreparing {
			add("the new side counts something else", false, x.newStep(event{kind: evDone})...)
		}
	case saidPending:
		x := w
		x.pending = nothingPending
		add("the new side has said it", false, x.newStep(event{kind: evDone})...)
	case mutePending, gonePending:
		x := w
		x.pending = nothingPending
		add("the new side could not say it", false, x.newStep(event{kind: evMute, dead: w.pending == gonePending})...)
	}
}

func (w world) listenEdges(add func(string, bool, ...world)) {
	if w.stops > 0 && !w.next.stop {
		x := w
		x.stops, x.hurt = x.stops-1, true
		if w.next.state == newOwner {
			x.stopping = true
			x.tellOld(byteStop)
			add("the owner is told to stop", true, x)
		} else {
			add("the new process is told to stop", true, x.newStep(event{kind: evStop})...)
		}
	}
	if w.garbles > 0 && w.oldRuns() && w.next.state != newOwner {
		x := w
		x.garbles--
		add("the new side does not understand what it hears", true, x.newStep(event{kind: evGone, reason: "no frame"})...)
	}
	switch {
	case w.toNew != "":
		x := w
		x.toNew = w.toNew[1:]
		e := messageOf(w.toNew[0])
		if w.next.state != newOwner {
			add("the new side hears "+w.toNew[:1], false, x.newStep(e)...)
			return
		}
		x.stopping = e.stop
		add("the owner hears "+w.toNew[:1], false, x)
	case (!w.oldAlive || w.old.state == oldExited || w.old.state == oldStopped) && w.next.state != newOwner:
		add("the new side hears the end", false, w.newStep(event{kind: evGone, dead: true})...)
	}
}

// tellOld says something, if there is somebody to hear it.
func (w *world) tellOld(b byte) {
	if w.oldRuns() {
		w.toOld += string(rune(b))
	}
}

// reached is where a side is by the transitions that it has told of, each of which begins where the one before has ended.
func reached(at uint8, do []action) uint8 {
	for _, a := range do {
		if a.kind == doMoved {
			if a.from != at {
				panic(fmt.Sprintf("a transition from state %d is told of in state %d", a.from, at))
			}
			at = a.to
		}
	}
	return at
}

// oldStep steps the old side and does what it says. There are several worlds where it can go one way or the other, and where
// it is killed between one thing that it does and the next.
func (w world) oldStep(e event) []world {
	worlds, cutShort := []world{w}, []world(nil)
	do := worlds[0].old.Step(e)
	if at := reached(uint8(w.old.state), do); at != uint8(worlds[0].old.state) {
		panic(fmt.Sprintf("the old side is %v, and has told of going to %v", worlds[0].old.state, oldState(at)))
	}
	for i, a := range do {
		var after []world
		for _, x := range worlds {
			if i > 0 && x.crashes > 0 {
				cutShort = append(cutShort, x.killOld())
			}
			after = append(after, x.oldDo(a)...)
		}
		worlds = after
	}
	return append(worlds, cutShort...)
}

func (w world) oldDo(a action) []world {
	switch a.kind {
	case doPreflight, doSettle, doSend, doFarewell:
		w.errand = a.kind
	case doPause:
		w.errand, w.gates = a.kind, false
	case doStart:
		w.errand = a.kind
		w.next, w.process, w.flip, w.ready, w.pending = newSide{}, alive, flipWaiting, false, nothingPending
		w.toNew, w.toOld, w.heardEnd, w.said, w.doubt = "", "", false, false, false
	case doCancel:
		w.canceled = true
	case doHangUp:
		w.flip = flipHungUp
	case doReport:
		if a.outcome == RolledBack { // nothing of this upgrade is heard any more
			w.flip, w.heardEnd, w.muted = flipIdle, true, notMuted
		}
	case doArm:
		w.armed = a.timer
	case doAbort:
		silent := w
		w.toNew += string(rune(byteAbort))
		return []world{w, silent}
	case doEnd, doCommit, doFollow:
		b := map[actionKind]rune{doEnd: byteEnd, doCommit: byteCommit, doFollow: byteAgain}[a.kind]
		if a.stop {
			b = byteStop
		}
		mute := w
		mute.muted = mutedNext
		if a.kind == doEnd { // it is said beside the loop
			mute.muted = mutedOnce
		}
		w.toNew += string(b)
		return []world{w, mute}
	case doKill:
		if w.process == alive {
			w.process = doomed
		}
	case doResume:
		if w.process != dead && w.process != stuck {
			panic("the gates open before the new process is dead")
		}
		if w.errand != 0 {
			panic("the gates open while an errand is under way")
		}
		if w.owned {
			panic("the gates open although the new process has read something")
		}
		w.gates = true
	case doLetStop:
		if !w.gates {
			panic("the old process stops in order with its gates shut")
		}
	case doExit:
		w.armed, w.errand = timerNone, 0
		if a.status == 1 && !w.said && !w.doubt {
			panic("the old process gives up although the new one has never said STARTED")
		}
		if a.status == 0 && !w.said {
			panic("the old process leaves although the new one has never said STARTED")
		}
		if a.status == 1 && w.process == alive {
			panic("the old process gives up although the new one lives")
		}
	default:
	}
	return []world{w}
}

// newStep is the same for the new side.
func (w world) newStep(e event) []world {
	worlds := []world{w}
	do := worlds[0].next.Step(e)
	if at := reached(uint8(w.next.state), do); at != uint8(worlds[0].next.state) {
		panic(fmt.Sprintf("the new side is %v, and has told of going to %v", worlds[0].next.state, newState(at)))
	}
	whole := w.next.state == newAnswering || w.next.state == newPrepared || w.next.state == newStarting
	if whole && worlds[0].next.state == newLeft && !w.oldAlive && w.process == alive && (e.kind != evMute || e.dead) {
		panic("the new process leaves with the whole state, and the old one is dead")
	}
	if w.next.state > newListening && worlds[0].next.state == newLeft && e.dead {
		panic("the new process leaves with the listeners, and the old one is dead")
	}
	for _, a := range do {
		var after []world
		for _, x := range worlds {
			after = append(after, x.newDo(a)...)
		}
		worlds = after
	}
	return worlds
}

func (w world) newDo(a action) []world {
	switch a.kind {
	case doBuild, doPrepare:
		w.pending = donePending
	case doTake:
		bad := w
		bad.pending = donePending // an error, or nothing at all
		return []world{w, bad}
	case doWarm:
		return w.newSays(byteWarm)
	case doPrepared:
		return append(w.newSays(bytePrepared), w.newSays(byteWrong)...)
	case doStarted:
		return w.newSays(byteStarted)
	case doFail:
		silent := w
		w.tellOld(byteFailed)
		return []world{w, silent}
	case doForget:
		if w.oldAlive {
			panic("the new process forgets what the old one has given it, and that one lives")
		}
	case doOwn:
		if w.oldRuns() && !w.said {
			panic("the new process opens its gates before it has said STARTED")
		}
		w.nextOpen, w.owned, w.ready = true, true, true
	default:
	}
	return []world{w}
}

func (w world) newSays(b byte) []world {
	if !w.oldRuns() {
		w.pending = gonePending
		return []world{w}
	}
	mute := w
	mute.pending = mutePending
	w.tellOld(b)
	w.pending = saidPending
	w.said = w.said || b == byteStarted
	return []world{w, mute}
}

// wrong says what is against the law in this world.
func (w world) wrong() string {
	oldReads := w.oldAlive && w.gates
	newReads := w.nextOpen && (w.process == alive || w.process == doomed)
	if oldReads && newReads {
		return "both read"
	}
	return ""
}

// stranded says what is wrong with a world in which nothing will happen by itself any more.
func (w world) stranded() string {
	newOwns := w.process == alive && w.next.state == newOwner
	oldOwns := w.oldAlive && w.gates && (w.old.state == oldIdle || w.old.state == oldStopped)
	oldEnded := !w.oldAlive || w.old.state == oldExited
	newEnded := w.process == dead || w.process == unborn || w.process == stuck
	switch {
	case !oldOwns && !oldEnded:
		return "the old side waits for ever"
	case !newOwns && !newEnded:
		return "the new side waits for ever"
	case oldOwns && newOwns:
		return "both own it"
	case !oldOwns && !newOwns && !w.hurt && !w.said && !w.doubt:
		return "nobody owns it, and nobody was killed or told to stop"
	}
	return ""
}

// explore visits every world that can be reached from begin.
func explore(t *testing.T, begin world) (worlds, transitions int) {
	t.Helper()
	type step struct {
		from int
		name string
	}
	ids := map[world]int{begin: 0}
	queue := []world{begin}
	came := []step{{-1, "begin"}}
	var follow [][]int
	story := func(id int) string {
		var lines []string
		for ; id > 0; id = came[id].from {
			w := queue[id]
			lines = append(lines, fmt.Sprintf("%s  [old %v, new %v]", came[id].name, w.old.state, w.next.state))
		}
		slices.Reverse(lines)
		return strings.Join(lines, "\n")
	}
	for at := 0; at < len(queue); at++ {
		w := queue[at]
		follow = append(follow, nil)
		var edges []edge
		func() {
			defer func() {
				if r := recover(); r != nil {
					t.Fatalf("%v, after:\n%s", r, story(at))
				}
			}()
			edges = w.edges()
		}()
		idle := true
		for _, e := range edges {
			idle = idle && e.free
			for _, to := range e.to {
				transitions++
				id, known := ids[to]
				if !known {
					id = len(queue)
					ids[to] = id
					queue = append(queue, to)
					came = append(came, step{at, e.name})
					if what := to.wrong(); what != "" {
						t.Fatalf("%s, after:\n%s", what, story(id))
					}
				}
				follow[at] = append(follow[at], id)
			}
		}
		if what := w.stranded(); idle && what != "" {
			t.Fatalf("%s: %+v, after:\n%s", what, w, story(at))
		}
	}
	if at := cycle(follow); at >= 0 {
		t.Fatalf("this can go on for ever, after:\n%s", story(at))
	}
	return len(queue), transitions
}

// cycle finds a world that can be come back to: then the machines need not end. It is -1 if there is none.
func cycle(follow [][]int) int {
	before := make([]int, len(follow))
	for _, list := range follow {
		for _, to := range list {
			before[to]++
		}
	}
	var free []int
	for at, n := range before {
		if n == 0 {
			free = append(free, at)
		}
	}
	seen := 0
	for len(free) > 0 {
		at := free[len(free)-1]
		free = free[:len(free)-1]
		seen++
		for _, to := range follow[at] {
			if before[to]--; before[to] == 0 {
				free = append(free, to)
			}
		}
	}
	if seen == len(follow) {
		return -1
	}
	return slices.IndexFunc(before, func(n int) bool { return n > 0 })
}

// Every order of everything: never do two processes read, never does nobody own what somebody could, and both end.
func TestEveryOrderOfEvents(t *testing.T) {
	for name, begin := range map[string]world{
		"two deaths":                {asks: 1, crashes: 2},
		"a death and a signal":      {asks: 2, stops: 1, crashes: 1},
		"two signals":               {asks: 1, stops: 2},
		"a ready that was not due":  {asks: 1, slips: 1, crashes: 1},
		"asked again and again":     {asks: 3},
		"what nobody understands":   {asks: 1, garbles: 2, slips: 1, crashes: 1},
		"nor who is told to stop":   {asks: 1, garbles: 1, slips: 1, stops: 1, crashes: 1},
		"nothing goes wrong at all": {asks: 1},
		"everything at once":        {asks: 2, stops: 2, crashes: 2, slips: 1},
	} {
		t.Run(name, func(t *testing.T) {
			begin.oldAlive, begin.gates = true, true
			worlds, transitions := explore(t, begin)
			t.Logf("%d worlds, %d transitions", worlds, transitions)
		})
	}
}
