package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/maillog"
	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy/guard"
)

func seedCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "seed --from LOG",
		Short: "Learn from a log of Dovecot or Postfix where accounts log in from",
		Long: `Learn from a log of Dovecot or Postfix where accounts log in from, so that the
guard knows them from the first day. What is older than retention.guard does not count.
Names are rewritten as those that clients type. A log that is compressed comes
by a pipe: zcat mail.log.*.gz | postern guard seed --from -`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	from := cmd.Flags().String("from", "", "the log `file`; -: standard input")
	zone := cmd.Flags().String("zone", "Local", "the time `zone` of timestamps that have none, such as Europe/Berlin")
	_ = cmd.MarkFlagRequired("from")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		parser := maillog.Parser{Now: time.Now()}
		if parser.Zone, err = time.LoadLocation(*zone); err != nil {
			return err
		}
		in := cmd.InOrStdin()
		if *from != "-" {
			file, err := os.Open(*from)
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			in = file
		}
		log := bufio.NewReader(in)
		if magic, _ := log.Peek(2); string(magic) == "\x1f\x8b" {
			return fmt.Errorf("%s is compressed: zcat FILE | postern guard seed --from -", *from)
		}
		s, err := readSeed(log, parser, cfg, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if s.progress.Logins == 0 {
			return fmt.Errorf("none of the %d lines of %s is a login in the form of Dovecot (imap-login: Login: user=<alice>, ...) or Postfix (... sasl_username=alice): is it the log of the mail server?",
				s.progress.Lines, cmp.Or(strings.TrimPrefix(*from, "-"), "standard input"))
		}
		return s.send(cmd, cfg)
	}
	return cmd
}

// seedLogins has the logins of a log: the times of the first and the last login of each
// account from each address.
type seedLogins struct {
	progress maillog.Progress
	unusable int // number of logins whose name is not valid in this configuration
	times    map[origin][2]time.Time
}

type origin struct {
	account string
	addr    netip.Addr
}

// maxOrigins bounds the pairs of account and address of a log, of about 200 octets each.
const maxOrigins = 4 << 20

func readSeed(in io.Reader, parser maillog.Parser, cfg *configs.Config, status io.Writer) (*seedLogins, error) {
	accounts, mistakes := service.NewAccounts(cfg)
	if mistakes != nil {
		return nil, mistakes
	}
	s := &seedLogins{times: make(map[origin][2]time.Time)}
	oldest := parser.Now.AddDate(0, 0, -int(cfg.Retention.Guard))
	var err error
	s.progress, err = parser.Read(in, func(login maillog.Login) error {
		if login.Time.Before(oldest) {
			return nil
		}
		account, err := accounts.Account(login.Account)
		if err != nil {
			s.unusable++
			return nil
		}
		at := origin{account, login.Addr}
		times, ok := s.times[at]
		if !ok {
			if len(s.times) >= maxOrigins {
				return fmt.Errorf("the log has more than %d pairs of account and address", maxOrigins)
			}
			times = [2]time.Time{login.Time, login.Time}
		}
		if login.Time.Before(times[0]) {
			times[0] = login.Time
		}
		if login.Time.After(times[1]) {
			times[1] = login.Time
		}
		s.times[at] = times
		return nil
	}, func(p maillog.Progress) {
		fmt.Fprintf(status, "\r%d MiB, %d lines, %d logins", p.Octets>>20, p.Lines, p.Logins)
	})
	if s.progress.Lines >= 1<<16 {
		fmt.Fprintln(status)
	}
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	return s, nil
}

// send sends the logins to the guard, in requests of a bounded size.
func (s *seedLogins) send(cmd *cobra.Command, cfg *configs.Config) error {
	const mostAtOnce = 100_000
	var logins []guard.Success
	added := 0
	flush := func() error {
		n, err := stored.SeedGuard.One(cmd.Context(), cfg, logins)
		added, logins = added+n, logins[:0]
		return err
	}
	for at, times := range s.times {
		for _, t := range slices.Compact(times[:]) {
			logins = append(logins, guard.Success{Account: at.account, Addr: at.addr, Time: t})
		}
		if len(logins) >= mostAtOnce {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%d lines, %d logins, of the last %d days %d pairs of account and address, %d new\n",
		s.progress.Lines, s.progress.Logins, cfg.Retention.Guard, len(s.times), added)
	if s.unusable > 0 {
		fmt.Fprintf(out, "%d logins had names that no account has here\n", s.unusable)
	}
	if s.progress.Skipped > 0 {
		fmt.Fprintf(out, "%d lines were too long and not read\n", s.progress.Skipped)
	}
	return nil
}
