package server

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/relevo-proxy/relevo/forwarder/conn"
	"github.com/relevo-proxy/relevo/server/config"
)

// garbage is the collector of this process. It rests while connections wait for a hand-over: what that makes is little garbage, and
// a collection would take half of the processors from it.
var garbage collector

// collector starts and stops the garbage collector.
type collector struct {
	mu      sync.Mutex
	holds   int
	percent int // that holds when it works
}

// hold stops it until release was called as often. A memory limit that is set holds all the same.
func (c *collector) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds++; c.holds == 1 {
		c.percent = debug.SetGCPercent(-1)
	}
}

func (c *collector) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds--; c.holds == 0 {
		debug.SetGCPercent(c.percent)
	}
}

// connectionMemory is about what a connection costs while it is taken over, in bytes.
const connectionMemory = 8 << 10

// makeRoom has the system give the memory now that so many connections will need. It would do so page by page, when each is first
// written to, which would be a quarter of a pause.
func makeRoom(connections int) {
	limit, _ := memoryLimit()
	room := make([]byte, min(int64(connections)*connectionMemory, limit/16))
	_ = unix.Madvise(room, unix.MADV_POPULATE_WRITE) // since Linux 5.14; before that pages come when they must
	runtime.GC()                                     // nobody has it any more: it is for what comes
}

// minBuffered is the least that max_buffered is when the configuration leaves it to the machine.
const minBuffered = 64 << 20

// maxBuffered is the budget of buffered bytes: what the configuration says, else a quarter of the memory
// limit. A frame that a listener admits must fit into the part of it that requests may fill.
func maxBuffered(c *config.Config) (int64, error) {
	limit, from := int64(0), "max_buffered"
	if c.MaxBuffered != nil {
		limit = int64(*c.MaxBuffered)
	} else {
		memory, source := memoryLimit()
		limit, from = max(memory/4, minBuffered), "max_buffered, by default a quarter of "+source
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if least := conn.LeastBudget(int(l.MaxFrame)); limit < least {
			return 0, fmt.Errorf("%s is %v: a frame as large as max_frame (%v) of listener %s needs at least %v",
				from, config.Size(limit), l.MaxFrame, l.Name, config.Size(least))
		}
	}
	return limit, nil
}

// CheckBuffers says whose whole frames do not fit into max_buffered. Where the configuration leaves that to the machine, it is this one.
func CheckBuffers(c *config.Config) error {
	if _, err := maxBuffered(c); err != nil {
		return &ConfigError{err}
	}
	return nil
}

// fromMachine is who says so where nobody has set a limit.
const fromMachine = "the machine's memory"

// memoryLimit is how many bytes of memory this process may use, and who says so: GOMEMLIMIT, else the control
// group, else the machine.
func memoryLimit() (limit int64, from string) {
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 && os.Getenv("GOMEMLIMIT") != "" {
		return limit, "GOMEMLIMIT"
	}
	machine := machineMemory()
	if group := groupMemory(); group > 0 && group < machine {
		return group, "the control group's memory limit"
	}
	return machine, fromMachine
}

// machineMemory is the memory of the machine in bytes; 1 GiB where the kernel does not tell.
func machineMemory() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err == nil {
		lines := bufio.NewScanner(bytes.NewReader(data))
		for lines.Scan() {
			if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "MemTotal:" {
				if kib, err := strconv.ParseInt(f[1], 10, 64); err == nil {
					return kib << 10
				}
			}
		}
	}
	return 1 << 30
}

// groupMemory is the smallest memory limit of the control groups (version 2) that the process is in, 0 where
// there is none.
func groupMemory() int64 {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	var least int64
	for line := range strings.Lines(string(data)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for ; ; group = path.Dir(group) {
			if text, err := os.ReadFile(path.Join("/sys/fs/cgroup", group, "memory.max")); err == nil {
				n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
				if err == nil && n > 0 && (least == 0 || n < least) {
					least = n // "max" does not parse, and limits nothing
				}
			}
			if group == "/" || group == "." {
				break
			}
		}
	}
	return least
}
