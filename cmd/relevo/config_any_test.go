//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// Whatever is asked of the API, restored, written into the file, and whenever the process is stopped, killed or upgraded: what is
// in force and its history are what a list of documents says, and clients that call all the while notice nothing but the end of
// a process. A failure names its seed: `go test -run TestAnyChanges -rapid.checks 1 -rapid.seed N ./cmd/relevo`.
func TestAnyChanges(t *testing.T) {
	set := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { set[f.Name] = true })
	for name, value := range map[string]int{"rapid.checks": rounds(t, 2), "rapid.steps": 15} {
		if set[name] {
			continue
		}
		old := flag.Lookup(name).Value.String()
		if err := flag.Set(name, strconv.Itoa(value)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = flag.Set(name, old) }()
	}
	rapid.Check(t, func(r *rapid.T) {
		m := newBooks(&property{t, r})
		actions := map[string]func(*rapid.T){
			"": m.check, "restore": m.restore, "edit the file": m.editFile, "vanish": m.vanish, "two at once": m.twoAtOnce,
			"stop": func(r *rapid.T) { m.restart(r, syscall.SIGTERM) }, "kill": func(r *rapid.T) { m.restart(r, syscall.SIGKILL) },
			"upgrade": m.upgrade,
		}
		for i := range 5 { // most are edits
			actions[fmt.Sprint("edit ", i)] = m.edit
		}
		r.Repeat(actions)
		if !m.crewFails(r) {
			m.chain.stop(m.t)
		}
	})
}

// property is what fails one run of a property; what is left to the end of the test is so.
type property struct {
	testing.TB
	r *rapid.T
}

func (p *property) Errorf(format string, args ...any) { p.r.Errorf(format, args...) }
func (p *property) Error(args ...any)                 { p.r.Error(args...) }
func (p *property) Fatalf(format string, args ...any) { p.r.Fatalf(format, args...) }
func (p *property) Fatal(args ...any)                 { p.r.Fatal(args...) }
func (p *property) Logf(format string, args ...any)   { p.r.Logf(format, args...) }
func (p *property) Failed() bool                      { return p.r.Failed() }

// books are what is to be in force, how it came to be, and the process that is to have it.
type books struct {
	// Static after newBooks.
	t        *property
	chain    *chain
	desk     desk
	listener string
	places   []place

	crew *crew
	file string // what is in it
	past []entry
}

// entry is a revision as it is to be.
type entry struct {
	document *config.Document
	file     string // the SHA-256 of the file's content then
	why      string // of a file, how it begins
	ours     bool   // it came from this process; else from the file
}

// place is a part that edits are made of.
type place struct {
	path  string
	value *rapid.Generator[any] // valid, or not
}

// GoString is how a failure shows what was drawn.
func (p place) GoString() string { return strconv.Quote(p.path) }

func newBooks(t *property) *books {
	t.Helper()
	requests, oneways := newLedger(), newLedger()
	var servers [2]string
	for i := range servers {
		k := newKeeper(t, "127.0.0.1:0", requests, oneways, nil)
		t.r.Cleanup(k.close)
		servers[i] = k.address()
	}
	folder := t.TempDir()
	m := &books{t: t, listener: steadyAddress(t), desk: newDesk("unix:" + filepath.Join(folder, "a"))}
	m.chain = newChain(t, os.Args[0], patientUpgrades, fmt.Sprintf(`
listeners: [{name: in, address: %q, protocol: bolt}]
routes: [{name: rpc, rules: [{name: all, cluster: one, timeout: 30s}]}]
clusters:
  - {name: one, protocol: bolt, endpoints: [{address: %q}]}
  - {name: spare, protocol: bolt, endpoints: [{address: %q}]}
admin: {address: "unix:%s/a"}
state_dir: %s
`, m.listener, servers[0], servers[1], folder, t.TempDir()))
	t.r.Cleanup(func() {
		m.crew.close()
		m.chain.end()
	})
	m.file = m.chain.text
	m.places = placesOf(servers, filepath.Join(folder, "s"))
	m.begun()
	m.hire()
	return m
}

