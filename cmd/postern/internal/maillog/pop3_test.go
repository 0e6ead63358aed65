package maillog

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// readPOP3 returns what a log says, a line each.
func readPOP3(t *testing.T, log string) []string {
	t.Helper()
	var got []string
	p := POP3Parser{Parser: parser}
	_, err := p.Read(strings.NewReader(log), func(l POP3Login) error {
		text := l.Account
		if l.LoggedIn {
			text += fmt.Sprintf(" login %s tls=%v%s", l.Addr, l.TLS, l.Version)
		}
		if e := l.End; e != nil {
			text += fmt.Sprintf(" end of %d: downloaded %d (%d) kept %d marked %d deleted %d %v",
				e.Messages, e.Downloaded, e.Octets, e.Kept, e.Marked, e.Deleted, e.Conclusive)
		}
		got = append(got, text)
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// The lines are those of real servers: Dovecot 2.3.19, courier-pop 1.0, Cyrus 3.6, with other
// names and addresses, and of the manuals of other versions.
var pop3Logs = map[string]struct {
	log  string
	want []string
}{
	"Dovecot's own log": {`
Nov 28 22:26:57 pop3-login: Info: Login: user=<alice>, method=PLAIN, rip=127.0.0.1, lip=127.0.0.1, mpid=29041, secured, session=<nUW2rF1hDOx/AAAB>
Nov 28 22:26:57 pop3(alice)<29041><nUW2rF1hDOx/AAAB>: Info: Disconnected: Logged out top=0/0, retr=1/37, del=0/4, size=88
Nov 28 22:26:58 pop3(alice)<29042><PXy8rF1hHOx/AAAB>: Info: Disconnected: Logged out top=0/0, retr=1/37, del=1/4, size=88
Nov 28 22:26:59 pop3(alice)<29043><kj/ErF1hJux/AAAB>: Info: Disconnected: Connection closed top=1/20, retr=0/0, del=0/3, size=66
Nov 28 22:26:59 pop3(alice)<29044><+p3QrF1hLux/AAAB>: Info: Disconnected: Logged out top=0/0, retr=0/0, del=1/3, size=66
Nov 28 22:26:59 pop3(alice)<29045><etrWrF1hOOx/AAAB>: Info: Disconnected: Logged out top=0/0, retr=2/90, del=2/2, size=44
Nov 28 22:26:59 pop3(alice)<29045><etrWrF1hOOx/AAAB>: Info: Disconnected: Logged out top=2/90, retr=0/0, del=0/2, size=44
Nov 28 22:27:02 pop3-login: Info: Disconnected: Aborted login by logging out (auth failed, 1 attempts in 2 secs): user=<alice>, method=PLAIN, rip=127.0.0.1, lip=127.0.0.1, secured, session=<fXjbrF1hPOx/AAAB>
`, []string{
		"alice login 127.0.0.1 tls=false",
		"alice end of 4: downloaded 1 (37) kept 1 marked 0 deleted 0 true",
		"alice end of 4: downloaded 1 (37) kept 0 marked 0 deleted 1 false", // the one that it has downloaded, or an older one
		"alice end of 3: downloaded 0 (0) kept 0 marked 0 deleted 0 false",
		"alice end of 3: downloaded 0 (0) kept 0 marked 1 deleted 1 true",
		"alice end of 2: downloaded 2 (90) kept 0 marked 2 deleted 2 true",
		"alice end of 2: downloaded 0 (0) kept 0 marked 0 deleted 0 false",
	}},
	"Dovecot in syslog": {`
Feb  3 08:09:10 mx dovecot: pop3-login: Login: user=<bob@example.org>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5, mpid=777, TLS, session=<x>
2026-02-03T08:09:10.1+01:00 mx dovecot[9]: pop3-login: Logged in: user=<bob@example.org>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5, TLSv1.2 with cipher X (256/256 bits), session=<x>
2026-02-03T08:09:11.1+01:00 mx dovecot[9]: pop3(bob@example.org)<777><x>: Disconnected: Logged out top=0/0, retr=3/900, del=1/40, size=9000
Feb  3 08:09:10 mx dovecot: pop3(bob@example.org): Disconnected: Logged out top=0/0, retr=0/0, del=0/40, size=9000
Feb  3 08:09:10 mx dovecot: imap(bob@example.org)<7><x>: Disconnected: Logged out in=1 out=2
`, []string{
		"bob@example.org login 192.0.2.1 tls=true",
		"bob@example.org login 192.0.2.1 tls=trueTLSv1.2",
		"bob@example.org end of 40: downloaded 3 (900) kept 2 marked 1 deleted 1 true",
		"bob@example.org end of 40: downloaded 0 (0) kept 0 marked 0 deleted 0 true",
	}},
	"Courier": {`
Feb  3 08:09:10 mx pop3d: Connection, ip=[::ffff:192.0.2.1]
Feb  3 08:09:10 mx pop3d: LOGIN, user=alice, ip=[::ffff:192.0.2.1], port=[51926]
Feb  3 08:09:10 mx pop3d: LOGOUT, user=alice, ip=[::ffff:192.0.2.1], port=[51926], top=0, retr=22, rcvd=14, sent=81, time=0
Feb  3 08:09:10 mx pop3d: LOGOUT, user=alice, ip=[::ffff:192.0.2.1], port=[51926], top=0, retr=22, rcvd=14, sent=81, time=0, stls=1
Feb  3 08:09:10 mx pop3d-ssl: DISCONNECTED, user=bob, ip=[2001:db8::7], port=[51948], top=22, retr=0, rcvd=9, sent=65, time=1
Feb  3 08:09:10 mx pop3d: TIMEOUT, user=bob, ip=[2001:db8::7], port=[51948], top=22, retr=0, rcvd=9, sent=65, time=1
Feb  3 08:09:10 mx pop3d: LOGIN FAILED, user=alice, ip=[::ffff:192.0.2.1], port=[51968]
`, []string{
		"alice login 192.0.2.1 tls=false end of 0: downloaded 0 (22) kept 0 marked 0 deleted 0 false",
		"alice login 192.0.2.1 tls=true end of 0: downloaded 0 (22) kept 0 marked 0 deleted 0 false",
		"bob login 2001:db8::7 tls=true end of 0: downloaded 0 (0) kept 0 marked 0 deleted 0 false",
		"bob login 2001:db8::7 tls=false end of 0: downloaded 0 (0) kept 0 marked 0 deleted 0 false",
	}},
	"Cyrus": {`
Nov 28 22:27:11 mx cyrus/pop3[29203]: login: localhost [127.0.0.1] alice plaintext User logged in SESSIONID=<localhost-1795904831-29203-2-7394621178143623746>
Nov 28 22:27:11 mx cyrus/pop3s[30285]: starttls: TLSv1.3 with cipher TLS_AES_128_GCM_SHA256 (128/128 bits new) no authentication
Nov 28 22:27:12 mx cyrus/pop3[29203]: Expunged 1 messages from user.alice
Nov 28 22:27:12 mx cyrus/pop3[29203]: USAGE alice user: 0.000000 sys: 0.008149
Nov 28 22:27:12 mx cyrus/pop3[29203]: counts: retr=<1> top=<0> dele=<1>
Nov 28 22:27:12 mx cyrus/pop3[29203]: counts: retr=<1> top=<0> dele=<1>
Nov 28 22:27:13 mx cyrus/pop3[30020]: badlogin: localhost [127.0.0.1] plaintext (alice) [SASL(-13): authentication failure: checkpass failed]
Nov 28 22:27:14 mx cyrus/pop3s[30285]: login: [192.0.2.4] bob@example.org PLAIN+TLS User logged in SESSIONID=<x>
Nov 28 22:27:14 mx cyrus/pop3s[30285]: counts: retr=<2> top=<0> dele=<0>
Nov 28 22:27:14 mx pop3[1]: login: localhost [127.0.0.1] carol plaintext User logged in SESSIONID=<x>
Nov 28 22:27:14 mx pop3[1]: counts: retr=<2> top=<0> dele=<2>
`, []string{
		"alice login 127.0.0.1 tls=false",
		"alice end of 0: downloaded 1 (0) kept 0 marked 1 deleted 1 true",
		"bob@example.org login 192.0.2.4 tls=trueTLSv1.3",
		"bob@example.org end of 0: downloaded 2 (0) kept 2 marked 0 deleted 0 true",
		"carol login 127.0.0.1 tls=false",
		"carol end of 0: downloaded 2 (0) kept 0 marked 2 deleted 0 false", // nothing was expunged: no QUIT
	}},
}

// Criterion: who used POP3, with what TLS, and what the sessions did is read from the logs of Dovecot, Courier and Cyrus.
func TestPOP3SessionsAreRead(t *testing.T) {
	for name, c := range pop3Logs {
		if got := readPOP3(t, c.log); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

func TestNoOtherLineIsOfAPOP3Session(t *testing.T) {
	for _, message := range []string{
		`mx dovecot: imap-login: Login: user=<alice>, method=PLAIN, rip=192.0.2.1, lip=10.0.0.5`,
		`mx dovecot: pop3-login: Disconnected: user=<pop3(alice)<1><x>: Disconnected: Logged out top=0/0, retr=1/37, del=0/4, size=88>, rip=192.0.2.1`,
		`mx dovecot: auth: passwd-file(pop3(alice)<1><x>: Disconnected: Logged out top=0/0, retr=1/37, del=0/4, size=88,192.0.2.7): unknown user`,
		`mx dovecot: pop3(alice)<1><x>: Disconnected: Logged out`,
		`mx dovecot: pop3(alice)<1><x>: Disconnected: Logged out top=0/0, retr=x/37, del=0/4, size=88`,
		`mx dovecot: pop3(alice)<1><x>: Disconnected: Logged out top=0/0, retr=1/37, del=99999999999999999999/4, size=88`,
		`mx dovecot: pop3(alice) says <1><x>: Disconnected: Logged out top=0/0, retr=1/37, del=0/4, size=88`,
		`mx dovecot: pop3()<1><x>: Disconnected: Logged out top=0/0, retr=1/37, del=0/4, size=88`,
		`mx sshd[1]: pop3(alice)<1><x>: Disconnected: Logged out top=0/0, retr=1/37, del=0/4, size=88`,
		`mx pop3d: LOGIN FAILED, user=LOGOUT, user=alice, ip=[192.0.2.1], port=[1], top=0, retr=22`,
		`mx imapd: LOGOUT, user=alice, ip=[192.0.2.1], port=[1], headers=0, body=0`,
		`mx pop3d: LOGOUT, user=alice, ip=[nowhere], port=[1], top=0, retr=22`,
		`mx cyrus/imap[1]: login: localhost [127.0.0.1] alice plaintext User logged in SESSIONID=<x>`,
		`mx cyrus/pop3[1]: badlogin: localhost [127.0.0.1] plaintext (login: x [127.0.0.1] alice plaintext User logged in) [SASL(-13)]`,
		`mx cyrus/pop3[1]: login: localhost [127.0.0.1] alice User logged in`,
		`mx cyrus/pop3[1]: counts: retr=<1> top=<0> dele=<1>`,
	} {
		if got := readPOP3(t, "Feb  3 08:09:10 "+message+"\n"); got != nil {
			t.Errorf("%s\nis read as %q", message, got)
		}
	}
}

func TestProcessesOfCyrusAreBounded(t *testing.T) {
	p := POP3Parser{Parser: parser}
	for i := range maxProcesses + 10 {
		p.Parse(fmt.Sprintf("Feb  3 08:09:10 mx cyrus/pop3s[%d]: starttls: TLSv1.3 with cipher X", i))
	}
	if len(p.cyrus) > maxProcesses {
		t.Errorf("%d processes are remembered", len(p.cyrus))
	}
}

func FuzzPOP3Parse(f *testing.F) {
	for _, c := range pop3Logs {
		for line := range strings.SplitSeq(c.log, "\n") {
			f.Add(line)
		}
	}
	f.Fuzz(func(t *testing.T, line string) {
		p := POP3Parser{Parser: parser}
		l, ok := p.Parse(line)
		if !ok {
			return
		}
		if l.Account == "" || !strings.Contains(line, l.Account) || l.LoggedIn != (l.Addr != netip.Addr{}) || !l.LoggedIn && l.End == nil {
			t.Errorf("%q is read as %+v", line, l)
		}
		if e := l.End; e != nil && (e.Downloaded < 0 || e.Octets < 0 || e.Kept < 0 || e.Marked < 0 || e.Deleted < 0 || e.Messages < 0) {
			t.Errorf("%q ends with %+v", line, e)
		}
	})
}
