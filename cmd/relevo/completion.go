package main

import (
	"github.com/spf13/cobra"
)

// completionVerb stands in for cobra's own, which has a shell more than is supported here.
func completionVerb() *cobra.Command {
	shell := func(name, load string, generate func(root *cobra.Command, to *cobra.Command) error) *cobra.Command {
		return &cobra.Command{
			Use:               name,
			Short:             "The script for " + name,
			Example:           "  " + load,
			ValidArgsFunction: cobra.NoFileCompletions,
			RunE:              verb(func(cmd *cobra.Command) error { return generate(cmd.Root(), cmd) }),
		}
	}
	return family("shell", &cobra.Command{
		Use:   "completion",
		Short: "Print the script that completes command lines in a shell",
	},
		shell("bash", "source <(relevo completion bash)", func(root, to *cobra.Command) error {
			return root.GenBashCompletionV2(to.OutOrStdout(), true)
		}),
		shell("zsh", `relevo completion zsh > "${fpath[1]}/_relevo"`, func(root, to *cobra.Command) error {
			return root.GenZshCompletion(to.OutOrStdout())
		}),
		shell("fish", "relevo completion fish | source", func(root, to *cobra.Command) error {
			return root.GenFishCompletion(to.OutOrStdout(), true)
		}),
	)
}
