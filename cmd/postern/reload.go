package main

import (
	"github.com/spf13/cobra"
)

func reloadCommand() *cobra.Command {
	return changeCommand(&cobra.Command{
		Use:   "reload",
		Short: "Make the running Postern read its configuration again",
		Long: `Make the running Postern read its configuration again, as SIGHUP does. Sessions
that are open live on. After a mistake nothing has changed, and the mistakes are
printed.`,
		Args: cobra.NoArgs,
	}, "reload", "SIGHUP")
}
