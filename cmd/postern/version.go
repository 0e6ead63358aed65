package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := readBuild()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "postern %s (%s) %s %s/%s\n",
				v.version, v.revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// A buildVersion is what the Go tool wrote into the binary.
type buildVersion struct{ version, revision string }

func readBuild() buildVersion {
	v := buildVersion{version: "(devel)", revision: "unknown revision"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.revision = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				v.revision += ", modified"
			}
		}
	}
	return v
}
