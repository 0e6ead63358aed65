package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"postern/bridge/oldserver"
	"postern/cmd/postern/internal/crawl"
	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/proxy"
)

// differs is the exit status of a crawl whose result is not what one hopes for.
const differs exitStatus = 2

// toLookAt is how many accounts a summary names.
const toLookAt = 20

// A crawler visits accounts on the old server and behind Postern, as flags say.
type crawler struct {
	old                          oldServer
	list, user, passwordFile     string
	master, oldLogin, newLogin   string
	connections, rate, loginRate int
	resume                       string
	json                         *bool
	server                       *oldserver.Server
	mailboxes                    *service.Mailboxes
	secret                       *proxy.Secret // of --user or --master
	logins                       *crawl.Pace
}

// flags adds the flags to cmd.
func (c *crawler) flags(cmd *cobra.Command) {
	c.old.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&c.user, "user", "", "one account, by the `name` that it logs in with")
	f.StringVar(&c.list, "list", "", "a CSV `file` with the columns user and password, or only user with --master or --maildir; - is standard input")
	f.StringVar(&c.master, "master", "", "the `name` of a master user that logs in on behalf of each user, on both servers")
	f.StringVar(&c.passwordFile, "password-file", "", "a `file` whose first line is the password of --user or --master")
	f.StringVar(&c.oldLogin, "old-login", "{user}*{master}", "with --master: the user `name` at the old server")
	f.StringVar(&c.newLogin, "login", "{user}*{master}", "with --master: the user `name` at the IMAP server")
	f.IntVar(&c.connections, "connections", 4, "accounts at the same `number`")
	f.IntVar(&c.rate, "rate", 1000, "messages a second that are read of the old server, all accounts together; 0: no limit")
	f.IntVar(&c.loginRate, "login-rate", 10, "logins a second at the old server; 0: no limit")
	f.StringVar(&c.resume, "resume", "", "a `file` that keeps the outcomes: with it the command goes on where it was stopped")
	c.json = jsonFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("user", "list")
}

// accounts returns the accounts to visit.
func (c *crawler) accounts(ctx context.Context, cmd *cobra.Command) ([]crawl.Account, error) {
	if c.master != "" || c.user != "" {
		name := c.master
		if name == "" {
			name = c.user
		}
		var err error
		if c.secret, err = readPassword(ctx, cmd, c.passwordFile, name); err != nil {
			return nil, err
		}
	}
	if c.list == "-" && c.master != "" && c.passwordFile == "" {
		return nil, errors.New("--list - takes standard input: give the password by --password-file")
	}
	return c.named(cmd, c.master == "")
}

// named returns the account of --user or the accounts of --list.
func (c *crawler) named(cmd *cobra.Command, passwords bool) ([]crawl.Account, error) {
	if c.user != "" {
		return []crawl.Account{{User: c.user}}, nil
	}
	in := cmd.InOrStdin()
	if c.list != "-" {
		f, err := os.Open(c.list)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	return crawl.ReadList(in, c.list, passwords)
}

// prepare makes what visits need. It does not connect.
func (c *crawler) prepare(cfg *configs.Config) (err error) {
	if c.server, err = c.old.server(); err != nil {
		return err
	}
	c.server.Pace, c.logins = crawl.NewPace(c.rate).Wait, crawl.NewPace(c.loginRate)
	c.mailboxes, err = service.OpenMailboxes(cfg)
	return err
}

// loginName returns the name by which a user logs in at a server.
func (c *crawler) loginName(format, user string) string {
	if c.master == "" {
		return user
	}
	return strings.NewReplacer("{user}", user, "{master}", c.master).Replace(format)
}

// open opens the maildrop of an account on the old server, and finds its INBOX.
func (c *crawler) open(ctx context.Context, a crawl.Account) (*oldserver.Maildrop, *service.Mailbox, error) {
	secret := a.Secret
	if secret == nil {
		secret = c.secret
	}
	mailbox, err := c.mailboxes.Find(ctx, a.User, c.loginName(c.newLogin, a.User), secret)
	if err != nil {
		return nil, nil, err
	}
	if err := c.logins.Wait(ctx, 1); err != nil {
		return nil, nil, err
	}
	old, err := c.server.Open(ctx, c.loginName(c.oldLogin, a.User), secret)
	if err != nil {
		return nil, nil, fmt.Errorf("old server %s: %w", c.old.address, err)
	}
	return old, mailbox, nil
}

// A summary of a crawl takes outcomes and prints what they come to.
type summary[T any] interface {
	take(crawl.Outcome[T])
	print(out io.Writer) error // the error is the exit status
}

// runCrawl visits all accounts on the old server, and prints the outcomes or their summary.
func runCrawl[T any](cmd *cobra.Command, c *crawler, name string, s summary[T], visit func(context.Context, *configs.Config, crawl.Account) (T, error), path string) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	if err := c.prepare(cfg); err != nil {
		return err
	}
	accounts, err := c.accounts(ctx, cmd)
	if err != nil {
		return err
	}
	return visitAll(ctx, cmd, c, accounts, name+" "+c.old.address, s, func(ctx context.Context, a crawl.Account) (T, error) { return visit(ctx, cfg, a) })
}

