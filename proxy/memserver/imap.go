package memserver

import (
	"crypto/tls"
	"log"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
)

func (s *Server) newIMAP(config *tls.Config, logger *log.Logger) *imapserver.Server {
	return imapserver.New(&imapserver.Options{
		NewSession:   s.newSession,
		TLSConfig:    config,
		InsecureAuth: true,
		Logger:       logger,
		// SASL-IR, LITERAL-, ENABLE, IDLE and UNSELECT are always on. IMAP4rev2
		// is not offered: few servers do, and clients take other paths with it.
		Caps: imap.CapSet{
			imap.CapIMAP4rev1:    {},
			imap.CapNamespace:    {},
			imap.CapUIDPlus:      {},
			imap.CapESearch:      {},
			imap.CapSearchRes:    {},
			imap.CapListExtended: {},
			imap.CapListStatus:   {},
			imap.CapMove:         {},
			imap.CapStatusSize:   {},
			imap.CapLiteralPlus:  {},
		},
	})
}

func (s *Server) newSession(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
	if !s.conns.enter() {
		return nil, nil, &imap.Error{Type: imap.StatusResponseTypeBye, Text: "Closing"}
	}
	memory := s.memory.NewSession().(imapserver.SessionIMAP4rev2) // has MOVE and NAMESPACE
	return &session{SessionIMAP4rev2: memory, conns: &s.conns}, nil, nil
}

// A session tells the server when it ends.
type session struct {
	imapserver.SessionIMAP4rev2
	conns *tracker
}

// AppendLimit is part of imapserver.SessionAppendLimit.
func (s *session) AppendLimit() uint32 { return MaxMessageSize }

// Close is part of imapserver.Session.
func (s *session) Close() error {
	defer s.conns.leave()
	return s.SessionIMAP4rev2.Close()
}
