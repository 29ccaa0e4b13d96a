package main

import (
	"github.com/spf13/cobra"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server/config"
)

func schemaVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Print the schema of the configuration, or of the REST API",
		Long: "Print the JSON Schema (draft 2020-12) of a configuration, for editors and other tools. It refuses nothing that\n" +
			"is valid; relevo check finds more. With --openapi, the OpenAPI 3.1 document of the REST API, which the admin door has at\n" +
			"/v1/openapi.json: it refers to the schema as the file schema.json beside it.",
		Example: "  relevo schema > relevo.schema.json\n" +
			"  relevo schema > schema.json; relevo schema --openapi > openapi.json",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	api := cmd.Flags().Bool("openapi", false, "print the OpenAPI document of the REST API instead")
	cmd.RunE = verb(func(cmd *cobra.Command) error {
		text := config.JSONSchema()
		if *api {
			text = admin.OpenAPI()
		}
		_, err := cmd.OutOrStdout().Write(text)
		return err
	})
	return cmd
}
