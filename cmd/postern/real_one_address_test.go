package main

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// The server behind sees one address, Postern's. The tests here have what
// docs/backends.md tells to set there, and servers that are otherwise as they
// come; the source addresses of their clients are 127.0.0.2 and more.

// guess has many clients at source type a wrong password at once, each for an
// account of its own, and returns when all have been told so.
func guess(t *testing.T, p *postern, source string, users []user) {
	t.Helper()
	var guessers sync.WaitGroup
	for _, u := range users {
		conn := p.tlsOn(t, dialFrom(t, source, p.imap))
		guessers.Go(func() {
			answer, err := ask(conn, "a LOGIN "+u.name+" "+newSecret(), "a ")
			if err != nil || !strings.HasPrefix(answer, "a NO [AUTHENTICATIONFAILED] ") {
				t.Errorf("a wrong password is told so: %s, %v", answer, err)
			}
		})
	}
	guessers.Wait()
}

// ask sends a command and returns the line with the prefix, from any goroutine.
func ask(conn net.Conn, command, prefix string) (string, error) {
	if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
		return "", err
	}
	return hear(conn, prefix)
}

// hear returns the next line with the prefix.
func hear(conn net.Conn, prefix string) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := conn.Read(b); err != nil {
			return string(line), err
		}
		if line = append(line, b[0]); b[0] != '\n' {
			continue
		}
		if strings.HasPrefix(string(line), prefix) {
			return string(line), nil
		}
		line = nil
	}
}

// Criterion: On a Dovecot with Dovecot's own penalty, 20 wrong passwords from
// one address delay nobody at another one; without login_trusted_networks they
// would.
func TestWrongPasswordsFromOneAddressDelayNobodyElse(t *testing.T) {
	t.Parallel()
	names := []string{"victim"}
	for i := range 20 {
		names = append(names, fmt.Sprintf("guessed%02d", i))
	}
	users, passwords := people(names...)
	victim := users[0]
	const bound = 8 * time.Second // a login takes far less, and Dovecot's penalty is 15 s
	var measures sync.WaitGroup
	for _, test := range []struct {
		trusted string
		delayed bool
	}{{"", true}, {"127.0.0.1", false}} {
		dovecot := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Trusted: test.trusted})
		p := launch(t, []string{"protocol: imap"}, []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", dovecot.IMAP)}, "")
		guess(t, p, "127.0.0.2", users[1:])
		conn := p.tlsOn(t, dialFrom(t, "127.0.0.3", p.imap))
		measures.Go(func() {
			begun := time.Now()
			answer, err := ask(conn, "a LOGIN "+victim.name+" "+victim.password, "a ")
			if err != nil || !strings.HasPrefix(answer, "a OK ") {
				t.Errorf("a right password is told so: %s, %v", answer, err)
			}
			if took := time.Since(begun); took > bound != test.delayed {
				t.Errorf("with login_trusted_networks = %s a right password from another address took %v, want more than %v: %v",
					test.trusted, took, bound, test.delayed)
			}
		})
	}
	measures.Wait()
}