// placesOf are the places of the configuration above. Whatever is valid of it keeps the service.
func placesOf(servers [2]string, socket string) []place {
	one := func(values ...any) *rapid.Generator[any] { return rapid.SampledFrom(values) }
	type object = map[string]any
	number := func(least, most int) *rapid.Generator[any] { return rapid.IntRange(least, most).AsAny() }
	return []place{
		{"clusters/one/max_pending", one(0, 100, 200, "many")},
		{"clusters/one/balancer", one("round-robin", "least-request", "fastest")},
		{"clusters/one/endpoints/" + servers[0] + "/weight", number(0, 1100)},
		{"clusters/one/endpoints/" + servers[1], one(object{}, object{"weight": 7}, object{"wieght": 7}, object{"address": "127.0.0.1:1"})},
		{"clusters/one", one(object{"max_age": "1h"}, object{"endpoints": []any{object{"address": servers[0]}}}, object{
			"protocol": "bolt", "endpoints": []any{object{"address": servers[0]}, object{"address": servers[1], "weight": 3}},
		})},
		{"clusters/spare", one(object{"protocol": "bolt"}, object{"protocol": "bolt", "endpoints": []any{object{"address": servers[1]}}})},
		{"clusters/none/max_pending", one(5)},
		{"routes/rpc/rules/all/timeout", one("20s", "40s", "0s", 3)},
		{"routes/rpc/rules/more", one(object{"cluster": "spare"}, object{"cluster": "one", "match": object{"service": "x"}}, object{"cluster": "none"})},
		{"listeners/in/max_connections", number(-1, 1000).Filter(func(v any) bool { return v.(int) <= 0 || v.(int) > 100 })},
		{"listeners/more", one(object{"address": "unix:" + socket, "protocol": "bolt"}, object{"address": "nowhere"})},
		{"log", one(object{"level": "debug"}, object{"level": "loud"}, object{"level": "info", "format": "json"})},
		{"log/level", one("debug", "info", 1)},
		{"log/level/deep", one("debug")},
		{"workers/max", number(0, 8)},
		{"max_timeout", one("1m", "2m", "an hour")},
		{"stop_timeout", one("5s", "6s")},
		{"colour", one("red")},
		{"state_dir", one("/tmp")},
		{"clusters//x", one(1)},
		{"", one(object{"max_timeout": "3m", "stop_timeout": nil}, object{"clusters": []any{}}, object{"workers": object{"max": 5}})},
	}
}

// now is what is to be in force, and its number.
func (m *books) now() (*config.Document, uint64) {
	return m.past[len(m.past)-1].document, uint64(len(m.past))
}

// begun is called when a process has begun: with the newest revision, unless the file has changed since.
func (m *books) begun() {
	m.t.Helper()
	if n := len(m.past); n == 0 || m.past[n-1].file != revision.Sum([]byte(m.file)) {
		document, err := config.ParseDocument([]byte(m.file))
		if err != nil {
			m.t.Fatal(err)
		}
		why := "the file is applied: there is no revision yet"
		if n > 0 {
			why = fmt.Sprintf("the file is applied: it has changed since revision %d", n)
		}
		m.past = append(m.past, entry{document, revision.Sum([]byte(m.file)), why, false})
		m.chain.err.find(m.t, `"msg":"configuration: (`+why+`)`)
	} else {
		m.chain.err.find(m.t, fmt.Sprintf(`"msg":"configuration: (revision %d, .*is applied: the file has not changed since)`, n))
	}
	m.desk.settled(m.t)
}

// hire has clients call from now on.
func (m *books) hire() {
	m.crew = newCrew(m.t, map[string]string{"client": m.listener})
	m.crew.hire(kind{name: "calls", count: 4, listener: "client", service: "echo", every: 5 * time.Millisecond, inFlight: 2})
}

// crewFails ends the clients, and says whether any has failed.
func (m *books) crewFails(r *rapid.T) bool {
	r.Helper()
	m.crew.end()
	a := m.crew.account()
	if len(a.failures) > 0 || a.answered != uint64(a.requests) {
		r.Errorf("clients have failed: %v, %s", a, strings.Join(a.examples, "; "))
	}
	m.crew.close()
	return r.Failed()
}

