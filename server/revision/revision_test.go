package revision

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/server/config"
)

const configFile = "/etc/relevo/relevo.yaml"

const valid = `
listeners: [{name: in, address: ":1", protocol: bolt}]
routes: [{name: rpc, rules: [{cluster: order}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: "127.0.0.1:12200", weight: 5}]}]
`

var epoch = time.Date(2026, 7, 1, 12, 0, 0, 5, time.UTC)

type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

func document(t fatal, text string) *config.Document {
	t.Helper()
	d, err := config.ParseDocument([]byte(text))
	if err != nil {
		t.Fatalf("a document does not parse: %v", err)
	}
	return d
}

func store(t fatal, o Options) *Store {
	t.Helper()
	if o.File == "" {
		o.File = configFile
	}
	if o.LockWait == 0 {
		o.LockWait = time.Minute
	}
	s, err := Open(o)
	if err != nil {
		t.Fatalf("a store does not open: %v", err)
	}
	return s
}

// weight is a revision whose document differs by n.
func weight(t fatal, n int) Revision {
	t.Helper()
	d, err := document(t, valid).Put("clusters/order/endpoints/127.0.0.1:12200/weight", fmt.Append(nil, n))
	if err != nil {
		t.Fatalf("an edit is refused: %v", err)
	}
	return Revision{
		Info{When: epoch.Add(time.Duration(n) * time.Second), Author: Author{Who: "alice", Door: DoorUnix, PID: 7, UID: new(0)}, Why: fmt.Sprint(n), FileSHA256: Sum(nil)},
		d,
	}
}

func add(t fatal, s *Store, expected uint64, r Revision) Revision {
	t.Helper()
	r, err := s.Append(context.Background(), expected, r)
	if err != nil {
		t.Fatalf("appending behind %d: %v", expected, err)
	}
	return r
}

func newest(t fatal, s *Store) Revision {
	t.Helper()
	r, err := s.Newest()
	if err != nil {
		t.Fatalf("there is no newest revision: %v", err)
	}
	return r
}

// stores runs a test with a store in a folder and with one in memory.
func stores(t *testing.T, o Options, test func(t *testing.T, s *Store)) {
	t.Run("memory", func(t *testing.T) { test(t, store(t, o)) })
	t.Run("folder", func(t *testing.T) {
		o.State = t.TempDir()
		test(t, store(t, o))
	})
}

func same(t *testing.T, got, want Revision) {
	t.Helper()
	if diff := cmp.Diff(want.Info, got.Info); diff != "" {
		t.Errorf("the revision differs (-want +got):\n%s", diff)
	}
	if !got.Document.Equal(want.Document) {
		t.Errorf("the document is\n%s, want\n%s", got.Document.JSON(), want.Document.JSON())
	}
}

func TestAppend(t *testing.T) {
	stores(t, Options{}, func(t *testing.T, s *Store) {
		if r := newest(t, s); r.Number != 0 {
			t.Errorf("an empty store has revision %d", r.Number)
		}
		var all []Revision
		for i := range 5 {
			r := add(t, s, uint64(i), weight(t, i+1))
			if r.Number != uint64(i+1) {
				t.Errorf("revision %d has number %d", i+1, r.Number)
			}
			same(t, newest(t, s), r)
			all = append(all, r)
		}
		for _, want := range all {
			got, err := s.Get(want.Number)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, want)
		}
		for _, n := range []uint64{0, 6} {
			if _, err := s.Get(n); !errors.Is(err, ErrNoRevision) {
				t.Errorf("getting revision %d: %v, want %v", n, err, ErrNoRevision)
			}
		}
		_, err := s.Append(t.Context(), 4, weight(t, 9))
		if conflict, ok := errors.AsType[*ConflictError](err); !ok || *conflict != (ConflictError{4, 5}) {
			t.Errorf("appending behind 4 gives %v, want a conflict with 5", err)
		}
		same(t, newest(t, s), all[4])
	})
}

func TestList(t *testing.T) {
	stores(t, Options{}, func(t *testing.T, s *Store) {
		for i := range 7 {
			add(t, s, uint64(i), weight(t, i+1))
		}
		var pages [][]uint64
		for before := uint64(0); ; {
			page, next, err := s.List(before, 3)
			if err != nil {
				t.Fatal(err)
			}
			var numbers []uint64
			for _, i := range page {
				numbers = append(numbers, i.Number)
				if i.Why != fmt.Sprint(i.Number) || !i.When.Equal(epoch.Add(time.Duration(i.Number)*time.Second)) {
					t.Errorf("revision %d is listed as %+v", i.Number, i)
				}
			}
			pages = append(pages, numbers)
			if before = next; next == 0 {
				break
			}
		}
		if diff := cmp.Diff([][]uint64{{7, 6, 5}, {4, 3, 2}, {1}}, pages); diff != "" {
			t.Errorf("the pages differ (-want +got):\n%s", diff)
		}
	})
}

