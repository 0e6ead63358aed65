package service

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: a map file, a domain and a default choose the backend, for the account as it was rewritten.
func TestRoutesLeadToTheirBackends(t *testing.T) {
	oldIMAP, _ := inMemory(t, "old", "carol@example.org")
	newIMAP, _ := inMemory(t, "new", "alice@example.org", "web1p2", "dave@example.net")
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.WriteFile(moved, []byte("alice@example.org\nweb1p2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends:
  old: {imap: {address: %q, tls: none}}
  new: {imap: {address: %q, tls: none}}
routes: [{file: %q, backend: new}, {domain: example.net, backend: new}, {backend: old}]
accounts: {default_domain: example.org, rewrite: [{match: "^(web[0-9]+p[0-9]+)@.*$", to: "$1"}]}
`, oldIMAP, newIMAP, moved))
	for _, login := range []struct{ typed, account, subject string }{
		{"Alice", "alice@example.org", "new"},
		{"web1p2@customer.example", "web1p2", "new"},
		{"dave@EXAMPLE.net", "dave@example.net", "new"},
		{"carol@example.org", "carol@example.org", "old"},
	} {
		proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), fmt.Sprintf(`
			S: +OK *
			C: USER %s
			S: +OK *
			C: PASS secret of %s
			S: +OK *
			C: TOP 1 0
			S: +OK *
			S: Subject: %s
			S:
			S: .
			C: QUIT
			S: +OK *
		`, login.typed, login.account, login.subject))
	}
}

// Criterion: that a protocol is off is said only after the right password, in the operator's words, and ends no guess.
func TestPolicyIsToldToTheOwnerOnly(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob")
	policy := filepath.Join(t.TempDir(), "policy")
	if err := os.WriteFile(policy, []byte("alice pop3:off\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
policy: {file: %q}
texts: {protocol_off: "Open POP3 in the panel first"}
`, imap, policy))
	proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), `
		S: +OK *
		C: USER alice
		S: +OK *
		C: PASS wrong
		S: -ERR \[AUTH\] Wrong user name or password (session *)
		C: USER alice
		S: +OK *
		C: PASS secret of alice
		S: -ERR \[AUTH\] Open POP3 in the panel first (session *)
		C: USER bob
		S: +OK *
		C: PASS secret of bob
		S: +OK *
		C: QUIT
		S: +OK *
	`)
}

// Criterion: After an account's last day of POP3, who has the password is told first what to do, by [SYS/PERM], and it costs no guess; who has not sees what all see.
func TestTheEndOfPOP3IsToldToTheOwnerOnly(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob@example.org", "carol")
	policy := file(t, t.TempDir(), "policy", "alice pop3:off-after=2025-01-31\n@example.org pop3:off-after=2025-02-28\ncarol pop3:off-after=2099-12-31\n")
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
policy: {file: %q}
domains: [{domain: example.org, texts: {pop3_ended: "Call 0123"}}]
`, imap, policy))
	wrong := func(user string) string {
		return fmt.Sprintf(`
			C: USER %s
			S: +OK *
			C: PASS wrong
			S: -ERR \[AUTH\] Wrong user name or password (session *)
		`, user)
	}
	for user, answer := range map[string]string{
		"alice":           `-ERR \[SYS/PERM\] Set up this account with IMAP in your mail program: POP3 is switched off for it. *(session *)`,
		"bob@example.org": `-ERR \[SYS/PERM\] Call 0123 (session *)`,
		"carol":           `+OK *`,
	} {
		proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), "S: +OK *"+wrong(user)+fmt.Sprintf(`
			C: USER %s
			S: +OK *
			C: PASS secret of %s
			S: %s
		`, user, user, answer))
	}
	proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), "S: +OK *"+wrong("nobody"))
	proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), `
		S: +OK *
		C: USER alice
		S: +OK *
		C: PASS secret of alice
		S: -ERR \[SYS/PERM\] *
		C: USER alice
		S: +OK *
		C: PASS secret of alice
		S: -ERR \[SYS/PERM\] *
		C: USER alice
		S: +OK *
		C: PASS secret of alice
		S: -ERR \[SYS/PERM\] *
		C: QUIT
		S: +OK *
	`)
}

// Criterion: on a STARTTLS port no credential passes before TLS; a port that refuses says why in the operator's words.
func TestOldPorts(t *testing.T) {
	imap, submission := inMemory(t, "mail", "alice")
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners:
  - {name: imap-143, protocol: imap, address: "127.0.0.1:0", tls: starttls}
  - {name: submission-587, protocol: submission, address: "127.0.0.1:0", tls: starttls}
  - {name: pop3-110, protocol: pop3, address: "127.0.0.1:0", tls: refuse}
backends: {main: {imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
texts: {plaintext: "Use port 995 with SSL/TLS, see https://example.org/mail"}
`, imap, submission))
	proxytest.Transcript(t, r.dial(t, "pop3-110"), `
		S: -ERR Use port 995 with SSL/TLS, see https://example.org/mail (session *)
		S: <EOF>
	`)
	c := r.dial(t, "imap-143")
	proxytest.Transcript(t, c, `
		S: \* OK \[CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\] *
		C: a LOGIN alice "secret of alice"
		S: a NO \[PRIVACYREQUIRED\] Use port 995 *
		C: b STARTTLS
		S: b OK *
	`)
	proxytest.Transcript(t, r.secure(c), `
		C: c LOGIN alice "secret of alice"
		S: c OK \[CAPABILITY *
		C: d LOGOUT
		S: \* BYE *
		S: d OK *
	`)
	c = r.dial(t, "submission-587")
	proxytest.Transcript(t, c, `
		S: 220 *
		C: HELO client
		S: 250 *
		C: AUTH PLAIN AGFsaWNlAHg=
		S: 538 5.7.11 Use port 995 *
		C: MAIL FROM:<alice@example.org>
		S: 530 5.7.0 *
		C: STARTTLS
		S: 220 *
	`)
	proxytest.Transcript(t, r.secure(c), `
		C: MAIL FROM:<alice@example.org>
		S: 5*
		C: QUIT
		S: 221 *
	`)
}

