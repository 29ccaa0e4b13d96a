package upgrade

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// executable is a program in a folder that nobody else can write.
func executable(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	base, err := program(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, base)
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBinaryIsSomebodysWhoMay(t *testing.T) {
	uid := os.Geteuid()
	for _, test := range []struct {
		name string
		make func(t *testing.T, name string) (path string)
		want string // empty: it may be started
	}{
		{"good", func(_ *testing.T, name string) string { return name }, ""},
		{"relative", func(*testing.T, string) string { return "relevo" }, "absolute"},
		{"not clean", func(_ *testing.T, name string) string { return filepath.Dir(name) + "/./" + filepath.Base(name) }, "absolute"},
		{"missing", func(_ *testing.T, name string) string { return name + "x" }, "no such file"},
		{"another name", func(t *testing.T, name string) string {
			if err := os.Rename(name, name+"x"); err != nil {
				t.Fatal(err)
			}
			return name + "x"
		}, "want a file called "},
		{"a folder", func(t *testing.T, name string) string {
			if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o700)); err != nil {
				t.Fatal(err)
			}
			return name
		}, "no regular file"},
		{"not executable", func(t *testing.T, name string) string { chmod(t, name, 0o600); return name }, "not execute"},
		{"the group's", func(t *testing.T, name string) string { chmod(t, name, 0o770); return name }, "it can be written by its group or by others (mode 0770)"},
		{"in the group's folder", func(t *testing.T, name string) string { chmod(t, filepath.Dir(name), 0o770); return name }, "its folder"},
		{"in a sticky folder", func(t *testing.T, name string) string {
			chmod(t, filepath.Dir(name), 0o777|os.ModeSticky)
			return name
		}, "its folder"},
		{"behind a link", func(t *testing.T, name string) string {
			link := filepath.Dir(name) + "-link"
			if err := os.Symlink(filepath.Dir(name), link); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(link, filepath.Base(name))
		}, "symbolic link"},
	} {
		good := executable(t)
		path := test.make(t, good)
		err := checkBinary(path, filepath.Base(good), uid)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if uid == 0 {
		name := executable(t)
		if err := os.Chown(name, 4711, 0); err != nil {
			t.Fatal(err)
		}
		if err := checkBinary(name, filepath.Base(name), uid); err == nil || !strings.Contains(err.Error(), "belongs to uid 4711") {
			t.Errorf("a file of another user: %v, want that it belongs to uid 4711", err)
		}
		if err := checkBinary(name, filepath.Base(name), 4711); err != nil {
			t.Errorf("a file of the process's user in a folder of root: %v, want that it may be started", err)
		}
	}
}

func chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

// Another program is checked and started once; if it does not succeed, the next upgrade starts the one of now. What was
// reported stays in order.
func TestAnotherBinaryIsForOneUpgrade(t *testing.T) {
	binary := executable(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.fails["new.build"] = errors.New("no")
		busy := make(chan error, 1)
		r.during["old.check"] = func() {
			_, err := r.old.RequestBinary(binary)
			select {
			case busy <- err:
			default: // of a later upgrade
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan Ending, 1)
		go func() { ended <- r.old.Run(ctx, r.giver()) }() // ends with ctx
		id, err := r.old.RequestBinary(binary)
		if err != nil || id != 1 {
			t.Fatalf("asking for %s: upgrade %d, %v; want upgrade 1", binary, id, err)
		}
		time.Sleep(time.Second)
		if err := <-busy; !errors.Is(err, ErrUnderWay) {
			t.Errorf("asking for another one meanwhile: %v, want %v", err, ErrUnderWay)
		}
		for range maxReports + 1 {
			r.old.Request()
			time.Sleep(time.Second)
		}
		if _, err := r.old.RequestBinary("relevo"); err == nil {
			t.Error("a relative path is taken")
		}
		cancel()
		<-ended
		if diff := cmp.Diff([]string{binary, binary, "mine", "mine"}, r.programs[:4]); diff != "" {
			t.Errorf("what was checked and started (-want +got):\n%s", diff)
		}
		reports := r.old.Reports()
		if len(reports) != maxReports {
			t.Fatalf("%d reports are kept, want %d", len(reports), maxReports)
		}
		for i, rep := range reports {
			if want := uint64(maxReports + 2 - i); rep.ID != want || rep.Outcome != RolledBack {
				t.Errorf("report %d is of upgrade %d, %s; want %d, rolled back", i, rep.ID, rep.Outcome, want)
			}
		}
	})
}

// What was reported goes over, with as much of it as there is room for.
func TestThePastGoesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.end()
		r.old.past = []Report{{ID: 2, Outcome: Done}, {ID: 1, Outcome: Refused}}
		r.old.last = Report{ID: 3, Outcome: RolledBack}
		r.run()
		synctest.Wait()
		var ids []uint64
		for _, rep := range r.heir.Reports() {
			ids = append(ids, rep.ID)
		}
		if diff := cmp.Diff([]uint64{4, 3, 2, 1}, ids); diff != "" {
			t.Errorf("the new process's reports (-want +got):\n%s", diff)
		}
	})
	long := legacy{Past: make([]Report, maxReports)}
	for i := range long.Past {
		long.Past[i] = Report{ID: uint64(i), Left: make([]string, maxLines)}
		for k := range long.Past[i].Left {
			long.Past[i].Left[k] = strings.Repeat("x", 2*maxLine)
		}
	}
	data, err := long.encode()
	if err != nil || len(data) > maxReport || len(long.Past) == 0 {
		t.Errorf("16 long reports become %d bytes of %d, %v; want some, within %d bytes", len(data), len(long.Past), err, maxReport)
	}
}
