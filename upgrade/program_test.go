package upgrade

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// The test binary is also the program that is upgraded: a server of lines that answers each with its own pid, one listener
// and as many connections as come, all of which it hands over.
const (
	asProgram  = "RELEVO_TEST_UPGRADE_DIR" // runtime_dir; also where the program reads how to fail
	asLinger   = "RELEVO_TEST_UPGRADE_LINGER"
	failFile   = "fail"
	listenFile = "address"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(asProgram); dir != "" {
		if len(os.Args) > 1 && os.Args[1] == "check" {
			os.Exit(checkProgram(dir))
		}
		os.Exit(runProgram(dir))
	}
	goleak.VerifyTestMain(m)
}

// failure is how the program is to fail, as the test has written it down.
func failure(dir string) string {
	data, _ := os.ReadFile(filepath.Join(dir, failFile))
	return string(data)
}

// standStill has a process stand still for a while, and returns when it does.
func standStill(pid int, while time.Duration) {
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	for state := ""; state != "T"; {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return
		}
		_, _, state, _ = parseStat(string(data))
	}
	go func() { // ends by itself
		time.Sleep(while)
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}()
}

func checkProgram(dir string) int {
	if failure(dir) == "check" {
		fmt.Fprintln(os.Stderr, "listeners[0]: no such protocol")
		return 78
	}
	return 0
}

// lineServer is the program's state.
type lineServer struct {
	listener *net.TCPListener
	fail     string

	mu     sync.Mutex
	conns  map[*net.TCPConn]bool
	paused bool
	loops  sync.WaitGroup
}

func runProgram(dir string) int {
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.Lock(os.Stderr), zap.InfoLevel))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	linger, _ := time.ParseDuration(os.Getenv(asLinger))
	g, err := New(Options{
		Log: log, Release: "test", RuntimeDir: dir, Linger: linger,
		Check:        func() ([]string, []byte) { return []string{"check"}, nil },
		ReadyTimeout: 5 * time.Second, HandoverTimeout: 2 * time.Second,
		Tap: func(sent bool, kind handoff.Kind) {
			if kind == handoff.KindCommit && !sent && failure(dir) == "standstill" {
				standStill(os.Getppid(), startedTimeout*3/2)
			}
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM {
				cancel()
			} else {
				g.Request()
			}
		}
	}()
	s := &lineServer{conns: map[*net.TCPConn]bool{}}
	if g.Heir() {
		s.fail = failure(dir)
		if _, err := g.Take(ctx, s.taker()); err != nil {
			if errors.Is(err, ErrAborted) {
				return 0
			}
			return 1
		}
	} else {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 1
		}
		s.listener = l.(*net.TCPListener)
		s.resume()
		if err := g.Ready(); err != nil {
			return 1
		}
		if err := os.WriteFile(filepath.Join(dir, listenFile), []byte(l.Addr().String()), 0o600); err != nil {
			return 1
		}
	}
	end := g.Run(ctx, s.giver(dir))
	if !end.Owner && end.Status == 0 {
		g.PassOn(ctx)
	}
	g.Close()
	return end.Status
}

func (s *lineServer) serve(c *net.TCPConn) {
	r := bufio.NewReader(c)
	for {
		if _, err := r.ReadString('\n'); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
				c.Close()
			}
			return
		}
		if _, err := fmt.Fprintf(c, "%d\n", os.Getpid()); err != nil {
			return
		}
	}
}

func (s *lineServer) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = false
	_ = s.listener.SetDeadline(time.Time{})
	s.loops.Go(func() {
		for {
			c, err := s.listener.AcceptTCP()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			if !s.paused {
				s.loops.Go(func() { s.serve(c) })
			}
			s.mu.Unlock()
		}
	})
	for c := range s.conns {
		_ = c.SetReadDeadline(time.Time{})
		s.loops.Go(func() { s.serve(c) })
	}
}

func (s *lineServer) pause() {
	s.mu.Lock()
	s.paused = true
	past := time.Unix(1, 0)
	_ = s.listener.SetDeadline(past)
	for c := range s.conns {
		_ = c.SetReadDeadline(past)
	}
	s.mu.Unlock()
	s.loops.Wait()
}

func (s *lineServer) giver(dir string) Giver {
	return Giver{
		Listeners: func() (handoff.Listeners, []syscall.RawConn, error) {
			raw, err := s.listener.SyscallConn()
			return handoff.Listeners{List: []handoff.Listener{{Name: "lines"}}}, []syscall.RawConn{raw}, err
		},
		Pause: func(context.Context) error {
			s.pause()
			if failure(dir) == "barrier" {
				return &Stuck{Err: errors.New("2 streams do not rest"), Oldest: []string{"order since 3 s"}}
			}
			return nil
		},
		Send: func(_ context.Context, say Say) (handoff.Counts, error) {
			var m handoff.Conns
			var files []syscall.RawConn
			for c := range s.conns {
				raw, err := c.SyscallConn()
				if err != nil {
					return handoff.Counts{}, err
				}
				m.Downstreams = append(m.Downstreams, handoff.Downstream{Listener: "lines"})
				files = append(files, raw)
			}
			return handoff.Counts{Downstreams: uint64(len(files))}, say(&m, files...)
		},
		Resume: s.resume,
		Gone: func() {
			s.listener.Close()
			for c := range s.conns {
				c.Close()
			}
		},
		Left: func() []string { return []string{"1 stream of a protocol that cannot be moved"} },
	}
}

func (s *lineServer) taker() Taker {
	return Taker{
		Build: func(_ context.Context, sockets *handoff.Listeners, files []*os.File, _ int) error {
			list := sockets.List
			switch s.fail {
			case "build":
				return errors.New("127.0.0.1:1: permission denied")
			case "crash":
				os.Exit(3)
			case "hang":
				time.Sleep(time.Hour)
			}
			if len(list) != 1 || list[0].Name != "lines" {
				return fmt.Errorf("the listeners are %v, want one that is called lines", list)
			}
			l, err := net.FileListener(files[0])
			closeFiles(files)
			if err == nil {
				s.listener = l.(*net.TCPListener)
			}
			return err
		},
		Take: func(_ handoff.Message, files []*os.File) error {
			for _, f := range files {
				c, err := net.FileConn(f)
				f.Close()
				if err != nil {
					return err
				}
				s.conns[c.(*net.TCPConn)] = true
			}
			return nil
		},
		Prepare: func() (handoff.Counts, error) {
			switch s.fail {
			case "crash-prepare":
				os.Exit(3)
			case "prepare":
				return handoff.Counts{}, errors.New("no memory for them")
			case "die":
				_ = syscall.Kill(os.Getppid(), syscall.SIGKILL)
			}
			return handoff.Counts{Downstreams: uint64(len(s.conns))}, nil
		},
		Forget: func() {},
		Start:  s.resume,
		Pauses: func() []Bucket { return []Bucket{{LE: 0.1, Count: uint64(len(s.conns))}} },
	}
}

// lineClient is one connection that outlives all generations.
type lineClient struct {
	conn net.Conn
	in   *bufio.Reader
}

// ask sends a line and returns the pid of who answered.
func (c *lineClient) ask(t *testing.T) string {
	t.Helper()
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	if _, err := c.conn.Write([]byte("who\n")); err != nil {
		t.Fatalf("asking: %v", err)
	}
	line, err := c.in.ReadString('\n')
	if err != nil {
		t.Fatalf("waiting for the answer: %v", err)
	}
	return strings.TrimSpace(line)
}
