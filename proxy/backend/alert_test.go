package backend

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"postern/proxy"
)

const alerting = `
	S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready
	C: P1 AUTHENTICATE PLAIN *
	`

// Criterion: what an IMAP server wants its user to be shown with the login
// ([ALERT], RFC 3501 section 7.1) reaches the user, with a login and with a
// temporary refusal, and never with a wrong password.
func TestLoginIMAPPassesAlertsOn(t *testing.T) {
	for _, test := range []struct{ name, answer, want string }{
		{"before the answer", "S: * OK [ALERT] over quota\nS: P1 OK [CAPABILITY IMAP4rev1] in", "over quota"},
		{"in the answer", "S: P1 OK [ALERT] Your password ends in 3 days\nC: P2 CAPABILITY\nS: * CAPABILITY IMAP4rev1\nS: P2 OK", "Your password ends in 3 days"},
		{"both, and once more", "S: * NO [alert] a\nS: P1 OK [ALERT] b\nC: P2 CAPABILITY\nS: * OK [ALERT] b\nS: * CAPABILITY IMAP4rev1\nS: P2 OK", "a; b; b"},
		{"none", "S: * OK [ALERTS] x\nS: * OK ALERT\nS: P1 OK [CAPABILITY IMAP4rev1] in", ""},
		{"empty", "S: * OK [ALERT]\nS: P1 OK [CAPABILITY IMAP4rev1] in", ""},
		{"of 10 kB", "S: * OK [ALERT] " + strings.Repeat("x", 10000) + "\nS: P1 OK [CAPABILITY IMAP4rev1] in", strings.Repeat("x", maxAlert)},
		{"of 10 kB without the code", "S: * OK " + strings.Repeat("x", 10000) + "\nS: P1 OK [CAPABILITY IMAP4rev1] in", ""},
		{"with NUL and CR", "S: * OK [ALERT] over\x00quota\rnow\nS: P1 OK [CAPABILITY IMAP4rev1] in", "over quota now"},
		{"in data", "S: * LIST () {10}\nS: * OK [ALER\nS: P1 OK [CAPABILITY IMAP4rev1] in", ""},
	} {
		s, _ := startServer(t, proxy.IMAP, None, alerting+test.answer)
		session, err := (&IMAP{Server: s}).Login(t.Context(), testLogin(account, password))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		want := "[CAPABILITY IMAP4rev1] Logged in"
		if test.want != "" {
			want = "[ALERT] " + test.want + "\r\n" + want
		}
		if welcome, _ := session.Open(t.Context()); welcome != want {
			t.Errorf("%s: %q, want %q", test.name, welcome, want)
		}
		_ = session.Close()
	}
	for _, test := range []struct {
		name, answer, want string
		reason             proxy.Reason
	}{
		{"temporary", "S: * NO [ALERT] We are moving\nS: P1 NO [UNAVAILABLE] x", "We are moving", proxy.Unavailable},
		{"goodbye", "S: * BYE [ALERT] We are moving\nS: <EOF>", "We are moving", proxy.Unavailable},
		{"wrong, with NUL", "S: * NO [ALERT] a\x00b\nS: P1 NO [AUTHENTICATIONFAILED] x", "", proxy.Wrong},
		{"wrong, at length", "S: P1 NO [ALERT] " + strings.Repeat("x", 10000), "", proxy.Wrong},
		{"wrong", "S: * NO [ALERT] no such user\nS: P1 NO [AUTHENTICATIONFAILED] x", "", proxy.Wrong},
		{"wrong by its code", "S: P1 NO [ALERT] no such user", "", proxy.Wrong},
	} {
		s, _ := startServer(t, proxy.IMAP, None, alerting+test.answer+logoutScript(test.answer, "P2 LOGOUT"))
		_, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
		checkRefusal(t, err, test.reason)
		if r, ok := err.(*proxy.Refusal); !ok || r.Alert != test.want { //nolint:errorlint // it is this error
			t.Errorf("%s: %+v, want %q", test.name, err, test.want)
		}
	}
}

func TestLoginIMAPForgetsAlertsFromBeforeTLS(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, STARTTLS, `
		S: * OK [CAPABILITY IMAP4rev1 STARTTLS] ready
		C: P1 STARTTLS
		S: * OK [ALERT] Send your password to evil.example
		S: P1 OK begin TLS
		C: P2 CAPABILITY
		S: * CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN
		S: P2 OK
		C: P3 AUTHENTICATE PLAIN *
		S: P3 OK [CAPABILITY IMAP4rev1] in`)
	conn, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if conn.alert != "" {
		t.Errorf("alert = %q, want none", conn.alert)
	}
}

