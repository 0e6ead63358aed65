package main

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// alone returns a Postern that only this test uses, and a user on the stage.
func alone(t *testing.T, more string) (*stage, *postern, user) {
	t.Helper()
	s := open(t)
	return s, startPostern(t, behind{
		imap:       fmt.Sprintf("{address: %q, tls: none}", s.backend.IMAP),
		submission: fmt.Sprintf("{address: %q, tls: none}", s.postfix.SMTP),
	}, more), s.user(t)
}

// Criterion: After SIGTERM nobody new gets in, an open session may finish what
// it is doing, and the exit status is 0.
func TestSIGTERMLetsSessionsFinish(t *testing.T) {
	s, p, u := alone(t, "timeouts: {shutdown: 20s}\n")
	s.deliver(t, u, "one", "two")
	c := loginPOP3(t, p.pop3, p.ca, u)
	c.command("DELE 1")
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	within(t, patience, "Postern is stopping", func() bool { return strings.Contains(p.printed(t), "stopping") })
	within(t, patience, "the listener is closed", func() bool {
		conn, err := tryDial(p.pop3)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	response, err := http.Get("http://" + p.metrics + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if got, want := response.StatusCode, http.StatusServiceUnavailable; got != want {
		t.Errorf("/readyz = %d, want %d", got, want)
	}
	wantBytes(t, "RETR", unstuffed(c.body("RETR 2")), []byte(mail(u, "two")))
	c.command("QUIT")
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		t.Fatal("Postern waits on although the last session has ended")
	}
	if p.err != nil {
		t.Errorf("Postern ended with %v, want exit status 0", p.err)
	}
	wantSubjects(t, "left", s.stored(t, u), "two")
}

// Criterion: A session that does not end within the grace period is told so and
// ended; the exit status is 0 all the same, and nothing is deleted.
func TestSIGTERMEndsSessionsAfterTheGracePeriod(t *testing.T) {
	s, p, u := alone(t, "timeouts: {shutdown: 1s}\n")
	s.deliver(t, u, "one")
	c := loginPOP3(t, p.pop3, p.ca, u)
	c.command("DELE 1")
	smtp, imap := dialTLS(t, p.smtp, p.ca), dialTLS(t, p.imap, p.ca)
	proxytest.Transcript(t, smtp, lines("S: 220 *", "C: HELO client.example.net", "S: 250 *",
		"C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "S: 235 *"))
	proxytest.Transcript(t, imap, "S: \\* OK *") // not logged in
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	proxytest.Transcript(t, smtp, lines("S: 421 4.3.2 *", "S: <EOF>"))
	proxytest.Transcript(t, imap, lines("S: \\* BYE [UNAVAILABLE] *", "S: <EOF>"))
	if got := string(c.line()); !strings.HasPrefix(got, "-ERR [SYS/TEMP] ") {
		t.Errorf("at the end the client reads %q, want -ERR [SYS/TEMP]", got)
	}
	if rest, _ := io.ReadAll(c.r); len(rest) > 0 {
		t.Errorf("and then %q", rest)
	}
	<-p.done
	if p.err != nil {
		t.Errorf("Postern ended with %v, want exit status 0", p.err)
	}
	wantSubjects(t, "left", s.stored(t, u), "one")
}

// Criterion: The log has one line for each session that ends and one for each
// refused login; the metrics count the same; and no password is in either,
// wherever clients put it.
func TestLogAndMetricsTellWhatHappenedAndNoPassword(t *testing.T) {
	s, p, u := alone(t, "")
	s.deliver(t, u, "one", "two", "three")
	wrong, mistyped := newSecret(), newSecret()

	// Nobody has logged in yet: the name may be anything, and so is not written.
	talk(t, p.imap, p.ca, lines("S: \\* OK *",
		"C: a LOGIN "+mistyped+" "+wrong, "S: a NO [AUTHENTICATIONFAILED] *",
		"C: "+mistyped+" "+mistyped, "S: "+mistyped+" BAD *",
		"C: b AUTHENTICATE "+mistyped, "S: b NO *",
		"C: d AUTHENTICATE PLAIN "+base64Of(mistyped)+"!", "S: d BAD *",
		"C: e LOGIN \""+mistyped, "S: e BAD *",
		"C: f LOGOUT", "S: \\* BYE *", "S: f OK *", "S: <EOF>"))

	c := loginPOP3(t, p.pop3, p.ca, u)
	c.body("RETR 1")
	c.body("RETR 2")
	c.body("TOP 3 0")
	c.command("DELE 1")
	c.command("QUIT")
	talk(t, p.pop3, p.ca, lines("S: +OK *", "C: USER "+u.name, "S: +OK *", "C: PASS "+wrong, "S: -ERR [AUTH] *",
		"C: USER "+u.name, "S: +OK *", "C: "+mistyped, "S: -ERR *", "C: QUIT", "S: +OK *", "S: <EOF>"))
	talk(t, p.imap, p.ca, lines("S: \\* OK *", "C: a LOGIN "+u.name+" "+u.password, "S: a OK *",
		"C: b LOGOUT", "S: \\* BYE *", "S: b OK *", "S: <EOF>"))
	talk(t, p.smtp, p.ca, lines("S: 220 *", "C: HELO "+mistyped, "S: 250 *",
		"C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "S: 235 *",
		"C: MAIL FROM:<"+u.address+">", "S: 250 *", "C: RCPT TO:<"+u.address+">", "S: 250 *",
		"C: DATA", "S: 354 *", "C: Subject: sent", "C: ", "C: .", "S: 250 *", "C: QUIT", "S: 221 *", "S: <EOF>"))

	within(t, patience, "all five connections have ended", func() bool { return len(p.logged(t, "connection ended")) == 5 })
	p.wantLog(t, u)
	p.wantMetrics(t)
	p.stop(t) // and looks for passwords
}

// talk plays a dialogue on a connection of its own, and closes it.
func talk(t testing.TB, address, ca, script string) {
	t.Helper()
	conn := dialTLS(t, address, ca)
	proxytest.Transcript(t, conn, script)
	_ = conn.Close()
}

// wantLog checks the fields of the lines about sessions and refused logins.
func (p *postern) wantLog(t *testing.T, u user) {
	t.Helper()
	session := regexp.MustCompile(`^[A-Z0-9]{12}$`)
	ends := map[string]line{}
	for _, l := range p.ends(t, u) {
		ends[l.text("listener")] = l
		if l.text("ip") != "127.0.0.1" || l.text("tls") != "TLS 1.3" || l.text("backend") != "main" || !session.MatchString(l.text("session")) ||
			l.text("duration_seconds") == "" || l.text("received") == "" || l.text("sent") == "" {
			t.Errorf("end of a session = %v", l)
		}
	}
	for service, want := range map[string]line{
		"pop3":       {"retrieved": 2, "deleted": 1, "end": "client_quit"},
		"imap":       {"end": "backend_closed"},
		"submission": {"submitted": 1, "end": "client_quit"},
	} {
		for key := range want {
			if got, want := ends[service].text(key), want.text(key); got != want {
				t.Errorf("end of the %s session: %s = %q, want %q", service, key, got, want)
			}
		}
	}
	refused := p.logged(t, "login refused")
	var reasons []string
	for _, l := range refused {
		reasons = append(reasons, l.text("reason"))
	}
	wantSubjects(t, "reasons", reasons, "wrong", "unsupported", "malformed", "wrong")
	for _, l := range refused {
		known := l.text("listener") == "pop3"
		switch {
		case known && l.text("account") != u.name:
			t.Errorf("refused login of an account that has logged in = %v, want its name", l)
		case !known && l.text("account") != "":
			t.Errorf("refused login of an unknown name = %v, want no name", l)
		case l.text("reason") == "wrong" && !known && l.text("account_hash") == "":
			t.Errorf("refused login of an unknown name = %v, want a hash", l)
		case !session.MatchString(l.text("session")) || l.text("ip") != "127.0.0.1":
			t.Errorf("refused login = %v", l)
		}
	}
	if got, want := len(refused), 4; got != want {
		t.Errorf("%d lines about refused logins, want %d", got, want)
	}
}

// wantMetrics checks the counts of what the test has done.
func (p *postern) wantMetrics(t *testing.T) {
	t.Helper()
	values, _ := p.scrape(t)
	for series, want := range map[string]string{
		`postern_connections_accepted_total{listener="imap",protocol="imap"}`:                                 "2",
		`postern_connections_accepted_total{listener="pop3",protocol="pop3"}`:                                 "2",
		`postern_connections_accepted_total{listener="submission",protocol="submission"}`:                     "1",
		`postern_connections_open{listener="pop3",protocol="pop3"}`:                                           "0",
		`postern_tls_handshakes_total{listener="pop3",reason="none",result="ok",version="1.3"}`:               "2",
		`postern_auth_attempts_total{mechanism="userpass",protocol="pop3",result="ok"}`:                       "1",
		`postern_auth_attempts_total{mechanism="userpass",protocol="pop3",result="invalid_credentials"}`:      "1",
		`postern_auth_attempts_total{mechanism="login_command",protocol="imap",result="ok"}`:                  "1",
		`postern_auth_attempts_total{mechanism="login_command",protocol="imap",result="invalid_credentials"}`: "1",
		`postern_auth_attempts_total{mechanism="other",protocol="imap",result="unsupported_mechanism"}`:       "1",
		`postern_auth_attempts_total{mechanism="plain",protocol="submission",result="ok"}`:                    "1",
		`postern_sessions_active{protocol="pop3"}`:                                                            "0",
		`postern_sessions_total{end="client_quit",protocol="pop3"}`:                                           "1",
		`postern_sessions_total{end="backend_closed",protocol="imap"}`:                                        "1",
		`postern_sessions_total{end="client_quit",protocol="submission"}`:                                     "1",
		`postern_pop3_messages_retrieved_total{command="RETR"}`:                                               "2",
		`postern_pop3_messages_retrieved_total{command="TOP"}`:                                                "1",
		`postern_pop3_messages_deleted_total`:                                                                 "1",
		`postern_pop3_size_mismatches_total`:                                                                  "0",
		`postern_backend_up{backend="main",protocol="imap"}`:                                                  "1",
		`postern_backend_up{backend="main",protocol="submission"}`:                                            "1",
		`postern_panics_total`: "0",
	} {
		if got := values[series]; got != want {
			t.Errorf("%s = %s, want %s", series, got, want)
		}
	}
}
