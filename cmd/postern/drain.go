package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func drainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain BACKEND [ADDRESS]",
		Short: "Send no new logins to a backend, or to one of its servers",
		Long: `Send no new logins to a backend, or to the one of its servers at an address, and
show what is still connected. Sessions that are open stay until they end by
themselves: run the command again to see how many are left, or end them by
postern kick --backend. When every server is drained, logins are refused for
now. It lasts until --undo, until the backend's part of the configuration
changes, or until Postern is started again or upgraded.`,
		Args: cobra.RangeArgs(1, 2),
	}
	path := configFlag(cmd)
	asJSON := jsonFlag(cmd)
	undo := cmd.Flags().Bool("undo", false, "send logins there again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d := service.DrainRequest{Backend: args[0], Address: strings.Join(args[1:], ""), Undo: *undo}
		left := 0
		p := newPrinter(cmd.OutOrStdout(), *asJSON, "PROTOCOL\tSERVER\tSTATE\tCONNECTIONS", func(m service.DrainedServer) []any {
			state := "down"
			switch {
			case m.Drained:
				state = "drained"
				left += m.Connections
			case m.Up:
				state = "up"
			}
			return []any{m.Protocol, m.Address, state, m.Connections}
		})
		err := p.end(callRunning(cmd.Context(), *path, service.AskDrain, d, p.print))
		if err == nil && left > 0 {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "connections that stay until they end by themselves: %d\n", left)
		}
		return err
	}
	return cmd
}
