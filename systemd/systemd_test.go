package systemd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fake is a systemd that hears messages.
type fake struct {
	t    *testing.T
	conn *net.UnixConn
}

// listen makes a fake at a path, or at an abstract name, and a Notifier that speaks to it.
func listen(t *testing.T, address string) (*fake, Notifier) {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", address)
	return &fake{t, c}, FromEnvironment()
}

// next is the next message, with its descriptors.
func (f *fake) next() (string, []*os.File) {
	f.t.Helper()
	if err := f.conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		f.t.Fatal(err)
	}
	buf, oob := make([]byte, 4096), make([]byte, 256)
	n, m, _, _, err := f.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		f.t.Fatalf("waiting for a message: %v", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil {
		f.t.Fatal(err)
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			f.t.Fatal(err)
		}
		for _, fd := range fds {
			file := os.NewFile(uintptr(fd), "passed")
			f.t.Cleanup(func() { _ = file.Close() })
			files = append(files, file)
		}
	}
	return string(buf[:n]), files
}

func TestMessages(t *testing.T) {
	for _, address := range []string{
		filepath.Join(t.TempDir(), "notify"),
		fmt.Sprintf("@relevo-test-%d", os.Getpid()), // abstract
	} {
		f, n := listen(t, address)
		if !n.Enabled() {
			t.Fatal("with NOTIFY_SOCKET set, nobody listens")
		}
		for _, c := range []struct {
			want string
			say  error
		}{
			{"READY=1\nWATCHDOG=1\nSTATUS=generation 1", n.Ready("generation 1")},
			{"STATUS=two lines", n.Status("two\nlines\n")},
			{"STATUS=", n.Status("")},
			{"STATUS=a?b", n.Status("a\xffb")},
			{"STATUS=" + strings.Repeat("x", maxStatus-1) + " ...", n.Status(strings.Repeat("x", maxStatus-1) + "é")},
			{"STOPPING=1\nSTATUS=stopping", n.Stopping("stopping")},
			{"WATCHDOG=1", n.Alive()},
			{"EXTEND_TIMEOUT_USEC=1500000", n.Extend(1500 * time.Millisecond)},
			{"FDSTOREREMOVE=1\nFDNAME=listen=127.0.0.1%3A80", n.Forget(StoreName("127.0.0.1:80"))},
		} {
			if c.say != nil {
				t.Fatalf("%s: saying %q: %v", address, c.want, c.say)
			}
			if got, files := f.next(); got != c.want || len(files) != 0 {
				t.Errorf("%s: systemd heard %q with %d descriptors, want %q with none", address, got, len(files), c.want)
			}
		}
	}
}

func TestNobodyListens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n := FromEnvironment()
	l := listener(t, "127.0.0.1:0")
	if err := errors.Join(n.Ready(""), n.Status(""), n.Stopping(""), n.Alive(), n.Extend(time.Second), n.Store("x", l), n.Forget("x"), n.Sync(time.Hour)); err != nil || n.Enabled() {
		t.Errorf("without NOTIFY_SOCKET: enabled is %v, errors %v; want false and none", n.Enabled(), err)
	}
	n = Notifier{filepath.Join(t.TempDir(), "missing")}
	if err := n.Alive(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with a socket that is not there: got %v, want that it does not exist", err)
	}
}

