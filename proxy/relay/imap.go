// Package relay carries a session between a client that is logged in and the
// server behind: IMAP as opaque octets, submission command by command.
package relay

import (
	"context"
	"net"
	"time"

	"postern/proxy"
)

// DefaultIdle is beyond the 29 minutes after which a client repeats IDLE, RFC
// 2177 section 3.
const DefaultIdle = 35 * time.Minute

// A Leg is the connection to the server behind. If it is a syscall.Conn that
// gives its descriptor, then what can be read there is what Read would return.
type Leg interface {
	net.Conn
	CloseWrite() error
}

// IMAP is a proxy.Session: after login client and server talk to each other,
// and every extension works. COMPRESS makes the octets unreadable, so nobody
// looks at them; but where the server offers UNAUTHENTICATE, the client's commands
// are looked at for it, and COMPRESS is not to be had.
type IMAP struct {
	Server       string // the backend's name
	Conn         Leg    // logged in
	Capabilities string // as in CAPABILITY
	Alert        string // of the server's for the user, in one line; empty: none
	Idle         time.Duration
	Watched      string        // the server's capabilities as they are, for a session whose commands are looked at; empty: nobody does
	Spread       time.Duration // within which clients are let go when the server crashes; 0: at once
}

// Open implements proxy.Session. Clients know the server's capabilities from
// the answer to their login, some only from there. An alert has to be shown to
// the user: RFC 3501 section 7.1.
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
		idle = DefaultIdle
	}
	var w *watch
	if s.Watched != "" {
		w = newWatch(s.Watched)
	}
	return splice(ctx, client, s.Conn, idle, s.Spread, w)
}

// Close implements proxy.Session.
func (s *IMAP) Close() error { return s.Conn.Close() }

// Backend implements proxy.Reporter.
func (s *IMAP) Backend() string { return s.Server }

// Totals implements proxy.Reporter: opaque octets tell nothing.
func (s *IMAP) Totals() proxy.Totals { return proxy.Totals{} }
