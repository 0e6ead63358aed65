package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
)

// The protocols a Service can speak with its clients.
const (
	IMAP       = "imap"
	POP3       = "pop3"
	Submission = "submission"
	Sieve      = "sieve" // ManageSieve, RFC 5804
)

// Protocols returns the protocols in the order in which lists show them.
func Protocols() []string { return []string{IMAP, POP3, Submission, Sieve} }

// A Client is what is known about the peer of one connection.
type Client struct {
	ID                string               // the session id, in every log line and at the end of every refusal's text
	Addr, Local       netip.AddrPort       // from the PROXY header if its sender is trusted, else from the socket
	Service, Protocol string               // of the Service: the listener's name, and its protocol
	TLS               *tls.ConnectionState // nil before TLS
}

// WithSessionID returns text with the session id at its end: the id leads from a
// user's screenshot to the lines in the log.
func (c Client) WithSessionID(text string) string { return text + " (session " + c.ID + ")" }

// A Hello is what a client sent about itself before it logged in.
type Hello struct {
	Name string            // the argument of EHLO or HELO
	ID   map[string]string // of the IMAP ID command, RFC 2971
	UTF8 bool              // the POP3 command UTF8 was accepted, RFC 6856
}

// An Offer is what all backends offer that a Service may route to, as they were
// last probed.
type Offer struct {
	Mechanisms []string // of SASL, upper case; none: no backend was reached yet
	Extensions []string // EHLO lines, IMAP capabilities, or names and values of ManageSieve's, as the backend wrote them
}

// A Login is one attempt to log in.
type Login struct {
	Client    Client
	Mechanism string // PLAIN, XOAUTH2 or OAUTHBEARER: what kind of credential the Secret is
	Via       string // how the client sent the Secret: a Via constant
	User      string // as typed
	Account   string // User as rewritten by Service.Account: guard, state, lock, log and backend use Account
	Secret    *Secret
	Verified  bool   // Postern has checked the password itself: it is not for the backend, which has Credentials for this login
	Device    string // the ID of the device password that the Secret was; empty: none of package password
	Mailbox   string // that the backend's Credentials have opened for this login; empty: none yet
	Hello     Hello
	Offer     Offer // as announced on this connection

	// Again is true when a session logs in once more, because it has lost its connection
	// to the backend: such a login is the first of those that wait.
	Again bool

	// Watch is Conn.Watch of the client, during Permit.Try and Backend.Login. Whatever lets
	// the client wait there calls it to notice that the client leaves. nil: not available.
	Watch func(context.Context) (context.Context, func()) `json:"-"`
}

// A Secret is a password or a token. Only Reveal returns it: fmt, slog and
// encoders print "[secret]".
type Secret struct{ b []byte }

// NewSecret returns a Secret with a copy of b. The caller wipes b.
func NewSecret(b []byte) *Secret { return &Secret{append(make([]byte, 0, len(b)), b...)} }

// Reveal returns the secret itself, valid until Clear. It must not be copied
// into anything that lives longer.
func (s *Secret) Reveal() []byte {
	if s == nil {
		return nil
	}
	return s.b
}

// Clear overwrites the secret. It may be called again, and on nil.
func (s *Secret) Clear() {
	if s != nil {
		clear(s.b)
		s.b = nil
	}
}

const hidden = "[secret]"

// Format implements fmt.Formatter, for every verb.
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// String implements fmt.Stringer.
func (s *Secret) String() string { return hidden }

// LogValue implements slog.LogValuer.
func (s *Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements encoding.TextMarshaler.
func (s *Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }
