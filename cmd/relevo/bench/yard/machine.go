package yard

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Machine describes in one line what the figures were measured on.
func Machine(ctx context.Context) string {
	model := field("/proc/cpuinfo", "model name")
	if model == "" {
		model = runtime.GOARCH
	}
	return fmt.Sprintf("%s, %d cores, Linux %s, %s", model, runtime.NumCPU(),
		firstLine("/proc/sys/kernel/osrelease"), FirstLine(ctx, "go", "version"))
}

// field returns the value of the first "key : value" line of a file of /proc.
func field(name, key string) string {
	content, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(content)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func firstLine(name string) string {
	content, err := os.ReadFile(name)
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(content), "\n")
	return line
}
