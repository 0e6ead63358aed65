package backend

import (
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// smtpOpening is the dialogue up to AUTH.
func smtpOpening(extensions ...string) string {
	script := `
		S: 220 mx.example ESMTP
		C: EHLO client.example
		S: 250-mx.example`
	for _, e := range extensions[:len(extensions)-1] {
		script += "\n\t\tS: 250-" + e
	}
	return script + "\n\t\tS: 250 " + extensions[len(extensions)-1] + "\n"
}

// testSMTPLogin returns a login as the submission dialogue does.
func testSMTPLogin(password string, announced ...string) *proxy.Login {
	l := testLogin(account, password)
	l.Hello.Name = "client.example"
	l.Offer.Extensions = append(announced, "AUTH PLAIN LOGIN")
	return l
}

func TestLoginSMTPInEveryWayAServerOffers(t *testing.T) {
	long := strings.Repeat("p", 400)
	for _, test := range []struct {
		name, password, script string
	}{
		{"PLAIN with initial response", password, smtpOpening("AUTH LOGIN PLAIN") + `
			C: AUTH PLAIN ` + plain + `
			S: 235 in`},
		{"PLAIN as old servers announce it", password, smtpOpening("AUTH=PLAIN") + `
			C: AUTH PLAIN ` + plain + `
			S: 235 in`},
		{"PLAIN longer than a line", long, smtpOpening("AUTH PLAIN") + `
			C: AUTH PLAIN
			S: 334
			C: AGFsaWNlQGV4YW1wbGUub3JnAHBwcHBw*
			S: 235 in`},
		{"LOGIN", password, smtpOpening("SIZE", "auth login cram-md5") + `
			C: AUTH LOGIN
			S: 334 VXNlcm5hbWU6
			C: YWxpY2VAZXhhbXBsZS5vcmc=
			S: 334 UGFzc3dvcmQ6
			C: czNjcmV0IHBhc3M=
			S: 235 in`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, seen := startServer(t, proxy.Submission, None, test.script)
			l := testSMTPLogin(test.password)
			session, err := (&Submission{Server: s}).Login(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			_ = session.Close()
			if l.Secret.Reveal() != nil {
				t.Error("the secret is still there")
			}
			if got, want := seen.String(), "dialed ok, login true"; got != want {
				t.Errorf("events: %s, want %s", got, want)
			}
			if got := session.(proxy.Reporter).Backend(); got != "main" {
				t.Errorf("Backend = %q, want main", got)
			}
		})
	}
}

// Criterion: a password is called wrong only if the server said so.
func TestLoginSMTPDistinguishesWrongFromUnavailable(t *testing.T) {
	for answer, want := range map[string]proxy.Reason{
		`S: 535 5.7.8 s3cret pass is not his`: proxy.Wrong,
		`S: 535`:                              proxy.Wrong,
		`S: 525 disabled`:                     proxy.Suspended,
		`S: 535 5.7.13 disabled`:              proxy.Suspended,
		`S: 550 5.2.1 disabled`:               proxy.Suspended,
		`S: 535 5.7.8.9 what`:                 proxy.Wrong,
		`S: 454 4.3.2 x`:                      proxy.Maintenance,
		`S: 421 4.3.2 x`:                      proxy.Maintenance,
		`S: 552 5.2.2 x`:                      proxy.MailboxFull,
		`S: 452 4.2.2 x`:                      proxy.MailboxFull,
		`S: 550 no`:                           proxy.Wrong,
		`S: 454 4.7.0 s3cret pass`:            proxy.Unavailable,
		`S: 421 busy`:                         proxy.Unavailable,
		`S: 432 change it`:                    proxy.Unavailable,
		`S: 500 what`:                         proxy.Unavailable,
		`S: 503 not now`:                      proxy.Unavailable,
		`S: 504 no such mechanism`:            proxy.Unavailable,
		`S: 530 TLS first`:                    proxy.Unavailable,
		`S: 534 too weak`:                     proxy.Unavailable,
		`S: 538 encryption required`:          proxy.Unavailable,
		`S: 250 odd`:                          proxy.Unavailable,
		`S: 334 more`:                         proxy.Unavailable,
		`S: garbage`:                          proxy.Unavailable,
		`S: <EOF>`:                            proxy.Unavailable,
	} {
		s, seen := startServer(t, proxy.Submission, None, smtpOpening("AUTH PLAIN")+"C: AUTH PLAIN *\n"+answer+logoutScript(answer, "QUIT"))
		_, err := s.LoginSMTP(t.Context(), testSMTPLogin(password))
		checkRefusal(t, err, want)
		if got, want := seen.String(), "dialed ok, login false"; got != want {
			t.Errorf("%s: events: %s, want %s", answer, got, want)
		}
	}
}

// Criterion: a server that is not as it has to be gets no credentials.
func TestLoginSMTPSendsNothingToABadServer(t *testing.T) {
	for _, test := range []struct {
		mode           Mode
		script, events string
	}{
		{None, "S: 554 go away\nC: <EOF>", "dialed greeting"},
		{None, "S: 421 busy\nC: <EOF>", "dialed greeting"},
		{None, "S: * OK ready\nC: <EOF>", "dialed greeting"},
		{None, "S: <EOF>\nC: <EOF>", "dialed greeting"},
		{None, "S- 220 " + strings.Repeat("x", 9000), "dialed greeting"},
		{None, "S- " + strings.Repeat(`220-x\r\n`, 200), "dialed greeting"},
		{None, smtpOpening("SIZE") + "C: QUIT\nS: <EOF>", "dialed ok"},
		{None, smtpOpening("AUTH CRAM-MD5") + "C: QUIT\nS: <EOF>", "dialed ok"},
		{None, "S: 220 x\nC: EHLO client.example\nS: 451 no\nC: <EOF>", "dialed greeting"},
		{STARTTLS, smtpOpening("AUTH PLAIN") + "C: <EOF>", "dialed tls"},
		{STARTTLS, smtpOpening("STARTTLS") + "C: STARTTLS\nS: 454 no\nC: <EOF>", "dialed tls"},
		{STARTTLS, smtpOpening("STARTTLS") + "C: STARTTLS\nS- 220 go\\r\\n250 AUTH PLAIN\\r\\n\nC: <EOF>", "dialed tls"},
		{STARTTLS, smtpOpening("STARTTLS", "AUTH PLAIN") + "C: STARTTLS\nS: 220 begin TLS\nC: EHLO client.example\nS: 250 mx\nC: QUIT\nS: <EOF>", "dialed ok"},
	} {
		s, seen := startServer(t, proxy.Submission, test.mode, test.script)
		_, err := s.LoginSMTP(t.Context(), testSMTPLogin(password))
		checkRefusal(t, err, proxy.Unavailable)
		if got := seen.String(); got != test.events {
			t.Errorf("%.200s: events: %s, want %s (%v)", test.script, got, test.events, err)
		}
	}
}

func TestLoginSMTPForgetsRepliesFromBeforeTLS(t *testing.T) {
	s, _ := startServer(t, proxy.Submission, STARTTLS, smtpOpening("STARTTLS")+`
		C: STARTTLS
		S: 220 begin TLS
		C: EHLO client.example
		S: 250-mx.example
		S: 250 AUTH PLAIN
		C: AUTH PLAIN *
		S: 235 in`)
	conn, err := s.LoginSMTP(t.Context(), testSMTPLogin(password))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

func TestLoginSMTPSendsAnEHLOThatTheServerAccepts(t *testing.T) {
	for name, script := range map[string]string{
		"under_score": `
			C: EHLO under_score
			S: 501 syntactically invalid
			C: EHLO postern.example`,
		"":           `C: EHLO postern.example`,
		"two words":  `C: EHLO postern.example`,
		"[10.0.0.1]": `C: EHLO [10.0.0.1]`,
	} {
		s, _ := startServer(t, proxy.Submission, None, "S: 220 x\n"+script+"\nS: 250-mx\nS: 250 AUTH PLAIN\nC: AUTH PLAIN *\nS: 235 in")
		l := testSMTPLogin(password)
		l.Hello.Name = name
		conn, err := s.LoginSMTP(t.Context(), l)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		_ = conn.Close()
	}
}

// Criterion: what was announced to a client is what it gets, or it is told to
// come again; then it is offered what there is.
func TestLoginSMTPRefusesAServerThatLacksWhatWasAnnounced(t *testing.T) {
	s, _ := startServer(t, proxy.Submission, None, smtpOpening("SIZE 2000", "AUTH PLAIN", "XCLIENT LOGIN")+"C: QUIT\nS: <EOF>")
	_, err := s.LoginSMTP(t.Context(), testSMTPLogin(password, "SIZE 1000", "CHUNKING"))
	checkRefusal(t, err, proxy.Unavailable)
	if !strings.Contains(err.Error(), "CHUNKING") {
		t.Errorf("the error does not name the extension: %v", err)
	}
	offer := s.Offer()
	if got, want := strings.Join(offer.Extensions, ","), "SIZE 2000"; got != want {
		t.Errorf("Offer().Extensions = %s, want %s", got, want)
	}
	if got, want := strings.Join(offer.Mechanisms, ","), "PLAIN"; got != want {
		t.Errorf("Offer().Mechanisms = %s, want %s", got, want)
	}
}

func TestLoginSMTPNamesAServerThatIsSilent(t *testing.T) {
	s, seen := startServer(t, proxy.Submission, None, `C: <EOF>`)
	s.ReplyTimeout = 20 * time.Millisecond
	_, err := s.LoginSMTP(t.Context(), testSMTPLogin(password))
	checkRefusal(t, err, proxy.Unavailable)
	if got, want := seen.String(), "dialed greeting"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
}
