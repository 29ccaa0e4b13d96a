// Command scale measures how what a request costs changes with the number of connections, routes, endpoints and requests in
// flight, and writes the curves, with their tables, into the page of the benchmarks.
//
// It is load generator and echo server itself, in one process, and starts Relevo and what Relevo is compared with; it ends
// those and no other. The figure is the proxy's own CPU time per request.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench/yard"
)

type options struct {
	relevo   string
	floor    string // empty for none
	haproxy  string // empty for none
	rounds   int
	duration time.Duration
	only     string
	out      string // empty for standard output, without charts
	charts   string // where the page finds them, relative to its own folder
}

func main() {
	var o options
	flag.StringVar(&o.relevo, "relevo", "bin/relevo", "the binary to measure")
	flag.StringVar(&o.floor, "floor", "bin/floor", "the binary of cmd/relevo/bench/floor; empty for none")
	flag.StringVar(&o.haproxy, "haproxy", "haproxy", "haproxy, looked up on the path and in sbin; empty for none")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each point is measured; the median counts")
	flag.DurationVar(&o.duration, "duration", time.Second, "length of one measurement")
	flag.StringVar(&o.only, "curves", "", "names separated by commas, of "+strings.Join(names(), ", ")+" (default all)")
	flag.StringVar(&o.out, "out", "", "the Markdown file whose section is written (default: print it, without charts)")
	flag.StringVar(&o.charts, "charts", "benchmarks", "the folder of the charts, beside that file")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := scale(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func names() []string {
	var list []string
	for _, c := range curves {
		list = append(list, c.name)
	}
	return list
}

// scale measures the chosen curves and writes them.
func scale(ctx context.Context, o options) (err error) {
	chosen := curves
	if o.only != "" {
		wanted := strings.Split(o.only, ",")
		for _, name := range wanted {
			if !slices.Contains(names(), name) {
				return fmt.Errorf("no curve is called %q; there are %s", name, strings.Join(names(), ", "))
			}
		}
		if o.out != "" {
			return errors.New("-curves prints what it measures: the section of a page has all of them")
		}
		chosen = slices.DeleteFunc(slices.Clone(curves), func(c curve) bool { return !slices.Contains(wanted, c.name) })
	}
	if o.rounds < 1 || o.duration <= 0 {
		return errors.New("-rounds and -duration must be positive")
	}
	if o.relevo, err = yard.Binary(o.relevo); err != nil {
		return fmt.Errorf("%w: build it with `make build`", err)
	}
	if o.floor != "" {
		if o.floor, err = yard.Binary(o.floor); err != nil {
			return fmt.Errorf("%w: build it with `make build-floor`", err)
		}
	}
	if o.haproxy != "" {
		if o.haproxy, err = yard.Find(o.haproxy); err != nil {
			return err
		}
	}
	return yard.Run(ctx, func(ctx context.Context, y *yard.Yard) error {
		r := &rig{options: o, yard: y}
		var found []measured
		for _, c := range chosen {
			fmt.Fprintf(os.Stderr, "%s\n", c.title)
			m, err := c.measure(ctx, r)
			if ctx.Err() != nil {
				return errors.New("interrupted: nothing is written")
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			found = append(found, m)
		}
		return write(ctx, o, chosen, found)
	})
}
