package maillog

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var parser = Parser{Zone: time.UTC, Now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}

// Criterion: the logins that succeeded are read from logs of Dovecot 2.3 and
// 2.4 and of Postfix, in the timestamps of syslog, of ISO 8601 and of their own.
func TestParseReadsLogins(t *testing.T) {
	for _, c := range []struct{ line, account, addr, at string }{
		{
			`Feb  3 08:09:10 mx dovecot: imap-login: Login: user=<alice@example.org>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5, mpid=777, TLS, session=<EClvK1b/ggB/AAAB>`,
			"alice@example.org", "192.0.2.1", "2026-02-03T08:09:10Z",
		},
		{
			`Dec 31 23:59:59 mx dovecot[12]: pop3-login: Login: user=<bob>, method=PLAIN, rip=2001:db8::7, lip=::1, mpid=1, TLS`,
			"bob", "2001:db8::7", "2025-12-31T23:59:59Z",
		},
		{
			`2026-02-03T08:09:10.123456+01:00 mx dovecot: imap-login: Logged in: user=<carol>, method=PLAIN, rip=::ffff:192.0.2.9, lip=10.0.0.5, mpid=777, TLS, session=<x>`,
			"carol", "192.0.2.9", "2026-02-03T07:09:10Z",
		},
		{
			`2026-02-03T08:09:10+0100 mx dovecot[5]: submission-login: Logged in: user=<dave>, method=XOAUTH2, rip=192.0.2.4, lip=10.0.0.5`,
			"dave", "192.0.2.4", "2026-02-03T07:09:10Z",
		},
		{
			`Feb 13 08:09:10 imap-login: Info: Login: user=<eve>, method=PLAIN, rip=192.0.2.5, lip=10.0.0.5, mpid=777, TLS, session=<x>`,
			"eve", "192.0.2.5", "2026-02-13T08:09:10Z",
		},
		{
			`2026-02-03 08:09:10 imap-login: Info: Login: user=<eve>, rip=192.0.2.5`,
			"eve", "192.0.2.5", "2026-02-03T08:09:10Z",
		},
		{
			`Feb 29 08:09:10 mx dovecot: imap-login: Login: user=<leap>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5`,
			"leap", "192.0.2.1", "2024-02-29T08:09:10Z",
		},
		{
			`Feb  3 08:09:10 mx postfix/submission/smtpd[99]: 4Xyz12AbCdz1: client=dsl.example.net[192.0.2.6], sasl_method=PLAIN, sasl_username=frank@example.org`,
			"frank@example.org", "192.0.2.6", "2026-02-03T08:09:10Z",
		},
		{
			`2026-02-03T08:09:10.5Z mx postfix/smtpd[99]: 3F2A: client=unknown[2001:db8::8]:40000, sasl_method=LOGIN, sasl_username=gina, sasl_sender=g@example.org`,
			"gina", "2001:db8::8", "2026-02-03T08:09:10Z",
		},
	} {
		got, ok := parser.Parse(c.line)
		if !ok {
			t.Errorf("Parse ignores %s", c.line)
			continue
		}
		if s := got.Time.UTC().Format(time.RFC3339); got.Account != c.account || got.Addr != netip.MustParseAddr(c.addr) || s != c.at {
			t.Errorf("%s\nis parsed as %+v, want %s %s %s", c.line, got, c.account, c.addr, c.at)
		}
	}
}

