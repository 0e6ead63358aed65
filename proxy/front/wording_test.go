package front

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"postern/proxy"
)

// Criterion: In no protocol is a temporary refusal called permanent, nor a permanent one temporary.
func TestWordsKeepTemporaryAndPermanentApart(t *testing.T) {
	for _, r := range proxy.Reasons() {
		w := wordingOf(r)
		// 421 and 4xx say come again, and so do UNAVAILABLE, LIMIT, INUSE and SERVERBUG.
		imap := strings.Contains(w.imap, "UNAVAILABLE") || strings.Contains(w.imap, "LIMIT") ||
			strings.Contains(w.imap, "INUSE") || strings.Contains(w.imap, "SERVERBUG")
		pop3 := w.pop3 == "[SYS/TEMP]" || w.pop3 == "[IN-USE]" || w.pop3 == "[LOGIN-DELAY]"
		smtp := w.smtp[0] == '4'
		sieve := w.sieve == sieveTryLater
		if want := r.Temporary(); imap != want || pop3 != want || smtp != want || sieve != want || w.smtp[4] != w.smtp[0] {
			t.Errorf("%v is said by %q, %q, %q, %q, temporary: %v", r, w.imap, w.pop3, w.smtp, w.sieve, want)
		}
		if r.Final() && smtp && !strings.HasPrefix(w.smtp, "421 ") {
			t.Errorf("%v ends the connection with %q", r, w.smtp)
		}
		if (w.imap == "NO [AUTHENTICATIONFAILED]") != (r == proxy.Wrong || r == proxy.Malformed) {
			t.Errorf("%v is %q", r, w.imap)
		}
	}
}

// Criterion: Each refusal is one line of ASCII of at most 512 octets that ends with the session id.
func TestRefusalsAreShortLinesWithTheSessionID(t *testing.T) {
	texts := []string{"", "use port 995, see https://example.org/mail", "[ALERT] Störung\r\n+OK\x00" + strings.Repeat("so lang ", 1000)}
	for _, protocol := range proxy.Protocols() {
		for _, reason := range proxy.Reasons() {
			for _, text := range texts {
				out := refuse(t, protocol, &proxy.Refusal{Reason: reason, Text: text})
				for line := range strings.Lines(out) {
					line, ended := strings.CutSuffix(line, "\r\n")
					ascii := strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) < 0
					if !ended || !ascii || len(line) > 510 || !strings.HasSuffix(line, " (session abcdefghijkl)"+quote(protocol)) || strings.Contains(line, "[ALERT") {
						t.Errorf("%s, %v, %.10q: %q", protocol, reason, text, line)
					}
				}
				if n := strings.Count(out, "\n"); n == 0 || n > 2 || n == 2 && protocol != proxy.IMAP && protocol != proxy.Sieve {
					t.Errorf("%s, %v: %d lines", protocol, reason, n)
				}
			}
		}
	}
}

// refuse returns the reply when r answers the first credentials.
func refuse(t *testing.T, protocol string, r *proxy.Refusal) string {
	t.Helper()
	tp := &scriptedConn{in: strings.NewReader(map[string]string{
		proxy.IMAP:       "a LOGIN alice x\r\n",
		proxy.POP3:       "USER alice\r\nPASS x\r\n",
		proxy.Submission: "EHLO x\r\nAUTH PLAIN AGFsaWNlAHg=\r\n",
		proxy.Sieve:      "AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHg=\"\r\n",
	}[protocol])}
	d := newDialogue(protocol, withTLS(proxy.NewConn(tp, proxy.Client{ID: "abcdefghijkl"}, nil, 0)), Options{Offer: func() proxy.Offer { return offer }})
	if login, err := d.Login(t.Context()); login == nil || err != nil {
		t.Fatalf("Login = %v, %v", login, err)
	}
	tp.out.Reset()
	err := d.Refuse(r)
	ends := r.Reason.Final() && r.Reason != proxy.Plaintext
	if protocol == proxy.Sieve {
		ends = r.Reason.Temporary()
	}
	if (err != nil) != ends || err != nil && !errors.Is(err, r) {
		t.Errorf("%s: Refuse(%v) = %v", protocol, r, err)
	}
	return tp.out.String()
}