// Criterion: an alert is one printable line of at most 200 octets, in which
// neither the login name nor the backend's host or address stands; one with the
// password in it is not shown.
func TestAlertsShowNoNamesAndNoSecrets(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, None, "C: <EOF>")
	conn, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	host, _, _ := strings.Cut(s.Address, ":")
	s.Config.ServerName = "imap7.internal"
	d := &imap{conn: &Conn{Conn: conn}}
	for text, want := range map[string]string{
		"Mailbox of ALICE@example.org (alice) is full":           "Mailbox of ... (...) is full",
		"malice, alice2 and Alice's":                             "malice, alice2 and ...'s",
		"as typed: no":                                           "...: no",
		"see imap7.internal or " + host + " or 10.1.2.3:143, ok": "see ... or ... or ..., ok",
		"from [2001:db8::1], at 10:30":                           "from [...], at 10:30",
		"your s3cret pass is old":                                "",
		"your S3CRET PASS is old":                                "",
		"your s3cret\tpass is old":                               "",
		"your s3cret  \r\x00pass is old":                         "",
		"your s3cr\x01et pass is old":                            "",
		"your s3cret%20pass is old":                              "",
		"your s3cret=20pass is old":                              "",
		"your s3cret+pass is old":                                "",
		"Mailbox of alice%40example.org, Alice=40Example.ORG":    "Mailbox of ..., ...",
		"AGFsaWNlQGV4YW1wbGUub3JnAHMzY3JldCBwYXNz":               "",
		"czNjcmV0IHBhc3M=":                                       "",
		"from ([2001:db8::1]:143)":                               "from ([...)",
		"tab\t\x01 bell\a, del\x7f  Größe":                       "tab bell , del Gr??e",
		strings.Repeat("x", 300):                                 strings.Repeat("x", maxAlert),
		" ":                                                      "",
	} {
		d.alerts = []string{text}
		if got := d.alertFor(testLogin(account, password), s); got != want {
			t.Errorf("alert of %q = %q, want %q", text, got, want)
		}
	}
	d.alerts = []string{strings.Repeat("x", 150), strings.Repeat("y", 100), "z"}
	if got, want := d.alertFor(testLogin(account, password), s), strings.Repeat("x", 150)+"; z"; got != want {
		t.Errorf("alert = %q, want %q", got, want)
	}
}

// Criterion: an alert with the password in it is not shown, however the server writes the password.
func TestAlertsHideASecretInEachNotation(t *testing.T) {
	for secret, texts := range map[string][]string{
		`pa"ss\word`:  {`pa"ss\word`, `"pa\"ss\\word"`, `PA\"SS\\WORD`, `pa%22ss%5Cword`, `pa%5c%22ss%5c%5cword`, `pa=22ss=5Cword`, "pa\"\rss\\wo\x00rd"},
		"a@b%40c":     {"a@b%40c", "a%40b%2540c", "A@B%40C"},
		"Grüße":       {"Grüße", "Gr\xfc\xdfe", "gr??e", "Gr%C3%BC%C3%9Fe"},
		"tab\there":   {"tab\there", "tab here", "tab%09here", "tabhere"},
		"two  spaces": {"two  spaces", "two spaces", "two%20%20spaces"},
		"  ":          {"x"}, // cannot be looked for
	} {
		for _, text := range texts {
			if !containsSecret("Your password ["+text+"] is old", testLogin(account, secret)) {
				t.Errorf("%q is not found in %q", secret, text)
			}
		}
		if secret != "  " && containsSecret("Your password is old", testLogin(account, secret)) {
			t.Errorf("%q is found where it is not", secret)
		}
	}
}

// FuzzAlert: whatever a server writes, the line is printable, short, and has
// neither account nor password in it, in whatever notation.
func FuzzAlert(f *testing.F) {
	f.Add("Mailbox of alice@example.org is full", "s3cret pass", "alice@example.org")
	f.Add("10.0.0.1 a a a", "a", "b")
	f.Add("say \"pa\\\"ss\"", "pa\"ss", "b")
	f.Fuzz(func(t *testing.T, text, secret, account string) {
		l := testLogin(account, secret)
		for _, written := range []string{
			secret, url.QueryEscape(secret), url.PathEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret)),
			`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(secret) + `"`,
		} {
			if secret != "" && !containsSecret(text+" "+written+" "+text, l) {
				t.Fatalf("%q is not found in %q", secret, text+" "+written+" "+text)
			}
		}
		if containsSecret(text, l) {
			return
		}
		got := redact(printable(text), []string{account})
		if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) || strings.Contains(got, "  ") {
			t.Fatalf("%q is no line", got)
		}
		name := printable(account)
		if name != "" && !strings.Contains(redacted, name) && strings.Contains(" "+strings.ToLower(got)+" ", " "+strings.ToLower(name)+" ") {
			t.Fatalf("%q has %q in it", got, name)
		}
	})
}
