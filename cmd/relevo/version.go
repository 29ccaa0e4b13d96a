package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
)

// version and commit are set by the linker (see Makefile).
var version, commit string

// buildInfo says which program this is. What the linker was not told is what the Go tool wrote down.
func buildInfo() admin.BuildInfo {
	b := admin.BuildInfo{Version: version, Commit: commit, GoVersion: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "(devel)" {
			b.Version = cmp.Or(b.Version, info.Main.Version)
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.Commit = cmp.Or(b.Commit, s.Value[:min(12, len(s.Value))])
			}
		}
	}
	b.Version, b.Commit = cmp.Or(b.Version, "devel"), cmp.Or(b.Commit, "unknown")
	return b
}

func versionVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Say which program this is",
		Example:           "  relevo version -o json",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	form := outputFlag(cmd)
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		b := buildInfo()
		if *form == outputJSON {
			return printJSON(cmd.OutOrStdout(), struct {
				admin.BuildInfo
				OS   string `json:"os"`
				Arch string `json:"arch"`
			}{b, runtime.GOOS, runtime.GOARCH})
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "relevo %s (commit %s, %s, %s/%s)\n",
			b.Version, b.Commit, b.GoVersion, runtime.GOOS, runtime.GOARCH)
		return err
	})
	return cmd
}
