package upgrade

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// script plays events, one a word, and tells where the machine is after each, and what is to be done.
var scriptEvents = map[string]event{
	"asked": {kind: evAsked}, "stop": {kind: evStop}, "done": {kind: evDone}, "sent": {kind: evDone, counts: modelCounts},
	"failed": {kind: evDone, reason: "no"}, "ready": {kind: evReady}, "exited": {kind: evExited, reason: "status 1"},
	"gone": {kind: evGone, dead: true}, "garbled": {kind: evGone, reason: "no frame"}, "mute": {kind: evMute, reason: "full"},
	"ready-timer": {kind: evTimer, timer: timerReady}, "handover-timer": {kind: evTimer, timer: timerHandover},
	"started-timer": {kind: evTimer, timer: timerStarted}, "reap-timer": {kind: evTimer, timer: timerReap},
	"arrive-timer": {kind: evTimer, timer: timerArrive}, "linger-timer": {kind: evTimer, timer: timerLinger},
	"OFFER": messageOf(byteOffer), "LISTENERS": messageOf(byteListeners), "WARM": messageOf(byteWarm),
	"CONNS": messageOf(byteConns), "END": messageOf(byteEnd), "PREPARED": messageOf(bytePrepared),
	"WRONG": messageOf(byteWrong), "COMMIT": messageOf(byteCommit), "STARTED": messageOf(byteStarted),
	"ABORT": messageOf(byteAbort), "FAILED": {kind: evMessage, message: handoff.KindFailed, reason: "build: no"},
	"STOPPING": messageOf(byteStop), "dead": {kind: evMute, dead: true},
}

var actionNames = map[actionKind]string{
	doAbort: "ABORT", doFail: "FAILED", doExit: "exit", doFollow: "FOLLOW", doReport: "report", doPreflight: "preflight",
	doStart: "start", doSettle: "settle", doPause: "pause", doSend: "send", doFarewell: "farewell", doCancel: "cancel",
	doEnd: "END", doCommit: "COMMIT", doKill: "kill", doHangUp: "hang up", doResume: "resume", doArm: "arm",
	doLetStop: "let stop", doBuild: "build", doWarm: "WARM", doTake: "take", doPrepare: "prepare", doPrepared: "PREPARED",
	doStarted: "STARTED", doMoved: "moved", doForget: "forget", doOwn: "own",
}

func tell(do []action) string {
	var list []string
	for _, a := range do {
		name := actionNames[a.kind]
		switch a.kind {
		case doArm:
			continue // the driver's tests look at the clock
		case doMoved:
			continue // the model looks at it
		case doExit:
			name = fmt.Sprintf("exit %d", a.status)
		case doReport, doOwn:
			name += " " + string(a.outcome)
		case doCommit, doFollow:
			if a.again {
				name += " again"
			}
			if a.stop {
				name += " stop"
			}
		default:
		}
		list = append(list, name)
	}
	return strings.Join(list, ", ")
}