// check compares what is in force, its history and a part of each with what is to be.
func (m *books) check(r *rapid.T) {
	document, n := m.now()
	got, number := m.desk.document(m.t)
	if number != n || !got.Equal(document) {
		r.Fatalf("in force is revision %d:\n%s\nwant %d:\n%s\n%s", number, got.JSON(), n, document.JSON(), got.Changes(document))
	}
	path := rapid.SampledFrom(m.places).Draw(r, "look at").path
	a := m.desk.ask(m.t, http.MethodGet, partAPI(path), "")
	want, err := document.Get(path)
	switch {
	case err != nil && a.code != statusOfEdit(err):
		r.Fatalf("GET %s gives %d\n%s\nwant %v", path, a.code, a.body, err)
	case err == nil && (a.code != http.StatusOK || a.header.Get("ETag") != etag(want)):
		r.Fatalf("GET %s gives %d, %s\n%s\nwant 200, %s\n%s", path, a.code, a.header.Get("ETag"), a.body, etag(want), want.JSON())
	case err == nil && !sameJSON(a.body, want.JSON()):
		r.Fatalf("GET %s gives\n%s\nwant\n%s", path, a.body, want.JSON())
	}
	history := m.desk.history(m.t)
	if len(history) != len(m.past) {
		r.Fatalf("there are %d revisions, want %d", len(history), len(m.past))
	}
	for i, h := range history {
		e := &m.past[i]
		well := byUs(h.Author) && h.Why == e.why
		if !e.ours {
			well = h.Author.Door == revision.DoorFile && strings.HasPrefix(h.Why, e.why)
		}
		if h.Number != uint64(i+1) || !well || h.FileSHA256 != e.file {
			r.Fatalf("revision %d is %+v, want number %d, %q, by this process: %v, file %s", i+1, h, i+1, e.why, e.ours, e.file)
		}
	}
	i := rapid.IntRange(1, len(m.past)).Draw(r, "look at revision")
	if kept := m.desk.revision(m.t, uint64(i)); !kept.Document.Equal(m.past[i-1].document) {
		r.Fatalf("revision %d has\n%s\nwant\n%s", i, kept.Document.JSON(), m.past[i-1].document.JSON())
	}
	if a := m.crew.account(); len(a.failures) > 0 {
		r.Fatalf("clients have failed: %v, %s", a, strings.Join(a.examples, "; "))
	}
}

func etag(p config.Part) string { return strconv.Quote(p.ETag()) }

func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && x.String() == y.String()
}

// statusOfEdit is what the API answers to an edit with this error.
func statusOfEdit(err error) int {
	if e, ok := errors.AsType[*config.PathError](err); ok {
		switch e.Reason {
		case config.NoSuchPath, config.NotAContainer:
			return http.StatusNotFound
		case config.MalformedPath:
			return http.StatusBadRequest
		default:
		}
	}
	return http.StatusUnprocessableEntity
}

// condition draws the condition of a change at the path: its headers, and whether what is there is as they say; the status is
// why not, 0 if it is.
func (m *books) condition(r *rapid.T, path string) (headers []string, status int) {
	document, _ := m.now()
	now, err := document.Get(path)
	if e, ok := errors.AsType[*config.PathError](err); ok && e.Reason != config.NoSuchPath {
		return []string{"If-Match: *"}, statusOfEdit(err)
	}
	there := err == nil
	refused := func(is bool) int {
		if is {
			return 0
		}
		return http.StatusPreconditionFailed
	}
	switch kind := rapid.SampledFrom([]string{"current", "current", "current", "any", "nothing there", "stale", "none"}).Draw(r, "condition"); {
	case kind == "current" && there:
		return []string{"If-Match: " + etag(now)}, 0
	case kind == "any":
		return []string{"If-Match: *"}, refused(there)
	case kind == "nothing there", kind == "current":
		return []string{"If-None-Match: *"}, refused(!there)
	case kind == "none":
		return nil, http.StatusPreconditionRequired
	}
	before := m.past[rapid.IntRange(0, len(m.past)-1).Draw(r, "since")].document
	was, err := before.Get(path)
	if err != nil {
		return []string{`If-Match: "0"`}, http.StatusPreconditionFailed
	}
	return []string{"If-Match: " + etag(was)}, refused(there && etag(was) == etag(now))
}

