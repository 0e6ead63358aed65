package main

import (
	"github.com/spf13/cobra"
)

func reloadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Make the running Postern read its configuration again",
		Long: `Make the running Postern read its configuration again, as SIGHUP does. Sessions
that are open live on. After a mistake nothing has changed, and the mistakes are
printed.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return requestChange(cmd.Context(), *path, "reload", "SIGHUP")
	}
	return cmd
}
