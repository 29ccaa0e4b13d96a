package main

import (
	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/server/config"
)

func schemaVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a configuration",
		Long: "Print the JSON Schema (draft 2020-12) of a configuration, for editors and other tools. It refuses nothing that\n" +
			"is valid; relevo check finds more.",
		Example:           "  relevo schema > relevo.schema.json",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		_, err := cmd.OutOrStdout().Write(config.JSONSchema())
		return err
	})
	return cmd
}