// change asks for what is to lead to next, unless refused says why not, and enters it in the books.
func (m *books) change(r *rapid.T, method, path, body string, headers []string, refused int, next *config.Document, why string) {
	dry := rapid.IntRange(0, 3).Draw(r, "dry run") == 0
	if dry {
		path += "?dry_run=true"
	}
	now, n := m.now()
	changes := refused == 0 && !dry && !next.Equal(now)
	if changes {
		m.past = append(m.past, entry{next, revision.Sum([]byte(m.file)), why, true})
		n++
	}
	a := m.desk.ask(m.t, method, path, body, headers...)
	if want := max(refused, http.StatusOK); a.code != want {
		r.Fatalf("%s %s %s with %q gives %d\n%s\nwant %d", method, path, body, headers, a.code, a.body, want)
	}
	if refused != 0 {
		return
	}
	var out admin.Outcome
	if err := json.Unmarshal(a.body, &out); err != nil {
		r.Fatal(err)
	}
	if out.Revision != n || out.DryRun != dry || len(out.List) != len(now.Changes(next).List) {
		r.Fatalf("%s %s %s gives\n%s\nwant revision %d, dry run %v, and these changes:\n%v", method, path, body, a.body, n, dry, now.Changes(next))
	}
}

// edit makes, changes or deletes a part.
func (m *books) edit(r *rapid.T) {
	method := rapid.SampledFrom([]string{http.MethodPut, http.MethodPatch, http.MethodDelete}).Draw(r, "method")
	at := rapid.SampledFrom(m.places).Draw(r, "place")
	if method == http.MethodDelete && at.path == "" {
		method = http.MethodPatch
	}
	now, _ := m.now()
	var body []byte
	var next *config.Document
	var err error
	if method == http.MethodDelete {
		next, err = now.Delete(at.path)
	} else {
		if body, err = json.Marshal(at.value.Draw(r, "value")); err != nil {
			r.Fatal(err)
		}
		write := now.Put
		if method == http.MethodPatch {
			write = now.Patch
		}
		next, err = write(at.path, body)
	}
	headers, refused := m.condition(r, at.path)
	if refused == 0 && err != nil {
		refused = statusOfEdit(err)
	} else if refused == 0 && !acceptable(now, next) {
		refused = http.StatusUnprocessableEntity
	}
	why := rapid.SampledFrom([]string{"", "a trial", "warum nicht, à bientôt", strings.Repeat("x", 1024)}).Draw(r, "why")
	m.change(r, method, partAPI(at.path), string(body), append(headers, "X-Comment: "+why), refused, next, why)
}

// acceptable says whether the API is to take a document in place of another.
func acceptable(now, next *config.Document) bool {
	_, err := next.Config()
	return err == nil && part(now, "state_dir") == part(next, "state_dir")
}

// restore restores a revision, or one that there is not.
func (m *books) restore(r *rapid.T) {
	n := rapid.IntRange(1, len(m.past)+1).Draw(r, "restore")
	headers, refused := m.condition(r, "")
	next := (*config.Document)(nil)
	if n > len(m.past) {
		refused = http.StatusNotFound
	} else {
		next = m.past[n-1].document
	}
	m.change(r, http.MethodPost, fmt.Sprintf("%s/%d/restore", revisionsAPI, n), "", headers, refused, next, fmt.Sprintf("restore revision %d", n))
}

// write makes this the file.
func (m *books) write(text string) {
	m.t.Helper()
	name := m.chain.config
	if err := errors.Join(os.WriteFile(name+".new", []byte(text), 0o600), os.Rename(name+".new", name)); err != nil {
		m.t.Fatal(err)
	}
}

