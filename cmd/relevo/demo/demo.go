// Package demo shows the forwarder at work: the sidecar sample, in which a request crosses two listeners, under
// load of which every reply is verified; and in the end its process is replaced several times under such load. It runs the
// program as people do, each hop a process of its own with a configuration file, and believes a hop's counters only if they
// say what was sent.
//
// It is no test of limits and no benchmark. The echo server and the load generator live in this process; Run
// owns their goroutines and every process that it starts, and has ended them all when it returns.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/examples"
	"github.com/relevo-proxy/relevo/server/config"
)

// Options say what to show. The zero value of each but Out stands for the default named with it.
type Options struct {
	Out        io.Writer
	Executable string        // the program to run as the forwarder; this one
	Load       time.Duration // how long each of the loads lasts; 1.5 s
	Rate       float64       // requests a second while processes are replaced; as many as come through
}

// phase is one way to run the sample.
type phase struct {
	title    string
	files    []string // a process each, in the order of the hops
	upgrades int      // how often the first process is replaced, under one load in place of the others
}

var phases = []phase{
	{"One process with both listeners", []string{"both.yaml"}, 0},
	{"Two processes, as two sidecars", []string{"client.yaml", "server.yaml"}, 0},
	{"One process with both listeners, replaced three times under load", []string{"both.yaml"}, 3},
}

// demo is one showing.
type demo struct {
	// Static after Run has begun.
	out        io.Writer
	executable string
	load       time.Duration
	rate       float64
	folder     string // of the files that the processes load
	upstream   *echo.Server
	server     string // its address
	requests   uint64 // sent so far
}

// Run shows all phases and returns nil if not one request came to anything but its own reply.
func Run(ctx context.Context, o Options) (err error) {
	d := &demo{out: o.Out, executable: o.Executable, load: o.Load, rate: o.Rate}
	if d.load == 0 {
		d.load = 1500 * time.Millisecond
	}
	if d.executable == "" {
		if d.executable, err = os.Executable(); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	if d.folder, err = os.MkdirTemp("", "relevo-demo-"); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.folder)) }()
	if err := d.run(ctx); err != nil {
		if ctx.Err() != nil {
			return errors.New("demo: interrupted")
		}
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

func (d *demo) run(ctx context.Context) error {
	sample, err := read(phases)
	if err != nil {
		return err
	}
	wanted := sample.server()
	if d.upstream, err = listen(wanted); err != nil {
		return err
	}
	d.server = d.upstream.Addr().String()
	echoCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { err = d.upstream.Run(echoCtx) }) // ends with stop
	failed := d.show(ctx, sample, wanted)
	stop()
	wg.Wait()
	return errors.Join(failed, err)
}

// listen opens the echo server, at any port if its own is taken.
func listen(address string) (*echo.Server, error) {
	s, err := echo.Listen(echo.Options{Listen: address})
	if inUse(err) {
		return echo.Listen(echo.Options{Listen: anyPort(address)})
	}
	return s, err
}

func (d *demo) show(ctx context.Context, sample files, wanted string) error {
	fmt.Fprintf(d.out, "The server is an echo server at %s%s.\n", d.server, because(wanted, d.server))
	for i, p := range phases {
		fmt.Fprintf(d.out, "\n%d. %s\n\n", i+1, p.title)
		if err := d.phase(ctx, p, sample); err != nil {
			return fmt.Errorf("%s: %w", strings.ToLower(p.title), err)
		}
	}
	_, err := fmt.Fprintf(d.out, "\n%d requests went through two hops each; all came back once, unchanged, with SUCCESS.\n", d.requests)
	return err
}

// startTries is how often a phase is begun. A port that was free can be taken before it is bound.
const startTries = 3

// phase starts the processes, sends the loads and reads the counters.
func (d *demo) phase(ctx context.Context, p phase, sample files) (err error) {
	var (
		site *site
		hops *crew
	)
	for try := 1; ; try++ {
		if site, err = settle(p, sample, d.server); err != nil {
			return err
		}
		if p.upgrades > 0 {
			if err = site.relay(d.folder); err != nil {
				return err
			}
		}
		if hops, err = d.start(ctx, site); err == nil {
			break
		}
		if !errors.Is(err, errTaken) || try == startTries {
			return err
		}
	}
	// Whatever comes, no process is left. That they end well is a part of what is shown.
	defer func() { err = errors.Join(err, hops.stop()) }()
	for _, moved := range site.moved {
		fmt.Fprintf(d.out, indent+"%s\n", moved)
	}
	fmt.Fprintf(d.out, indent+"%s\n\n", site.road(hops))

	var reports []*bench.Report
	if p.upgrades > 0 {
		reports, err = d.replace(ctx, site, hops.members[0], p.upgrades)
	} else {
		reports, err = d.send(ctx, site.entry())
	}
	if ctx.Err() != nil {
		return err
	}
	if err != nil { // where the load has failed, the counters tell why, and need not agree
		counted, scrapeErr := scrape(ctx, site.hops)
		printCounters(d.out, site.hops, counted)
		return errors.Join(err, scrapeErr)
	}
	counted, err := settled(ctx, site.hops, reports)
	printCounters(d.out, site.hops, counted)
	return err
}

// start writes the files of a site and runs a process on each.
func (d *demo) start(ctx context.Context, s *site) (*crew, error) {
	c := &crew{}
	for i, f := range s.files {
		path := filepath.Join(d.folder, f.name)
		err := os.WriteFile(path, []byte(f.text), 0o600)
		if err == nil {
			err = c.launch(f.name, d.executable, "run", "-c", path)
		}
		if err == nil {
			err = c.members[i].ready(ctx, string(f.config.Metrics.Address))
		}
		if err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	return c, nil
}

// send sends one load after another and prints what came of each. The error says what was not as it must be.
func (d *demo) send(ctx context.Context, address string) ([]*bench.Report, error) {
	var (
		reports []*bench.Report
		errs    []error
	)
	t := newTable(loadHead...)
	for _, l := range loads {
		o := l.options
		o.Addr, o.Duration, o.Timeout = address, d.load, requestTimeout
		r, err := bench.Run(ctx, o)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.name, err))
			break
		}
		reports = append(reports, r)
		d.requests += r.Sent
		t.row(loadCells(l.name, r)...)
		if r.Failed() {
			errs = append(errs, fmt.Errorf("%s: %s", l.name, failures(r)))
		}
		if r.Interrupted {
			errs = append(errs, errors.New("interrupted"))
			break
		}
	}
	t.print(d.out)
	return reports, errors.Join(errs...)
}

// read reads all files of the phases.
func read(phases []phase) (files, error) {
	all := files{}
	for _, p := range phases {
		for _, name := range p.files {
			text, err := fs.ReadFile(examples.Sidecar, "sidecar/"+name)
			if err != nil {
				return nil, err
			}
			c, err := config.Parse(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			all[name] = file{name, string(text), c}
		}
	}
	return all, nil
}