func TestOldRevisionsGo(t *testing.T) {
	numbers := func(t *testing.T, s *Store) (numbers []uint64) {
		page, _, err := s.List(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page {
			numbers = append(numbers, i.Number)
		}
		return numbers
	}
	stores(t, Options{Keep: 3}, func(t *testing.T, s *Store) {
		for i := range 10 {
			add(t, s, uint64(i), weight(t, i+1))
		}
		if got := numbers(t, s); !slices.Equal(got, []uint64{10, 9, 8}) {
			t.Errorf("of 10 revisions %v are kept, want the last 3", got)
		}
	})
	stores(t, Options{Bytes: 1}, func(t *testing.T, s *Store) {
		for i := range 3 {
			add(t, s, uint64(i), weight(t, i+1))
		}
		if got := numbers(t, s); !slices.Equal(got, []uint64{3}) {
			t.Errorf("with hardly any room %v are kept, want the newest", got)
		}
	})
}

func TestRefusedRevisions(t *testing.T) {
	stores(t, Options{}, func(t *testing.T, s *Store) {
		long, foreign, none := weight(t, 1), weight(t, 1), weight(t, 1)
		long.Why, foreign.Author.Token, none.Document = strings.Repeat("x", 1025), "\xff", nil
		for want, r := range map[string]Revision{
			"the comment has 1025 bytes; it may have 1024": long, "the token's name is not valid UTF-8": foreign, "a revision has no document": none,
		} {
			if _, err := s.Append(t.Context(), 0, r); err == nil || err.Error() != "appending a revision: "+want {
				t.Errorf("appending gives %v, want %s", err, want)
			}
		}
		if r := newest(t, s); r.Number != 0 {
			t.Errorf("a refused revision is there as %d", r.Number)
		}
	})
	if _, err := Open(Options{State: t.TempDir(), File: "relevo.yaml"}); err == nil {
		t.Error("a store opens for a relative path")
	}
	if _, err := Open(Options{State: filepath.Join(t.TempDir(), "none"), File: configFile}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a store in a folder that is not there: %v, want %v", err, os.ErrNotExist)
	}
}

// Each configuration file has its own revisions, whatever else the folder keeps.
func TestStoresOfTwoFiles(t *testing.T) {
	state := t.TempDir()
	a, b := store(t, Options{State: state}), store(t, Options{State: state, File: "/etc/other.yaml"})
	add(t, a, 0, weight(t, 1))
	if r := newest(t, b); r.Number != 0 {
		t.Errorf("the revision of one file is that of another too")
	}
	if err := os.Rename(filepath.Join(a.Folder(), nameOf(1)), filepath.Join(b.Folder(), nameOf(1))); err != nil {
		t.Fatal(err)
	}
	if r := newest(t, b); r.Number != 0 {
		t.Errorf("the revision of one file is taken for that of another")
	}
	if got := store(t, Options{State: state, File: "/etc/../etc/relevo/relevo.yaml"}).Folder(); got != a.Folder() {
		t.Errorf("one path has two folders: %s, %s", got, a.Folder())
	}
}

// Whatever lies in the folder beside whole revisions, the last whole one is the newest, and the next one goes behind all.
func TestTornAndForeignFiles(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	o := Options{State: t.TempDir()}
	s := store(t, o)
	for i := range 3 {
		add(t, s, uint64(i), weight(t, i+1))
	}
	path := func(name string) string { return filepath.Join(s.Folder(), name) }
	whole, err := os.ReadFile(path(nameOf(3)))
	if err != nil {
		t.Fatal(err)
	}
	want := newest(t, s)
	for n, content := range map[int]string{
		4: "", 5: string(whole[:len(whole)/2]), 6: "{}", 7: string(whole), 8: "null", 9: strings.Replace(string(whole), `"weight":3`, `"weight":4`, 1),
		10: strings.Replace(string(whole), `"format":1`, `"format":2`, 1), 11: "[[[",
	} {
		if err := os.WriteFile(path(nameOf(uint64(n))), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"README", "000012.json.bak", "12.json", "0000000012.json", "99999999999999999999.json", tempFile, tempPrefix + "1", "000000.json"} {
		if err := os.WriteFile(path(name), whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path("000013.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path(nameOf(3)), path("000014.json")); err != nil {
		t.Fatal(err)
	}

	same(t, newest(t, s), want)
	same(t, newest(t, store(t, o)), want)
	s.LogTo(zap.New(core)) // who comes behind that hears all of it
	told := map[string]string{}
	for _, e := range logs.FilterMessageSnippet("passed over").All() {
		told[filepath.Base(fmt.Sprint(e.ContextMap()["file"]))] = fmt.Sprint(e.ContextMap()["error"])
	}
	for n, reason := range map[uint64]string{
		4: "torn", 5: "torn", 6: "has format 0", 7: "holds revision 3", 8: "has format 0", 9: "not the content that was written", 10: "has format 2", 11: "torn",
	} {
		if !strings.Contains(told[nameOf(n)], reason) {
			t.Errorf("of %s the log says %q, want %q", nameOf(n), told[nameOf(n)], reason)
		}
	}
	before := logs.Len()
	newest(t, s)
	if logs.Len() != before {
		t.Errorf("the log is told twice of a file that is passed over")
	}
	if err := os.WriteFile(path(nameOf(12)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if newest(t, s); logs.Len() != before+1 {
		t.Errorf("the log is told %d times of a file that is torn later, want once", logs.Len()-before)
	}
	if err := os.Remove(path(nameOf(12))); err != nil {
		t.Fatal(err)
	}

	s = store(t, o) // a process looks once for what those before it left
	r := add(t, s, 3, weight(t, 12))
	if r.Number != 12 {
		t.Errorf("the next revision is %d, want 12", r.Number)
	}
	same(t, newest(t, s), r)
	if err := errors.Join(os.Remove(path("000013.json")), os.Remove(path("000014.json"))); err != nil { // which are in the way
		t.Fatal(err)
	}
	other := store(t, o) // of another process
	r = add(t, other, r.Number, weight(t, 13))
	if _, err := s.Append(t.Context(), r.Number-1, weight(t, 14)); err == nil {
		t.Error("a revision is taken that does not know of another process's")
	}
	if r = add(t, s, r.Number, weight(t, 15)); r.Number != 14 {
		t.Errorf("behind another process's revision 13 comes %d, want 14", r.Number)
	}
	same(t, newest(t, other), r)
	for _, name := range []string{tempFile, tempPrefix + "1"} {
		if _, err := os.Stat(path(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s, which a killed writer left, is still there: %v", name, err)
		}
	}
	page, _, err := s.List(0, 0)
	if err != nil || len(page) != 6 {
		t.Errorf("%d revisions are listed, %v; want the 6 whole ones", len(page), err)
	}
}

func TestLockIsWaitedForAndNotForEver(t *testing.T) {
	s := store(t, Options{State: t.TempDir(), LockWait: 20 * time.Millisecond})
	unlock, err := lock(t.Context(), filepath.Join(s.Folder(), lockFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), 0, weight(t, 1)); !errors.Is(err, ErrLocked) {
		t.Errorf("appending while another process has the lock: %v, want %v", err, ErrLocked)
	}
	unlock()
	add(t, s, 0, weight(t, 1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	<-s.turn // as if another Append were under way
	if _, err := s.Append(ctx, 1, weight(t, 2)); !errors.Is(err, ErrLocked) {
		t.Errorf("appending with a context that is over: %v, want %v", err, ErrLocked)
	}
	s.turn <- struct{}{}
	add(t, s, 1, weight(t, 2))
}

func TestExportAndImport(t *testing.T) {
	s := store(t, Options{})
	for i := range 5 {
		add(t, s, uint64(i), weight(t, i+1))
	}
	all, err := s.Export(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	next := store(t, Options{})
	if err := next.Import(all); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= 5; n++ {
		want, _ := s.Get(n)
		got, err := next.Get(n)
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
	}
	add(t, next, 5, weight(t, 6))
	if err := next.Import(all); err == nil {
		t.Error("revisions are imported over others")
	}

	some, err := s.Export(len(all) / 2)
	if err != nil || len(some) > len(all)/2 {
		t.Fatalf("an export has %d bytes, %v; want at most %d", len(some), err, len(all)/2)
	}
	few := store(t, Options{})
	if err := few.Import(some); err != nil {
		t.Fatal(err)
	}
	same(t, newest(t, few), newest(t, s))
	if _, err := few.Get(1); !errors.Is(err, ErrNoRevision) {
		t.Errorf("the oldest revision went over in half the room: %v", err)
	}

	for _, bad := range []string{"{", "[1]", "[{}]", strings.Replace(string(all), `"number":2`, `"number":1`, 1), strings.Replace(string(all), "alice", "alica", 1)} {
		s := store(t, Options{})
		if err := s.Import([]byte(bad)); err == nil || newest(t, s).Number != 0 {
			t.Errorf("importing %.40s gives %v and revision %d, want an error and none", bad, err, newest(t, s).Number)
		}
	}
	if err := store(t, Options{File: "/etc/other.yaml"}).Import(all); err == nil {
		t.Error("revisions of another file are imported")
	}
	folder := store(t, Options{State: t.TempDir()})
	if data, err := folder.Export(1 << 20); data != nil || err != nil {
		t.Errorf("a store in a folder exports %d bytes, %v", len(data), err)
	}
	if err := errors.Join(folder.Import(all), store(t, Options{}).Import(nil)); err != nil || newest(t, folder).Number != 0 {
		t.Errorf("importing into a folder gives %v and revision %d", err, newest(t, folder).Number)
	}
}
