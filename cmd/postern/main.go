// Postern stands in front of mail servers: it terminates TLS for IMAP, POP3
// and submission, and speaks POP3 to clients of a server that speaks only
// IMAP.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"postern/configs"
)

func main() {
	os.Exit(command(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// command runs Postern with args and returns its exit status.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "postern",
		Short: "A TLS front for mail servers, with POP3 for those that speak only IMAP",
		Long: `Postern stands in front of existing mail servers. It terminates TLS on 993
(IMAP), 995 (POP3) and 465 (submission), refuses passwords in the clear, limits
login guessing, and speaks POP3 to clients while the server behind it speaks
only IMAP.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(sessionsCommand(), kickCommand(), drainCommand(), logLevelCommand(), stateCommand(), accountsCommand(), accountCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(demoCommand(), runCommand(), reloadCommand(), upgradeCommand(), checkCommand(), certsCommand(), guardCommand(), uidlCommand(), versionCommand(), healthCommand(), manCommand())
	err := root.ExecuteContext(ctx)
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	if err != nil {
		complain(stderr, err)
		return 1
	}
	return 0
}

// An exitStatus ends a command that has already said why.
type exitStatus int

// Error implements error.
func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// complain says what is wrong, each thing on a line of its own; the mistakes of
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
	_, _ = fmt.Fprintf(w, "postern: %d %s in the configuration, nothing was opened\n", len(mistakes), plural)
}
