package systemd

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// unitFolders are where systemd looks for units of the system, systemd.unit(5).
var unitFolders = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// maxUnitFile is the most that is read of a unit's file, in bytes.
const maxUnitFile = 1 << 20

// UnitName is the name of the service that the process is a part of, empty if it is in none.
func UnitName() string {
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	return unitIn(string(groups))
}

// unitIn finds the innermost service in the lines of cgroups(7).
func unitIn(groups string) (name string) {
	for line := range strings.Lines(groups) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if strings.HasSuffix(part, ".service") {
				name = part
			}
		}
	}
	return name
}

// UnitSum stands for what the files of a unit say, its drop-ins included: where it is another than before, systemd starts the
// next process by other settings than this one. It is empty where there is no file.
func UnitSum(name string) string { return unitSum(unitFolders, name) }

func unitSum(folders []string, name string) string {
	if name == "" {
		return ""
	}
	sum, found := sha256.New(), false
	for _, folder := range folders {
		dropIns, _ := filepath.Glob(filepath.Join(folder, name+".d", "*.conf")) // its only error is of a bad pattern
		for _, path := range append([]string{filepath.Join(folder, name)}, dropIns...) {
			f, err := os.Open(path)
			if err != nil {
				continue // it is not there, or not ours to read
			}
			_, _ = io.WriteString(sum, path+"\x00") // a hash takes everything
			_, _ = io.Copy(sum, io.LimitReader(f, maxUnitFile))
			_ = f.Close() // nothing was written
			found = true
		}
	}
	if !found {
		return ""
	}
	return hex.EncodeToString(sum.Sum(nil))
}
