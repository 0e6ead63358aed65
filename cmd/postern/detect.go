package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"postern/bridge/uidl"
	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/proxy"
)

// noFormat is the exit status of detect if no format matches.
const noFormat exitStatus = 2

func detectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "detect --old HOST[:PORT] --user USER",
		Short: "Find out which unique ids the old POP3 server shows",
		Long: `Ask the old POP3 server for the unique ids of a mailbox, and the server behind
Postern for the same mailbox, and print which format turns one into the other.
The user must have mail, and the same password on both. Nothing is changed.

The password is read from --password-file, or typed, or else the first line of
standard input. The old server's certificate is verified before the password
goes there.

The format is printed, with exit status 0, or none, with exit status 2. With any
other status nothing is known.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	var o oldServer
	o.flags(cmd)
	user := cmd.Flags().String("user", "", "the `name` to log in with")
	file := cmd.Flags().String("password-file", "", "a `file` whose first line is the password")
	for _, name := range []string{"old", "user"} {
		_ = cmd.MarkFlagRequired(name)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		secret, err := readPassword(ctx, cmd, *file, *user)
		if err != nil {
			return err
		}
		defer secret.Clear()
		d := detection{cfg: cfg, old: o, user: *user, secret: secret}
		if err := d.compare(ctx); err != nil {
			return err
		}
		return d.report(cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// A detection compares the UIDLs of the old server with the UIDs of the server behind.
type detection struct {
	cfg    *configs.Config
	old    oldServer
	user   string
	secret *proxy.Secret

	shown      int // number of messages on the old server
	guesses    []uidl.Guess
	configured uidl.Format
}

func (d *detection) compare(ctx context.Context) error {
	shown, err := d.uidls(ctx)
	if err != nil {
		return fmt.Errorf("old server %s: %w", d.old.address, err)
	}
	if d.shown = len(shown); d.shown == 0 {
		return fmt.Errorf("old server %s: the mailbox is empty; take a user with mail", d.old.address)
	}
	uids, validity, err := d.behind(ctx)
	if err != nil {
		return err
	}
	if len(uids) == 0 {
		return errors.New("the mailbox behind Postern is empty: move its mail first, or take another user")
	}
	d.guesses = uidl.Detect(shown, uids, validity, d.configured)
	return nil
}

// uidls returns the UIDLs that the old server shows to the user.
func (d *detection) uidls(ctx context.Context) (shown []string, err error) {
	server, err := d.old.server()
	if err != nil {
		return nil, err
	}
	old, err := server.Open(ctx, d.user, d.secret)
	if err != nil {
		return nil, err
	}
	defer func() { _ = old.Close() }()
	for _, m := range old.Messages {
		shown = append(shown, m.UIDL)
	}
	return shown, nil
}

// behind returns the UIDs and UIDVALIDITY from the server behind Postern, found as for
// the user's logins.
func (d *detection) behind(ctx context.Context) ([]uint32, uint32, error) {
	served, login, err := service.BridgeFor(ctx, d.cfg, d.user, d.secret)
	if err != nil {
		return nil, 0, err
	}
	d.configured = served.UIDL
	return served.UIDs(ctx, login)
}

// report prints the name of the format to out, and an explanation to more.
func (d *detection) report(out, more io.Writer) error {
	if len(d.guesses) == 0 {
		_, _ = fmt.Fprintf(more, "None of %d unique ids is what a format computes. docs/uidl.md says what can be done.\n", d.shown)
		_, _ = fmt.Fprintln(out, "none")
		return noFormat
	}
	best := d.guesses[0]
	name := best.Name
	if best.Matched*10 < d.shown*9 { // more than mail that came or went in between explains
		_, _ = fmt.Fprintf(more, "%s fits best, but for only %d of %d messages: the servers do not count them alike. docs/uidl.md says what can be done.\n",
			name, best.Matched, d.shown)
		_, _ = fmt.Fprintln(out, "none")
		return noFormat
	}
	_, _ = fmt.Fprintln(out, name)
	_, _ = fmt.Fprintf(more, "%d of %d messages have these unique ids. ", best.Matched, d.shown)
	for _, g := range d.guesses[1:] {
		if g.Matched == best.Matched {
			_, _ = fmt.Fprintf(more, "%s fits as well: ask again with a user who has more mail. ", g.Name)
		}
	}
	if best.Format.String() == d.configured.String() && d.cfg.IsSet("pop3.uidl") {
		_, _ = fmt.Fprintln(more, "pop3.uidl says so already.")
		return nil
	}
	if !slices.Contains(uidl.Names(), name) {
		name = strconv.Quote(name)
	}
	_, _ = fmt.Fprintf(more, "Write into the configuration:\n\n  pop3: {uidl: %s}\n", name)
	return nil
}