func listener(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// What goes into the store is the socket, and comes back as one that accepts.
func TestStore(t *testing.T) {
	f, n := listen(t, filepath.Join(t.TempDir(), "notify"))
	l := listener(t, "127.0.0.1:0")
	name := StoreName(l.Addr().String())
	if err := n.Store(name, l); err != nil {
		t.Fatal(err)
	}
	got, files := f.next()
	if want := "FDSTORE=1\nFDNAME=" + name; got != want || len(files) != 1 {
		t.Fatalf("systemd heard %q with %d descriptors, want %q with one", got, len(files), want)
	}
	address := l.Addr().String()
	_ = l.Close() // as a process's death does
	list, err := socketsOf([]*os.File{os.NewFile(uintptr(dup(t, files[0])), name)})
	if err != nil || len(list) != 1 {
		t.Fatalf("out of the store came %v, %v; want one socket", list, err)
	}
	defer list[0].Listener.Close()
	if s := list[0]; s.Name != name || !s.Stored {
		t.Errorf("it is called %q and stored is %v, want %q and true", s.Name, s.Stored, name)
	}
	accepts(t, list[0].Listener, address)
	if err := n.Store(name, l); err == nil {
		t.Error("a listener that is closed was stored")
	}
}

func dup(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func accepts(t *testing.T, l net.Listener, address string) {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

// Sync ends when systemd closes what it was sent, and not before.
func TestSync(t *testing.T) {
	f, n := listen(t, filepath.Join(t.TempDir(), "notify"))
	if err := n.Sync(20 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "has not answered") {
		t.Errorf("nobody answers: got %v", err)
	}
	if got, files := f.next(); got != "BARRIER=1" || len(files) != 1 {
		t.Fatalf("systemd heard %q with %d descriptors, want BARRIER=1 with one", got, len(files))
	}
	done := make(chan error, 1)
	go func() { done <- n.Sync(time.Minute) }() // ends with the answer below
	_, files := f.next()
	select {
	case err := <-done:
		t.Fatalf("it ended before systemd answered: %v", err)
	default:
	}
	_ = files[0].Close()
	if err := <-done; err != nil {
		t.Errorf("systemd answers: got %v", err)
	}
}

func TestWhatIsNoListeningSocketIsRefused(t *testing.T) {
	dir := t.TempDir()
	plain, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	l := listener(t, "127.0.0.1:0")
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	connected, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "dgram"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	datagrams, err := packets.File()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "stream")
	u, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	good, err := u.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	list, err := socketsOf([]*os.File{plain, connected, datagrams, good})
	if err == nil || strings.Count(err.Error(), "it is not a stream socket that listens") != 3 {
		t.Errorf("a file, a connection and a datagram socket: got %v", err)
	}
	if len(list) != 1 {
		t.Fatalf("%d sockets are left, want the one that listens", len(list))
	}
	accepts(t, list[0].Listener, path)
	_ = list[0].Listener.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("closing a copy of a unix socket has removed its file: %v", err)
	}
}

const socketsEnv = "RELEVO_TEST_SOCKETS"

// Descriptors are this process's if LISTEN_PID says so, and no child finds a word of them.
func TestSocketsOfTheEnvironment(t *testing.T) {
	if os.Getenv(socketsEnv) != "" {
		t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()+must(strconv.Atoi(os.Getenv(socketsEnv)))))
		list, err := Sockets()
		for _, s := range list {
			fmt.Fprintf(os.Stdout, "%s %v %v\n", s.Name, s.Stored, s.Listener.Addr().Network())
		}
		for _, v := range os.Environ() {
			if strings.HasPrefix(v, "LISTEN_") {
				fmt.Fprintln(os.Stdout, "left:", v)
			}
		}
		again, againErr := Sockets()
		fmt.Fprintln(os.Stdout, "again", len(again), errors.Join(err, againErr))
		return
	}
	l := listener(t, "127.0.0.1:0")
	for shift, want := range map[string]string{
		"0": "client false tcp\nlisten=a true tcp\nagain 0 <nil>\n",
		"1": "again 0 <nil>\n",
	} {
		first, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		second, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		out, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		env := slices.Concat(os.Environ(), []string{socketsEnv + "=" + shift, "LISTEN_FDS=2", "LISTEN_FDNAMES=client:listen=a"})
		p, err := os.StartProcess(must(os.Executable()), []string{os.Args[0], "-test.run=^TestSocketsOfTheEnvironment$"},
			&os.ProcAttr{Env: env, Files: []*os.File{nil, in, os.Stderr, first, second}})
		if err != nil {
			t.Fatal(err)
		}
		_ = in.Close()
		text, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		got, _, _ := strings.Cut(string(text), "PASS")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("LISTEN_PID is off by %s: the child saw (-want +got):\n%s", shift, diff)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestStoreNames(t *testing.T) {
	seen := make(map[string]string)
	for _, key := range []string{
		"127.0.0.1:80", "127.0.0.1%3A80", "[::1]:80", ":80", "client@127.0.0.1:0", "unix:/run/relevo/admin.sock", "unix:/a b", "unix:/ä", "unix:/a\n",
		strings.Repeat("a", 248), strings.Repeat("a", 249), strings.Repeat("a", 250), strings.Repeat("b", 250), strings.Repeat(":", 100),
	} {
		name := StoreName(key)
		if other, twice := seen[name]; twice {
			t.Errorf("%q and %q have the same name", key, other)
		}
		seen[name] = key
		// fdname_is_valid of systemd
		if len(name) == 0 || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r >= 127 || r == ':' }) {
			t.Errorf("systemd refuses the name of %q: %q", key, name)
		}
		if !strings.HasPrefix(name, storePrefix) {
			t.Errorf("the name of %q is not known as one of the store: %q", key, name)
		}
	}
	if got, want := StoreName("127.0.0.1:80"), "listen=127.0.0.1%3A80"; got != want {
		t.Errorf("got %q, want %q: a name must stay the same from release to release", got, want)
	}
}

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
		bad       bool
	}{
		{"", "", 0, false},
		{"20000000", strconv.Itoa(os.Getpid()), 20 * time.Second, false},
		{"20000000", strconv.Itoa(os.Getppid()), 0, false}, // of the process that started this one
		{"soon", strconv.Itoa(os.Getpid()), 0, true},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got, err := Watchdog(); got != c.want || (err != nil) != c.bad {
			t.Errorf("WATCHDOG_USEC=%s WATCHDOG_PID=%s: got %v, %v; want %v, and an error is %v", c.usec, c.pid, got, err, c.want, c.bad)
		}
	}
}

func TestFields(t *testing.T) {
	for name, want := range map[string]string{"service": "RELEVO_SERVICE", "max_frame": "RELEVO_MAX_FRAME", "a.b-c": "RELEVO_A_B_C", "é1": "RELEVO__1"} {
		if got := Field(name); got != want {
			t.Errorf("the field %q is %q in the journal, want %q", name, got, want)
		}
	}
}

// The journal has taken what was sent when it has read as far.
func TestSettleWaitsForTheJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	j := Journal{socket: path}
	if err := j.Settle(20 * time.Millisecond); err == nil {
		t.Error("nobody reads, and all was taken")
	}
	read := make(chan string, 8) // closed with the socket
	go func() {                  // ends with the socket
		defer close(read)
		for buf := make([]byte, 64); ; {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			read <- string(buf[:n])
		}
	}()
	if err := j.Settle(10 * time.Second); err != nil {
		t.Errorf("the journal reads: %v", err)
	}
	_ = c.Close()
	for m := range read {
		if m != "\n" {
			t.Errorf("the journal reads %q, want what is no entry", m)
		}
	}
	if err := NewJournal(nil).Settle(0); err != nil {
		t.Errorf("a journal that is a function: %v", err)
	}
}
