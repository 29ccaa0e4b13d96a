package revision

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// asWriter is the variable that makes the test's binary a process that writes to a store: "what state".
const asWriter = "RELEVO_TEST_REVISION_WRITER"

func TestMain(m *testing.M) {
	what, state, ok := strings.Cut(os.Getenv(asWriter), " ")
	if !ok {
		os.Exit(m.Run())
	}
	t := die{}
	s := store(t, Options{State: state})
	switch what {
	case "forever":
		writeForever(t, s)
	case "eight":
		writeEight(t, s)
	case "full":
		writeToFullDisk(t, s)
	default:
		t.Fatalf("there is no writer %q", what)
	}
}

// die ends a process that is not the test itself.
type die struct{}

func (die) Helper() {}

func (die) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stdout, format+"\n", args...)
	os.Exit(1)
}

func writer(t *testing.T, what, state string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asWriter+"="+what+" "+state)
	cmd.Stderr = os.Stderr
	return cmd
}

// writeForever says the number of each revision once it is made.
func writeForever(t die, s *Store) {
	for n := newest(t, s).Number; ; {
		n = add(t, s, n, weight(t, int(n%1000)+1)).Number
		fmt.Fprintln(os.Stdout, n)
	}
}

// A writer that is killed at any moment leaves a newest revision that is whole: the last that it said was made, or the one
// that it was about to say.
func TestKilledWriter(t *testing.T) {
	o := Options{State: t.TempDir()}
	s := store(t, o)
	made := uint64(0)
	kills := 0
	for ; made < 100 || kills < 12; kills++ {
		cmd := writer(t, "forever", o.State)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		stop := 1 + rand.IntN(16)
		for i := 0; lines.Scan(); i++ {
			n, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil || n <= made {
				t.Fatalf("the writer says %q behind %d", lines.Text(), made)
			}
			if made = n; i == stop {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the writer ended by itself behind revision %d: %v", made, err)
		}
		r := newest(t, s)
		if r.Number < made || r.Number > made+1 {
			t.Fatalf("after a kill the newest revision is %d; the last that was said to be made is %d", r.Number, made)
		}
		if want := weight(t, int((r.Number-1)%1000)+1); !r.Document.Equal(want.Document) {
			t.Fatalf("revision %d has another document than was written", r.Number)
		}
		made = add(t, s, r.Number, weight(t, int(r.Number%1000)+1)).Number
		if left, _ := filepath.Glob(filepath.Join(s.Folder(), tempPrefix+"*")); len(left) > 0 {
			t.Fatalf("a killed writer's files outlive the next one: %v", left)
		}
	}
	t.Logf("%d revisions, %d kills", made, kills)
}

const (
	writers = 8 // in each process
	writes  = 5 // of each writer
)

// writeEight appends with eight writers at once, each of which tries again until it was the first.
func writeEight(t die, s *Store) {
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() { // ends with its writes
			for i := range writes {
				r := weight(t, 1)
				r.Why = fmt.Sprintf("%d %d %d", os.Getpid(), w, i)
				for {
					_, err := s.Append(context.Background(), newest(t, s).Number, r)
					if _, conflict := errors.AsType[*ConflictError](err); !conflict && err != nil {
						t.Fatalf("appending: %v", err)
					}
					if err == nil {
						break
					}
				}
			}
		})
	}
	wg.Wait()
}

// Sixteen writers in two processes lose none.
func TestWritersAtOnce(t *testing.T) {
	o := Options{State: t.TempDir()}
	processes := []*exec.Cmd{writer(t, "eight", o.State), writer(t, "eight", o.State)}
	for _, p := range processes {
		p.Stdout = os.Stdout
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range processes {
		if err := p.Wait(); err != nil {
			t.Errorf("a writer failed: %v", err)
		}
	}
	page, _, err := store(t, o).List(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	whys := map[string]bool{}
	for i, r := range page {
		whys[r.Why] = true
		if want := uint64(len(page) - i); r.Number != want {
			t.Errorf("revision %d stands where %d should", r.Number, want)
		}
	}
	if want := 2 * writers * writes; len(whys) != want || len(page) != want {
		t.Errorf("%d revisions by %d writes are there, want all %d", len(page), len(whys), want)
	}
}

// writeToFullDisk finds that a file cannot be written to its end.
func writeToFullDisk(t die, s *Store) {
	signal.Ignore(unix.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatalf("%v", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100, Max: old.Max}); err != nil {
		t.Fatalf("%v", err)
	}
	_, err := s.Append(context.Background(), 1, weight(t, 2))
	if !errors.Is(err, unix.EFBIG) {
		t.Fatalf("appending on a full disk: %v, want %v", err, unix.EFBIG)
	}
	if r := newest(t, s); r.Number != 1 {
		t.Fatalf("the newest revision is %d, want 1", r.Number)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatalf("%v", err)
	}
	add(t, s, 1, weight(t, 3))
}

func TestFullDisk(t *testing.T) {
	o := Options{State: t.TempDir()}
	s := store(t, o)
	add(t, s, 0, weight(t, 1))
	if out, err := writer(t, "full", o.State).Output(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if r := newest(t, s); r.Number != 2 || !r.Document.Equal(weight(t, 3).Document) {
		t.Errorf("with room again the newest revision is %d, want 2", r.Number)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Folder(), tempPrefix+"*")); len(left) > 0 {
		t.Errorf("what could not be written is still there: %v", left)
	}
}
