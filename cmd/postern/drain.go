package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

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
	undo := cmd.Flags().Bool("undo", false, "send logins there again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d := service.DrainRequest{Backend: args[0], Address: strings.Join(args[1:], ""), Undo: *undo}
		left := 0
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "PROTOCOL\tSERVER\tSTATE\tCONNECTIONS")
		err := callRunning(cmd.Context(), *path, service.AskDrain, d, func(m service.DrainedServer) error {
			state := "down"
			switch {
			case m.Drained:
				state = "drained"
				left += m.Connections
			case m.Up:
				state = "up"
			}
			_, err := fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", m.Protocol, m.Address, state, m.Connections)
			return err
		})
		if err = errors.Join(err, t.Flush()); err == nil && left > 0 {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "connections that stay until they end by themselves: %d\n", left)
		}
		return err
	}
	return cmd
}
