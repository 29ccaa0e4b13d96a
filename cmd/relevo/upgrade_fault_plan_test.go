//go:build linux

package main

import (
	"errors"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// faultPlan is the variable that names the file with the plan of what goes wrong. The environment is the same in all
// processes of a chain, so the file decides: it is there for one upgrade, and gone for the next.
const faultPlan = "RELEVO_TEST_FAULT_PLAN"

// heirMark is the variable by which tableflip tells a process that another one has started it.
const heirMark = "TABLEFLIP_HAS_PARENT_7DIU3"

// plan says what goes wrong in which process, and when; there may be several, one a line:
//
//	new start exit              the new process, before it is the program
//	old before COMMIT kill      the old one, when it is about to send it
//	new after CONNS kill-other  the new one, when it has received the first of them
type plan struct {
	side   string // old or new
	moment string // start, before or after
	kind   string // of the message, as handoff names it; empty at the start
	what   string
}

func readPlans(name string) []plan {
	text, _ := os.ReadFile(name) // without one, nothing goes wrong
	return parsePlans(string(text))
}

func parsePlans(text string) (list []plan) {
	for line := range strings.Lines(text) {
		switch words := strings.Fields(line); len(words) {
		case 3:
			list = append(list, plan{side: words[0], moment: words[1], what: words[2]})
		case 4:
			list = append(list, plan{side: words[0], moment: words[1], kind: words[2], what: words[3]})
		}
	}
	return list
}

// misbehave makes this process follow the plans, if it has any. It is called before anything of the program runs.
func misbehave() {
	name, parent := os.Getenv(faultPlan), os.Getppid()
	if name == "" || len(os.Args) < 4 || os.Args[1] != "run" {
		return
	}
	mountSmall()
	side := "old"
	if os.Getenv(heirMark) != "" {
		side = "new"
	}
	follow := func(moment, kind string) {
		for _, p := range readPlans(name) {
			if p.side == side && p.moment == moment && p.kind == kind {
				p.carryOut(parent)
			}
		}
	}
	tap = func(sent bool, kind handoff.Kind) {
		if sent {
			follow("before", kind.String())
		} else {
			follow("after", kind.String())
		}
	}
	follow("start", "")
}

// smallFolders is the variable that names those folders of the configuration that are to be file systems of their own, seen by
// the processes of a chain only, on which there is little room.
const smallFolders = "RELEVO_TEST_SMALL_FOLDERS"

// mountSmall mounts them. A thread has its mounts from whoever starts the program on it, so this one starts itself anew.
func mountSmall() {
	names := strings.Fields(os.Getenv(smallFolders))
	if len(names) == 0 {
		return
	}
	text, err := os.ReadFile(os.Args[3])
	runtime.LockOSThread()
	err = errors.Join(err, os.Unsetenv(smallFolders), unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	for _, name := range names {
		at := regexp.MustCompile(`(?m)^` + name + `: "(.+)"$`).FindStringSubmatch(string(text))
		err = errors.Join(err, unix.Mount("small", at[1], "tmpfs", 0, "size=256k,mode=700"))
	}
	if err == nil {
		err = unix.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	panic(err)
}

// carryOut is what goes wrong.
func (p plan) carryOut(parent int) {
	switch p.what {
	case "exit":
		os.Exit(3)
	case "hang":
		time.Sleep(patience)
		os.Exit(4) // nobody has killed it
	case "delay": // longer than the quick bounds allow
		time.Sleep(1500 * time.Millisecond)
	case "ask": // for another upgrade, and be heard; the other process waits for COUNTERS for longer
		_ = syscall.Kill(os.Getpid(), syscall.SIGHUP)
		time.Sleep(500 * time.Millisecond)
	case "kill":
		killSelf()
	case "kill-other-late": // when the other one has said all that it can
		time.Sleep(200 * time.Millisecond)
		killParent(parent)
	case "kill-other":
		if p.side == "new" {
			killParent(parent)
		} else {
			killChildren()
		}
	case "spoil": // the configuration, behind the check
		if err := os.WriteFile(os.Args[3], []byte(spoiled), 0o600); err != nil {
			panic(err)
		}
	case "few-files":
		setLimit(unix.RLIMIT_NOFILE, fewFiles, fewFiles)
	case "no-file-grows":
		setLimit(unix.RLIMIT_FSIZE, 0, unix.RLIM_INFINITY)
	default:
		talk(p.what)
	}
}

// spoiled is a configuration that nobody accepts, and fewFiles a number of descriptors that is enough to be built and too
// small for the connections of a test.
const (
	spoiled  = "listeners: [{name: client, address: nowhere}]\n"
	fewFiles = 32
)

func setLimit(what int, to, most uint64) {
	if err := unix.Setrlimit(what, &unix.Rlimit{Cur: to, Max: most}); err != nil {
		panic(err)
	}
}

func killSelf() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	time.Sleep(patience) // it is a matter of microseconds
}

// killParent returns when the parent is dead, and not only about to be. It may have ended by itself.
func killParent(pid int) {
	for os.Getppid() == pid {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		time.Sleep(100 * time.Microsecond)
	}
}

// killChildren returns when all children are dead.
func killChildren() {
	own := os.Getpid()
	for alive := true; alive; time.Sleep(100 * time.Microsecond) {
		alive = false
		for _, p := range processes() {
			if p.parent == own && !p.dead {
				alive = true
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
	}
}

// listed is a process as /proc has it.
type listed struct {
	pid, parent, group int
	dead               bool // and not reaped
}

func processes() (list []listed) {
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, _ := os.ReadFile("/proc/" + entry.Name() + "/stat") // it may have gone meanwhile
		p := listed{pid: pid}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])) // from the third one on
		if len(fields) < 18 {
			continue
		}
		p.parent, _ = strconv.Atoi(fields[1])
		p.group, _ = strconv.Atoi(fields[2])
		// It has its descriptors until its last thread has ended, which a killed one does when it is its turn.
		p.dead = (fields[0] == "Z" || fields[0] == "X") && fields[17] == "1"
		list = append(list, p)
	}
	return list
}

