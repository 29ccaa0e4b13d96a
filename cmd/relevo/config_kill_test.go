//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// configRounds is the variable that says how often what is random about changes is tried, if not a few times.
// `make torture-config` sets it.
const configRounds = "RELEVO_TEST_CONFIG_ROUNDS"

func rounds(t *testing.T, few int) int {
	t.Helper()
	text := os.Getenv(configRounds)
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number above 0", configRounds, text)
	}
	return n
}

// Whenever the process is killed amid writes, or told to stop, the one after it has the last one that was answered, or the one
// that was under way, whole.
func TestAnsweredChangesSurviveAKill(t *testing.T) {
	const cluster = configAPI + "/clusters/order"
	address, line := adminOf(t)
	p := newChain(t, os.Args[0], patientUpgrades, goodConfig+line+"state_dir: "+t.TempDir())
	d := newDesk(address)
	asked := 1
	d.must(t, http.MethodPatch, cluster, `{"max_pending": 1, "max_requests": 1}`, "If-Match: *", "X-Comment: 1")
	answered, under := asked, 0 // the last value, and how many writes that were under way are there
	kills := rounds(t, 8)
	for i := range kills {
		process, signal := p.now.process, os.Signal(syscall.SIGTERM)
		if i%4 > 0 {
			signal, p.now.killed = syscall.SIGKILL, true
		}
		time.AfterFunc(rand.N(100*time.Millisecond), func() { _ = process.Signal(signal) }) // at any moment of what follows
		for {
			asked++
			value := fmt.Sprintf(`{"max_pending": %d, "max_requests": %d}`, asked, asked)
			a, err := d.try(t, http.MethodPatch, cluster, value, "If-Match: *", "X-Comment: "+strconv.Itoa(asked))
			if err != nil {
				break
			}
			if a.code == http.StatusServiceUnavailable && signal == syscall.SIGTERM {
				asked-- // it is said to be refused, and so must not be there
				break
			}
			if a.code != http.StatusOK {
				t.Fatalf("PATCH gives %d\n%s", a.code, a.body)
			}
			answered = asked
		}
		<-p.now.gone
		p.start(t)
		document, newest := d.document(t)
		now, whole := part(document, "clusters/order/max_pending"), part(document, "clusters/order/max_requests")
		n, err := strconv.Atoi(now)
		if err != nil || now != whole || n != answered && n != asked {
			t.Fatalf("behind kill %d max_pending is %s and max_requests %s; want %d, which was answered, or %d, which was under way, for both", i+1, now, whole, answered, asked)
		}
		if n != answered {
			under++
		}
		if r := d.revision(t, newest); r.Why != now || !byUs(r.Author) || !r.Document.Equal(document) {
			t.Errorf("behind kill %d revision %d is by %v, %q; want this process and %s", i+1, newest, r.Author, r.Why, now)
		}
		answered, asked = n, n
	}
	t.Logf("%d kills amid %d writes; %d that were under way are there", kills, asked, under)
	p.stop(t)

	status, out, errOut := relevo(t, "", "check", "--as-started", "-c", p.config)
	if status != exitDone || !strings.Contains(out, "is applied: the file has not changed since") {
		t.Errorf("check --as-started: exit status %d, %s%s; want it to check the newest revision", status, out, errOut)
	}
	fresh := spawn(t, "run", "--ignore-revisions", "-c", p.config)
	fresh.err.find(t, `"level":"warn",.*(the file is applied, as asked for)`)
	fresh.err.find(t, `"msg":"serving"`)
	if out := said(t, address, "get", "clusters/order"); strings.Contains(out, "max_pending") {
		t.Errorf("where revisions are ignored the cluster is\n%s\nwant the file's", out)
	}
}

// A disk that is full, and a folder that is gone: nothing changes, no connection notices, and with room again all goes on.
func TestChangesThatCannotBeWritten(t *testing.T) {
	k := newKeeper(t, "127.0.0.1:0", newLedger(), newLedger(), nil)
	address, line := adminOf(t)
	listener, state := steadyAddress(t), t.TempDir()
	p := newChain(t, os.Args[0], patientUpgrades, fmt.Sprintf(`
listeners: [{name: in, address: %q, protocol: bolt}]
routes: [{name: rpc, rules: [{name: all, cluster: a, timeout: 30s}]}]
clusters: [{name: a, protocol: bolt, endpoints: [{address: %q}]}]
`, listener, k.address())+line+"state_dir: "+state)
	d := newDesk(address)
	w := newCrew(t, map[string]string{"client": listener})
	w.hire(kind{name: "calls", count: 8, listener: "client", service: "echo", every: 5 * time.Millisecond})
	limit := func(size uint64) {
		t.Helper()
		var now unix.Rlimit
		err := unix.Prlimit(p.now.process.Pid, unix.RLIMIT_FSIZE, nil, &now)
		if err == nil {
			now.Cur = min(size, now.Max)
			err = unix.Prlimit(p.now.process.Pid, unix.RLIMIT_FSIZE, &now, nil)
		}
		if err != nil {
			t.Fatalf("the limit of the size of files: %v", err)
		}
	}
	d.settled(t)
	revisions, elsewhere := filepath.Join(state, "revisions"), filepath.Join(state, "elsewhere")
	before, newest := d.document(t)
	for what, f := range map[string]struct{ on, off func() }{
		"a full disk": {func() { limit(100) }, func() { limit(unix.RLIM_INFINITY) }},
		"a folder that is gone": {
			func() {
				if err := os.Rename(revisions, elsewhere); err != nil {
					t.Fatal(err)
				}
			},
			func() {
				if err := os.Rename(elsewhere, revisions); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		f.on()
		for _, q := range []struct{ method, path, body, condition string }{
			{http.MethodPatch, "", fmt.Sprintf(`{"listeners": [{"name": "other", "address": %q, "protocol": "bolt"}]}`, steadyAddress(t)), "If-Match: *"},
			{http.MethodPatch, "/clusters/a", `{"endpoints": [{"address": "127.0.0.1:1"}]}`, "If-Match: *"},
			{http.MethodPut, "/log/level", `"debug"`, "If-None-Match: *"},
		} {
			a := d.ask(t, q.method, configAPI+q.path, q.body, q.condition)
			if a.code != http.StatusInternalServerError {
				t.Errorf("%s: %s %s gives %d\n%s\nwant 500", what, q.method, q.path, a.code, a.body)
			}
		}
		f.off()
		if now, n := d.document(t); n != newest || !now.Equal(before) {
			t.Errorf("%s: revision %d is in force, with\n%s\nwant %d, as it was", what, n, now.JSON(), newest)
		}
		d.must(t, http.MethodPatch, configAPI+"/clusters/a", fmt.Sprintf(`{"max_pending": %d}`, 100+newest), "If-Match: *")
		before, newest = d.document(t)
	}
	if len(d.history(t)) != 3 {
		t.Errorf("the history is %v, want the file's and two more", d.history(t))
	}
	w.end()
	if a := w.account(); len(a.failures) > 0 || a.answered != uint64(a.requests) || k.gone.Load() > 0 {
		t.Errorf("%v, and %d connections to the server ended; want no failure, and none", a, k.gone.Load())
	}
	p.stop(t)
}
