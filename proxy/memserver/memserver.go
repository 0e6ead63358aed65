// Package memserver has mail servers in memory: an IMAP server, and an SMTP
// server that delivers into it, for the demo and for tests. Messages are kept
// byte for byte.
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
	"time"

	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-smtp"
)

// MaxMessageSize is the largest message that either server takes, in bytes.
const MaxMessageSize = 64 << 20

// An Account is a user of both servers, with the mailboxes INBOX, Sent and Trash.
// SMTP delivers mail to User, and to User at any domain.
type Account struct{ User, Password string }

// Options of a [Server]. The zero value has no accounts.
type Options struct {
	Accounts []Account
	// UIDValidity is that of every INBOX; 0 means 1. A server whose mail is lost
	// when it ends must not use the same one again, or clients take new messages for
	// old ones.
	UIDValidity uint32
	// TLS offers STARTTLS; nil: it is not offered. A listener with implicit TLS
	// (tls.NewListener) needs none. Passwords are accepted with and without TLS.
	TLS *tls.Config
	// Accepted is called for each message that SMTP has accepted, before it is
	// delivered and answered; nil: it is not called. It must not keep raw.
	Accepted func(from string, to []string, raw []byte)
	// TakesToken reports whether a bearer token lets a user in. If it is set, both servers
	// take tokens alone, by XOAUTH2, and refuse every password. nil: they take passwords.
	TakesToken func(user, token string) bool
	// Log gets internal errors; nil: they are dropped.
	Log *slog.Logger
}

// A Server is an IMAP and an SMTP server with the same mail. Its methods may be
// called by several goroutines.
type Server struct {
	users    map[string]*user
	accepted func(from string, to []string, raw []byte)
	token    func(user, token string) bool // nil: passwords are taken
	imap     *imapserver.Server
	smtp     *smtp.Server
	conns    tracker
	serving  sync.WaitGroup // ServeIMAP and ServeSMTP
}

// New returns a Server without listeners.
func New(o Options) *Server {
	logger := o.Log
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{users: make(map[string]*user), accepted: o.Accepted, token: o.TakesToken}
	s.conns.init()
	for _, a := range o.Accounts {
		s.users[a.User] = newUser(a.Password, max(o.UIDValidity, 1))
	}
	s.imap = s.newIMAP(o.TLS, slog.NewLogLogger(logger.Handler(), slog.LevelWarn))
	s.smtp = s.newSMTP(o.TLS, slog.NewLogLogger(logger.Handler(), slog.LevelWarn))
	return s
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

// Close closes all listeners and connections, and waits until all sessions have
// ended. The mail is lost. Closing twice is allowed.
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

// Append adds a message to the INBOX of an account, unchanged.
func (s *Server) Append(name string, raw []byte) error {
	u, ok := s.users[name]
	if !ok {
		return fmt.Errorf("append to %q: no such account", name)
	}
	box, err := u.mailbox("INBOX")
	if err != nil {
		return fmt.Errorf("append to %q: %w", name, err)
	}
	box.append(bytes.Clone(raw), time.Now(), nil)
	return nil
}

// Renew replaces the INBOX of an account by an empty one with a higher
// UIDVALIDITY, as when a server has lost its index. Connections that have it
// selected keep the old one.
func (s *Server) Renew(name string) error {
	u, ok := s.users[name]
	if !ok {
		return fmt.Errorf("renew %q: no such account", name)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.create("INBOX")
	return nil
}

// verify reports whether the password is that of the account.
func (s *Server) verify(name, password string) bool {
	u, ok := s.users[name]
	return ok && s.token == nil && subtle.ConstantTimeCompare([]byte(u.password), []byte(password)) == 1
}

// recipient returns the account that an address belongs to.
func (s *Server) recipient(address string) (name string, ok bool) {
	if _, ok := s.users[address]; ok {
		return address, true
	}
	local := address[:max(strings.LastIndexByte(address, '@'), 0)]
	_, ok = s.users[local]
	return local, ok
}