// talk is a new process that is none: it speaks the hand-over's format and does something wrong with it. It ends when the
// old one is tired of it.
func talk(role string) {
	const inherited = 5 // 3 and 4 are tableflip's own
	raw, err := unix.FcntlInt(inherited, unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		panic(err)
	}
	c, err := handoff.Open(os.NewFile(inherited, "handover"))
	if err != nil {
		panic(err)
	}
	until := func(k handoff.Kind) handoff.Message {
		for {
			m, files, err := c.Receive()
			for _, f := range files {
				f.Close()
			}
			if err != nil {
				os.Exit(5)
			}
			if handoff.KindOf(m) == k {
				return m
			}
		}
	}
	say := func(m handoff.Message) {
		if err := c.Send(time.Now().Add(patience), m); err != nil {
			os.Exit(6)
		}
	}
	offer, _ := until(handoff.KindOffer).(*handoff.Offer)
	until(handoff.KindListeners)
	warm := &handoff.Warm{Version: offer.Max, Release: "crooked", PID: os.Getpid()}
	switch role {
	case "miscounts":
		say(warm)
		end, _ := until(handoff.KindEnd).(*handoff.End)
		end.Counts.Downstreams++
		say(&handoff.Prepared{Counts: end.Counts})
	case "other-version":
		warm.Version = offer.Max + 7
		say(warm)
	case "early":
		say(warm)
		until(handoff.KindEnd)
		say(&handoff.Started{})
	case "nonsense":
		say(warm)
		until(handoff.KindEnd)
		_, _ = unix.Write(raw, []byte("HTTP/1.1 200 OK\r\n\r\n"))
	case "half-conns":
		say(warm)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(raw), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		_, _ = unix.Read(raw, make([]byte, 50)) // its descriptors are dropped
		killSelf()
	default:
		panic("there is no plan " + role)
	}
	until(handoff.KindAbort)
	time.Sleep(patience) // ABORT is a wish, SIGKILL is not
}
