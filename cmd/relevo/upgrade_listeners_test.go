//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// There are more listeners than the kernel takes descriptors in one message: all go over, with who is connected.
func TestUpgradeWithManyListeners(t *testing.T) {
	const many = 300
	dir := t.TempDir()
	socket := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
	var text strings.Builder
	text.WriteString("listeners:\n")
	for i := range many {
		fmt.Fprintf(&text, "  - {name: l%d, address: %q, protocol: bolt, routes: rpc}\n", i, "unix:"+socket(i))
	}
	text.WriteString(strings.SplitN(goodConfig, "\n", 3)[2])
	p := newChain(t, os.Args[0], patientUpgrades, text.String())

	beat := func(c net.Conn) error {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := c.Write(bolt.Codec{}.AppendHeartbeat(nil, 7)); err != nil {
			return err
		}
		ack := make([]byte, 20)
		if _, err := io.ReadFull(c, ack); err != nil {
			return err
		}
		if !bytes.Equal(ack[5:9], []byte{0, 0, 0, 7}) {
			return fmt.Errorf("the heartbeat is answered %x", ack)
		}
		return nil
	}
	var clients [many]net.Conn
	for i := range clients {
		c, err := net.Dial("unix", socket(i))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients[i] = c
	}
	for n := range 2 {
		p.upgrade(t)
		p.until(t, func(m reading) error { // each counts on along the chain
			return m.is(uint64(n+1), "relevo_upgrade_transitions_total", "from=committed", "to=given")
		})
		for i, c := range clients {
			if err := beat(c); err != nil {
				t.Fatalf("behind upgrade %d, on the connection of listener %d: %v", n+1, i, err)
			}
		}
	}
	for i := range many {
		c, err := net.Dial("unix", socket(i))
		if err == nil {
			err = beat(c)
			c.Close()
		}
		if err != nil {
			t.Fatalf("behind both upgrades, on a new connection to listener %d: %v", i, err)
		}
	}
	p.stop(t)
}

// The file of the admin socket has the rights that the configuration says now, also where it said others when the socket was opened.
func TestRightsOfTheSocketChange(t *testing.T) {
	address, _ := adminOf(t)
	file := strings.TrimPrefix(address, "unix:")
	group := os.Getegid()
	if groups, err := os.Getgroups(); err == nil && len(groups) > 0 {
		group = groups[len(groups)-1] // any that this process may give it
	}
	if os.Geteuid() == 0 {
		group = 1
	}
	p := newChain(t, os.Args[0], patientUpgrades, goodConfig+fmt.Sprintf("admin: {address: %q, mode: \"0600\", group: \"%d\"}\n", address, group))
	check := func(what string, mode os.FileMode, group int) {
		t.Helper()
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if gid := int(info.Sys().(*syscall.Stat_t).Gid); info.Mode().Perm() != mode || gid != group {
			t.Errorf("%s: the file has the mode %v and the group %d, want %v and %d", what, info.Mode().Perm(), gid, mode, group)
		}
	}
	check("at the start", 0o600, group)
	for _, more := range []string{fmt.Sprintf(`, group: "%d"`, os.Getegid()), ""} {
		if err := errors.Join(os.Chown(file, -1, group), os.Chmod(file, 0o600)); err != nil { // as it was at the start
			t.Fatal(err)
		}
		said(t, address, "set", "admin", fmt.Sprintf("{address: %q%s}", address, more))
		p.upgrade(t)
		check("behind an upgrade to {address: ..."+more+"}", 0o660, os.Getegid())
	}
	p.stop(t)
}