// Criterion: Dovecot's limit of 10 sessions of one user from one address is
// one from the client's address: a user has 15 sessions from three networks.
func TestOneUserHasManySessionsFromThreeNetworks(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	u := users[0]
	dovecot := proxytest.StartDovecot(t, proxytest.DovecotOptions{
		Users: passwords, Trusted: "127.0.0.1", Config: "mail_max_userip_connections = 10\n",
	})
	p := launch(t, []string{"protocol: imap"}, []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", dovecot.IMAP)}, "")
	login := func(source string) (answer string) {
		t.Helper()
		conn := p.tlsOn(t, dialFrom(t, source, p.imap))
		answer, err := ask(conn, "a LOGIN "+u.name+" "+u.password, "a ")
		if err == nil && strings.HasPrefix(answer, "a OK ") {
			answer, err = ask(conn, "b SELECT INBOX", "b ")
		}
		if err != nil {
			t.Fatalf("%s, %v", answer, err)
		}
		return answer
	}
	sources := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"}
	for i := range 15 {
		if answer := login(sources[i%3]); !strings.HasPrefix(answer, "b OK ") {
			t.Fatalf("session %d: %s", i+1, answer)
		}
	}
	who := dovecot.Doveadm(t, "who", "-1", u.name)
	for _, source := range sources {
		if got := strings.Count(who, source); got != 5 {
			t.Errorf("Dovecot has %d sessions from %s, want 5:\n%s", got, source, who)
		}
	}
	for range 5 {
		login(sources[0])
	}
	// The limit is there: the 11th of one address is told so, as what it is.
	if answer := login(sources[0]); !strings.HasPrefix(answer, "a NO [LIMIT] ") {
		t.Errorf("the 11th session from one address: %s, want a NO [LIMIT]", answer)
	}
}

// Criterion: On a Postfix with Postfix' own limits 60 submissions at the same
// time all pass.
func TestManySubmissionsAtTheSameTimeAllPass(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 60 {
		names = append(names, fmt.Sprintf("user%02d", i))
	}
	users, passwords := people(names...)
	dovecot := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords})
	for _, test := range []struct{ identity, xclient string }{
		{"none", ""}, // whoever may use XCLIENT is exempt from the limit, too
		{"xclient", "127.0.0.1"},
	} {
		postfix := proxytest.StartPostfix(t, proxytest.PostfixOptions{
			Dovecot: dovecot, XCLIENT: test.xclient,
			Config: "smtpd_client_connection_count_limit = 50\nsmtpd_client_event_limit_exceptions = 127.0.0.1\n",
		})
		p := launch(t, []string{"protocol: submission"}, []string{
			fmt.Sprintf("main: {submission: {address: %q, tls: none, identity: %s}}", postfix.SMTP, test.identity),
		}, "")
		var loggedIn, sent sync.WaitGroup
		loggedIn.Add(len(users))
		for i, u := range users {
			conn := p.tlsOn(t, dialFrom(t, fmt.Sprintf("127.0.0.%d", 2+i), p.smtp))
			sent.Go(func() {
				err := submit(conn, u, test.identity, func() {
					loggedIn.Done()
					loggedIn.Wait()
				})
				if err != nil {
					t.Errorf("%s: submission %d: %v", test.identity, i, err)
				}
			})
		}
		sent.Wait()
	}
	for _, u := range users {
		within(t, patience, "two messages of each user have arrived", func() bool { return len(dovecot.Stored(t, u.name)) == 2 })
	}
}

// submit sends a message. It calls loggedIn once, whatever happens.
func submit(conn net.Conn, u user, subject string, loggedIn func()) error {
	waited := sync.OnceFunc(loggedIn)
	defer waited()
	if greeting, err := hear(conn, "220 "); err != nil {
		return fmt.Errorf("%s: %w", greeting, err)
	}
	for _, step := range []struct{ command, want string }{
		{"HELO client.example.net", "250 "},
		{"AUTH PLAIN " + base64Of("\x00"+u.name+"\x00"+u.password), "235 "},
		{"MAIL FROM:<" + u.address + ">", "250 "},
		{"RCPT TO:<" + u.address + ">", "250 "},
		{"DATA", "354 "},
		{strings.ReplaceAll(mail(u, subject), "\r\n.", "\r\n..") + ".", "250 "},
		{"QUIT", "221 "},
	} {
		verb, _, _ := strings.Cut(step.command, " ")
		if verb == "MAIL" {
			waited()
		}
		answer, err := ask(conn, step.command, "")
		if err == nil && !strings.HasPrefix(answer, step.want) {
			err = fmt.Errorf("want %s", step.want)
		}
		if err != nil {
			return fmt.Errorf("%.4s: %s: %w", verb, answer, err)
		}
	}
	return nil
}
