package main

import (
	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve, until SIGTERM or SIGINT",
		Args:  cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		before, err := service.Predecessor()
		if err != nil {
			return err
		}
		err = service.Run(cmd.Context(), *path, cmd.ErrOrStderr(), before)
		if err != nil && before != nil {
			before.Reject(err)
		}
		return err
	}
	return cmd
}
