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

// Criterion: A Dovecot that allows 3 connections of an account refuses none of 20 clients of one account that come at once, by IMAP at two listeners and by POP3: Postern lets them wait for each other. The fourth submission is refused temporarily, in the protocol's words, and comes in when another one has ended.
func TestClientsOfAnAccountWaitForEachOther(t *testing.T) {
	proxytest.Need(t, "dovecot")
	t.Parallel()
	s := openTokenStageWith(t, "mail_max_userip_connections = 3\n", "account_connections: {imap: 3, submission: 3}, account_wait: 25s, ", "protocol: imap, name: imap-2")
	u := s.device(t, anna)
	second := s.at(t, "imap-2")
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			answer, err := s.visit(t, i, u, second)
			if err != nil || !strings.HasPrefix(answer, "a OK") && !strings.HasPrefix(answer, "+OK") {
				t.Errorf("client %d: %s, %v", i, hidden(answer), err)
			}
		})
	}
	clients.Wait()
	values, _ := s.scrape(t)
	if n := values[`postern_account_queue_logins_total{backend="main",protocol="imap",result="ok"}`]; n == "0" || n == "" {
		t.Error("no login has waited: the test shows nothing")
	}
	if got := values[`postern_account_queue_waiting{backend="main",protocol="imap"}`]; got != "0" {
		t.Errorf("%s logins wait after the last one", got)
	}
	if out := s.printed(t); strings.Contains(out, "[LIMIT]") {
		t.Error("Dovecot has refused a connection of Postern's")
	}
}

// visit logs in as client number i, by IMAP or POP3, stays for a moment, and leaves.
func (s *tokenStage) visit(t *testing.T, i int, u user, secondIMAP string) (string, error) {
	address := [...]string{s.imap, s.pop3, secondIMAP}[i%3]
	conn := s.tlsOn(t, dial(t, address))
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	defer func() { _ = conn.Close() }()
	if i%3 == 1 {
		if _, err := ask(conn, "USER "+u.name, "+OK"); err != nil { // the greeting, or its answer
			return "", err
		}
		answer, err := ask(conn, "PASS "+u.password, "")
		if err == nil && !strings.Contains(answer, "messages") { // the answer to USER came before
			answer, err = hear(conn, "")
		}
		if err != nil {
			return answer, err
		}
		time.Sleep(50 * time.Millisecond)
		_, err = ask(conn, "QUIT", "")
		return answer, err
	}
	answer, err := ask(conn, fmt.Sprintf("a LOGIN %s %s", u.name, u.password), "a ")
	if err != nil {
		return answer, err
	}
	time.Sleep(50 * time.Millisecond)
	_, err = ask(conn, "b LOGOUT", "b ")
	return answer, err
}

// Criterion: Of an account with submission: 3 the fourth connection is refused temporarily after account_wait, in SMTP's words, at no cost and with the reason too_many_sessions in the log; it is accepted as soon as another one has ended, and one whose client leaves does not wait on.
func TestTheFourthSubmissionWaits(t *testing.T) {
	proxytest.Need(t, "dovecot")
	t.Parallel()
	s := openTokenStageWith(t, "", "account_connections: {submission: 3}, account_wait: 2s, ", "protocol: submission, name: submission-2")
	u := s.device(t, anna)
	addresses := [...]string{s.smtp, s.at(t, "submission-2")}
	logIn := func(i int) (net.Conn, string) {
		t.Helper()
		conn := s.tlsOn(t, dial(t, addresses[i%2]))
		if _, err := ask(conn, "EHLO copier.example", "250 "); err != nil {
			t.Fatal(err)
		}
		answer, err := ask(conn, "AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "")
		if err != nil {
			t.Fatal(err)
		}
		return conn, answer
	}
	var open []net.Conn
	for i := range 3 {
		conn, answer := logIn(i)
		if !strings.HasPrefix(answer, "235 ") {
			t.Fatalf("connection %d: %s", i+1, hidden(answer))
		}
		open = append(open, conn)
	}
	begun := time.Now()
	fourth, answer := logIn(3)
	if took := time.Since(begun); !strings.HasPrefix(answer, "454 4.7.0 Too many sessions of this account") || took < 2*time.Second {
		t.Errorf("the fourth is answered %s after %v", hidden(answer), took)
	}
	refused := s.logged(t, "login refused")
	if len(refused) != 1 || refused[0].text("reason") != "too_many_sessions" || refused[0].text("tier") == "" ||
		!strings.Contains(refused[0].text("err"), "backend main, submission: all 3 connections of the account were in use for 2s (account_connections, account_wait)") {
		t.Errorf("log: %v", refused)
	}
	go func() {
		time.Sleep(300 * time.Millisecond)
		_, _ = ask(open[0], "QUIT", "221")
	}()
	if answer, err := ask(fourth, "AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), ""); err != nil || !strings.HasPrefix(answer, "235 ") {
		t.Errorf("after another one has ended: %s, %v", hidden(answer), err)
	}

	leaving := s.tlsOn(t, dial(t, s.smtp))
	if _, err := ask(leaving, "EHLO copier.example", "250 "); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(leaving, "AUTH PLAIN %s\r\n", base64Of("\x00"+u.name+"\x00"+u.password)); err != nil {
		t.Fatal(err)
	}
	waiting := func() string {
		values, _ := s.scrape(t)
		return values[`postern_account_queue_waiting{backend="main",protocol="submission"}`]
	}
	waitFor(t, "the login waits", func() bool { return waiting() == "1" })
	begun = time.Now()
	_ = leaving.Close()
	waitFor(t, "the login has ended with its client", func() bool { return waiting() == "0" })
	values, _ := s.scrape(t)
	if got := values[`postern_account_queue_logins_total{backend="main",protocol="submission",result="client_abort"}`]; got != "1" {
		t.Errorf("%s logins ended with their clients, want 1, after %v", got, time.Since(begun))
	}
}

// Criterion: When a backend ends while an account has all its connections there, the connections are given back: as soon as the backend is there again, the account comes in again.
func TestAConnectionToABackendThatEndsIsGivenBack(t *testing.T) {
	proxytest.Need(t, "dovecot")
	t.Parallel()
	s := openTokenStageWith(t, "", "account_connections: {imap: 2}, account_wait: 12s, ")
	u := s.device(t, anna)
	logIn := func() string {
		t.Helper()
		conn := s.tlsOn(t, dial(t, s.imap))
		answer, err := ask(conn, fmt.Sprintf("a LOGIN %s %s", u.name, u.password), "a ")
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if answer := logIn(); !strings.HasPrefix(answer, "a OK") {
		t.Fatal(hidden(answer))
	}
	loginPOP3(t, s.pop3, s.ca, u).command("STAT")
	s.dovecot.Stop(t)
	if answer := logIn(); !strings.HasPrefix(answer, "a NO [UNAVAILABLE]") && !strings.HasPrefix(answer, "a NO [LIMIT]") {
		t.Errorf("without a backend: %s", hidden(answer))
	}
	s.dovecot.Start(t)
	waitFor(t, "a login again", func() bool { return strings.HasPrefix(logIn(), "a OK") })
	if values, _ := s.scrape(t); values[`postern_account_queue_waiting{backend="main",protocol="imap"}`] != "0" {
		t.Error("a login waits after the last one")
	}
}
