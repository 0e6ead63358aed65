package service

import (
	"postern/cmd/postern/internal/stored"
	"postern/proxy/admin"
)

// newControl returns the server of the control socket. For a request that only the
// running Postern can answer there is an admin.Handle here, and an admin.Call in
// cmd/postern.
func (s *Service) newControl() *admin.Server {
	c := &admin.Server{Log: s.log, Routine: []string{stored.AskGet, stored.AskSwap, stored.AskScan}}
	s.answerSessions(c)
	stored.ForgetUIDLs.Register(c, s.Storage)
	stored.ExportUIDLs.Register(c, s.Storage)
	stored.ImportUIDLs.Register(c, s.Storage)
	stored.AcceptChanges.Register(c, s.Storage)
	stored.UIDLHistory.Register(c, s.Storage)
	stored.UndoUIDLs.Register(c, s.Storage)
	s.Storage.Serving = s.checkNoSession
	AnswerCerts(c, s.store)
	s.answerGuard(c)
	admin.Handle(c, "reload", s.onRequest(s.reload))
	admin.Handle(c, "upgrade", s.onRequest(s.upgrade))
	s.answerPredecessor(c)
	return c
}