// Criterion: a PROXY header is taken from listed networks only.
func TestProxyHeaderIsTakenFromListedNetworksOnly(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	config := `
listeners: [{protocol: imap, address: "127.0.0.1:0", proxy_from: [%s]}]
backends: {main: {imap: {address: %q, tls: none}}}
`
	trusting := startService(t, baseConfig+fmt.Sprintf(config, "127.0.0.1", imap))
	c := trusting.dial(t, "imap")
	if _, err := fmt.Fprint(c, "PROXY TCP4 192.0.2.7 192.0.2.1 4711 993\r\n"); err != nil {
		t.Fatal(err)
	}
	proxytest.Transcript(t, trusting.secure(c), `
		S: \* OK *
		C: a LOGOUT
		S: \* BYE *
		S: a OK *
	`)
	other := startService(t, baseConfig+fmt.Sprintf(config, "192.0.2.9", imap))
	c = other.dial(t, "imap")
	if _, err := fmt.Fprint(c, "PROXY TCP4 192.0.2.7 192.0.2.1 4711 993\r\n"); err != nil {
		t.Fatal(err)
	}
	proxytest.Transcript(t, c, `
		S: \* BYE *
		S: <EOF>
	`)
}

func TestTextsOfADomainGoBeforeThoseForAll(t *testing.T) {
	g := &generation{cfg: &configs.Config{
		Texts:   configs.Texts{Wrong: "for all", Unavailable: "for all"},
		Domains: []configs.Domain{{Domain: "example.org", Texts: configs.Texts{Wrong: "for some"}}},
	}}
	for _, c := range []struct {
		reason        proxy.Reason
		account, want string
	}{
		{proxy.Wrong, "alice@example.org", "for some"},
		{proxy.Unavailable, "alice@example.org", "for all"},
		{proxy.Wrong, "alice@example.net", "for all"},
		{proxy.Wrong, "alice", "for all"},
		{proxy.Wrong, "", "for all"},
		{proxy.InUse, "alice@example.org", ""},
	} {
		if got := g.text(c.reason, c.account); got != c.want {
			t.Errorf("text(%s, %q) = %q, want %q", c.reason, c.account, got, c.want)
		}
	}
}

