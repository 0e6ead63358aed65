package memserver

import (
	"strings"

	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-sasl"
)

const xoauth2 = "XOAUTH2"

// verifyToken reports whether the token lets the account in.
func (s *Server) verifyToken(name, token string) bool {
	_, ok := s.users[name]
	return ok && s.token != nil && s.token(name, token)
}

// A tokenSession is a session of a server that takes tokens alone. It implements
// imapserver.SessionSASL.
type tokenSession struct{ *session }

// AuthenticateMechanisms is part of imapserver.SessionSASL.
func (s *tokenSession) AuthenticateMechanisms() []string { return []string{xoauth2} }

// Authenticate is part of imapserver.SessionSASL.
func (s *tokenSession) Authenticate(mechanism string) (sasl.Server, error) {
	if mechanism != xoauth2 {
		return nil, errNo("", "SASL mechanism not supported")
	}
	return &xoauth2Server{login: func(user, token string) error {
		if !s.server.verifyToken(user, token) {
			return imapserver.ErrAuthFailed
		}
		s.user = s.server.users[user]
		return nil
	}}, nil
}

// An xoauth2Server is the server's side of XOAUTH2, as Google and Microsoft document it:
// user=NAME ^A auth=Bearer TOKEN ^A ^A, and after a no a challenge, which the client answers
// with nothing.
type xoauth2Server struct {
	login  func(user, token string) error
	failed error
}

// Next is part of sasl.Server.
func (x *xoauth2Server) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case x.failed != nil:
		return nil, true, x.failed
	case response == nil:
		return nil, false, nil
	}
	var user, token string
	for field := range strings.SplitSeq(string(response), "\x01") {
		if name, ok := strings.CutPrefix(field, "user="); ok {
			user = name
		}
		if value, ok := strings.CutPrefix(field, "auth=Bearer "); ok {
			token = value
		}
	}
	if x.failed = x.login(user, token); x.failed == nil {
		return nil, true, nil
	}
	return []byte(`{"status":"401","schemes":"bearer","scope":"mail"}`), false, nil
}
