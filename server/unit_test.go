package server

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
	"github.com/relevo-proxy/relevo/systemd"
	"github.com/relevo-proxy/relevo/upgrade"
)

// listenNotify makes a fake systemd. next is what it hears next, less statuses and pings.
func listenNotify(t *testing.T) (next func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			buf, oob := make([]byte, 4096), make([]byte, 256)
			n, m, _, _, err := c.ReadMsgUnix(buf, oob)
			if err != nil {
				t.Fatalf("waiting for systemd to hear something: %v", err)
			}
			s := string(buf[:n])
			if m > 0 {
				s += " and a descriptor"
			}
			if !strings.HasPrefix(s, "STATUS=") && s != "WATCHDOG=1" {
				return s
			}
		}
	}
}

// ended is a context that has ended.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

const underUnit = `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{cluster: echo}]}]
clusters: [{name: echo, protocol: bolt, endpoints: [{address: "127.0.0.1:1"}]}]
metrics: {address: "127.0.0.1:0"}
`

func newTestServer(t *testing.T, log *zap.Logger) *Server {
	t.Helper()
	c, err := config.Parse([]byte(underUnit))
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Config: c, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What systemd hears of a process from its start to its stop.
func TestLifeOfAUnit(t *testing.T) {
	next := listenNotify(t)
	s := newTestServer(t, zap.NewNop())
	s.unit = newUnit(zap.NewNop())
	s.dropped = []place{{"old", "tcp", "127.0.0.1:1", false}}
	s.Start()
	s.unit.ready(s)
	want := []string{
		"FDSTOREREMOVE=1\nFDNAME=listen=127.0.0.1%3A1",
		"FDSTORE=1\nFDNAME=listen=in@127.0.0.1%3A0 and a descriptor",
		"FDSTORE=1\nFDNAME=listen=metrics@127.0.0.1%3A0 and a descriptor",
		"READY=1\nWATCHDOG=1\nSTATUS=generation 1, 0 client connections",
		"FDSTOREREMOVE=1\nFDNAME=listen=in@127.0.0.1%3A0",
		"FDSTOREREMOVE=1\nFDNAME=listen=metrics@127.0.0.1%3A0",
		"STOPPING=1\nSTATUS=stopping: generation 1, 0 client connections",
		"EXTEND_TIMEOUT_USEC=15000000",
	}
	var got []string
	for range 4 {
		got = append(got, next())
	}
	if err := s.Run(ended()); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		got = append(got, next())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("systemd heard (-want +got):\n%s", diff)
	}
}

