package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/upgrade"
)

// defaultRuntimeDir is where the service's files are, which do not outlive it.
const defaultRuntimeDir = "/run/relevo"

// runtimeFlags adds to a verb what finds the process that runs.
func runtimeFlags(cmd *cobra.Command) (file, dir *string) {
	file = configFlag(cmd, "the running process's file, which may say runtime_dir")
	dir = cmd.Flags().String("runtime-dir", "", "where the pid file is, instead")
	if err := cmd.MarkFlagDirname("runtime-dir"); err != nil {
		panic(err) // a flag that does not exist: a slip in this package
	}
	return file, dir
}

// runtimeDir is where the process that runs has its pid file: what the flag says, or the configuration, or the environment,
// or the packages. A configuration with faults says nothing; that is for the upgrade to refuse.
func runtimeDir(cmd *cobra.Command, file, flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	environment := os.Getenv(config.RuntimeVariable)
	if file == stdinName {
		return "", misused("-c %s: want a file", file)
	}
	c, err := config.Load(file)
	switch {
	case err == nil && c.RuntimeDir != "":
		dir := c.RuntimeFolder(environment)
		if dir == "" {
			return "", &failure{exitNothing, fmt.Errorf("%s says runtime_dir: none, so there is no pid file", file)}
		}
		return dir, nil
	case errors.Is(err, fs.ErrNotExist) && cmd.Flags().Changed("config"), errors.Is(err, fs.ErrPermission):
		return "", err
	}
	if dir := (&config.Config{}).RuntimeFolder(environment); dir != "" {
		return dir, nil
	}
	return defaultRuntimeDir, nil
}

// ownerVerb makes run what a verb does with the process that runs, of which dir has the pid file. ctx ends with a signal, and after
// --timeout, of which usage says what for.
func ownerVerb(cmd *cobra.Command, usage string, run func(ctx context.Context, dir string) error) {
	file, flag := runtimeFlags(cmd)
	timeout := cmd.Flags().Duration("timeout", 90*time.Second, usage)
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		if *timeout <= 0 {
			return misused("--timeout %v: want more than 0", *timeout)
		}
		dir, err := runtimeDir(cmd, *file, *flag)
		if err != nil {
			return err
		}
		ctx, stop := interruptible(cmd)
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, *timeout)
		defer cancel()
		return run(ctx, dir)
	})
}

// owner finds the process that runs. Between two looks one may have handed over to the next.
func owner(dir string) (int, error) {
	for seen := 0; ; {
		pid, err := upgrade.ReadPID(dir)
		if err != nil {
			return 0, err
		}
		runs, err := upgrade.Runs(pid)
		if runs || err != nil {
			return pid, err
		}
		if pid == seen || pid == 0 {
			return 0, nil
		}
		seen = pid
	}
}

// tell sends a signal to the process that runs and returns its pid.
func tell(dir string, s syscall.Signal) (int, error) {
	for {
		pid, err := owner(dir)
		if err != nil {
			return 0, fmt.Errorf("looking for the process that runs: %w", err)
		}
		if pid <= 0 {
			return 0, &failure{exitNothing, fmt.Errorf("nothing runs that has its pid file in %s", dir)}
		}
		err = syscall.Kill(pid, s)
		if errors.Is(err, syscall.ESRCH) {
			continue // it has just ended: owner says so, or who has followed it
		}
		if err != nil {
			return 0, fmt.Errorf("signalling pid %d: %w", pid, err)
		}
		return pid, nil
	}
}
