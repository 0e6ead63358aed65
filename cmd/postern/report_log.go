package main

import (
	"bufio"
	"compress/gzip"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/maillog"
	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/metrics/ledger"
	"postern/proxy"
	"postern/proxy/route"
)

// A usageLog is the use of POP3 by the accounts of logs. Nothing of it is stored.
type usageLog struct {
	accounts *route.Accounts
	parser   maillog.POP3Parser
	progress maillog.Progress
	unusable int // logins with a name that is not valid in this configuration
	usages   map[string]*ledger.Usage

	first, last time.Time // of the lines of POP3 sessions
}

// maxLogAccounts bounds the accounts of logs, of about 250 octets each.
const maxLogAccounts = 4 << 20

// readUsageLogs reads logs, the oldest one first.
func readUsageLogs(cmd *cobra.Command, cfg *configs.Config, names []string, zone string) (*usageLog, error) {
	accounts, mistakes := service.NewAccounts(cfg)
	if mistakes != nil {
		return nil, mistakes
	}
	l := &usageLog{accounts: accounts, usages: make(map[string]*ledger.Usage)}
	l.parser.Now = time.Now()
	var err error
	if l.parser.Zone, err = time.LoadLocation(zone); err != nil {
		return nil, err
	}
	if names, err = l.byAge(names); err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := l.read(cmd, name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if l.progress.Logins == 0 {
		return nil, fmt.Errorf("none of the %d lines is of a POP3 session in the form of Dovecot (pop3-login: Login: user=<alice>, ...), Courier (pop3d: LOGOUT, user=alice, ...) or Cyrus (pop3: login: ...): is it the log of the POP3 server?",
			l.progress.Lines)
	}
	return l, nil
}

// byAge sorts logs by their first timestamp: habits are those of the last sessions.
func (l *usageLog) byAge(names []string) ([]string, error) {
	if len(names) == 1 {
		return names, nil
	}
	begins := make(map[string]time.Time)
	for _, name := range names {
		if name == "-" {
			return nil, errors.New("standard input can only be the one log: --from -")
		}
		err := openLog(nil, name, func(r io.Reader) error {
			const lines = 100
			in := bufio.NewScanner(io.LimitReader(r, 1<<20))
			for range lines {
				if !in.Scan() {
					break
				}
				if at, ok := l.parser.Time(in.Text()); ok {
					begins[name] = at
					break
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	names = slices.Clone(names)
	slices.SortStableFunc(names, func(a, b string) int { return begins[a].Compare(begins[b]) })
	return names, nil
}

// openLog calls read with a log, which may be compressed by gzip; "-" is stdin.
func openLog(stdin io.Reader, name string, read func(io.Reader) error) error {
	in := stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	log := bufio.NewReader(in)
	if magic, _ := log.Peek(2); string(magic) != "\x1f\x8b" {
		return read(log)
	}
	z, err := gzip.NewReader(log)
	if err != nil {
		return err
	}
	return read(z)
}

func (l *usageLog) read(cmd *cobra.Command, name string) error {
	before, status := l.progress, cmd.ErrOrStderr()
	return openLog(cmd.InOrStdin(), name, func(r io.Reader) error {
		done, err := l.parser.Read(r, l.add, func(p maillog.Progress) {
			fmt.Fprintf(status, "\r%d MiB, %d lines", (before.Octets+p.Octets)>>20, before.Lines+p.Lines)
		})
		if done.Lines >= 1<<16 {
			fmt.Fprintln(status)
		}
		l.progress.Octets += done.Octets
		l.progress.Lines += done.Lines
		l.progress.Logins += done.Logins
		l.progress.Skipped += done.Skipped
		return err
	})
}

func (l *usageLog) add(login maillog.POP3Login) error {
	if l.first.IsZero() || login.Time.Before(l.first) {
		l.first = login.Time
	}
	if login.Time.After(l.last) {
		l.last = login.Time
	}
	account, err := l.accounts.Account(login.Account)
	if err != nil {
		l.unusable++
		return nil
	}
	u := l.usages[account]
	if u == nil {
		if len(l.usages) >= maxLogAccounts {
			return fmt.Errorf("the logs have more than %d accounts", maxLogAccounts)
		}
		u = new(ledger.Usage)
		l.usages[account] = u
	}
	if login.LoggedIn {
		u.Login(login.Time, account, login.Addr, tlsVersion(login))
	}
	if login.End != nil {
		u.End(login.Time, ledger.Session{Totals: login.End.Totals, Conclusive: login.End.Conclusive})
	}
	return nil
}

// tlsVersion returns the version of TLS as a Usage has it.
func tlsVersion(login maillog.POP3Login) uint16 {
	if !login.TLS {
		return 0
	}
	for version := uint16(tls.VersionTLS10); version <= tls.VersionTLS13; version++ {
		name := strings.ReplaceAll(tls.VersionName(version), " ", "v")
		if login.Version == name || login.Version+".0" == name { // TLSv1 is OpenSSL's name of TLS 1.0
			return version
		}
	}
	return ledger.VersionUnknown
}

// each calls each for the entries of the logs, in the order of accounts.
func (l *usageLog) each(each func(ledger.Entry) error) error {
	for _, account := range slices.Sorted(maps.Keys(l.usages)) {
		if err := each(l.usages[account].Entry(account, proxy.POP3)); err != nil {
			return err
		}
	}
	return nil
}

// summarize prints what was read.
func (l *usageLog) summarize(out io.Writer) {
	fmt.Fprintf(out, "%d lines, %d of POP3 sessions from %s to %s; nothing of the log is stored\n",
		l.progress.Lines, l.progress.Logins, ledger.Day(l.first), ledger.Day(l.last))
	if l.unusable > 0 {
		fmt.Fprintf(out, "%d lines had names that no account has here\n", l.unusable)
	}
	if l.progress.Skipped > 0 {
		fmt.Fprintf(out, "%d lines were too long and not read\n", l.progress.Skipped)
	}
}
