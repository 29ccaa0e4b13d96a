package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asProgram makes the test binary the program itself, so that tests can run it as a process of its own.
const asProgram = "RELEVO_TEST_AS_PROGRAM"

// patience bounds every wait of a test; none of them is expected to last.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		misbehave()
		main()
	}
	if dir := os.Getenv(asOwner); dir != "" {
		os.Exit(runOwner(dir))
	}
	serveFleet()
	goleak.VerifyTestMain(m)
}

// relevo runs a command line in this process.
func relevo(t *testing.T, stdin string, args ...string) (status int, out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = execute(append([]string{"relevo"}, args...), strings.NewReader(stdin), &stdout, &stderr)
	return status, stdout.String(), stderr.String()
}

// program is the program as a process of its own.
type program struct {
	cmd      *exec.Cmd
	out, err *transcript
	gone     chan struct{} // closed when it has ended
}

// spawn starts a command line. The process is ended with the test, if it has not ended by then.
func spawn(t *testing.T, args ...string) *program {
	t.Helper()
	return spawnAt(t, nil, args...)
}

// spawnAt is spawn at a terminal, whose session the process leads. Nil: at none.
func spawnAt(t *testing.T, terminal *os.File, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(os.Args[0], args...), out: newTranscript(), err: newTranscript(), gone: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	if terminal != nil {
		p.cmd.Stdin, p.cmd.SysProcAttr = terminal, &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		_ = p.cmd.Wait()
		close(p.gone)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.gone
		if t.Failed() {
			t.Logf("%v\nstdout:\n%s\nstderr:\n%s", args, p.out, p.err)
		}
	})
	return p
}

func (p *program) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("signal %v: %v", s, err)
	}
}

// status waits for the end and returns the exit status.
func (p *program) status(t *testing.T) int {
	t.Helper()
	select {
	case <-p.gone:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatal("the process does not end")
		return 0
	}
}

// transcript is what a process writes, and can be waited on.
type transcript struct {
	mu   sync.Mutex
	text []byte        // Guarded by mu.
	more chan struct{} // Guarded by mu. Closed and replaced at each write.
}

func newTranscript() *transcript { return &transcript{more: make(chan struct{})} }

func (tr *transcript) Write(b []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.text = append(tr.text, b...)
	close(tr.more)
	tr.more = make(chan struct{})
	return len(b), nil
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return string(tr.text)
}

// find waits for what the pattern matches and returns its first group, or all of it.
func (tr *transcript) find(t testing.TB, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(patience)
	for {
		tr.mu.Lock()
		found, more := re.FindSubmatch(tr.text), tr.more
		tr.mu.Unlock()
		if found != nil {
			return string(found[len(found)-1])
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("nothing that matches %q was written, but:\n%s", pattern, tr)
		}
	}
}

// fileWith is a file with this text.
func fileWith(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "relevo.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
