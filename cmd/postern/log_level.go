package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func logLevelCommand() *cobra.Command {
	levels := []string{"debug", "info", "warn", "error"}
	cmd := &cobra.Command{
		Use:   "log-level [debug|info|warn|error]",
		Short: "Show how much is logged, or change it until the next reload",
		Args:  cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs), ValidArgs: levels,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return callRunning(cmd.Context(), *path, service.AskLogLevel, strings.Join(args, ""), func(level string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), level)
			return err
		})
	}
	return cmd
}
