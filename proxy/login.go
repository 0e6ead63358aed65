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
)

// A Client is what is known of the peer of one connection.
type Client struct {
	ID                string         // the session id: in every log line, and at the end of every refusal's text
	Addr, Local       netip.AddrPort // the PROXY header's where its sender is trusted, else the socket's
	Service, Protocol string
	TLS               *tls.ConnectionState // nil before TLS
}

// WithSessionID returns text with the session id at its end: the id leads from a
// user's screenshot to the lines in the log.
func (c Client) WithSessionID(text string) string { return text + " (session " + c.ID + ")" }

// LogValue implements slog.LogValuer: the fields that name a client.
func (c Client) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("listener", c.Service),
		slog.String("ip", c.Addr.Addr().String()),
		slog.String("session", c.ID))
}

// A Hello is what a client said of itself before it logged in.
type Hello struct {
	Name string            // of EHLO or HELO
	ID   map[string]string // of IMAP ID, RFC 2971
	UTF8 bool              // RFC 6856
}

// An Offer is what every backend that a service may route to has in common,
// as last probed.
type Offer struct {
	Mechanisms []string // SASL, upper case
	Extensions []string // EHLO lines or IMAP capabilities, as the backend wrote them
}

// A Login is one attempt to log in.
type Login struct {
	Client    Client
	Mechanism string // PLAIN, XOAUTH2, OAUTHBEARER: what the Secret is
	Via       string // how the client sent it: a Via constant
	User      string // as typed
	Account   string // as rewritten: guard, state, lock, log and backend use this
	Secret    *Secret
	Hello     Hello
	Offer     Offer // as announced on this connection

	// Watch is Conn.Watch of the client, for who lets it wait; nil: nobody can tell
	// when it leaves.
	Watch func(context.Context) (context.Context, func()) `json:"-"`
}

// A Secret is a password or a token. It shows itself to nobody but the caller
// of Reveal: fmt, slog and encoders print "[secret]".
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
