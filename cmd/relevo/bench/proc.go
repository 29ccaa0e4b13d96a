package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// usage is what a process had used at some moment.
type usage struct {
	exact time.Duration // on-CPU time of the threads that live, from schedstat; 0 where there is none
	ticks time.Duration // user and system time of all threads there ever were, to 10 ms
	rss   uint64        // bytes
}

// clockTick is USER_HZ, which Linux fixes for what it shows in /proc.
const clockTick = 10 * time.Millisecond

// readUsage reads what the process has used so far.
func readUsage(pid int) (usage, error) {
	var u usage
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	// The name in parentheses may hold anything; the fields after it are the third and on (proc_pid_stat(5)).
	rest := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(rest) < 22 {
		return u, fmt.Errorf("reading the CPU time of process %d: %d fields in stat", pid, len(rest))
	}
	u.ticks = time.Duration(number(rest[11])+number(rest[12])) * clockTick
	u.rss = number(rest[21]) * uint64(os.Getpagesize())
	threads, _ := filepath.Glob(dir + "/task/*/schedstat")
	for _, name := range threads {
		if b, err := os.ReadFile(name); err == nil { // a thread may have ended since
			if f := bytes.Fields(b); len(f) > 0 {
				u.exact += time.Duration(number(f[0]))
			}
		}
	}
	return u, nil
}

func number(b []byte) uint64 {
	n, _ := strconv.ParseUint(string(b), 10, 64)
	return n
}

// since is the CPU time used since the earlier reading. The exact sum misses threads that ended in between;
// where the ticks show that it did, they count.
func (u usage) since(earlier usage) time.Duration {
	exact, ticks := u.exact-earlier.exact, u.ticks-earlier.ticks
	if u.exact == 0 || exact < ticks-ticks/20-2*clockTick {
		return ticks
	}
	return exact
}
