package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

// trialTries is how often free ports are looked for. One that was free can be taken a moment later.
const trialTries = 3

// runTrial runs the built-in configuration with an echo server as its endpoint.
func runTrial(cmd *cobra.Command, typed string) error {
	c := config.Trial()
	wanted := doors(c)
	endpoint := &c.Clusters[0].Endpoints[0].Address

	upstream, err := listenEcho(string(*endpoint), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer upstream.Close()
	wantedEcho := string(*endpoint)
	*endpoint = config.Address(upstream.Addr().String())

	log, level := server.NewLogger(c.Log, cmd.ErrOrStderr())
	defer func() { _ = log.Sync() }() // a terminal cannot be synced, and says so
	var running atomic.Pointer[server.Server]
	ctx, stop := server.Signals(log, running.Load, func() {
		log.Warn("SIGHUP: nothing to do; a trial is not upgraded, its endpoint is part of it")
	})
	defer stop()
	var srv *server.Server
	for range trialTries {
		moveTaken(c)
		if srv, err = server.New(server.Options{Config: c, Log: log, Level: level, Build: buildInfo()}); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return err
	}

	running.Store(srv)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The server drains before its endpoint goes away, so that requests in flight get their replies.
	echoCtx, stopEcho := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEcho()
	var (
		wg      sync.WaitGroup
		echoErr error
	)
	wg.Go(func() { // ends with stopEcho
		echoErr = upstream.Run(echoCtx)
		cancel() // a trial without its endpoint is of no use
	})
	t := &trialGuide{typed: quoted(typed), listener: srv.Addresses()[c.Listeners[0].Name], echo: upstream.Addr(), admin: srv.AdminTCPAddress(), metrics: srv.MetricsAddress()}
	t.moved(wantedEcho, t.echo)
	t.moved(wanted[0], t.listener)
	t.moved(wanted[1], t.admin)
	t.moved(wanted[2], t.metrics)
	t.print(cmd.OutOrStdout())
	srv.Start()
	err = srv.Run(ctx)
	stopEcho()
	wg.Wait()
	return errors.Join(err, echoErr)
}

// listenEcho opens the echo server, on a free port if its own is taken.
func listenEcho(address string, log io.Writer) (*echo.Server, error) {
	s, err := echo.Listen(echo.Options{Listen: address, Log: log})
	if errors.Is(err, syscall.EADDRINUSE) {
		return echo.Listen(echo.Options{Listen: anyPort(address), Log: log})
	}
	return s, err
}

// doors is the addresses on which a trial listens: its listener's, the admin API's and that of the metrics.
func doors(c *config.Config) []string {
	return []string{string(c.Listeners[0].Address), string(c.Admin.TCP.Address), string(c.Metrics.Address)}
}

// moveTaken replaces the port of each address that cannot be had by 0, which stands for any.
func moveTaken(c *config.Config) {
	for _, a := range []*config.Address{&c.Listeners[0].Address, &c.Admin.TCP.Address, &c.Metrics.Address} {
		network, address := a.Split()
		l, err := net.Listen(network, address)
		if err == nil {
			_ = l.Close()
		} else if errors.Is(err, syscall.EADDRINUSE) {
			*a = config.Address(anyPort(address))
		}
	}
}

// anyPort is the address with port 0.
func anyPort(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return net.JoinHostPort(host, "0")
}

// trialGuide is what a trial tells people.
type trialGuide struct {
	typed                          string // the program, as the shell takes it
	listener, echo, admin, metrics net.Addr
	notes                          []string
}

// moved notes that an address is not the one that the documents speak of.
func (t *trialGuide) moved(wanted string, got net.Addr) {
	if wanted != got.String() {
		t.notes = append(t.notes, fmt.Sprintf("%s is taken, so %s is used instead.", wanted, got))
	}
}

func (t *trialGuide) print(w io.Writer) {
	var b strings.Builder
	fmt.Fprintf(&b, "Relevo %s, on trial. Ctrl-C ends it.\n\n", buildInfo().Version)
	for _, n := range t.notes {
		fmt.Fprintf(&b, "  %s\n", n)
	}
	if len(t.notes) > 0 {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "  %-8s %-28s forwards to the echo server\n", "bolt", t.listener)
	fmt.Fprintf(&b, "  %-8s %-28s answers each request with its content\n", "echo", t.echo)
	fmt.Fprintf(&b, "  %-8s http://%s/\n", "admin", t.admin)
	fmt.Fprintf(&b, "  %-8s http://%s/metrics\n\n", "metrics", t.metrics)
	fmt.Fprintf(&b, "Try in another terminal:\n\n")
	fmt.Fprintf(&b, "  %s call bolt --addr %s --service com.relevo.Echo:1.0 --content hello\n", t.typed, t.listener)
	fmt.Fprintf(&b, "  %s bench bolt --addr %s --duration 5s\n", t.typed, t.listener)
	fmt.Fprintf(&b, "  %s status --address http://%s\n", t.typed, t.admin)
	fmt.Fprintf(&b, "  curl -s http://%s/metrics | grep ^relevo_listener\n\n", t.metrics)
	_, _ = io.WriteString(w, b.String()) // a trial that nobody reads about still forwards
}

// quoted is a word as a shell takes it.
func quoted(word string) string {
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
