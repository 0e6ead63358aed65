package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := service.ReadVersion()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "postern %s (%s) %s %s/%s\n",
				v.Version, v.Revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