func TestTransitions(t *testing.T) {
	const given = "asked done done WARM done done sent PREPARED STARTED"
	for _, test := range []struct {
		name, events, state, last string
	}{
		{"asked", "asked", "preflight", "report running, preflight"},
		{"refused", "asked failed", "idle", "report refused"},
		{"refused, and asked again meanwhile", "asked asked failed", "preflight", "report refused, report running, preflight"},
		{"told to stop in the preflight", "asked stop", "preflight", "cancel"},
		{"stopped in the preflight", "asked stop failed", "stopped", "report refused, let stop"},
		{"starting", "asked done", "starting", "start"},
		{"warm before the start is said", "asked done WARM done", "settling", "settle"},
		{"too slow", "asked done done ready-timer", "rolling-back", "kill, ABORT"},
		{"too slow, and what is said has no end", "asked done ready-timer", "rolling-back", "cancel, kill"},
		{"reaped before a barrier", "asked done done ready-timer exited", "idle", "report rolled-back"},
		{"a settling that fails is none", "asked done done WARM failed", "pausing", "pause"},
		{"a barrier that fails", "asked done done WARM done failed", "rolling-back", "kill, ABORT"},
		{"reaped behind a barrier", "asked done done WARM done failed exited", "idle", "resume, report rolled-back"},
		{"dead while an errand runs", "asked done done WARM done exited", "rolling-back", "cancel"},
		{"the errand has ended", "asked done done WARM done exited failed", "idle", "resume, report rolled-back"},
		{"another count", "asked done done WARM done done sent WRONG", "rolling-back", "kill, ABORT"},
		{"committed", "asked done done WARM done done sent PREPARED", "committed", "COMMIT"},
		{"committed, and asked again", "asked asked done done WARM done done sent PREPARED", "committed", "COMMIT again"},
		{"no STARTED", "asked done done WARM done done sent PREPARED started-timer", "judging", "kill"},
		{"it never started", "asked done done WARM done done sent PREPARED started-timer gone exited", "idle", "resume, report rolled-back"},
		{
			"it never started, and should have done another one", "asked asked done done WARM done done sent PREPARED started-timer gone exited",
			"preflight", "resume, report rolled-back, report running, preflight",
		},
		{"it had started", "asked done done WARM done done sent PREPARED started-timer STARTED gone exited", "exited", "report failed, exit 1"},
		{"it does not die", "asked done done WARM done done sent PREPARED started-timer reap-timer", "judging", "hang up"},
		{"an answer to COMMIT that is not understood", "asked done done WARM done done sent PREPARED garbled exited", "exited", "report failed, exit 1"},
		{"the end of what is not understood", "asked done done garbled exited", "idle", "report rolled-back"},
		{"ready, and not understood", "asked done done garbled ready", "rolling-back", ""},
		{"given", given, "given", "farewell"},
		{"given and ready", given + " ready done", "lingering", ""},
		{"given, and never ready", given + " done arrive-timer", "lingering", ""},
		{"asked too late", given + " asked done", "given", "FOLLOW again"},
		{"told to stop too late", given + " done ready stop", "exited", "FOLLOW stop, exit 0"},
		{"told to stop behind COMMIT", "asked done done WARM done done sent PREPARED stop STARTED done", "exited", "FOLLOW stop, exit 0"},
		{"lingered", given + " done ready linger-timer", "exited", "exit 0"},
		{"the heir died", given + " done ready gone", "exited", "report failed, exit 1"},
		{"the heir is not understood any more", given + " done ready garbled", "lingering", ""},
		{"the heir stops in order", given + " done ready STOPPING", "exited", "exit 0"},
	} {
		var o oldSide
		var do []action
		for word := range strings.FieldsSeq(test.events) {
			do = o.Step(scriptEvents[word])
		}
		if diff := cmp.Diff([]string{test.state, test.last}, []string{o.state.String(), tell(do)}); diff != "" {
			t.Errorf("%s (%s) (-want +got):\n%s", test.name, test.events, diff)
		}
	}
	for _, test := range []struct {
		name, events, state, last string
	}{
		{"the old process is dead at once", "gone", "left", "exit 1"},
		{"listeners", "OFFER LISTENERS", "building", "build"},
		{"more listeners than a release knows of", "OFFER LISTENERS done done LISTENERS", "left", "FAILED, exit 1"},
		{"nothing can be built", "OFFER LISTENERS failed", "left", "FAILED, exit 1"},
		{"warm", "OFFER LISTENERS done", "warming", "WARM"},
		{"an orphan that cannot say that it is warm", "OFFER LISTENERS done dead", "owner", "forget, own orphaned"},
		{"an orphan that has a part", "OFFER LISTENERS done done CONNS gone", "owner", "forget, own orphaned"},
		{"told to stop", "OFFER LISTENERS done done stop", "left", "FAILED, exit 1"},
		{"taken back", "OFFER LISTENERS done done CONNS ABORT", "left", "exit 0"},
		{"rebuilt", "OFFER LISTENERS done done CONNS END sent", "answering", "PREPARED"},
		{"rebuilt something else", "OFFER LISTENERS done done CONNS END done", "left", "FAILED, exit 1"},
		{"a widow", "OFFER LISTENERS done done CONNS END sent done gone", "owner", "own done"},
		{"a widow that could not say that it was prepared", "OFFER LISTENERS done done CONNS END sent dead", "owner", "own done"},
		{"told to stop too late", "OFFER LISTENERS done done CONNS END sent done stop", "prepared", ""},
		{"taken back at last", "OFFER LISTENERS done done CONNS END sent done ABORT", "left", "exit 0"},
		{"given", "OFFER LISTENERS done done CONNS END sent done COMMIT", "starting", "STARTED"},
		{"nobody hears STARTED", "OFFER LISTENERS done done CONNS END sent done COMMIT mute", "left", "exit 1"},
		{"owner", "OFFER LISTENERS done done CONNS END sent done COMMIT done", "owner", "own done"},
		{"out of turn", "OFFER COMMIT", "left", "FAILED, exit 1"},
		{"garbled", "OFFER LISTENERS done done garbled", "left", "FAILED, exit 1"},
		{"garbled at once", "garbled", "left", "FAILED, exit 1"},
	} {
		var n newSide
		var do []action
		for word := range strings.FieldsSeq(test.events) {
			do = n.Step(scriptEvents[word])
		}
		if diff := cmp.Diff([]string{test.state, test.last}, []string{n.state.String(), tell(do)}); diff != "" {
			t.Errorf("%s (%s) (-want +got):\n%s", test.name, test.events, diff)
		}
	}
}

