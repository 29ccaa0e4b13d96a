package admin

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestListenTCP(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	defer l.Close()
	_, err := Listen(l.Addr().String(), SocketFile{})
	if err == nil || !strings.HasPrefix(err.Error(), "listen tcp "+l.Addr().String()+": ") {
		t.Errorf("listening on a taken port gives %v, want an error with the address", err)
	}
}

func TestListenRefusesAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"":                        `listen on "": want HOST:PORT or unix:/PATH: `,
		"127.0.0.1":               `listen on "127.0.0.1": want HOST:PORT or unix:/PATH: `,
		"unix:":                   "listen on unix:: the path is not absolute",
		"unix:a.sock":             "listen on unix:a.sock: the path is not absolute",
		"unix:@a":                 "listen on unix:@a: the path is not absolute",
		"unix:/nowhere/at/all":    "listen on unix:/nowhere/at/all: ",
		"unix:/" + longName:       "listen on unix:/" + longName + ": the path has 108 bytes, the kernel takes 107",
		"unix:/tmp/../" + "\x00x": "listen on unix:/tmp/../\x00x: ",
	} {
		l, err := Listen(address, SocketFile{})
		if err == nil {
			_ = l.Close()
		}
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("Listen(%q) gives %v, want %s", address, err, want)
		}
	}
}

var longName = strings.Repeat("x", 107)

func TestSocketFileRights(t *testing.T) {
	mode := func(path string) fs.FileMode {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode()
	}
	for _, tc := range []struct {
		file SocketFile
		want fs.FileMode
	}{
		{SocketFile{}, 0o660},
		{SocketFile{Mode: 0o600}, 0o600},
		{SocketFile{Mode: 0o666, Group: strconv.Itoa(os.Getgid())}, 0o666},
	} {
		path := t.TempDir() + "/a.sock"
		l, err := Listen("unix:"+path, tc.file)
		if err != nil {
			t.Errorf("listen with %+v: %v", tc.file, err)
			continue
		}
		if got := mode(path); got != fs.ModeSocket|tc.want {
			t.Errorf("with %+v the file is %v, want %v", tc.file, got, fs.ModeSocket|tc.want)
		}
		_ = l.Close()
	}

	path := t.TempDir() + "/a.sock"
	l, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := mode(path); got&0o077 != 0 {
		t.Errorf("before the group is set the file is %v, want it closed to all but the owner", got)
	}
	_ = l.Close()

	path = t.TempDir() + "/a.sock"
	if _, err := Listen("unix:"+path, SocketFile{Group: "no-such-group"}); err == nil || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("with an unknown group: %v, want an error with its name", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the refusal the path gives %v, want nothing there", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := t.TempDir() + "/a.sock"
	leaveStale(t, path)
	l := listen(t, "unix:"+path)
	serve(t, l, okHandler, defaultLimits)
	if got := ask(t, client(t, l), "GET", base+"/"); got.code != 200 {
		t.Errorf("on the place of a stale socket the answer is %d, want 200", got.code)
	}
}

// leaveStale leaves a socket file at path as a process does that is killed.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
}

func TestWhatIsInTheWayStays(t *testing.T) {
	for name, tc := range map[string]struct {
		put  func(t *testing.T, path string)
		want string
	}{
		"a live socket": {func(t *testing.T, path string) {
			serve(t, listen(t, "unix:"+path), okHandler, defaultLimits)
		}, "another process answers there"},
		"a regular file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "the path exists and is not a socket"},
		"an empty file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "the path exists and is not a socket"},
		"a folder": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "the path exists and is not a socket"},
		"a link to a stale socket": {func(t *testing.T, path string) {
			leaveStale(t, path+".target")
			if err := os.Symlink(path+".target", path); err != nil {
				t.Fatal(err)
			}
		}, "the path exists and is not a socket"},
		"a link to nothing": {func(t *testing.T, path string) {
			if err := os.Symlink(path+".target", path); err != nil {
				t.Fatal(err)
			}
		}, "the path exists and is not a socket"},
		"a socket of another type": {func(t *testing.T, path string) {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
		}, "a socket is there already, and it cannot be told whether it is in use: "},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir() + "/a.sock"
			tc.put(t, path)
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			l, err := Listen("unix:"+path, SocketFile{})
			if err == nil {
				_ = l.Close()
			}
			if err == nil || !strings.HasPrefix(err.Error(), "listen on unix:"+path+": "+tc.want) {
				t.Errorf("Listen gives %v, want %s", err, tc.want)
			}
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) || before.Mode() != after.Mode() || before.Size() != after.Size() {
				t.Errorf("afterwards the path holds %v, %v; want %v", after, err, before)
			}
		})
	}
}

func TestCloseLeavesTheFileOfAnother(t *testing.T) {
	path := t.TempDir() + "/a.sock"
	s := NewServer(listen(t, "unix:"+path), okHandler, zap.NewNop())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other := listen(t, "unix:"+path)
	serve(t, other, okHandler, defaultLimits)
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if got := ask(t, client(t, other), "GET", base+"/"); got.code != 200 {
		t.Errorf("the other listener answers %d, want 200", got.code)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket file of the other gives %v, want it there", err)
	}
}
