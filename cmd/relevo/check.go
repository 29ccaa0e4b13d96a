package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
)

// configFile is where a configuration is looked for unless something else is said.
const configFile = "/etc/relevo/relevo.yaml"

// stdinName is the file name that stands for standard input, and stdinTitle what that is called.
const (
	stdinName  = "-"
	stdinTitle = "standard input"
)

func checkVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration, and say all that is wrong with it",
		Long: "Check a configuration without running it. All faults are printed, each with its path, and the exit\n" +
			"status is 78. Warnings are about what is valid and can hardly be meant; they do not change the status. The files\n" +
			"with tokens and certificates that it names are read, too.",
		Example: "  relevo check -c relevo.yaml\n" +
			"  generate | relevo check -c -",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	file := configFlag(cmd, "file to check, - for standard input")
	asStarted := cmd.Flags().Bool("as-started", false, "check what a process would start with here: the newest revision, or the file if that has changed; and whether this machine has what that takes")
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		c, err := checked(*file, cmd.InOrStdin(), *asStarted, cmd.OutOrStdout())
		if err != nil {
			return err
		}
		if err := server.CheckFiles(c); err != nil {
			return from(*file, err)
		}
		out, name := cmd.OutOrStdout(), *file
		if name == stdinName {
			name = stdinTitle
		}
		if c.MaxBuffered != nil { // else it depends on the machine
			if err := server.CheckBuffers(c); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if *asStarted {
			if err := server.CheckMachine(c); err != nil {
				return err
			}
		}
		for _, w := range append(c.Warnings(), server.MissingFiles(c)...) {
			fmt.Fprintf(out, "%s: warning: %s\n", name, w)
		}
		_, err = fmt.Fprintf(out, "%s: ok: %s\n", name, summary(c))
		return err
	})
	return cmd
}

// checked is the configuration in the file, or the one that a process would start with.
func checked(file string, stdin io.Reader, asStarted bool, out io.Writer) (*config.Config, error) {
	if !asStarted || file == stdinName { // of which there are no revisions
		return load(file, stdin)
	}
	data, err := readConfig(file, stdin)
	if err != nil {
		return nil, err
	}
	origin, err := server.LookAtOrigin(file, data)
	if err != nil {
		return nil, from(file, err)
	}
	_, err = fmt.Fprintln(out, origin.Message())
	return origin.Config(), err
}

// configFlag adds -c to a verb.
func configFlag(cmd *cobra.Command, usage string) *string {
	file := cmd.Flags().StringP("config", "c", configFile, usage)
	if err := cmd.MarkFlagFilename("config", "yaml", "yml", "json"); err != nil {
		panic(err) // a flag that does not exist: a slip in this package
	}
	return file
}

// load reads a configuration. Every error of it is a refused configuration, but a missing permission.
func load(file string, stdin io.Reader) (*config.Config, error) {
	data, err := readConfig(file, stdin)
	if err != nil {
		return nil, err
	}
	c, err := config.Parse(data)
	return c, from(file, err)
}

// openOrigin is load for a process that starts.
func openOrigin(file string, stdin io.Reader, ignore bool) (*server.Origin, error) {
	data, err := readConfig(file, stdin)
	if err != nil {
		return nil, err
	}
	origin, err := server.OpenOrigin(file, data, ignore)
	return origin, from(file, err)
}

// readConfig is what is in a configuration's file.
func readConfig(file string, stdin io.Reader) ([]byte, error) {
	if file == stdinName {
		data, err := io.ReadAll(stdin)
		if err != nil {
			return nil, &failure{exitConfig, fmt.Errorf("reading the configuration: %w", err)}
		}
		return data, nil
	}
	data, err := config.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, &failure{exitConfig, err}
	}
	return data, err
}

// from says in which file the faults are, unless that is known.
func from(file string, err error) error {
	if faults, ok := errors.AsType[*config.Errors](err); ok && faults.Source == "" {
		faults.Source = file
		if file == stdinName {
			faults.Source = stdinTitle
		}
	}
	return err
}

// summary says how much there is in a configuration.
func summary(c *config.Config) string {
	rules, endpoints, found := 0, 0, 0
	for _, t := range c.Routes {
		rules += len(t.Rules)
	}
	for _, k := range c.Clusters {
		endpoints += len(k.Endpoints)
		if k.Discovery != nil {
			found++
		}
	}
	discovered := ""
	if found > 0 {
		discovered = fmt.Sprintf(" and %d with discovery", found)
	}
	return strings.Join([]string{
		count(len(c.Listeners), "listener"),
		count(len(c.Routes), "route table") + " with " + count(rules, "rule"),
		count(len(c.Clusters), "cluster") + " with " + count(endpoints, "endpoint") + discovered,
	}, ", ")
}

func count[N ~int | ~int64 | ~uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
