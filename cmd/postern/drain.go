package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func drainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain [BACKEND] [ADDRESS]",
		Short: "Send no new logins to a backend, or take this Postern out of a load balancer",
		Long: `Send no new logins to a backend, or to the one of its servers at an address, and
show what is still connected. Sessions that are open stay until they end by
themselves: run the command again to see how many are left, or end them by
postern kick --backend. When every server is drained, logins are refused
temporarily. Without a backend, list all servers and change nothing.

With --self, make /readyz say 503: a load balancer that asks sends new clients
elsewhere. Listeners and sessions stay, and clients that still come are served.

A drain lasts until --undo or a restart: a reload and an upgrade keep it.`,
		Args: cobra.MaximumNArgs(2),
	}
	path := configFlag(cmd)
	self := cmd.Flags().Bool("self", false, "this Postern, for load balancers, not a backend")
	undo := cmd.Flags().Bool("undo", false, "end the drain")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *self && len(args) > 0:
			return errors.New("--self takes no backend")
		case *self:
			return drainSelf(cmd, *path, *undo, *asJSON)
		case *undo && len(args) == 0:
			return errors.New("--undo needs BACKEND or --self")
		}
		d := service.DrainRequest{Address: strings.Join(args[min(1, len(args)):], ""), Undo: *undo}
		if len(args) > 0 {
			d.Backend = args[0]
		}
		return printServers(cmd, *path, d, *asJSON)
	}
	return cmd
}

// printServers sends d and prints the servers of the answer.
func printServers(cmd *cobra.Command, path string, d service.DrainRequest, asJSON bool) error {
	left := 0
	p := newPrinter(cmd.OutOrStdout(), asJSON, "BACKEND\tPROTOCOL\tSERVER\tSTATE\tCONNECTIONS", func(m service.DrainedServer) []any {
		if m.Drained {
			left += m.Connections
		}
		return []any{m.Backend, m.Protocol, m.Address, m.State, m.Connections}
	})
	err := p.end(callRunning(cmd.Context(), path, service.AskDrain, d, p.print))
	if err == nil && left > 0 {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "connections to drained servers, which stay until they end by themselves: %d\n", left)
	}
	return err
}

// drainSelf drains the running Postern for load balancers, or undoes that.
func drainSelf(cmd *cobra.Command, path string, undo, asJSON bool) error {
	d := service.SelfDrain{Drain: !undo, Undo: undo}
	return callRunning(cmd.Context(), path, service.AskDrainSelf, d, func(a service.SelfDrained) error {
		if asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(a)
		}
		return printSelfDrained(cmd.OutOrStdout(), a)
	})
}

func printSelfDrained(w io.Writer, a service.SelfDrained) error {
	if !a.Drained {
		_, err := fmt.Fprintf(w, "not drained: /readyz says %q\n", a.Ready)
		return err
	}
	_, err := fmt.Fprintf(w, `drained: /readyz says 503; clients that come are served, and sessions stay: %d now
back into the balancer: postern drain --self --undo
`, a.Sessions)
	return err
}
