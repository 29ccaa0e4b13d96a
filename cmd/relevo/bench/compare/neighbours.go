package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// What bad neighbours cost the others: a moderate load of small requests, in turns on its own and beside clients and servers
// that misbehave. What is measured lasts for a time of its own, because it is a share of a second that counts, not a rate.
const (
	neighbourRounds   = 3
	neighbourDuration = 2 * time.Second
	neighbourWarmup   = 500 * time.Millisecond

	smallConnections = 63
	smallSize        = 1 << 10
	smallRate        = 5000
	smallTimeout     = time.Second

	largeConnections = 64
	largeSize        = 16_770_000 // of content: the frame is just below 16 MiB
	largeTimeout     = 10 * time.Second
	largeLead        = time.Second // from the first large frame to the first small one
)

// condition is what happens beside the small requests.
type condition string

const (
	quiet     condition = "quiet"
	disturbed condition = "disturbed"
	// busy is the large frames sent past Relevo: the machine has as much to do, Relevo has not.
	busy condition = "equally busy"
)

// neighbourCase is one kind of bad neighbour. Beside it the small requests call service, without it the good one.
type neighbourCase struct {
	name       string
	conditions []condition // in the order of the table
	service    string
	deaf       bool // one client sends and never reads
	silent     bool // one endpoint of three takes requests and never answers
	large      bool // clients send frames of 16 MiB
}

var neighbourCases = []neighbourCase{
	{
		name:       "one of 64 clients never reads, one endpoint of three never answers",
		conditions: []condition{quiet, disturbed}, service: silentService, deaf: true, silent: true,
	},
	{
		name:       "64 more connections send 16 MiB frames",
		conditions: []condition{quiet, disturbed, busy}, service: service, large: true,
	},
}

// neighbourResult is one run of the small requests, and what happened beside it.
type neighbourResult struct {
	Case      string        `json:"case"`
	Condition condition     `json:"condition"`
	Round     int           `json:"round"` // from 1
	Small     bench.Report  `json:"small"`
	Large     *bench.Report `json:"large,omitempty"`
	Peak      peak          `json:"peak"`
}

// measureNeighbours runs each case in each of its conditions, in turns; who is first rotates.
func measureNeighbours(ctx context.Context, o options, n *neighbourhood) ([]neighbourResult, error) {
	var results []neighbourResult
	for _, c := range neighbourCases {
		for round := range neighbourRounds {
			for turn := range c.conditions {
				r := neighbourResult{Case: c.name, Condition: c.conditions[(round+turn)%len(c.conditions)], Round: round + 1}
				err := n.run(ctx, o, c, &r)
				if ctx.Err() != nil {
					return nil, errors.New("interrupted: nothing is written")
				}
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", c.name, r.Condition, err)
				}
				results = append(results, r)
				fmt.Fprintf(os.Stderr, "neighbours  round %d  %-12s %s\n", r.Round, r.Condition, neighbourFiguresOf(c, r))
			}
		}
	}
	return results, nil
}

// run makes one run of a case and fills in its result. All that it started has ended when it returns.
func (n *neighbourhood) run(ctx context.Context, o options, c neighbourCase, r *neighbourResult) (err error) {
	watch := n.watch(ctx)
	defer func() {
		peak, failure := watch.end()
		r.Peak = peak
		err = errors.Join(err, failure, n.relevo.Alive())
	}()

	called := service
	if r.Condition == disturbed {
		called = c.service
	}
	if c.deaf && r.Condition == disturbed {
		deaf, err := n.deafen(ctx, called)
		if err != nil {
			return err
		}
		defer deaf.close()
	}
	finish := func() error { return nil }
	if c.large && r.Condition != quiet {
		finish = n.startLarge(ctx, o, r)
	}

	r.Small, err = generate(ctx, o, neighbourDuration,
		"--addr", n.address, "--service", called,
		"--connections", strconv.Itoa(smallConnections), "--rate", strconv.Itoa(smallRate), "--size", strconv.Itoa(smallSize),
		"--timeout", smallTimeout.String(), "--warmup", neighbourWarmup.String(), "--duration", neighbourDuration.String())
	if c.deaf && r.Condition == disturbed && err == nil {
		err = n.stillGated(ctx)
	}
	return errors.Join(err, finish())
}

// startLarge starts the large frames, through Relevo or past it, and returns what waits for their end. They begin before
// the small requests and last longer.
func (n *neighbourhood) startLarge(ctx context.Context, o options, r *neighbourResult) (finish func() error) {
	address := n.address
	if r.Condition == busy {
		address = n.largeEcho
	}
	length := largeLead + neighbourWarmup + neighbourDuration
	var report bench.Report
	var failure error
	var group sync.WaitGroup
	// Ends when the generator does: within its duration and the slack.
	group.Go(func() {
		report, failure = generate(ctx, o, length,
			"--addr", address, "--service", largeService,
			"--connections", strconv.Itoa(largeConnections), "--in-flight", "1", "--size", strconv.Itoa(largeSize),
			"--timeout", largeTimeout.String(), "--duration", length.String())
	})
	lead := time.NewTimer(largeLead)
	defer lead.Stop()
	select {
	case <-lead.C:
	case <-ctx.Done():
	}
	return func() error {
		group.Wait()
		r.Large = &report
		return failure
	}
}
