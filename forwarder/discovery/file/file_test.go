package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// words makes an endpoint of each word; "bad" is none.
func words(data []byte) (set []discovery.Endpoint, err error) {
	for w := range strings.FieldsSeq(string(data)) {
		if w == "bad" {
			return nil, errors.New("has a bad word")
		}
		set = append(set, discovery.Endpoint{Network: "tcp", Address: w, Weight: 1})
	}
	return set, nil
}

// rig is a source that runs.
type rig struct {
	t       *testing.T
	path    string
	updates chan string
}

// follow runs a source of this file until the end of the test.
func follow(t *testing.T, path string) *rig {
	r := &rig{t: t, path: path, updates: make(chan string, 100)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		New(Options{Path: path, Parse: words}).Run(ctx, func(u discovery.Update) { r.updates <- text(u) })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

// text is an update in a line.
func text(u discovery.Update) string {
	if u.Err != nil {
		return "error: " + u.Err.Error()
	}
	out := make([]string, len(u.Endpoints))
	for i, e := range u.Endpoints {
		out[i] = e.Address
	}
	return strings.Join(out, " ")
}

// want waits for an update that has this text; the ones before may say other things while something is under way.
func (r *rig) want(what string) {
	r.t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	last := "nothing"
	for {
		select {
		case got := <-r.updates:
			if got == what || strings.HasPrefix(what, "error") && strings.HasPrefix(got, what) {
				return
			}
			last = got
		case <-limit.C:
			r.t.Fatalf("it tells %q and then nothing, want %q", last, what)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace puts a new file in the place of another one, or a link.
func replace(t *testing.T, path, content string) {
	t.Helper()
	write(t, path+".new", content)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestFollowsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints")
	r := follow(t, path)
	r.want("error: stat " + path + ": no such file")
	replace(t, path, "a b")
	r.want("a b")
	replace(t, path, "a")
	r.want("a")
	replace(t, path, "bad")
	r.want("error: " + path + ": has a bad word")
	replace(t, path, "a")
	r.want("a") // the same set as before, which says that it works again
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.want("error: stat " + path)
	replace(t, path, "a c")
	r.want("a c")
	write(t, path, "in place")
	r.want("in place")
	replace(t, path, strings.Repeat("x", MaxSize+1))
	r.want("error: " + path + ": has more than 8388608 bytes")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r.want("error: " + path + ": is not a regular file") // and nobody waits for a writer
	replace(t, path, "the end")
	r.want("the end")
}

// A ConfigMap's file is a link into a folder that is a link, and that one is what is replaced.
func TestFollowsAConfigMap(t *testing.T) {
	folder := t.TempDir()
	publish := func(n int, content string) {
		version := fmt.Sprintf("..version%d", n)
		if err := os.Mkdir(filepath.Join(folder, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(folder, version, "endpoints"), content)
		if err := os.Symlink(version, filepath.Join(folder, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(folder, "..data_tmp"), filepath.Join(folder, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish(1, "a")
	path := filepath.Join(folder, "endpoints")
	if err := os.Symlink("..data/endpoints", path); err != nil {
		t.Fatal(err)
	}
	r := follow(t, path)
	r.want("a")
	for n := 2; n < 5; n++ {
		publish(n, fmt.Sprintf("a %d", n))
		r.want(fmt.Sprintf("a %d", n))
	}
}

// A folder that is not there is found when it comes, and again when another one has taken its place.
func TestFollowsAFolderThatComesAndGoes(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "folder")
	path := filepath.Join(folder, "endpoints")
	r := follow(t, path)
	r.want("error: stat")
	for _, content := range []string{"a", "b"} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		replace(t, path, content)
		r.want(content)
		replace(t, path, content+" more") // it is watched
		r.want(content + " more")
		if err := os.Rename(folder, folder+".gone."+content); err != nil {
			t.Fatal(err)
		}
		r.want("error: stat")
	}
}

// What is wrong is told as often as the file is looked at, and parsed once.
func TestParsesWhatIsWrongOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints")
	parsed, told := 0, []string(nil)
	s := New(Options{Path: path, Parse: func(data []byte) ([]discovery.Endpoint, error) {
		parsed++
		return words(data)
	}})
	for _, step := range []struct {
		content string // empty: the file is as it was
		want    string
		parsed  int
	}{
		{"bad", "error: " + path + ": has a bad word", 1},
		{"", "error: " + path + ": has a bad word", 1},
		{"bad", "error: " + path + ": has a bad word", 1}, // another file with the same in it
		{"bad too", "error: " + path + ": has a bad word", 2},
		{"a", "a", 3},
		{"bad", "error: " + path + ": has a bad word", 4},
		{"a", "a", 5},
	} {
		if step.content != "" {
			replace(t, path, step.content)
		}
		told = nil
		s.look(true, func(u discovery.Update) { told = append(told, text(u)) })
		if len(told) != 1 || told[0] != step.want || parsed != step.parsed {
			t.Errorf("with %q it tells %q and has parsed %d times, want %q and %d", step.content, told, parsed, step.want, step.parsed)
		}
	}
}
