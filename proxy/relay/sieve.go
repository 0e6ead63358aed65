package relay

import (
	"bytes"
	"context"
	"io"
	"regexp"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// Sieve is a proxy.Session that copies the octets of ManageSieve (RFC 5804), so that every
// extension works. It reads the client's octets only to stop UNAUTHENTICATE.
type Sieve struct {
	BackendName string        // the backend's name
	Conn        Upstream      // logged in
	Idle        time.Duration // without octets in either direction; 0: proxy.DefaultSieveIdle

	splice *spliceConn // nil before Run
}

// Open implements proxy.Session. The words for the client are the dialogue's.
func (s *Sieve) Open(context.Context) (welcome string, err error) { return "", nil }

// Run implements proxy.Session. Clients connect for a moment: when the server crashes they
// are closed at once.
func (s *Sieve) Run(ctx context.Context, client *proxy.Conn) error {
	idle := s.Idle
	if idle == 0 {
		idle = proxy.DefaultSieveIdle
	}
	if s.splice == nil {
		s.splice = newSplice(client, s.Conn, lifetime{idle: idle}, sieveSyntax, &sieveWatch{})
	}
	return s.splice.run(ctx)
}

// sieveSyntax: RFC 5804 section 1.2. A text in a literal ends otherwise.
var sieveSyntax = syntax{
	response: regexp.MustCompile(`^(OK|NO)( .*)?\r\n$`),
	bye: func(text string) string {
		return string(append(wire.AppendSieveString([]byte("BYE "), []byte(text)), "\r\n"...))
	},
	byeWord: "BYE",
}

// Close implements proxy.Session.
func (s *Sieve) Close() error { return s.Conn.Close() }

// Backend implements proxy.Reporter.
func (s *Sieve) Backend() string { return s.BackendName }

// Totals implements proxy.Reporter. Nothing is counted.
func (s *Sieve) Totals() proxy.Totals { return proxy.Totals{} }

// A sieveWatch ends a session in which the client sends UNAUTHENTICATE (RFC 5804 section
// 2.14.1): the connection would be back in the state in which passwords are tried, where
// nothing would count them. Servers that have the command need not announce it before the
// login, and servers skip a command with an error to the end of its first line: what was a
// literal becomes commands. So the watch knows no literals, and the word ends the session
// wherever a line begins with it, in a script as well.
type sieveWatch struct {
	matched int  // octets of the word that the line has begun with
	other   bool // the line begins with another word
}

const unauthenticate = "UNAUTHENTICATE"

// toServer implements watch.
func (w *sieveWatch) toServer(server io.Writer) io.Writer { return sieveWriter{w, server} }

// toClient implements watch.
func (w *sieveWatch) toClient(client io.Writer) io.Writer { return client }

// close implements watch. No Write waits.
func (w *sieveWatch) close() {}

// betweenResponses implements watch. The server's octets are not read.
func (w *sieveWatch) betweenResponses() bool { return false }

// A sieveWriter is the server as the writer for the client's octets.
type sieveWriter struct {
	*sieveWatch
	to io.Writer
}

// Write forwards octets up to the end of the word.
func (w sieveWriter) Write(p []byte) (n int, err error) {
	allowed, forbidden := w.scan(p)
	if n, err = w.to.Write(p[:allowed]); err == nil && forbidden {
		err = forbid(unauthenticate)
	}
	return n, err
}

// scan returns how many octets of p may be forwarded, and whether the next one completes the
// word. Servers skip spaces before a command, and take CR or LF alone for the end of a line.
func (w *sieveWatch) scan(p []byte) (n int, forbidden bool) {
	for n < len(p) {
		c := p[n]
		lineEnd := c == '\r' || c == '\n'
		alphanumeric := 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
		switch {
		case w.matched == len(unauthenticate) && !alphanumeric:
			return n, true
		case lineEnd:
			*w = sieveWatch{}
		case w.other:
			i := bytes.IndexAny(p[n:], "\r\n")
			if i < 0 {
				return len(p), false
			}
			n += i
			continue
		case c <= ' ' && w.matched == 0:
		case w.matched < len(unauthenticate) && upper(c) == unauthenticate[w.matched]:
			w.matched++
		default:
			w.matched, w.other = 0, true
		}
		n++
	}
	return n, false
}
