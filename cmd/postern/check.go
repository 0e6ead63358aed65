package main

import (
	"errors"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/proxy"
)

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say all that is wrong with a configuration, without starting",
		Args:  cobra.NoArgs,
	}
	path := configFlag(cmd)
	probe := cmd.Flags().Bool("probe", false, "connect to each backend and report what it offers; nobody is logged in but --user")
	user := cmd.Flags().String("user", "", "with --probe: log in there for POP3, and say what the server lacks for it")
	file := cmd.Flags().String("password-file", "", "with --user: a `file` whose first line is the password; default: it is typed, or read")
	as := cmd.Flags().String("as", "postern", "when run by root: look also as this `user`, that of the service")
	open := cmd.Flags().Bool("open", false, "try to open the ports that nobody has")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *user != "" && !*probe {
			return errors.New("--user needs --probe")
		}
		o := service.CheckOptions{Probe: *probe, Open: *open, User: *user}
		o.Password = func() (*proxy.Secret, error) { return readPassword(cmd.Context(), cmd, *file, *user) }
		o.CheckAs = func() error { return checkAs(cmd.Context(), *as, *path, cmd.Flags().Changed("as")) }
		return service.Check(cmd.Context(), *path, o, cmd.OutOrStdout())
	}
	return cmd
}