// systemd keeps the socket of a listener that is added while the process runs, and forgets that of one that is taken away.
func TestUnitKeepsSocketsThatChange(t *testing.T) {
	next := listenNotify(t)
	s := newTestServer(t, zap.NewNop())
	s.unit = newUnit(zap.NewNop())
	s.Start()
	s.unit.ready(s)
	for range 3 {
		next() // what a start says
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }() // ends with ctx
	change := func(edit func(d *config.Document) (*config.Document, error)) {
		t.Helper()
		e := admin.Edit{Match: func(*config.Document) error { return nil }, Edit: edit, Author: revision.Author{Door: revision.DoorUnix}}
		if _, err := s.Change(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	change(func(d *config.Document) (*config.Document, error) {
		return d.Put("listeners/more", []byte(`{address: "127.0.0.1:0", protocol: bolt, routes: rpc}`))
	})
	if got, want := next(), "FDSTORE=1\nFDNAME=listen=more@127.0.0.1%3A0 and a descriptor"; got != want {
		t.Errorf("a listener more: systemd hears %q, want %q", got, want)
	}
	change(func(d *config.Document) (*config.Document, error) { return d.Delete("listeners/more") })
	if got, want := next(), "FDSTOREREMOVE=1\nFDNAME=listen=more@127.0.0.1%3A0"; got != want {
		t.Errorf("a listener less: systemd hears %q, want %q", got, want)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A process that has handed over says nothing more.
func TestUnitThatHasLeftIsSilent(t *testing.T) {
	next := listenNotify(t)
	s := newTestServer(t, zap.NewNop())
	defer s.closeUnused()
	u := newUnit(zap.NewNop())
	u.leave()
	u.ready(s)
	u.stopping(s)
	u.refresh(s, true)
	newWatchman(u, nil).judge(nil)
	if err := u.notify.Forget("the end"); err != nil {
		t.Fatal(err)
	}
	if got, want := next(), "FDSTOREREMOVE=1\nFDNAME=the end"; got != want {
		t.Errorf("behind the hand-over systemd heard %q, want nothing before %q", got, want)
	}
}

// The watchdog is pinged as long as checks find nothing; what they find, or that they do not end, is logged with stacks, once.
func TestWatchman(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logged := observer.New(zapcore.InfoLevel)
		var pings int
		var answer []string
		free := make(chan struct{})
		u := &unit{log: zap.New(core), poked: make(chan struct{}, 1)}
		w := newWatchman(u, func() []string { <-free; return answer })
		turn := func() { // as the unit's loop has it
			w.begin()
			synctest.Wait()
			select {
			case stuck := <-w.found:
				before := logged.FilterMessage("something is stuck: systemd is not told that this process lives").Len()
				if w.judge(stuck); logged.FilterMessage("something is stuck: systemd is not told that this process lives").Len() == before {
					pings++
				}
			default:
			}
		}
		expect := func(when string, wantPings, wantAlarms int) {
			t.Helper()
			alarms := logged.FilterMessage("something is stuck: systemd is not told that this process lives").Len()
			if pings != wantPings || alarms != wantAlarms {
				t.Errorf("%s: %d pings and %d alarms, want %d and %d", when, pings, alarms, wantPings, wantAlarms)
			}
		}
		turn()
		expect("a check is under way", 0, 0)
		turn()
		expect("it is under way still", 0, 1)
		stacks := logged.FilterMessage("stack").Len()
		if stacks == 0 {
			t.Error("the first alarm comes without stacks")
		}
		turn()
		expect("and still", 0, 2)
		if n := logged.FilterMessage("stack").Len(); n != stacks {
			t.Errorf("the second alarm brings stacks, too: %d lines more", n-stacks)
		}
		close(free)
		synctest.Wait()
		w.judge(<-w.found)
		expect("the check has ended", 0, 2)
		if n := logged.FilterMessage("nothing is stuck any more").Len(); n != 1 {
			t.Errorf("that nothing is stuck any more is logged %d times, want once", n)
		}
		turn()
		expect("all is well", 1, 2)
		answer = []string{"the sweeper"}
		turn()
		expect("something is found", 1, 3)
		w.end()
	})
}

// A check that never ends does not keep a process from ending.
func TestWatchmanEndsWithoutItsCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		w := newWatchman(&unit{log: zap.NewNop()}, func() []string { <-free; return nil })
		w.begin()
		began := time.Now()
		w.end()
		if took := time.Since(began); took != lastCheck {
			t.Errorf("the end took %v, want %v", took, lastCheck)
		}
		close(free)
	})
}

func TestStatusLineTellsOfUpgrades(t *testing.T) {
	for want, r := range map[string]upgrade.Report{
		"":                                     {},
		"; upgrade 3 is under way":             {ID: 3, Outcome: upgrade.Running},
		"; upgrade 3 done, pause 24ms":         {ID: 3, Outcome: upgrade.Done, Pause: .0241},
		"; upgrade 3 refused at preflight: no": {ID: 3, Outcome: upgrade.Refused, Step: upgrade.StepPreflight, Reason: "no"},
	} {
		if got := upgradeLine(r); got != want {
			t.Errorf("of an upgrade that is %q the status says %q, want %q", r.Outcome, got, want)
		}
	}
}

