package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func sessionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List the connections that are open, the oldest first",
		Long: `List the connections that are open, the oldest first. The state is where a
connection is: handshake (TLS), login (up to complete credentials), verifying
(they are checked), waiting (the answer is known and delayed), opening (a
POP3 mailbox is listed) or session (the client is served).`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	chosen := filterFlags(cmd, path)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := chosen()
		if err != nil {
			return err
		}
		p := newPrinter(cmd.OutOrStdout(), *asJSON, "SESSION\tPROTOCOL\tACCOUNT\tCLIENT\tTLS\tBACKEND\tSINCE\tRECEIVED\tSENT\tSTATE", func(l service.Session) []any {
			if l.Process != 0 {
				l.State += fmt.Sprintf(" (process %d, before the upgrade)", l.Process)
			}
			return []any{l.ID, l.Protocol, orDash(l.Account), l.Client, orDash(l.TLS), orDash(l.Backend), date(l.Since), l.Received, l.Sent, l.State}
		})
		n := 0
		err = callRunning(cmd.Context(), *path, service.AskSessions, f, func(l service.Session) error {
			n++
			return p.print(l)
		})
		if err = p.end(err); err == nil && n == 0 {
			noteUnknownAccount(cmd, *path, f.Account)
		}
		return err
	}
	return cmd
}