// editFile changes the file, by a comment, by a value, to what is in force, or back.
func (m *books) editFile(r *rapid.T) {
	now, _ := m.now()
	export, err := now.YAML()
	if err != nil {
		r.Fatal(err)
	}
	i := len(m.past)
	m.file = rapid.SampledFrom([]string{
		m.chain.text, m.chain.text + fmt.Sprintf("# %d\n", i), m.chain.text + fmt.Sprintf("max_timeout: %dm\n", 60+i), string(export),
	}).Draw(r, "file")
	m.write(m.file)
}

// vanish is a writer that is gone in the middle of its body.
func (m *books) vanish(r *rapid.T) {
	c, err := net.Dial("unix", strings.TrimPrefix(m.desk.address, "unix:"))
	if err == nil {
		_, err = fmt.Fprintf(c, "PUT %s/stop_timeout HTTP/1.1\r\nHost: localhost\r\nIf-Match: *\r\nContent-Length: 9\r\n\r\n\"7s\"", configAPI)
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		r.Fatal(err)
	}
}

// twoAtOnce is two writers that have seen the same, and an upgrade beside them if the file does not win then.
func (m *books) twoAtOnce(r *rapid.T) {
	now, n := m.now()
	before, err := now.Get("")
	if err != nil {
		r.Fatal(err)
	}
	upgrading := m.past[n-1].file == revision.Sum([]byte(m.file)) && rapid.Bool().Draw(r, "upgrade")
	if upgrading {
		m.chain.ask(m.t)
	}
	var next [2]*config.Document
	var codes [2]int
	var errs [2]error
	var wg sync.WaitGroup
	for i := range next {
		body := fmt.Sprintf(`{"stop_timeout": "%ds"}`, 100+2*int(n)+i)
		if next[i], err = now.Patch("", []byte(body)); err != nil {
			r.Fatal(err)
		}
		wg.Go(func() { // ends with its answer
			var a adminAnswer
			a, errs[i] = m.desk.try(m.t, http.MethodPatch, configAPI, body, "If-Match: "+etag(before), "X-Comment: at once")
			codes[i] = a.code
		})
	}
	wg.Wait()
	if upgrading {
		report := m.chain.report(m.t)
		if report.Outcome != "done" {
			r.Fatalf("an upgrade beside two writers comes to\n%s", report.text)
		}
		m.chain.succeeded(m.t, report)
		m.desk.settled(m.t)
	}
	if err := errors.Join(errs[:]...); err != nil {
		r.Fatalf("a writer got no answer: %v", err)
	}
	won := slices.Index(codes[:], http.StatusOK)
	for i, code := range codes {
		if i != won && code != http.StatusPreconditionFailed && (!upgrading || code != http.StatusServiceUnavailable) {
			r.Fatalf("two writers at once, upgrading %v, got %v", upgrading, codes)
		}
	}
	if won < 0 && !upgrading {
		r.Fatalf("of two writers at once neither won: %v", codes)
	}
	if won >= 0 {
		m.past = append(m.past, entry{next[won], revision.Sum([]byte(m.file)), "at once", true})
	}
}

// upgrade upgrades the process; the new one goes on as a fresh one would. With a file that is not valid it is refused.
func (m *books) upgrade(r *rapid.T) {
	if rapid.IntRange(0, 3).Draw(r, "refused") == 0 {
		m.write("colour: red\n")
		m.chain.ask(m.t)
		report := m.chain.report(m.t)
		if report.Outcome == "done" {
			r.Fatalf("an upgrade with a file that is not valid comes to\n%s", report.text)
		}
		m.chain.last = report.ID
		m.write(m.file)
		return
	}
	m.chain.upgrade(m.t)
	m.begun()
}

// restart ends the process by a signal, and starts another one.
func (m *books) restart(r *rapid.T, s syscall.Signal) {
	if a := m.crew.account(); len(a.failures) > 0 {
		r.Fatalf("clients have failed: %v, %s", a, strings.Join(a.examples, "; "))
	}
	if s == syscall.SIGKILL {
		m.chain.kill(m.t)
	} else {
		m.chain.stop(m.t)
	}
	m.crew.end()
	m.crew.close()
	m.chain.start(m.t)
	m.begun()
	m.hire()
}
