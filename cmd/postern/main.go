// Postern is a TLS proxy for IMAP, POP3, submission and ManageSieve in front of existing mail
// servers. It speaks POP3 to clients while the backend speaks IMAP.
//
// This package is the command line, one file a subcommand. The commands call
// internal/service (the running Postern) and internal/stored (its state).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/logs"
	"postern/cmd/postern/internal/service"
	"postern/configs"
)

func main() {
	os.Exit(command(context.Background(), os.Args[1:], onDisplay(os.Stdout), onDisplay(os.Stderr)))
}

// command runs Postern with args and returns its exit status.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := checkSubcommand(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	status := 0
	if err != nil {
		status = 1
		if start, ok := errors.AsType[*service.StartError](err); ok {
			status, err = exitConfig, start.Err
		}
		complain(logs.ErrorWriter(stderr), err)
	}
	return status
}

// rootCommand returns postern with all its commands.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "A TLS proxy for IMAP, POP3, submission and ManageSieve in front of existing mail servers",
		Long: `Postern is a TLS proxy in front of existing mail servers. It terminates TLS on
993 (IMAP), 995 (POP3), 465 (submission) and 4190 (ManageSieve), refuses passwords
in the clear, limits login guessing, and speaks POP3 to clients while the backend
speaks only IMAP.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		runCommand(), reloadCommand(), upgradeCommand(), checkCommand(), demoCommand(),
		statusCommand(), sessionsCommand(), kickCommand(), drainCommand(), logLevelCommand(), healthCommand(),
		accountCommand(), whyCommand(), reportCommand(), guardCommand(), passwordCommand(), providerCommand(), certsCommand(), uidlCommand(), stateCommand(),
		versionCommand(), manCommand(),
	)
	nameArguments(root)
	completeValues(root)
	return root
}

// exitConfig is the exit status after a service.StartError, EX_CONFIG of sysexits.h. The unit
// of systemd does not start again after it.
const exitConfig = 78

// An exitStatus ends a command that has printed its error.
type exitStatus int

// Error implements error.
func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// complain prints err, each error on a line of its own, and the mistakes of
// a configuration in the form that editors understand.
func complain(w io.Writer, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			complain(w, one)
		}
		return
	}
	mistakes, ok := errors.AsType[configs.Errors](err)
	if !ok {
		_, _ = fmt.Fprintf(w, "postern: %v\n", err)
		return
	}
	_, _ = fmt.Fprintln(w, mistakes)
	plural := "mistakes"
	if len(mistakes) == 1 {
		plural = "mistake"
	}
	_, _ = fmt.Fprintf(w, "postern: %d %s in the configuration\n", len(mistakes), plural)
}
