package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"postern/cmd/postern/internal/service"
	"postern/configs"
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
			if err := writeManPages(cmd.Root(), args[0]); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(args[0], "postern.yaml.5"), configs.ManPage(), 0o644)
		},
	}
}

// writeManPages writes the page of cmd and of the commands below it into dir.
func writeManPages(cmd *cobra.Command, dir string) error {
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := writeManPages(c, dir); err != nil {
			return err
		}
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	f, err := os.Create(filepath.Join(dir, name+".1"))
	if err != nil {
		return err
	}
	if err := writeManPage(cmd, f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func writeManPage(cmd *cobra.Command, to io.Writer) error {
	cmd.DisableAutoGenTag = true // no date: the same source gives the same pages
	header := &doc.GenManHeader{Section: "1", Source: strings.TrimSpace("Postern " + service.ReadVersion().Version), Manual: "Postern"}
	var page bytes.Buffer
	if err := doc.GenMan(cmd, header, &page); err != nil {
		return err
	}
	text := strings.NewReplacer("[=false]", "", `\fP=""`, `\fP`).Replace(page.String()) // what a flag without a value is not
	before, seeAlso, found := strings.Cut(text, ".SH SEE ALSO\n")
	also := "\\fBpostern.yaml(5)\\fP\n"
	if found {
		also = strings.TrimSuffix(seeAlso, "\n") + ", " + also
	}
	_, err := io.WriteString(to, before+exitStatusSection(cmd)+filesSection(cmd)+".SH SEE ALSO\n"+also)
	return err
}

// otherExitStatus has, for the commands that have one, what an exit status other than 0
// and 1 means.
var otherExitStatus = map[string]string{
	"postern run":          ".TP\n78\nThe configuration, or a file that it names, has a mistake: another start would find the same.\n",
	"postern status":       ".TP\n2\nSomething is critical or a warning.\n",
	"postern uidl compare": ".TP\n2\nClients would notice a difference.\n",
	"postern uidl detect":  ".TP\n2\nNo format gives these unique ids.\n",
	"postern uidl import":  ".TP\n2\nSome unique ids are not carried over.\n",
}

func exitStatusSection(cmd *cobra.Command) string {
	return ".SH EXIT STATUS\n.TP\n0\nSuccess.\n.TP\n1\nAn error, which is on standard error.\n" + otherExitStatus[cmd.CommandPath()]
}

func filesSection(cmd *cobra.Command) string {
	if cmd.Flags().Lookup("config") == nil && cmd.HasParent() {
		return ""
	}
	return `.SH FILES
.TP
\fI/etc/postern/postern.yaml\fP
The configuration: postern.yaml(5).
.TP
\fI/var/lib/postern/\fP
The state of the packaged configuration (state.path), with the control socket control.sock.
.TP
\fI/usr/share/doc/postern/\fP
The documentation.
`
}
