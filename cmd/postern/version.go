package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
)

func versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
	}
	asJSON := cmd.Flags().Bool("json", false, "as one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := service.ReadVersion()
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{
				"version": v.Version, "revision": v.Revision, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
			})
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "postern %s (%s) %s %s/%s\n",
			v.Version, v.Revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
	return cmd
}
