package main

import (
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

func callVerb() *cobra.Command {
	return protocols(&cobra.Command{
		Use:   "call",
		Short: "Make one call and show what comes back",
	}, callBolt())
}

// content is the ways to say what a request carries.
type content struct {
	text, hex string
	size      int
}

func (c content) bytes(cmd *cobra.Command) ([]byte, error) {
	given := 0
	for _, name := range []string{"content", "content-hex", "size"} {
		if cmd.Flags().Changed(name) {
			given++
		}
	}
	switch {
	case given > 1:
		return nil, misused("--content, --content-hex and --size exclude each other")
	case c.hex != "":
		b, err := hex.DecodeString(strings.Join(strings.Fields(c.hex), ""))
		if err != nil {
			return nil, misused("--content-hex: %w", err)
		}
		return b, nil
	case c.size < 0 || c.size > maxContent:
		return nil, misused("--size %d: want 0 to %d", c.size, maxContent)
	case c.size > 0:
		b := make([]byte, c.size)
		for i := range b {
			b[i] = byte(i)
		}
		return b, nil
	}
	return []byte(c.text), nil
}

// maxContent is the size in bytes of the largest request that makes sense: no listener takes a larger frame.
const maxContent = 256 << 20

func callBolt() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bolt",
		Short: "Make one Bolt call and show what comes back",
		Long: "Make one Bolt call on a connection of its own, and show status, times, headers, and the body in hex.\n" +
			"The exit status is 0 for SUCCESS, 1 for another status or none in time, 69 where nothing listens.",
		Example: "  relevo call bolt --addr 127.0.0.1:12220 --service com.example.Order:1.0 --content hello\n" +
			"  relevo call bolt --addr 127.0.0.1:12220 --service com.example.Order:1.0 --header zone=a --version v2-crc\n" +
			"  relevo call bolt --addr 127.0.0.1:12220 --heartbeat",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	var (
		o     call.Options
		pairs headers
		body  content
	)
	f := cmd.Flags()
	f.StringVar(&o.Addr, "addr", "", "whom to call, HOST:PORT or unix:/PATH")
	f.StringVar(&o.Service, "service", "", "value of the header service")
	f.Var(&pairs, "header", "a further header; may be given often")
	f.StringVar(&body.text, "content", "", "what the request carries, as text")
	f.StringVar(&body.hex, "content-hex", "", "the same, in hex")
	f.IntVar(&body.size, "size", 0, "the same, as a number of bytes to make up")
	f.DurationVar(&o.Timeout, "timeout", 3*time.Second, "to connect, and again to answer")
	f.BoolVar(&o.Oneway, "oneway", false, "send, and wait for nothing")
	f.BoolVar(&o.Heartbeat, "heartbeat", false, "send a heartbeat instead of a request")
	protocol, form := versionFlag(cmd), outputFlag(cmd)
	require(cmd, "addr")
	cmd.RunE = verb(func(cmd *cobra.Command) (err error) {
		ctx, stop := interruptible(cmd)
		defer stop()
		if path, unix := strings.CutPrefix(o.Addr, "unix:"); unix && path != "" {
			err = refuseZero(cmd, "timeout")
		} else {
			err = errors.Join(checkAddresses("addr", o.Addr), refuseZero(cmd, "timeout"))
		}
		if err != nil {
			return err
		}
		if o.Content, err = body.bytes(cmd); err != nil {
			return err
		}
		o.Headers, o.Version = pairs, bolt.Version(*protocol)
		r, err := call.Do(ctx, o)
		if _, happened := errors.AsType[*call.Error](err); err != nil && !happened {
			return misused("%s", oneLine(err))
		}
		if err != nil {
			return err
		}
		show := r.Print
		if *form == outputJSON {
			show = r.PrintJSON
		}
		if err := show(cmd.OutOrStdout()); err != nil {
			return err
		}
		if r.Failed() {
			return errors.New("call " + o.Addr + ": the reply's status is " + r.Status.String())
		}
		return nil
	})
	return cmd
}