func TestSocketsFindTheirPlaces(t *testing.T) {
	dir := t.TempDir()
	listen := func(network, address string) net.Listener {
		t.Helper()
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	first, second, third, fourth, any := listen("tcp", "127.0.0.1:0"), listen("tcp", "127.0.0.1:0"), listen("tcp", "127.0.0.1:0"),
		listen("tcp", "127.0.0.1:0"), listen("tcp", ":0")
	at := func(l net.Listener) string { return l.Addr().String() }
	_, port, _ := net.SplitHostPort(at(any))
	here, gone := listen("unix", filepath.Join(dir, "here")), listen("unix", filepath.Join(dir, "gone"))
	if err := os.Remove(at(gone)); err != nil {
		t.Fatal(err)
	}
	tcp := func(name, address string) place { return place{name, "tcp", address, false} }
	wanted := []place{
		tcp("by-name", "127.0.0.1:1"), tcp("by-address", at(second)), tcp("stored", at(third)), tcp("port-0", "127.0.0.1:0"),
		tcp("wildcard", "0.0.0.0:"+port),
		{"admin", "unix", at(here), true},
		{"other", "unix", at(gone), true},
		tcp("alone", "127.0.0.1:2"),
	}
	list := []systemd.Socket{
		{Name: "by-name", Listener: first},
		{Name: "relevo.socket", Listener: second},
		{Name: tcp("", at(third)).storeName(), Stored: true, Listener: third},
		{Name: tcp("port-0", "127.0.0.1:0").storeName(), Stored: true, Listener: fourth},
		{Name: "relevo.socket", Listener: any},
		{Name: wanted[5].storeName(), Stored: true, Listener: here},
		{Name: wanted[6].storeName(), Stored: true, Listener: gone},
		{Name: "by-name", Listener: first},                                        // a second one of the name
		{Name: tcp("", "127.0.0.1:3").storeName(), Stored: true, Listener: third}, // of an address that is not configured
	}
	out, rest := match(list, wanted)
	got := make(map[string]string)
	for _, in := range out {
		got[in.Name] = in.Socket.Addr().String()
		if in.Kept {
			got[in.Name] += " kept"
		}
	}
	want := map[string]string{
		"by-name": at(first) + " kept", "by-address": at(second) + " kept", "stored": at(third), "port-0": at(fourth),
		"wildcard": at(any) + " kept", "admin": at(here),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the places got (-want +got):\n%s", diff)
	}
	if len(rest) != 3 {
		t.Errorf("%d sockets are left, want 3: the one whose file is gone, the second one of a name, one that nobody wants", len(rest))
	}
}

// Every address has a place, and so goes over upgrades and into systemd's store.
func TestPlacesOfDoors(t *testing.T) {
	c, err := config.Parse([]byte(underUnit + `admin: {address: "unix:/run/a.sock", tcp: {address: "127.0.0.1:0"}}` + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range places(c) {
		if p.door {
			got = append(got, p.name+" "+p.network+" "+p.address)
		}
	}
	if want := []string{"metrics tcp 127.0.0.1:0", "admin unix /run/a.sock", "admin-tcp tcp 127.0.0.1:0"}; !slices.Equal(got, want) {
		t.Errorf("the places of doors are %v, want %v", got, want)
	}
}

// A socket unit's file stays when the server ends; one that the server has made goes.
func TestFilesOfSocketUnitsStay(t *testing.T) {
	dir := t.TempDir()
	c, err := config.Parse([]byte(strings.NewReplacer(
		`"127.0.0.1:0", protocol`, `"unix:`+dir+`/in", protocol`, `metrics: {address: "127.0.0.1:0"}`, `admin: {address: "unix:`+dir+`/admin"}`,
	).Replace(underUnit)))
	if err != nil {
		t.Fatal(err)
	}
	for _, kept := range []bool{true, false} {
		var list []systemd.Socket
		if kept {
			for _, name := range []string{"in", "admin"} {
				l, err := net.Listen("unix", filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				list = append(list, systemd.Socket{Name: name, Listener: l})
			}
		}
		o := Options{Config: c, Log: zap.NewNop()}
		o.inherited, _ = match(list, places(c))
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		if err := s.Run(ended()); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"in", "admin"} {
			path := filepath.Join(dir, name)
			if _, err := os.Lstat(path); (err == nil) != kept {
				t.Errorf("kept is %v: the file of %s: %v", kept, name, err)
			}
			_ = os.Remove(path)
		}
	}
}

// Fields of the log are fields in the journal, and what the journal does not take goes where it would go without one.
func TestJournalCore(t *testing.T) {
	var mu sync.Mutex
	var got []systemd.Entry
	var broken error
	j := systemd.NewJournal(func(m string, p systemd.Priority, vars map[string]string) error {
		mu.Lock()
		defer mu.Unlock()
		if broken != nil {
			return broken
		}
		got = append(got, systemd.Entry{Message: m, Priority: p, Vars: vars})
		return nil
	})
	instead, lines := observer.New(zapcore.InfoLevel)
	log := zap.New(newJournalCore(j, instead)).With(zap.String("listener", "in"))
	log.Debug("not wanted")
	log.Info("upgraded", zap.Uint64("generation", 2), zap.Duration("pause", 24*time.Millisecond), zap.String("reason", `a "b" c`), zap.Bool("handed_over", true))
	log.Warn("stack", zap.ByteString("goroutine", []byte("one\ntwo")), zap.Strings("stuck", []string{"a", "b"}))
	log.Error("broken", zap.Error(os.ErrNotExist))
	want := []systemd.Entry{
		{Message: `upgraded listener=in generation=2 pause=24ms reason="a \"b\" c" handed_over=true`, Priority: systemd.Info, Vars: map[string]string{
			"SYSLOG_IDENTIFIER": "relevo", "RELEVO_LISTENER": "in", "RELEVO_GENERATION": "2", "RELEVO_PAUSE": "0.024",
			"RELEVO_REASON": `a "b" c`, "RELEVO_HANDED_OVER": "true",
		}},
		{Message: `stack listener=in goroutine="one\ntwo" stuck="[\"a\",\"b\"]"`, Priority: systemd.Warning, Vars: map[string]string{
			"SYSLOG_IDENTIFIER": "relevo", "RELEVO_LISTENER": "in", "RELEVO_GOROUTINE": "one\ntwo", "RELEVO_STUCK": `["a","b"]`,
		}},
		{Message: `broken listener=in error="file does not exist"`, Priority: systemd.Error, Vars: map[string]string{
			"SYSLOG_IDENTIFIER": "relevo", "RELEVO_LISTENER": "in", "RELEVO_ERROR": "file does not exist",
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the entries differ (-want +got):\n%s", diff)
	}
	if n := lines.Len(); n != 0 {
		t.Errorf("%d lines went past the journal, want none", n)
	}
	broken = os.ErrNotExist
	log.Info("without a journal", zap.Int("n", 1))
	if all := lines.All(); len(all) != 1 || all[0].Message != "without a journal" || len(all[0].Context) != 2 {
		t.Errorf("without a journal these lines are written: %+v, want the one with its two fields", all)
	}
}

// The unit has changed when its files say something else than when systemd started the first process of the chain, whichever
// generation looks.
func TestUnitThatHasChanged(t *testing.T) {
	_ = listenNotify(t)
	t.Setenv(unitVariable, "of another chain") // restored behind the test
	now := "as installed"
	generation := func(heir bool) *unit {
		u := newUnit(zap.NewNop())
		u.file = func() string { return now }
		if err := u.readFile(heir); err != nil {
			t.Fatal(err)
		}
		return u
	}
	first := generation(false)
	now = "of the next release"
	heir := generation(true)
	for name, u := range map[string]*unit{"first": first, "heir": heir} {
		now = "of the next release"
		if !u.changed() {
			t.Errorf("the %s process sees no change, want one", name)
		}
		now = "as installed"
		if u.changed() {
			t.Errorf("the %s process sees a change of what is as it was", name)
		}
		now = ""
		if u.changed() {
			t.Errorf("the %s process sees a change where the files are gone, want none", name)
		}
	}
	now = "of the next release"
	if generation(false).changed() { // a restart
		t.Error("a process that systemd has started by the new unit sees a change")
	}
	t.Setenv(unitVariable, "")
	if generation(true).changed() || (*unit)(nil).changed() {
		t.Error("who does not know how the chain began sees a change")
	}
}
