// Package relay carries a session between a client that is logged in and the
// server behind Postern. IMAP and Sieve copy octets in both directions and read them only
// to stop UNAUTHENTICATE. Submission and POP3 read commands and replies, and forward only
// those that they know. All implement proxy.Session.
package relay

import (
	"context"
	"regexp"
	"time"

	"postern/proxy"
)

// IMAP is a proxy.Session that copies octets, so that every extension works. It
// does not read them: COMPRESS makes them unreadable. If the server offers
// UNAUTHENTICATE (Watched is set), it watches the client's commands for it and
// does not allow COMPRESS.
type IMAP struct {
	BackendName      string        // the backend's name
	Conn             Upstream      // logged in
	Capabilities     string        // as in a CAPABILITY response
	Alert            string        // one line that the server wants shown to the user; empty: none
	Idle             time.Duration // without octets in either direction; 0: proxy.DefaultIMAPIdle
	Watched          string        // the server's own capabilities if commands are to be watched; empty: they are not
	DisconnectSpread time.Duration // within which clients are closed when the server crashes; 0: at once
	Until            time.Time     // the session ends then or later, as soon as no command is under way: the server would end it with its token; zero: never

	splice *spliceConn // nil before Run
}

// Open implements proxy.Session. Clients learn the server's capabilities from the
// response to their login, some only from there. An alert must be shown to the
// user: RFC 3501 section 7.1.
func (s *IMAP) Open(context.Context) (welcome string, err error) {
	welcome = "[CAPABILITY " + s.Capabilities + "] Logged in"
	if s.Alert != "" {
		welcome = "[ALERT] " + s.Alert + "\r\n" + welcome
	}
	s.Capabilities, s.Alert = "", "" // a session may last for days
	return welcome, nil
}

// Run implements proxy.Session.
func (s *IMAP) Run(ctx context.Context, client *proxy.Conn) error {
	idle := s.Idle
	if idle == 0 {
		idle = proxy.DefaultIMAPIdle
	}
	if s.splice == nil {
		var w watch
		if s.Watched != "" {
			w = newWatch(s.Watched)
		}
		s.splice = newSplice(client, s.Conn, lifetime{idle, s.DisconnectSpread, s.Until}, imapSyntax, w)
	}
	return s.splice.run(ctx)
}

// imapSyntax: an untagged response, a continuation request, or a tagged response may be
// followed by another response.
var imapSyntax = syntax{
	response: regexp.MustCompile(`^(\* ([0-9]+ )?[A-Z]+( [^{]*)?|\+( [^{]*)?|[^ {]+ (OK|NO|BAD)( .*)?)\r\n$`),
	bye:      func(text string) string { return "* BYE " + text + "\r\n" },
	byeWord:  "* BYE", byeAtEnd: true, // RFC 3501 section 6.1.3
}

// Close implements proxy.Session.
func (s *IMAP) Close() error { return s.Conn.Close() }

// Backend implements proxy.Reporter.
func (s *IMAP) Backend() string { return s.BackendName }

// Totals implements proxy.Reporter. Nothing is counted.
func (s *IMAP) Totals() proxy.Totals { return proxy.Totals{} }