// Criterion: docs/support.md says of each refusal what the customer sees in each protocol, and what to do.
func TestSupportPageHasEveryRefusal(t *testing.T) {
	page, err := os.ReadFile("../../docs/support.md")
	if err != nil {
		t.Fatal(err)
	}
	row := func(reason, imap, pop3, smtp, sieve, text string) string {
		return fmt.Sprintf("| %s | `%s` | `%s` | `%s` | `%s` | %s | ", reason, imap, strings.TrimSpace("-ERR "+pop3), smtp, sieve, text)
	}
	closed := wordingOf(proxy.Plaintext)
	want := []string{
		row("`plaintext`", "* BYE", closed.pop3, closed.smtp, "BYE", closed.text),
		row("`plaintext`", "* BYE", closed.pop3, closed.smtp, "BYE", closedPort),
		"| " + tooManyWrong + " | ",
		"| " + earlyTLSText + " | ",
	}
	for _, r := range proxy.Reasons() {
		w, name := wordingOf(r), "`"+r.String()+"`"
		if r == proxy.Plaintext {
			w = startTLSWording()
		}
		if r.Temporary() {
			name += " ~"
		}
		sieve := "NO"
		if w.sieve != "" {
			sieve += " (" + w.sieve + ")"
		}
		want = append(want, row(name, w.imap, w.pop3, w.smtp, sieve, w.text))
	}
	for _, row := range want {
		_, rest, _ := strings.Cut(string(page), "\n"+row)
		if advice, _, ok := strings.Cut(rest, " |\n"); !ok || advice == "" {
			t.Errorf("docs/support.md has no line, or no advice, for\n%s", row)
		}
	}
	if got, want := strings.Count(string(page), "\n| `"), len(proxy.Reasons())+2; got != want {
		t.Errorf("docs/support.md has %d lines about reasons, want %d", got, want)
	}
}

func TestAcceptSendsTheWelcomeOnOneLine(t *testing.T) {
	for protocol, want := range map[string]string{
		proxy.IMAP:       "a OK [CAPABILITY IMAP4rev1 IDLE] hi  a BAD\r\n",
		proxy.POP3:       "+OK [CAPABILITY IMAP4rev1 IDLE] hi  a BAD\r\n",
		proxy.Submission: "235 2.7.0 [CAPABILITY IMAP4rev1 IDLE] hi  a BAD\r\n",
		proxy.Sieve:      "OK \"[CAPABILITY IMAP4rev1 IDLE] hi  a BAD\"\r\n",
	} {
		tp := &scriptedConn{}
		d := newDialogue(protocol, proxy.NewConn(tp, proxy.Client{}, nil, 0), Options{})
		if d, ok := d.(*IMAP); ok {
			d.tag = "a"
		}
		if err := d.Accept("[CAPABILITY IMAP4rev1 IDLE] hi\r\na BAD"); err != nil {
			t.Fatal(err)
		}
		if got := tp.out.String(); got != want {
			t.Errorf("%s: Accept says %q, want %q", protocol, got, want)
		}
	}
}

// Criterion: an alert of the server's comes before the answer to the login; the
// operator's text takes its place.
func TestIMAPShowsAlerts(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.fakeBackend.answer = map[string]error{
		"moving": &proxy.Refusal{Reason: proxy.Unavailable, Alert: "We are\r\na OK moving"},
		"ours":   &proxy.Refusal{Reason: proxy.Unavailable, Alert: "We are moving", Text: "Our words"},
	}
	f.play(t, greetingIMAP+`
		C: a LOGIN moving x
		S: \* NO [ALERT] We are  a OK moving
		S: a NO [UNAVAILABLE] The mail server *
		C: b LOGIN ours x
		S: b NO [UNAVAILABLE] Our words (session *)
	`)
	tp := &scriptedConn{}
	d := NewIMAP(proxy.NewConn(tp, proxy.Client{ID: "abc"}, nil, 0), Options{})
	d.tag = "a"
	if err := d.Accept("[ALERT] over quota\r\n[CAPABILITY IMAP4rev1] Logged in"); err != nil {
		t.Fatal(err)
	}
	if got, want := tp.out.String(), "* OK [ALERT] over quota\r\na OK [CAPABILITY IMAP4rev1] Logged in\r\n"; got != want {
		t.Errorf("Accept says %q, want %q", got, want)
	}
}
