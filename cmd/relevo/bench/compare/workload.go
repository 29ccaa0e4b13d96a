package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// workload is a load, the same for each target.
type workload struct {
	name        string
	connections int
	inFlight    int // on each connection; 0 leaves it to the generator, as in an open loop
	size        int // bytes of content
	rate        int // requests a second over all connections; 0 is a closed loop
	// The CPU time per request to reach, as a multiple of haproxy's, inline and in worker mode; 0 where there is no goal.
	goal, workerGoal float64
}

// workloads are named connections x requests in flight on each x bytes of content.
var workloads = []workload{
	{"8x64x1K", 8, 64, 1 << 10, 0, 0.8, 1.8},
	{"64x16x1K", 64, 16, 1 << 10, 0, 0.8, 1.8},
	{"1x1x1K", 1, 1, 1 << 10, 0, 1.7, 0},
	{"8x16x16K", 8, 16, 16 << 10, 0, 0.9, 0},
	{"200x1x1K", 200, 1, 1 << 10, 0, 0.9, 0},
	{"open-3000", 64, 0, 1 << 10, 3000, 1.5, 0},
	{"open-10000", 64, 0, 1 << 10, 10000, 1.5, 0},
}

func (w workload) String() string {
	if w.rate > 0 {
		return fmt.Sprintf("%d connections, open loop, %d/s", w.connections, w.rate)
	}
	return w.name
}

// goalOf is the goal of a target, 0 where there is none.
func (w workload) goalOf(target string) float64 {
	switch target {
	case relevoName:
		return w.goal
	case workerName:
		return w.workerGoal
	}
	return 0
}

// args are what the generator is called with.
func (w workload) args() []string {
	args := []string{
		"--connections", strconv.Itoa(w.connections),
		"--size", strconv.Itoa(w.size),
	}
	if w.inFlight > 0 {
		args = append(args, "--in-flight", strconv.Itoa(w.inFlight))
	}
	if w.rate > 0 {
		args = append(args, "--rate", strconv.Itoa(w.rate))
	}
	return args
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

// choose returns the workloads of a list of names, in the order of the table; all for an empty list.
func choose(names string) ([]workload, error) {
	if names == "" {
		return workloads, nil
	}
	wanted := strings.Split(names, ",")
	for _, name := range wanted {
		if !slices.Contains(workloadNames(), name) {
			return nil, fmt.Errorf("no workload is called %q; there are %s", name, strings.Join(workloadNames(), ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(workloads), func(w workload) bool { return !slices.Contains(wanted, w.name) }), nil
}
