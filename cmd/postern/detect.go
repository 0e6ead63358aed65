package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"

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
		Long: `Ask the old POP3 server for the unique ids of a mailbox, and the backend
for the same mailbox, and print which format turns one into the other.
The user must have mail, and the same password on both. Nothing is changed.

The password is read from --password-file, or typed, or else the first line of
standard input. The old server's certificate is verified before the password
goes there.

The format is printed, with exit status 0, or none, with exit status 2. With any
other status nothing is known. Where no named format fits, some unique ids are
shown beside what the backend has for the message at that place.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	var o oldServer
	o.flags(cmd)
	user := cmd.Flags().String("user", "", "the `name` to log in with")
	file := cmd.Flags().String("password-file", "", "a `file` whose first line is the password")
	asJSON := cmd.Flags().Bool("json", false, "one JSON object, in place of the format and the explanation")
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
		if *asJSON {
			return d.reportJSON(cmd.OutOrStdout())
		}
		return d.report(cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// A detection compares the UIDLs of the old server with the UIDs of the backend.
type detection struct {
	cfg    *configs.Config
	old    oldServer
	user   string
	secret *proxy.Secret

	shown       []string // on the old server, in the order of its messages
	uids        []uint32 // in the backend, ascending
	uidValidity uint32
	guesses     []uidl.Guess
	configured  uidl.Format
}

func (d *detection) compare(ctx context.Context) (err error) {
	if d.shown, err = d.uidls(ctx); err != nil {
		return d.old.explain(err)
	}
	if len(d.shown) == 0 {
		return fmt.Errorf("old server %s: the mailbox is empty; take a user with mail", d.old.address)
	}
	if d.uids, d.uidValidity, err = d.behind(ctx); err != nil {
		return err
	}
	if len(d.uids) == 0 {
		return errors.New("the mailbox behind Postern is empty: move its mail first, or take another user")
	}
	d.guesses = uidl.Detect(d.shown, d.uids, d.uidValidity, d.configured)
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

// behind returns the UIDs and UIDVALIDITY from the backend, found as for the user's
// logins.
func (d *detection) behind(ctx context.Context) ([]uint32, uint32, error) {
	mailboxes, err := service.OpenMailboxes(d.cfg)
	if err != nil {
		return nil, 0, err
	}
	mailbox, err := mailboxes.Find(ctx, d.user, d.user, d.secret)
	if err != nil {
		return nil, 0, err
	}
	d.configured = mailbox.Format()
	in, err := mailbox.Read(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = in.Close() }()
	return in.UIDs, in.UIDValidity, nil
}

// isNearlyAll reports whether n messages are all but those that came or went in between.
func (d *detection) isNearlyAll(n int) bool { return n*10 >= len(d.shown)*9 }

// others returns the formats that fit as well as the best one.
func (d *detection) others() (names []string) {
	for _, g := range d.guesses[1:] {
		if g.Matched == d.guesses[0].Matched {
			names = append(names, g.Name)
		}
	}
	return names
}

// isAmbiguous reports whether several formats fit, none of which has a name: UIDs below 10
// are the same in decimal and in hexadecimal digits.
func (d *detection) isAmbiguous() bool {
	best := d.guesses[0]
	return best.Names == nil && best.Format.String() != d.configured.String() && d.others() != nil
}

// report prints the name of the format to out, and an explanation to more.
func (d *detection) report(out, more io.Writer) error {
	if len(d.guesses) == 0 || !d.isNearlyAll(d.guesses[0].Matched) || d.isAmbiguous() {
		d.explainNone(more)
		_, _ = fmt.Fprintln(out, "none")
		return noFormat
	}
	best := d.guesses[0]
	_, _ = fmt.Fprintln(out, best.Name)
	_, _ = fmt.Fprintf(more, "%d of %d messages have these unique ids. ", best.Matched, len(d.shown))
	if len(best.Names) > 1 {
		_, _ = fmt.Fprintf(more, "%s are names of the same format. ", strings.Join(best.Names, " and "))
	}
	for _, name := range d.others() {
		_, _ = fmt.Fprintf(more, "%s fits as well: ask again with a user who has more mail. ", name)
	}
	if best.Format.String() == d.configured.String() && d.cfg.IsSet("pop3.uidl") {
		_, _ = fmt.Fprintln(more, "pop3.uidl has this value already.")
		return nil
	}
	name := best.Name
	if best.Names == nil {
		_, _ = fmt.Fprint(more, "The format has no name.\n\n")
		d.printSamples(more)
		_, _ = fmt.Fprint(more, "\nTry it with another user, too. ")
		name = strconv.Quote(name)
	}
	_, _ = fmt.Fprintf(more, "Write into the configuration:\n\n  pop3: {uidl: %s}\n", name)
	return nil
}

// carryOver is the next step where no format helps.
const carryOver = "postern uidl import --old (docs/uidl.md).\n" +
	"Mail that comes later gets the ids of pop3.uidl; dovecot will do.\n"

// explainNone prints why no format computes the unique ids, and what to do.
func (d *detection) explainNone(more io.Writer) {
	c, copied := uidl.DetectCopy(d.shown, d.uids, d.configured)
	switch {
	case len(d.guesses) > 0 && d.isNearlyAll(d.guesses[0].Matched):
		_, _ = fmt.Fprintf(more, "%s and %s fit alike: ask again with a user who has more mail, with UIDs above 9.\n",
			d.guesses[0].Name, strings.Join(d.others(), " and "))
	case copied:
		_, _ = fmt.Fprintf(more, "The unique ids are those of the format %s, made of other numbers than the messages have now", nameOf(c))
		if c.UIDValidity != 0 {
			_, _ = fmt.Fprintf(more, ":\nUIDVALIDITY was %d, and is %d", c.UIDValidity, d.uidValidity)
		}
		same := "the UIDs are others, too"
		if c.SameUIDs == c.Matched {
			same = "the UIDs are the same"
		}
		copier := "The mailbox was copied by a program that does not keep them"
		if c.Format.String() == "UID%u-%v" {
			copier += ", or the old server\nis Courier's pop3d, which has numbers of its own"
		}
		_, _ = fmt.Fprintf(more, "; %s. "+copier+".\n"+
			"No format can help. Copy the mail again with a program that keeps UIDs and UIDVALIDITY (Dovecot's dsync does), or carry\n"+
			"the unique ids over, while the old server runs: "+carryOver, same)
	case len(d.guesses) > 0:
		_, _ = fmt.Fprintf(more, "%s fits best, but for only %d of %d messages: the servers do not count them alike. docs/uidl.md says what can be done.\n",
			d.guesses[0].Name, d.guesses[0].Matched, len(d.shown))
	default:
		_, _ = fmt.Fprintf(more, "None of %d unique ids is what a format computes", len(d.shown))
		if shape := uidl.Shape(d.shown); shape != "" {
			_, _ = fmt.Fprintf(more, ": they are %s", shape)
		}
		_, _ = fmt.Fprint(more, ".\nIMAP shows nothing that they can be made of. Carry them over, while the old server runs: "+carryOver)
	}
	_, _ = fmt.Fprintln(more)
	d.printSamples(more)
}

func nameOf(c uidl.Copy) string {
	if c.Names == nil {
		return strconv.Quote(c.Format.String())
	}
	return strings.Join(c.Names, " or ")
}

// A sample is a message of the old server, and the message at the same place of the
// backend.
type sample struct {
	Message int    `json:"message"` // its number, from 1
	UIDL    string `json:"uidl"`
	UID     uint32 `json:"uid,omitempty"` // 0: the backend has fewer messages
}

// samples returns the first, the last and some messages between them.
func (d *detection) samples() (all []sample) {
	const most = 5
	n := min(most, len(d.shown))
	for k := range n {
		i := 0
		if n > 1 {
			i = k * (len(d.shown) - 1) / (n - 1)
		}
		s := sample{Message: i + 1, UIDL: shownOnTerminal(d.shown[i])}
		if i < len(d.uids) {
			s.UID = d.uids[i]
		}
		all = append(all, s)
	}
	return all
}

// shownOnTerminal returns the beginning of a unique id of a server, without what a
// terminal obeys.
func shownOnTerminal(id string) string {
	const most = 80 // octets; RFC 1939 section 7 allows 70
	quoted := strconv.QuoteToASCII(id[:min(len(id), most)])
	return quoted[1 : len(quoted)-1]
}

func (d *detection) printSamples(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(table, "  message\tunique id on the old server\tUID in the backend, where UIDVALIDITY is %d\n", d.uidValidity)
	for _, s := range d.samples() {
		uid := "-"
		if s.UID != 0 {
			uid = strconv.FormatUint(uint64(s.UID), 10)
		}
		_, _ = fmt.Fprintf(table, "  %d\t%s\t%s\n", s.Message, s.UIDL, uid)
	}
	_ = table.Flush()
	if len(d.shown) != len(d.uids) {
		_, _ = fmt.Fprintf(w, "  The old server has %d messages, and the backend %d: a line may have two messages.\n", len(d.shown), len(d.uids))
	}
}

// reportJSON prints the result as a JSON object.
func (d *detection) reportJSON(out io.Writer) error {
	type copied struct {
		Format      string   `json:"format"`
		Names       []string `json:"names,omitempty"`
		UIDValidity uint32   `json:"uidvalidity,omitempty"`
		Matched     int      `json:"matched"`
		SameUIDs    int      `json:"same_uids"`
	}
	r := struct {
		Result      string   `json:"result"` // format, ambiguous, copied, partial or none
		Format      string   `json:"format,omitempty"`
		Names       []string `json:"names,omitempty"`
		Matched     int      `json:"matched"`
		Old         int      `json:"old_messages"`
		Backend     int      `json:"backend_messages"`
		UIDValidity uint32   `json:"uidvalidity"`
		Copied      *copied  `json:"copied,omitempty"`
		Shape       string   `json:"shape,omitempty"`
		Samples     []sample `json:"samples"`
	}{Result: "none", Old: len(d.shown), Backend: len(d.uids), UIDValidity: d.uidValidity, Samples: d.samples()}
	if len(d.guesses) > 0 {
		best := d.guesses[0]
		r.Format, r.Names, r.Matched, r.Result = best.Format.String(), best.Names, best.Matched, "partial"
	}
	if len(d.guesses) > 0 && d.isNearlyAll(r.Matched) && !d.isAmbiguous() {
		r.Result = "format"
		return json.NewEncoder(out).Encode(r)
	}
	if len(d.guesses) > 0 && d.isNearlyAll(r.Matched) {
		r.Result = "ambiguous"
	} else if c, ok := uidl.DetectCopy(d.shown, d.uids, d.configured); ok {
		r.Result, r.Copied = "copied", &copied{c.Format.String(), c.Names, c.UIDValidity, c.Matched, c.SameUIDs}
	} else if r.Result == "none" {
		r.Shape = uidl.Shape(d.shown)
	}
	if err := json.NewEncoder(out).Encode(r); err != nil {
		return err
	}
	return noFormat
}