// Criterion: no refused login becomes a success, whatever name it had.
func TestParseIgnoresRefusedLogins(t *testing.T) {
	for _, message := range []string{
		`dovecot: imap-login: Disconnected (auth failed, 1 attempts in 2 secs): user=<alice>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5, TLS, session=<x>`,
		`dovecot: imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): user=<imap-login: Login: user=<alice>, method=PLAIN, rip=192.0.2.1>, method=PLAIN, rip=192.0.2.7, lip=10.0.0.5`,
		`dovecot: imap-login: Login aborted: Logged out (auth failed, 1 attempts in 2 secs) (auth_failed): user=<alice>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5`,
		`dovecot: auth: passwd-file(Login: user=<alice>, rip=192.0.2.1,192.0.2.7): unknown user`,
		`dovecot: imap(Login: user=<alice>, rip=192.0.2.1)<1><x>: Logged in: user=<alice>, rip=192.0.2.1`,
		`dovecot: lmtp: x-login: Login: user=<alice>, rip=192.0.2.1`,
		`dovecot: imap-login: Login: user=<>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5`,
		`dovecot: imap-login: Login: user=<alice>, method=PLAIN, rip=, lip=10.0.0.5`,
		`dovecot: imap-login: Login: user=<alice>, method=PLAIN, lip=10.0.0.5`,
		`dovecot: imap-login: Login: user=<alice`,
		`postfix/smtpd[99]: connect from unknown[192.0.2.1]`,
		`postfix/smtpd[99]: 3F2A: client=unknown[192.0.2.1]`,
		`postfix/smtpd[99]: warning: unknown[192.0.2.1]: SASL PLAIN authentication failed: 3F: client=x[192.0.2.1], sasl_method=PLAIN, sasl_username=alice`,
		`postfix/cleanup[99]: 3F2A: client=unknown[192.0.2.1], sasl_method=PLAIN, sasl_username=alice`,
		`postfix/smtpd[99]: 3F2A: client=unknown[192.0.2.1, sasl_method=PLAIN, sasl_username=alice`,
		`postfix/smtpd[99]: 3F2A: client=unknown[unknown], sasl_method=PLAIN, sasl_username=alice`,
		`sshd[1]: Accepted password for alice from 192.0.2.1`,
		`-`,
	} {
		for _, begin := range []string{"Feb  3 08:09:10 mx ", "2026-02-03T08:09:10Z mx ", "2026-02-03 08:09:10 "} {
			if got, ok := parser.Parse(begin + message); ok {
				t.Errorf("%s%s\nis parsed as %+v", begin, message, got)
			}
		}
	}
	for _, line := range []string{"", " ", "Feb", "Feb 3", "Feb 31 08:09:10 mx dovecot: imap-login: Login: user=<a>, rip=192.0.2.1", "now dovecot: imap-login: Login: user=<a>, rip=192.0.2.1"} {
		if got, ok := parser.Parse(line); ok {
			t.Errorf("%q is parsed as %+v", line, got)
		}
	}
}

func TestReadSkipsLongLines(t *testing.T) {
	const good = "Feb  3 08:09:10 mx dovecot: imap-login: Login: user=<alice>, rip=192.0.2.1\r\n"
	log := good + strings.Repeat("x", 5*maxLine) + good + good + "Feb  3 08:09:10 mx dovecot: imap-login: Login: user=<bob>, rip=192.0.2.2"
	var accounts []string
	p, err := parser.Read(strings.NewReader(log), func(s Login) error { accounts = append(accounts, s.Account); return nil }, nil)
	if got := fmt.Sprint(accounts); err != nil || got != "[alice alice bob]" {
		t.Errorf("Read gives %s, %v", got, err)
	}
	if want := (Progress{Octets: int64(len(log)), Lines: 3, Logins: 3, Skipped: 1}); p != want {
		t.Errorf("progress is %+v, want %+v", p, want)
	}
	full := errors.New("full")
	if _, err := parser.Read(strings.NewReader(log), func(Login) error { return full }, nil); !errors.Is(err, full) {
		t.Errorf("Read gives %v, want the error of each", err)
	}
	broken := errors.New("broken")
	if _, err := parser.Read(io.MultiReader(strings.NewReader(good), failingReader{broken}), func(Login) error { return nil }, nil); !errors.Is(err, broken) {
		t.Errorf("Read gives %v, want the error of the reader", err)
	}
}

type failingReader struct{ error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.error }

func TestReadReportsProgress(t *testing.T) {
	log := strings.Repeat("Feb  3 08:09:10 mx kernel: x\n", 200_000)
	var lines []int64
	if _, err := parser.Read(strings.NewReader(log), nil, func(p Progress) { lines = append(lines, p.Lines) }); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(lines); got != "[65536 131072 196608]" {
		t.Errorf("progress at lines %s", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("Feb  3 08:09:10 mx dovecot: imap-login: Login: user=<a>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5")
	f.Add("2026-02-03T08:09:10+0100 mx postfix/smtpd[9]: 3F: client=x[192.0.2.1], sasl_method=PLAIN, sasl_username=a")
	f.Add("2026-02-03 08:09:10 imap-login: Info: Logged in: user=<a>, rip=::1")
	f.Fuzz(func(t *testing.T, line string) {
		s, ok := parser.Parse(line)
		if !ok {
			return
		}
		if s.Account == "" || !s.Addr.IsValid() || s.Time.IsZero() || !strings.Contains(line, s.Account) {
			t.Errorf("%q is parsed as %+v", line, s)
		}
	})
}
