package service

import (
	"context"
	"net"
	osuser "os/user"
	"strconv"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy/admin"
)

// newControl returns what answers the questions of subcommands. What only a
// Postern that runs can do is an admin.Handle here, and an admin.Call there.
func (s *Service) newControl() *admin.Server {
	c := &admin.Server{Log: s.log, Routine: []string{stored.AskGet, stored.AskSwap, stored.AskScan}}
	s.answerSessions(c)
	stored.ForgetUIDLs.Register(c, s.Storage)
	stored.ExportUIDLs.Register(c, s.Storage)
	stored.ImportUIDLs.Register(c, s.Storage)
	stored.AcceptChanges.Register(c, s.Storage)
	stored.UidlHistory.Register(c, s.Storage)
	stored.UndoUIDLs.Register(c, s.Storage)
	s.Storage.Serving = s.serving
	AnswerCerts(c, s.store)
	s.answerGuard(c)
	admin.Handle(c, "reload", s.onRequest(s.reload))
	admin.Handle(c, "upgrade", s.onRequest(s.upgrade))
	s.answerPredecessor(c)
	return c
}

// setControl finds out who may ask.
func (h *generation) setControl() error {
	h.gid = -1
	name := h.cfg.Control.Group
	if name == "" {
		return nil
	}
	group, err := osuser.LookupGroup(name)
	if err == nil {
		h.gid, err = strconv.Atoi(group.Gid)
	}
	if err != nil {
		return configs.Errors{h.cfg.Errorf("control.group", "%v", err)}
	}
	return nil
}

// openControl opens the control socket, if there is to be one.
func (s *Service) openControl(h *generation) (err error) {
	if path := h.cfg.Control.Socket; path != "" {
		s.controlListener, err = admin.Listen(path, h.gid)
	}
	return err
}

// serveControl answers until ctx ends, which is after the last session.
func (s *Service) serveControl(ctx context.Context, asking net.Listener) {
	if err := s.control.Serve(ctx, asking); err != nil {
		s.log.Error("commands are not answered", "err", err)
	}
}
