package proxytest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// TokenServers are an IMAP and a submission server that take the tokens of an OAuth by
// XOAUTH2 and nothing else. After the login they are the two servers behind them, which
// take the password that Password returns.
type TokenServers struct {
	IMAP, Submission string // host:port, without TLS

	oauth      *OAuth
	submission string
	password   func(user string) string

	mu     sync.Mutex
	imap   string
	logins []string
	sent   bytes.Buffer
	refuse func(protocol, message string) string
}

// StartTokenServers starts the servers in front of an IMAP and a submission server, both
// without TLS. They live as long as the test. o nil: they take the passwords, by PLAIN, to
// compare with.
func StartTokenServers(t testing.TB, o *OAuth, imap, submission string, password func(user string) string) *TokenServers {
	t.Helper()
	s := &TokenServers{oauth: o, imap: imap, submission: submission, password: password}
	s.IMAP, s.Submission = serveEach(t, s.serveIMAP), serveEach(t, s.serveSubmission)
	return s
}

// serveEach serves each connection to a free port of the loopback until the end of the test.
func serveEach(t testing.TB, serve func(net.Conn, *bufio.Reader) error) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_ = serve(c, bufio.NewReaderSize(c, 1<<16))
			}()
		}
	}()
	return ln.Addr().String()
}

// Logins returns "imap alice@example.org" for each token that was sent, also for those
// that were refused.
func (s *TokenServers) Logins() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.logins...)
}

// SetIMAP puts another IMAP server behind, for sessions that begin from now on.
func (s *TokenServers) SetIMAP(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.imap = address
}

// Sent returns the first MiB of what clients have sent after their logins.
func (s *TokenServers) Sent() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent.String()
}

// Write implements io.Writer, for handOver.
func (s *TokenServers) Write(p []byte) (int, error) {
	const most = 1 << 20
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent.Write(p[:min(len(p), most-s.sent.Len())])
	return len(p), nil
}

// Refuse lets answer write the lines with which a login is refused, each with its line
// break, given the client's message in base64; "" is no refusal. nil: a token that the
// OAuth has issued logs in.
func (s *TokenServers) Refuse(answer func(protocol, message string) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = answer
}

// mechanism is the only one that the servers take.
func (s *TokenServers) mechanism() string {
	if s.oauth == nil {
		return "PLAIN"
	}
	return "XOAUTH2"
}

// credentials returns what a message of the mechanism has.
func (s *TokenServers) credentials(message string) (user, secret string, ok bool) {
	octets, _ := base64.StdEncoding.DecodeString(message)
	if s.oauth == nil {
		fields := bytes.Split(octets, []byte{0})
		if len(fields) != 3 {
			return "", "", false
		}
		return string(fields[1]), string(fields[2]), true
	}
	fields := bytes.Split(octets, []byte{1})
	if len(fields) != 4 {
		return "", "", false
	}
	return strings.TrimPrefix(string(fields[0]), "user="), strings.TrimPrefix(string(fields[1]), "auth=Bearer "), true
}

// verdict returns the user whom a message logs in, or the lines that refuse it.
func (s *TokenServers) verdict(protocol, message, no string) (user, refusal string) {
	user, secret, ok := s.credentials(message)
	if !ok {
		return "", no
	}
	s.mu.Lock()
	s.logins = append(s.logins, protocol+" "+user)
	answer := s.refuse
	s.mu.Unlock()
	if answer != nil {
		if lines := answer(protocol, message); lines != "" {
			return user, lines
		}
	}
	if s.oauth == nil && secret != s.password(user) || s.oauth != nil && !s.oauth.lets(user, secret) {
		return user, no
	}
	return user, ""
}

// lets reports whether token lets user in now.
func (o *OAuth) lets(user, token string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	issued, ok := o.tokens[token]
	return ok && time.Now().Before(issued.ends) && (issued.user == "" || issued.user == user)
}

func (s *TokenServers) serveIMAP(c net.Conn, in *bufio.Reader) error {
	disabled := " LOGINDISABLED"
	if s.oauth == nil {
		disabled = ""
	}
	_, _ = fmt.Fprintf(c, "* OK [CAPABILITY IMAP4rev1 SASL-IR%s AUTH=%s] ready\r\n", disabled, s.mechanism())
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		tag, command, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		message, ok := strings.CutPrefix(command, "AUTHENTICATE "+s.mechanism()+" ")
		if !ok {
			if strings.EqualFold(command, "LOGOUT") {
				_, err := fmt.Fprintf(c, "* BYE\r\n%s OK\r\n", tag)
				return err
			}
			_, _ = fmt.Fprintf(c, "%s BAD only AUTHENTICATE\r\n", tag)
			continue
		}
		user, refusal := s.verdict("imap", message, tag+" NO [AUTHENTICATIONFAILED] no\r\n")
		if refusal != "" {
			_, _ = io.WriteString(c, strings.ReplaceAll(refusal, "TAG ", tag+" "))
			continue
		}
		s.mu.Lock()
		server := s.imap
		s.mu.Unlock()
		return s.handOver(c, in, server, tag+" OK in\r\n", "", fmt.Sprintf("x LOGIN %q %q\r\n", user, s.password(user)), "x OK")
	}
}

func (s *TokenServers) serveSubmission(c net.Conn, in *bufio.Reader) error {
	_, _ = io.WriteString(c, "220 tokens ESMTP\r\n")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		command := strings.TrimRight(line, "\r\n")
		if strings.EqualFold(command, "QUIT") {
			_, err := io.WriteString(c, "221 bye\r\n")
			return err
		}
		message, ok := strings.CutPrefix(command, "AUTH "+s.mechanism())
		if !ok {
			_, _ = fmt.Fprintf(c, "250-tokens\r\n250-SIZE 1000000\r\n250 AUTH %s\r\n", s.mechanism())
			continue
		}
		if message = strings.TrimSpace(message); message == "" {
			_, _ = io.WriteString(c, "334 \r\n")
			if message, err = in.ReadString('\n'); err != nil {
				return err
			}
			message = strings.TrimSpace(message)
		}
		user, refusal := s.verdict("submission", message, "535 5.7.8 no\r\n")
		if refusal != "" {
			_, _ = io.WriteString(c, refusal)
			continue
		}
		plain := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + s.password(user)))
		return s.handOver(c, in, s.submission, "235 2.7.0 in\r\n", "EHLO tokens\r\n", "AUTH PLAIN "+plain+"\r\n", "235")
	}
}

// handOver logs in at the server behind, tells the client so, and relays until one of them
// ends.
func (s *TokenServers) handOver(c net.Conn, in *bufio.Reader, address, done, before, login, ok string) error {
	server, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	from := bufio.NewReader(server)
	if _, err := from.ReadString('\n'); err != nil {
		return err
	}
	if before != "" {
		_, _ = io.WriteString(server, before)
		for line := "250-"; strings.HasPrefix(line, "250-"); {
			if line, err = from.ReadString('\n'); err != nil {
				return err
			}
		}
	}
	_, _ = io.WriteString(server, login)
	for line := ""; !strings.HasPrefix(line, ok); {
		if line, err = from.ReadString('\n'); err != nil {
			return err
		}
		if strings.HasPrefix(line, "x NO") || strings.HasPrefix(line, "5") {
			return fmt.Errorf("the server behind refuses the login: %s", line)
		}
	}
	_, _ = io.WriteString(c, done)
	go func() {
		_, _ = io.Copy(server, io.TeeReader(in, s))
		_ = server.Close()
	}()
	_, err = io.Copy(c, from)
	return err
}
