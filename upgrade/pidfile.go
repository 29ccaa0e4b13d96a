package upgrade

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// PIDFile is the name of the pid file in runtime_dir.
const PIDFile = "relevo.pid"

// ReadPID reads whose pid the file in this runtime_dir has. It is 0 if there is none.
func ReadPID(dir string) (int, error) {
	name := filepath.Join(dir, PIDFile)
	data, err := readSmall(name, 32)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the pid file: %w", err)
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err != nil || pid <= 0 { // to a signal, those are groups of processes
		return 0, fmt.Errorf("reading the pid file %s: %q is no pid", name, cut(string(data), 32))
	}
	return pid, nil
}

// writePID makes the file say pid.
func writePID(dir string, pid int) error {
	if err := replaceFile(filepath.Join(dir, PIDFile), fmt.Appendf(nil, "%d\n", pid)); err != nil {
		return fmt.Errorf("writing the pid file: %w", err)
	}
	return nil
}

// removePID removes the file if it says pid.
func removePID(dir string, pid int) error {
	if found, err := ReadPID(dir); err != nil || found != pid {
		return err
	}
	if err := os.Remove(filepath.Join(dir, PIDFile)); err != nil {
		return fmt.Errorf("removing the pid file: %w", err)
	}
	return nil
}

// Runs reports whether pid is a process that runs the same program as this one: a file of that name, which may have been
// replaced or moved aside since. An error says that there is a process of which that cannot be found out.
func Runs(pid int) (bool, error) {
	if pid <= 0 {
		return false, nil
	}
	for _, name := range []func(pid int) (string, error){program, command} {
		theirs, err := name(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if ours, err := name(os.Getpid()); err != nil || theirs == ours {
			return err == nil, err
		}
	}
	return false, nil
}

// program is the base name of what pid runs. A process that has ended and is not reaped runs nothing.
func program(pid int) (string, error) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return "", err
	}
	return filepath.Base(strings.TrimSuffix(exe, " (deleted)")), nil
}

// command is the base name by which pid was started, whatever has become of that file since; its first 15 bytes.
func command(pid int) (string, error) {
	name, err := readSmall(fmt.Sprintf("/proc/%d/comm", pid), 64)
	return string(name), err
}