// visitAll visits accounts, and prints the outcomes or their summary. name is that of the
// journal.
func visitAll[T any](ctx context.Context, cmd *cobra.Command, c *crawler, accounts []crawl.Account, name string, s summary[T], visit func(context.Context, crawl.Account) (T, error)) error {
	journal, err := crawl.OpenJournal[T](c.resume, name)
	if err != nil {
		return err
	}
	report := newPrinter[crawl.Outcome[T]](cmd.OutOrStdout(), true, "", nil)
	line := progressLine{out: cmd.ErrOrStderr(), began: time.Now()}
	line.live = c.list != "" && isDisplay(line.out)
	err = crawl.Run(ctx, accounts, journal, crawl.Options{AtOnce: c.connections, Progress: line.update}, visit,
		func(o crawl.Outcome[T]) error {
			s.take(o)
			if *c.json {
				return report.print(o)
			}
			return nil
		})
	line.clear()
	if err = errors.Join(err, journal.Close()); err != nil {
		if c.resume != "" && ctx.Err() != nil {
			err = fmt.Errorf("stopped; the same command goes on from here: %w", err)
		}
		return err
	}
	out := cmd.OutOrStdout()
	if *c.json {
		out = cmd.ErrOrStderr()
	}
	return s.print(out)
}

// A progressLine shows on a terminal how far a crawl has come.
type progressLine struct {
	out   io.Writer
	live  bool
	began time.Time
}

func (l *progressLine) update(p crawl.Progress) {
	if !l.live {
		return
	}
	l.clear()
	left := (time.Since(l.began) / time.Duration(p.Done) * time.Duration(p.All-p.Done)).Round(time.Second)
	_, _ = fmt.Fprintf(l.out, "%d of %d accounts, %d failed, %v left", p.Done, p.All, p.Failed, left)
}

func (l *progressLine) clear() {
	if l.live {
		clearLine(l.out)
	}
}

// A ranking keeps the values with the greatest weights, up to toLookAt.
type ranking[T any] struct {
	weight func(T) int
	values []T
}

func (r *ranking[T]) add(v T) {
	if r.weight(v) == 0 {
		return
	}
	i, _ := slices.BinarySearchFunc(r.values, v, func(a, b T) int { return r.weight(b) - r.weight(a) })
	r.values = slices.Insert(r.values, i, v)
	r.values = r.values[:min(len(r.values), toLookAt)]
}

// A failures list has the first errors of a crawl.
type failures struct {
	n     int
	first []string
}

func (f *failures) add(user, text string) {
	if f.n++; len(f.first) < toLookAt {
		f.first = append(f.first, user+": "+text)
	}
}

func (f *failures) print(out io.Writer) {
	for _, line := range f.first {
		_, _ = fmt.Fprintf(out, "failed: %s\n", line)
	}
	if more := f.n - len(f.first); more > 0 {
		_, _ = fmt.Fprintf(out, "failed: %d more\n", more)
	}
}
