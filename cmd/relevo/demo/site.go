package demo

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/relevo-proxy/relevo/server/config"
)

// file is one of the sample's files.
type file struct {
	name   string
	text   string
	config *config.Config
}

// files are those of the whole sample, by name.
type files map[string]file

// server is the address of the server at the end of the road: the only one that is connected to and at which
// no file listens.
func (fs files) server() string {
	var listening, dialled []string
	for _, f := range fs {
		listening = append(listening, f.listening()...)
		for _, k := range f.config.Clusters {
			for _, e := range k.Endpoints {
				dialled = append(dialled, string(e.Address))
			}
		}
	}
	for _, a := range dialled {
		if !slices.Contains(listening, a) {
			return a
		}
	}
	return ""
}

// listening is every address that a process with this file binds.
func (f *file) listening() (list []string) {
	for _, l := range f.config.Listeners {
		list = append(list, string(l.Address))
	}
	if f.config.Metrics != nil {
		list = append(list, string(f.config.Metrics.Address))
	}
	return list
}

// hop is one listener on the road.
type hop struct {
	listener string
	process  int    // index of the file
	address  string // of the listener
	metrics  string // address of its process's counters
}

// site is a phase on this machine: its files with addresses that can be had.
type site struct {
	files   []file
	hops    []hop
	moved   []string // a line about each address that is not the sample's
	end     string   // the echo server's address
	runtime string   // the folder of the pid file; empty where no process is replaced
}

// settle fits the phase's files to this machine. The files stay what they are but for the addresses that are
// taken, and that of the server.
func settle(p phase, sample files, server string) (*site, error) {
	s := &site{end: server}
	replace := []string{sample.server(), server}
	for _, name := range p.files {
		f := sample[name]
		for _, wanted := range f.listening() {
			got, err := free(wanted)
			if err != nil {
				return nil, err
			}
			if got != wanted {
				replace = append(replace, wanted, got)
				s.moved = append(s.moved, fmt.Sprintf("%s is taken, so %s is used instead.", wanted, got))
			}
		}
	}
	replacer := strings.NewReplacer(replace...)
	for i, name := range p.files {
		text := replacer.Replace(sample[name].text)
		c, err := config.Parse([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		s.files = append(s.files, file{name, text, c})
		for _, l := range c.Listeners {
			s.hops = append(s.hops, hop{l.Name, i, string(l.Address), string(c.Metrics.Address)})
		}
	}
	return s, nil
}

// entry is where clients connect to.
func (s *site) entry() string { return s.hops[0].address }

// road draws the way of a request.
func (s *site) road(c *crew) string {
	stops := []string{"load"}
	for _, h := range s.hops {
		stops = append(stops, fmt.Sprintf("%s %s (process %d)", h.listener, h.address, c.members[h.process].pid))
	}
	return strings.Join(append(stops, "echo server "+s.end), " -> ")
}

// free is the address, or, where that is taken, one with a port that is not.
func free(address string) (string, error) {
	for _, try := range []string{address, anyPort(address)} {
		l, err := net.Listen("tcp", try)
		if err == nil {
			return l.Addr().String(), l.Close()
		}
		if !inUse(err) {
			return "", err
		}
	}
	return "", fmt.Errorf("no port is free: %w", syscall.EADDRINUSE)
}

func anyPort(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return net.JoinHostPort(host, "0")
}

func inUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// because says why an address is not the wanted one.
func because(wanted, got string) string {
	if wanted == got {
		return ""
	}
	return ", because " + wanted + " is taken"
}
