package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// trace keeps what a process says, its collector's lines among it.
type trace struct {
	mu   sync.Mutex
	said []byte // Guarded by mu.
}

// maxTrace bounds what is kept: thousands of collections.
const maxTrace = 4 << 20

func (t *trace) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.said)+len(b) > maxTrace {
		return 0, fmt.Errorf("a process has said more than %d bytes", maxTrace)
	}
	t.said = append(t.said, b...)
	return len(b), nil
}

func (t *trace) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.said)
}

// from is what was said since it had this length.
func (t *trace) from(mark int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.said[mark:])
}

// last is what was said last that is not the collector's, for errors.
func (t *trace) last() string {
	last := "nothing"
	for line := range strings.Lines(t.from(0)) {
		if !strings.HasPrefix(line, "gc ") {
			last = strings.TrimSpace(line)
		}
	}
	return last
}

// cycle is one collection: how long the world stood still, and the CPU time of all of it.
type cycle struct{ paused, cpu time.Duration }

// cycles reads the lines of GODEBUG=gctrace=1 (package runtime describes them) and passes over all others:
//
//	gc 3 @1.2s 0%: 0.018+1.3+0.004 ms clock, 0.036+0.2/1.2/0.5+0.009 ms cpu, 4->4->2 MB, ...
func cycles(said string) (all []cycle, err error) {
	for line := range strings.Lines(said) {
		if !strings.HasPrefix(line, "gc ") {
			continue
		}
		_, rest, ok := strings.Cut(line, ": ")
		clock, rest, ok2 := strings.Cut(rest, " ms clock, ")
		cpu, _, ok3 := strings.Cut(rest, " ms cpu")
		phases, err := millis(clock)
		if !ok || !ok2 || !ok3 || err != nil || len(phases) != 3 {
			return nil, fmt.Errorf("the collector said %q, and that is not understood", strings.TrimSpace(line))
		}
		used, err := millis(cpu)
		if err != nil {
			return nil, err
		}
		one := cycle{paused: phases[0] + phases[2]}
		for _, d := range used {
			one.cpu += d
		}
		all = append(all, one)
	}
	return all, nil
}

// millis reads numbers of milliseconds with + or / between them.
func millis(s string) (all []time.Duration, err error) {
	for part := range strings.SplitSeq(strings.ReplaceAll(s, "/", "+"), "+") {
		ms, err := strconv.ParseFloat(part, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, time.Duration(ms*float64(time.Millisecond)))
	}
	return all, nil
}
