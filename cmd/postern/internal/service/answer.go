package service

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"postern/cmd/postern/internal/stored"
	"postern/proxy/admin"
)

// newControl returns the server of the control socket. For a request that only the
// running Postern can answer there is an admin.Handle here, and an admin.Call in
// cmd/postern.
func (s *Service) newControl() *admin.Server {
	c := &admin.Server{
		Log: s.log, Account: s.accountInLog,
		Routine: []string{AskStatus, stored.AskGet, stored.AskSwap, stored.AskScan, stored.ReadUIDLs.Name},
	}
	s.answerSessions(c)
	s.answerDrain(c)
	admin.Handle(c, AskStatus, s.status)
	stored.ForgetUIDLs.Register(c, s.Storage)
	stored.ExportUIDLs.Register(c, s.Storage)
	stored.ImportUIDLs.Register(c, s.Storage)
	stored.AddUIDLs.Register(c, s.Storage)
	stored.NoteCompared.Register(c, s.Storage)
	stored.ReadUIDLs.Register(c, s.Storage)
	stored.AcceptChanges.Register(c, s.Storage)
	stored.UIDLHistory.Register(c, s.Storage)
	stored.UndoUIDLs.Register(c, s.Storage)
	s.Storage.Serving = s.checkNoSession
	s.answerDevices(c)
	AnswerCerts(c, s.store)
	s.answerGuard(c)
	s.answerWhy(c)
	admin.Handle(c, "reload", s.onRequest(s.reload))
	admin.Handle(c, "upgrade", s.onRequest(s.upgrade))
	s.answerPredecessor(c)
	return c
}

// accountInLog returns what the log has of an account that the argument of a command names.
func (s *Service) accountInLog(typed string) []slog.Attr {
	account, err := s.account(typed)
	if err != nil {
		account = ""
	}
	return s.audit.Account(account, typed)
}

// errUnknown returns the error that there is no such thing as name, with the names that
// there are.
func errUnknown(what, name string, names []string) error {
	return fmt.Errorf("there is no %s %q; there are: %s", what, name, listed(names))
}

// listed returns names for an error, the first 20 of them.
func listed(names []string) string {
	const most = 20
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
