package admin

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// TestWatched changes a file in all ways in which files change, and counts how often it is read and what is logged.
func TestWatched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(path, old, old); err != nil { // it was not written just now
			t.Fatal(err)
		}
	}
	reads := 0
	var busy error
	load := func() (string, error) {
		reads++
		if busy != nil {
			return "", busy
		}
		text, err := os.ReadFile(path)
		if err == nil && string(text) == "broken" {
			err = errors.New("it is broken")
		}
		return string(text), err
	}
	core, logs := observer.New(zapcore.InfoLevel)
	write("one")
	w, err := watch(zap.New(core), load, path)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	step := func(what string, after time.Duration, want string, stale bool, wantReads, warnings int) {
		t.Helper()
		now = now.Add(after)
		got, isStale := w.get(now)
		if got != want || isStale != stale || reads != wantReads {
			t.Errorf("%s: it is %q, stale: %v, read %d times; want %q, %v, %d", what, got, isStale, reads, want, stale, wantReads)
		}
		if n := logs.FilterLevelExact(zapcore.WarnLevel).Len(); n != warnings {
			t.Errorf("%s: there are %d warnings, want %d", what, n, warnings)
		}
	}
	step("nothing has changed", time.Minute, "one", false, 1, 0)
	write("three")
	step("too early to look", lookEvery/2, "one", false, 1, 0)
	step("it has changed", lookEvery/2, "three", false, 2, 0)
	write("broken")
	step("it is broken", lookEvery, "three", true, 3, 1)
	step("it still is", lookEvery, "three", true, 4, 1)
	write("broken")
	step("it is broken anew", lookEvery, "three", true, 5, 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	step("it is gone", lookEvery, "three", true, 6, 2)
	step("it still is gone", lookEvery, "three", true, 7, 2)
	write("four")
	step("it is there again", lookEvery, "four", false, 8, 2)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	step("it has another mode", lookEvery, "four", false, 9, 2)
	if err := os.Chtimes(path, time.Time{}, now); err != nil {
		t.Fatal(err)
	}
	step("it was written just now", lookEvery, "four", false, 10, 2)
	step("it may have been written again", lookEvery, "four", false, 11, 2)
	step("it cannot have been any more", settled, "four", false, 11, 2)
	step("and so it is settled", lookEvery, "four", false, 11, 2)
	write("five")
	busy = syscall.EMFILE
	step("it cannot be read just now", lookEvery, "four", true, 12, 3)
	busy = nil
	step("it can be read again", lookEvery, "five", false, 13, 3)
	if n := logs.FilterLevelExact(zapcore.InfoLevel).Len(); n != 5 {
		t.Errorf("%d times the log says that the file was read anew, want 5: at each change to what can be used", n)
	}
}