// Criterion: what POP3 has learnt of a mailbox outlives Postern: the same unique ids, and no listing made anew.
func TestStateOutlivesPostern(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	config := baseConfig + fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
state: {path: %q}
pop3: {uidl: "%%v.%%u"}
`, imap, filepath.Join(t.TempDir(), "state"))
	for _, source := range []string{"full", "cache"} {
		t.Run(source, func(t *testing.T) {
			r := startService(t, config)
			proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), `
				S: +OK *
				C: USER alice
				S: +OK *
				C: PASS secret of alice
				S: +OK *
				C: UIDL 1
				S: +OK 1 1.1
				C: QUIT
				S: +OK *
				S: <EOF>
			`)
			if got := r.metrics("maildrop_load_duration_seconds_count"); !strings.Contains(got, `{source="`+source+`"} 1`) {
				t.Errorf("maildrop not opened from %s:\n%s", source, got)
			}
		})
	}
}

// Criterion: what CAPA promises is the same before and after login, and kept: an account that comes again before its LOGIN-DELAY is refused on every POP3 port, another one is not.
func TestCAPAIsTrue(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob")
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners:
  - {protocol: pop3, address: "127.0.0.1:0"}
  - {name: other, protocol: pop3, address: "127.0.0.1:0"}
backends: {main: {imap: {address: %q, tls: none}}}
pop3: {expire: never, login_delay: 1h, utf8: true}
`, imap))
	const capabilities = `
		S: UIDL
		S: TOP
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: EXPIRE NEVER
		S: LOGIN-DELAY 3600
		S: UTF8
		S: IMPLEMENTATION Postern
		S: .
	`
	proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), `
		S: +OK *
		C: CAPA
		S: +OK *
		S: USER
		S: SASL PLAIN LOGIN`+capabilities+`
		C: UTF8
		S: +OK *
		C: USER alice
		S: +OK *
		C: PASS secret of alice
		S: +OK *
		C: CAPA
		S: +OK *`+strings.Replace(capabilities, "S: UIDL\n\t\tS: TOP", "S: TOP\n\t\tS: UIDL", 1)+`
		C: QUIT
		S: +OK *
	`)
	proxytest.Transcript(t, r.secure(r.dial(t, "other")), `
		S: +OK *
		C: USER alice
		S: +OK *
		C: PASS wrong
		S: -ERR \[AUTH\] *
		C: USER alice
		S: +OK *
		C: PASS secret of alice
		S: -ERR \[LOGIN-DELAY\] You have logged in a moment ago: try again later (session *)
		C: USER bob
		S: +OK *
		C: PASS secret of bob
		S: +OK *
		C: QUIT
		S: +OK *
	`)
	if got := r.metrics("auth_attempts_total"); !strings.Contains(got, `{mechanism="userpass",protocol="pop3",result="rate_limited"} 1`) {
		t.Errorf("the refusal is not counted:\n%s", got)
	}
}

func TestCAPANamesNobodyWhenTold(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
pop3: {announce_implementation: false}
`, imap))
	proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), `
		S: +OK *
		C: CAPA
		S: +OK *
		S: USER
		S: SASL *
		S: UIDL
		S: TOP
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: .
		C: USER alice
		S: +OK *
		C: PASS secret of alice
		S: +OK *
		C: CAPA
		S: +OK *
		S: TOP
		S: UIDL
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: .
	`)
}

// Criterion: what DELE means and what a second session meets are a listener's own; a maildrop is the same one behind all of them.
func TestListenersHaveTheirOwnDELEAndLock(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners:
  - {protocol: pop3, address: "127.0.0.1:0", name: office, pop3: {lock: refuse}}
  - {protocol: pop3, address: "127.0.0.1:0", name: archive, pop3: {lock: takeover, delete: keep}}
backends: {main: {imap: {address: %q, tls: none}}}
pop3: {delete: expunge}
`, imap))
	const login = "S: +OK *\nC: USER alice\nS: +OK *\nC: PASS secret of alice\n"
	archive := r.secure(r.dial(t, "archive"))
	proxytest.Transcript(t, archive, login+"S: +OK *\nC: DELE 1\nS: +OK *\nC: QUIT\nS: +OK *\nS: <EOF>")
	archive = r.secure(r.dial(t, "archive"))
	proxytest.Transcript(t, archive, login+"S: +OK Maildrop has 1 messages *")
	proxytest.Transcript(t, r.secure(r.dial(t, "office")), login+`S: -ERR \[IN-USE] *`)
	_ = archive.Close()
	waiting := time.Now().Add(10 * time.Second)
	for time.Now().Before(waiting) {
		office := r.secure(r.dial(t, "office"))
		proxytest.Transcript(t, office, login)
		if line, err := bufio.NewReader(office).ReadString('\n'); err != nil || !strings.HasPrefix(line, "+OK") {
			_ = office.Close()
			continue // the first session is not over yet
		}
		proxytest.Transcript(t, r.secure(r.dial(t, "archive")), login+"S: +OK Maildrop has 1 messages *")
		proxytest.Transcript(t, office, `S: -ERR \[SYS/TEMP] *`)
		return
	}
	t.Error("the lock is never free")
}
