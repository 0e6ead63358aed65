package memserver

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"slices"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

const (
	maxRecipients = 100
	// maxLine is far beyond RFC 5321: tests send lines of a megabyte.
	maxLine     = 2 << 20
	smtpTimeout = 5 * time.Minute
)

func (s *Server) newSMTP(config *tls.Config, logger *log.Logger) *smtp.Server {
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		return &submission{server: s}, nil
	}))
	server.Domain = "localhost"
	server.TLSConfig = config
	server.AllowInsecureAuth = true
	server.ErrorLog = logger
	server.MaxRecipients = maxRecipients
	server.MaxMessageBytes = MaxMessageSize
	server.MaxLineLength = maxLine
	server.ReadTimeout = smtpTimeout
	server.WriteTimeout = smtpTimeout
	server.EnableSMTPUTF8 = true
	server.EnableDSN = true
	return server
}

var (
	errAuthRequired = &smtp.SMTPError{Code: 530, EnhancedCode: smtp.EnhancedCode{5, 7, 0}, Message: "Authentication required"}
	errNoMailbox    = &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "No such user here, and this server sends nothing away"}
)

// A submission is the state of an SMTP session.
type submission struct {
	server  *Server
	user    string // authenticated
	from    string
	to      []string
	inboxes []string // of to
}

// AuthMechanisms is part of smtp.AuthSession.
func (s *submission) AuthMechanisms() []string {
	if s.server.token != nil {
		return []string{xoauth2}
	}
	return []string{sasl.Plain, sasl.Login}
}

// Auth is part of smtp.AuthSession.
func (s *submission) Auth(mechanism string) (sasl.Server, error) {
	switch {
	case !slices.Contains(s.AuthMechanisms(), mechanism):
	case mechanism == xoauth2:
		return &xoauth2Server{login: func(user, token string) error {
			if !s.server.verifyToken(user, token) {
				return smtp.ErrAuthFailed
			}
			s.user = user
			return nil
		}}, nil
	case mechanism == sasl.Plain:
		return sasl.NewPlainServer(func(identity, user, password string) error {
			if identity != "" && identity != user {
				return smtp.ErrAuthFailed
			}
			return s.login(user, password)
		}), nil
	case mechanism == sasl.Login:
		return &loginServer{login: s.login}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

func (s *submission) login(user, password string) error {
	if !s.server.verify(user, password) {
		return smtp.ErrAuthFailed
	}
	s.user = user
	return nil
}

// Mail is part of smtp.Session.
func (s *submission) Mail(from string, _ *smtp.MailOptions) error {
	if s.user == "" {
		return errAuthRequired
	}
	s.from = from
	return nil
}

// Rcpt is part of smtp.Session.
func (s *submission) Rcpt(to string, _ *smtp.RcptOptions) error {
	inbox, ok := s.server.recipient(to)
	if !ok {
		return errNoMailbox
	}
	s.to = append(s.to, to)
	s.inboxes = append(s.inboxes, inbox)
	return nil
}

// Data is part of smtp.Session. The message is delivered unchanged.
func (s *submission) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	if s.server.accepted != nil {
		s.server.accepted(s.from, s.to, raw)
	}
	delivered := make(map[string]bool)
	for _, inbox := range s.inboxes {
		if delivered[inbox] {
			continue
		}
		delivered[inbox] = true
		if err := s.server.Append(inbox, raw); err != nil {
			return err
		}
	}
	return nil
}

// Reset is part of smtp.Session.
func (s *submission) Reset() { s.from, s.to, s.inboxes = "", nil, nil }

// Logout is part of smtp.Session.
func (s *submission) Logout() error { return nil }

// A loginServer is the server's side of AUTH LOGIN, which go-sasl lacks:
// draft-murchison-sasl-login.
type loginServer struct {
	login   func(user, password string) error
	user    string
	hasUser bool
}

// Next is part of sasl.Server.
func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case response == nil:
		return []byte("Username:"), false, nil
	case !l.hasUser:
		l.user, l.hasUser = string(response), true
		return []byte("Password:"), false, nil
	default:
		return nil, true, l.login(l.user, string(response))
	}
}
