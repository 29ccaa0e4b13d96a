package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
)

func tokenVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token NAME",
		Short: "Make a token for the REST API over the network",
		Long: "Make a token for the REST API over the network. Its secret, which the client needs, is the last line of\n" +
			"standard error, and is not shown again. The line that lets it in, which holds no secret, is standard output:\n" +
			"it belongs in the file that `admin.tcp.tokens_file` names, which a running process reads anew.\n\n" +
			"A token with --path is for these paths only, and what is below them.",
		Example: "  relevo token ci >> /etc/relevo/tokens\n" +
			"  relevo token deploy --role write --path /v1/config/clusters/order --path /v1/upgrade >> /etc/relevo/tokens",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	role := cmd.Flags().String("role", string(admin.RoleRead), "what it may do: read, or write, which may read, too")
	complete(cmd, "role", string(admin.RoleRead), string(admin.RoleWrite))
	paths := cmd.Flags().StringArray("path", nil, "a path that it is for, as in /v1/config/clusters/order; may be given often (default everything)")
	cmd.RunE = arguments(1, 1, func(cmd *cobra.Command, args []string) error {
		secret, line, err := admin.NewToken(args[0], admin.Role(*role), *paths)
		if err != nil {
			return misused("%s", oneLine(err))
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "The secret of %s, for the client. It is not shown again:\n%s\n", args[0], secret)
		_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
		return err
	})
	return cmd
}
