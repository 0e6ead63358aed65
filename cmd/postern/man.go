package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"postern/cmd/postern/internal/service"
)

// manCommand returns the command that writes the man pages for packages.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man FOLDER",
		Short:  "Write the man pages into a folder",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // no date: the same source gives the same pages
			header := &doc.GenManHeader{Section: "1", Source: strings.TrimSpace("Postern " + service.ReadVersion().Version), Manual: "Postern"}
			return doc.GenManTree(root, header, args[0])
		},
	}
}
