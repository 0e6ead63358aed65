package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func sessionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List the connections that are open, the oldest first",
		Long: `List the connections that are open, the oldest first. The state is where a
connection is: handshake (TLS), login (up to complete credentials), verifying
(they are checked), waiting (the answer is known and held back), opening (a
maildrop is listed) or session (the client is served).`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	chosen := filterFlags(cmd, path)
	asJSON := cmd.Flags().Bool("json", false, "one JSON object a line")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := chosen()
		if err != nil {
			return err
		}
		if *asJSON {
			lines := json.NewEncoder(cmd.OutOrStdout())
			return callRunning(cmd.Context(), *path, service.AskSessions, f, func(l service.Session) error { return lines.Encode(l) })
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "SESSION\tPROTOCOL\tACCOUNT\tCLIENT\tTLS\tBACKEND\tSINCE\tRECEIVED\tSENT\tSTATE")
		err = callRunning(cmd.Context(), *path, service.AskSessions, f, func(l service.Session) error {
			_, err := fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", l.ID, l.Protocol, orDash(l.Account), l.Client,
				orDash(l.TLS), orDash(l.Backend), date(l.Since), l.Received, l.Sent, l.State)
			return err
		})
		return errors.Join(err, t.Flush())
	}
	return cmd
}
