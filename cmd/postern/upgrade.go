package main

import (
	"github.com/spf13/cobra"
)

func upgradeCommand() *cobra.Command {
	return changeCommand(&cobra.Command{
		Use:   "upgrade",
		Short: "Replace the running Postern by the binary that is installed now",
		Long: `Replace the running Postern by the binary that is installed now, as SIGUSR2 does.
The new process reads the configuration and takes over the listening sockets
and the state; no connection is refused. Sessions that are open stay with the
old process, for as long as timeouts.upgrade allows. After a mistake nothing
has changed.`,
		Args: cobra.NoArgs,
	}, "upgrade", "SIGUSR2")
}
