package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/cmd/relevo/man"
)

// manVerb writes the manual pages, for the packages. It is not for people, who have them installed.
func manVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "man",
		Short:             "Write the manual pages",
		Hidden:            true,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	dir := cmd.Flags().String("dir", ".", "where to write them")
	reference := cmd.Flags().String("reference", "docs/configuration.md", "what the page of the configuration says")
	epoch := cmd.Flags().Int64("epoch", 0, "their date, in seconds since 1970")
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		text, err := os.ReadFile(*reference)
		if err != nil {
			return fmt.Errorf("reading the configuration's reference: %w", err)
		}
		root, t := cmd.Root(), man.Title{Version: buildInfo().Version, Date: time.Unix(*epoch, 0)}
		pages := map[string]string{
			"relevo.8":      man.Program(root, t),
			"relevo.yaml.5": man.Reference("relevo.yaml", "The configuration of relevo(8)", string(text), t),
		}
		for _, c := range man.Verbs(root) {
			pages[man.Name(c)] = man.Verb(c, t)
		}
		for name, page := range pages {
			if err := os.WriteFile(filepath.Join(*dir, name), []byte(page), 0o644); err != nil {
				return fmt.Errorf("writing a manual page: %w", err)
			}
		}
		return nil
	})
	return cmd
}