// A step may be several transitions, and each is told of, once.
func TestTransitionsAreTold(t *testing.T) {
	for events, want := range map[string]string{
		"asked failed":           "idle>preflight preflight>idle",
		"asked done done exited": "idle>preflight preflight>starting starting>warming warming>rolling-back rolling-back>idle",
		"asked asked done exited failed": "idle>preflight preflight>starting starting>rolling-back rolling-back>idle " +
			"idle>preflight",
		"asked done done WARM done done sent PREPARED gone exited": "idle>preflight preflight>starting starting>warming " +
			"warming>settling settling>pausing pausing>sending sending>preparing preparing>committed committed>judging " +
			"judging>rolling-back rolling-back>idle",
	} {
		var o oldSide
		var got []string
		for word := range strings.FieldsSeq(events) {
			for _, a := range o.Step(scriptEvents[word]) {
				if a.kind == doMoved {
					got = append(got, oldState(a.from).String()+">"+oldState(a.to).String())
				}
			}
		}
		if diff := cmp.Diff(strings.Fields(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", events, diff)
		}
	}
}

// The document has every state, and of the old side every transition.
func TestDocumentListsEveryTransition(t *testing.T) {
	b, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	for s, name := range oldNames {
		_, row, _ := strings.Cut(string(b), "\n| `"+name+"` | ")
		row, _, _ = strings.Cut(row, "\n")
		_, to, _ := strings.Cut(row, " | ")
		for _, next := range oldMoves[oldState(s)] {
			if !strings.Contains(to, "`"+next.String()+"`") {
				t.Errorf("docs/architecture.md does not say that %s goes to %s", name, next)
			}
		}
		if got, want := strings.Count(to, "`")/2, len(oldMoves[oldState(s)]); got != want {
			t.Errorf("docs/architecture.md says that %s goes to %d states, want %d", name, got, want)
		}
	}
	for _, name := range newNames {
		if !strings.Contains(string(b), "`"+name+"`") {
			t.Errorf("docs/architecture.md does not have the state %s", name)
		}
	}
}

func TestIllegalTransitionsPanic(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("the old side went from idle to given")
		}
	}()
	new(oldSide).become(oldGiven)
}
