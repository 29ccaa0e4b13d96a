// Package systemd is how the process talks to the systemd that has started it: what it says of itself (Notifier), the
// sockets that it was given and those that are kept for it (Sockets, Store), and the journal. The unit is beside it.
//
// It starts no goroutines and knows nothing of what the process does. Where systemd has not started the process, or has not
// asked for it, all calls do nothing.
package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Notifier sends the messages of sd_notify(3) and sd_pid_notify_with_fds(3). Its zero value sends none. It never says MAINPID=,
// which makes systemd believe that the process is not its own child, nor RELOADING=, which a lost answer leaves standing for ever.
type Notifier struct{ address string }

// FromEnvironment is the Notifier that NOTIFY_SOCKET asks for. The variable stays: heirs need it, too.
func FromEnvironment() Notifier { return Notifier{os.Getenv("NOTIFY_SOCKET")} }

// Enabled says whether anybody listens.
func (n Notifier) Enabled() bool { return n.address != "" }

const (
	// sendTimeout bounds one message: systemd may be busy.
	sendTimeout = time.Second
	// maxStatus bounds the line of status, in bytes.
	maxStatus = 500
)

// Ready says that the process serves; systemd's patience until the next Alive begins anew.
func (n Notifier) Ready(status string) error {
	return n.send("READY=1\nWATCHDOG=1\n" + statusLine(status))
}

// Stopping says that the process has begun to stop.
func (n Notifier) Stopping(status string) error { return n.send("STOPPING=1\n" + statusLine(status)) }

// Status is the line that "systemctl status" shows.
func (n Notifier) Status(status string) error { return n.send(statusLine(status)) }

// Alive is the watchdog's ping.
func (n Notifier) Alive() error { return n.send("WATCHDOG=1") }

// Extend asks for more time to start or to stop, from now on.
func (n Notifier) Extend(d time.Duration) error {
	return n.send("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(d.Microseconds(), 10))
}

// Watchdog is how long systemd waits for Alive; 0 means that it does not.
func Watchdog() (time.Duration, error) { return daemon.SdWatchdogEnabled(false) }

func statusLine(s string) string {
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "?") // one line
	if len(s) > maxStatus {
		s = strings.ToValidUTF8(s[:maxStatus], "") + " ..."
	}
	return "STATUS=" + s
}

// send sends one message with these descriptors.
func (n Notifier) send(message string, files ...int) error {
	if n.address == "" {
		return nil
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.address, Net: "unixgram"}) // a leading @ is an abstract name
	if err != nil {
		return fmt.Errorf("telling systemd: %w", err)
	}
	defer c.Close()
	_ = c.SetWriteDeadline(time.Now().Add(sendTimeout)) // of a socket that is open
	raw, err := c.SyscallConn()
	if err == nil { // WriteMsgUnix refuses a datagram socket that is connected
		var sent error
		err = raw.Write(func(fd uintptr) bool {
			sent = unix.Sendmsg(int(fd), []byte(message), rights, nil, unix.MSG_NOSIGNAL)
			return !errors.Is(sent, unix.EAGAIN)
		})
		err = errors.Join(err, sent)
	}
	if err != nil {
		return fmt.Errorf("telling systemd: %w", err)
	}
	return nil
}

// Store has systemd keep a copy of a descriptor, under a name that StoreName made: if the process dies, the next one gets it
// from Sockets. What is stored already, under whichever name, is not stored again.
func (n Notifier) Store(name string, c syscall.Conn) error {
	if n.address == "" {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("storing %s: %w", name, err)
	}
	var sent error
	if err = raw.Control(func(fd uintptr) { sent = n.send("FDSTORE=1\nFDNAME="+name, int(fd)) }); err == nil {
		err = sent
	}
	if err != nil {
		return fmt.Errorf("storing %s: %w", name, err)
	}
	return nil
}

// Forget has systemd close all that it keeps under a name. There may be nothing.
func (n Notifier) Forget(name string) error { return n.send("FDSTOREREMOVE=1\nFDNAME=" + name) }

// Sync waits until systemd has done what the messages before asked for.
func (n Notifier) Sync(limit time.Duration) error {
	if n.address == "" {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("waiting for systemd: %w", err)
	}
	defer r.Close()
	err = n.barrier(w)
	_ = w.Close() // systemd's copy is the last one now
	if err != nil {
		return err
	}
	_ = r.SetReadDeadline(time.Now().Add(limit)) // of a pipe that is open
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("waiting for systemd: it has not answered within %v", limit)
	}
	return nil
}

func (n Notifier) barrier(w *os.File) error {
	raw, err := w.SyscallConn()
	if err != nil {
		return fmt.Errorf("waiting for systemd: %w", err)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = n.send("BARRIER=1", int(fd)) }); err != nil {
		return fmt.Errorf("waiting for systemd: %w", err)
	}
	return sent
}
