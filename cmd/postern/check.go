package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/unit"
	"postern/configs"
	"postern/proxy"
)

// defaultUser is the service's user in the packages.
const defaultUser = "postern"

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Report all mistakes in a configuration, without starting",
		Long: `Print all that is wrong with a configuration, each with file, line and key, and
what is valid and may not be intended, as a warning. Nothing is opened, made or
changed. Mistakes are exit status 1, warnings are not. --print prints the
configuration instead, with the value of each key that has one and where it comes from:
a default, or what the kind of a provider presets.

Root also tries the files as the service's user. If the unit of systemd is
installed for this configuration, its user and the paths that it lets the service
write count.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	flags := cmd.Flags()
	probe := flags.Bool("probe", false, "connect to each backend and report what it offers; nobody is logged in but --user")
	user := flags.String("user", "", "with --probe: log in there for POP3, and report what the server lacks for it")
	file := flags.String("password-file", "", "with --user: a `file` whose first line is the password; default: it is typed, or read")
	as := flags.String("as", "", "when run by root: look also as this `user`; default: that of the unit, else postern")
	open := flags.Bool("open", false, "try to open the ports that nobody has")
	asJSON := flags.Bool("json", false, "the result as one JSON object; what else is printed goes to standard error")
	shown := flags.Bool("print", false, "print the configuration with all defaults and presets, and check no files")
	byUnit := flags.Bool("unit", false, "judge paths by the unit that is installed")
	_ = flags.MarkHidden("unit") // for checkAs
	for _, other := range []string{"probe", "open", "json"} {
		cmd.MarkFlagsMutuallyExclusive("print", other)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *user != "" && !*probe {
			return errors.New("--user needs --probe")
		}
		if *shown {
			cfg, err := configs.Read(*path)
			if err != nil {
				return err
			}
			return cfg.Print(cmd.OutOrStdout())
		}
		installed, err := unitFor(*path)
		if err != nil {
			return err
		}
		o := service.CheckOptions{Probe: *probe, Open: *open, User: *user}
		if *byUnit || os.Geteuid() == 0 && (*as == "" || installed != nil && *as == installed.User) {
			o.Unit = installed
		}
		o.Password = func() (*proxy.Secret, error) { return readPassword(cmd.Context(), cmd, *file, *user) }
		o.CheckAs = func() (*service.Report, error) { return checkAs(cmd.Context(), *as, *path, o.Unit) }
		out := cmd.OutOrStdout()
		if *asJSON {
			out = cmd.ErrOrStderr()
		}
		r := service.Check(cmd.Context(), *path, o, out)
		if *asJSON {
			err = json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		} else {
			printReport(cmd, r)
		}
		if err == nil && !r.Valid {
			err = exitStatus(1)
		}
		return err
	}
	return cmd
}

// unitFor returns the unit of the service with the configuration at path; nil: there is none.
func unitFor(path string) (*unit.Unit, error) {
	u, err := unit.Find("/")
	if err != nil || u == nil {
		return nil, err
	}
	path, err = filepath.Abs(path)
	if err != nil || filepath.Clean(u.Config) != path {
		return nil, err
	}
	return u, nil
}

// printReport prints mistakes to standard error, and warnings and the verdict to standard
// output.
func printReport(cmd *cobra.Command, r *service.Report) {
	out, faults := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if r.Valid {
		switch {
		case r.Unit != "" && r.Writable != nil:
			fmt.Fprintf(out, "%s: checked as the user %s, who can write to %s under %s\n", r.File, r.User, strings.Join(r.Writable, ", "), r.Unit)
		case r.User != "":
			fmt.Fprintf(out, "%s: checked as the user %s\n", r.File, r.User)
		}
		for _, w := range r.Warnings {
			fmt.Fprintln(out, w.Warning())
		}
		fmt.Fprintln(out, r.Verdict())
		return
	}
	if n := len(r.Probes); n > 0 {
		fmt.Fprintf(faults, "%s\npostern: %d of the probes failed\n", strings.Join(r.Probes, "\n"), n)
	}
	for _, e := range r.Errors {
		fmt.Fprintf(faults, "postern: %s\n", e)
	}
	if len(r.Mistakes) == 0 {
		return
	}
	if r.User != "" {
		fmt.Fprintf(faults, "as the user %s:\n", r.User)
	}
	complain(faults, r.Mistakes)
}
