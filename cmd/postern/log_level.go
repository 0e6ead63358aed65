package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func logLevelCommand() *cobra.Command {
	levels := []string{"debug", "info", "warn", "error"}
	cmd := &cobra.Command{
		Use:       "log-level [debug|info|warn|error]",
		Short:     "Show how much is logged, or change it until the next reload",
		ValidArgs: levels,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 && !slices.Contains(levels, args[0]) {
				return fmt.Errorf("%q is not a level; use %s", args[0], enumerate(levels, "or"))
			}
			return nil
		},
	}
	path, asJSON := configFlag(cmd), cmd.Flags().Bool("json", false, "as one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return callRunning(cmd.Context(), *path, service.AskLogLevel, strings.Join(args, ""), func(level string) error {
			if *asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"level": level})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), level)
			return err
		})
	}
	return cmd
}
