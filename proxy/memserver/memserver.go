// Package memserver serves mail that lives in memory: an IMAP server and an
// SMTP server that delivers into it. It is the mail server of the demo and of
// tests, so it keeps its promises rather than scaling: nothing is stored, and
// a client that stops reading in the middle of a FETCH holds its mailbox.
package memserver

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-imap/v2/imapserver/imapmemserver"
	"github.com/emersion/go-smtp"
)

// MaxMessageSize is the largest message that either server takes, in bytes.
const MaxMessageSize = 64 << 20

// An Account is a user of both servers, with the mailboxes INBOX, Sent and
// Trash. SMTP delivers to it what is addressed to User, or to User at any
// domain.
type Account struct{ User, Password string }

// Options of a [Server]. The zero value serves nobody.
type Options struct {
	Accounts []Account
	// UIDValidity is that of every INBOX; 0 stands for 1. A server whose mail is
	// gone when it ends must not begin with the same one again, or clients take
	// new messages for old ones. 16 bits are what is cheap to count up to.
	UIDValidity uint16
	// TLS offers STARTTLS; nil: not offered. A listener that speaks TLS from
	// the first byte (tls.NewListener) needs none. Passwords are taken with and
	// without TLS.
	TLS *tls.Config
	// Accepted is called for each message that SMTP has accepted, before it is
	// delivered and answered; nil: it is not called. It must not keep raw.
	Accepted func(from string, to []string, raw []byte)
	// Log gets what goes wrong inside; nil: nobody.
	Log *slog.Logger
}

// A Server is an IMAP and an SMTP server on the same mail. Its methods may be
// called by several goroutines.
type Server struct {
	accounts  map[string]Account
	mailboxes map[string]*imapmemserver.User
	accepted  func(string, []string, []byte)
	memory    *imapmemserver.Server
	imap      *imapserver.Server
	smtp      *smtp.Server
	conns     tracker
	serving   sync.WaitGroup // ServeIMAP and ServeSMTP
}

// New returns a Server that listens nowhere yet.
func New(o Options) *Server {
	logger := o.Log
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		accounts:  make(map[string]Account),
		mailboxes: make(map[string]*imapmemserver.User),
		accepted:  o.Accepted,
		memory:    imapmemserver.New(),
	}
	s.conns.init()
	for _, a := range o.Accounts {
		u := newUser(a, max(o.UIDValidity, 1))
		s.accounts[a.User], s.mailboxes[a.User] = a, u
		s.memory.AddUser(u)
	}
	s.imap = s.newIMAP(o.TLS, slog.NewLogLogger(logger.Handler(), slog.LevelWarn))
	s.smtp = s.newSMTP(o.TLS, slog.NewLogLogger(logger.Handler(), slog.LevelWarn))
	return s
}

// newUser makes the mailboxes of an account. The library counts UIDVALIDITY up
// by one for each mailbox created and has no other way to set it.
func newUser(a Account, uidValidity uint16) *imapmemserver.User {
	u := imapmemserver.NewUser(a.User, a.Password)
	for range uidValidity - 1 {
		must(u.Create("INBOX", nil))
		must(u.Delete("INBOX"))
	}
	for _, name := range []string{"INBOX", "Sent", "Trash"} {
		must(u.Create(name, nil))
		must(u.Subscribe(name))
	}
	return u
}

// must is for calls on a mailbox nobody else knows of yet.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// ServeIMAP serves IMAP4rev1 on ln until [Server.Close], which makes it return
// nil, or until ln fails. It closes ln.
func (s *Server) ServeIMAP(ln net.Listener) error {
	return s.serve(ln, s.imap.Serve)
}

// ServeSMTP serves submission on ln until [Server.Close], which makes it return
// nil, or until ln fails. It closes ln. Mail is taken only after AUTH, and only
// for accounts of this server.
func (s *Server) ServeSMTP(ln net.Listener) error {
	return s.serve(ln, s.smtp.Serve)
}

func (s *Server) serve(ln net.Listener, serve func(net.Listener) error) error {
	tracked, err := s.conns.listener(ln, &s.serving)
	if err != nil {
		return err
	}
	defer s.serving.Done()
	defer func() { _ = tracked.Close() }()
	if err := serve(tracked); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return nil
}

// Close closes all listeners and connections and waits until none is served
// any more. The mail is lost. Closing twice is allowed.
func (s *Server) Close() error {
	err := s.conns.close()
	s.serving.Wait()
	// Nothing is left to close: Shutdown only waits, as SMTP's Close does not.
	if smtpErr := s.smtp.Shutdown(context.Background()); smtpErr != nil && !errors.Is(smtpErr, smtp.ErrServerClosed) {
		err = errors.Join(err, smtpErr)
	}
	s.conns.wait()
	return err
}

// Append adds a message to the INBOX of user, as it stands.
func (s *Server) Append(user string, raw []byte) error {
	u := s.mailboxes[user]
	if u == nil {
		return fmt.Errorf("append to %q: no such account", user)
	}
	if _, err := u.Append("INBOX", literal{bytes.NewReader(raw)}, &imap.AppendOptions{}); err != nil {
		return fmt.Errorf("append to %q: %w", user, err)
	}
	return nil
}

// Renew replaces the INBOX of user by an empty one with another UIDVALIDITY, as
// when a server has lost its index. Connections that have it selected keep the
// old one.
func (s *Server) Renew(user string) error {
	u := s.mailboxes[user]
	if u == nil {
		return fmt.Errorf("renew %q: no such account", user)
	}
	if err := u.Delete("INBOX"); err != nil {
		return fmt.Errorf("renew %q: %w", user, err)
	}
	if err := u.Create("INBOX", nil); err != nil {
		return fmt.Errorf("renew %q: %w", user, err)
	}
	return u.Subscribe("INBOX")
}

// literal is a message as go-imap takes it.
type literal struct{ *bytes.Reader }

// verify reports whether the password is that of user.
func (s *Server) verify(user, password string) bool {
	a, ok := s.accounts[user]
	return ok && subtle.ConstantTimeCompare([]byte(a.Password), []byte(password)) == 1
}

// recipient returns the account that an address belongs to.
func (s *Server) recipient(address string) (user string, ok bool) {
	if _, ok := s.accounts[address]; ok {
		return address, true
	}
	local := address[:max(strings.LastIndexByte(address, '@'), 0)]
	_, ok = s.accounts[local]
	return local, ok
}
